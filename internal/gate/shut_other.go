//go:build !linux

package gate

import (
	"fmt"
	"syscall"
)

// Shut is not supported on this system: it has no socket filter that an
// unprivileged process could attach to a listening socket.
func Shut(syscall.RawConn) error {
	return fmt.Errorf("attach SYN filter: %w", errUnsupported)
}
