//go:build !unix

package gate

import (
	"fmt"
	"net"
)

// unpublish is not supported on this system.
func (n *unixName) unpublish(l net.Listener) (replacement net.Listener, removed bool, err error) {
	return l, false, fmt.Errorf("duplicate unix listener: %w", errUnsupported)
}
