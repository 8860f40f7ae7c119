//go:build !unix

package gate

import (
	"fmt"
	"net"
	"syscall"
)

// Queued is not supported on this system.
func Queued(syscall.RawConn) (int, error) {
	return 0, fmt.Errorf("read accept queue: %w", errUnsupported)
}

// Unpublish is not supported on this system.
func Unpublish(*net.UnixListener) (net.Listener, error) {
	return nil, fmt.Errorf("duplicate unix listener: %w", errUnsupported)
}
