//go:build !unix

package gate

import (
	"fmt"
	"syscall"
)

// Queued is not supported on this system.
func Queued(syscall.RawConn) (int, error) {
	return 0, fmt.Errorf("read accept queue: %w", errUnsupported)
}
