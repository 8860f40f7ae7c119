package process

import (
	"fmt"
	"net"

	"golang.org/x/sys/unix"
)

// Reserve finds a loopback address for servers that are told where to listen.
// One after the other may, until release is called. Meanwhile no connection
// gets the port as its own, as it could between two servers: the kernel gives
// none away that a socket is bound to, and lets others bind it, too, as long
// as that socket does not listen and all have SO_REUSEADDR.
func Reserve() (addr string, release func(), err error) {
	fd, err := unix.Socket(unix.AF_INET, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return "", nil, fmt.Errorf("reserve an address: %w", err)
	}
	sa := &unix.SockaddrInet4{Addr: [4]byte{127, 0, 0, 1}}
	if err = unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_REUSEADDR, 1); err == nil {
		err = unix.Bind(fd, sa)
	}
	var bound unix.Sockaddr
	if err == nil {
		bound, err = unix.Getsockname(fd)
	}
	if err != nil {
		unix.Close(fd)
		return "", nil, fmt.Errorf("reserve an address: %w", err)
	}
	port := bound.(*unix.SockaddrInet4).Port
	return net.JoinHostPort("127.0.0.1", fmt.Sprint(port)), func() { unix.Close(fd) }, nil
}
