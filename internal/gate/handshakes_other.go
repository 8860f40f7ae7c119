//go:build !linux

package gate

import (
	"fmt"
	"syscall"
)

// Handshakes is not supported on this system.
func Handshakes(syscall.RawConn) (Pending, error) {
	return Pending{}, fmt.Errorf("count handshakes: %w", errUnsupported)
}
