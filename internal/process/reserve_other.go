//go:build !linux

package process

import (
	"fmt"
	"net"
)

// Reserve finds a loopback address for servers that are told where to listen.
// Nobody listened there a moment ago; this system cannot keep it free.
func Reserve() (addr string, release func(), err error) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return "", nil, fmt.Errorf("reserve an address: %w", err)
	}
	defer l.Close()
	return l.Addr().String(), func() {}, nil
}
