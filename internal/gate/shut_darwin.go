package gate

import (
	"errors"
	"net"
	"sync"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// Shut tries to tie the socket to an interface that does not exist, as on
// Linux, by IP_BOUND_IF or IPV6_BOUND_IF.
//
// This has been compiled and not run. So a socket of its own is tried first: if
// that one does not refuse newcomers and keep its queue, [None] is the answer.
func Shut(rc syscall.RawConn) Outcome {
	return firstOf(try{Interface, func() error {
		if !works() {
			return errUnsupported
		}
		return bindAway(rc)
	}})
}

// ShutOne has no mechanism: what ties a socket away works on groups.
func ShutOne(syscall.RawConn) Outcome {
	return firstOf(try{Filter, func() error { return errUnsupported }})
}

const nowhere = 0x7ffffffe

func bindAway(rc syscall.RawConn) error {
	var opErr error
	err := rc.Control(func(fd uintptr) {
		sa, err := unix.Getsockname(int(fd))
		if err != nil {
			opErr = err
			return
		}
		switch sa.(type) {
		case *unix.SockaddrInet4:
			opErr = unix.SetsockoptInt(int(fd), unix.IPPROTO_IP, unix.IP_BOUND_IF, nowhere)
		case *unix.SockaddrInet6:
			opErr = unix.SetsockoptInt(int(fd), unix.IPPROTO_IPV6, unix.IPV6_BOUND_IF, nowhere)
		default:
			opErr = errUnsupported
		}
	})
	return errors.Join(err, opErr)
}

// works tries the mechanism out, once.
var works = sync.OnceValue(func() bool {
	l, err := net.ListenTCP("tcp4", &net.TCPAddr{IP: net.IPv4(127, 0, 0, 1)})
	if err != nil {
		return false
	}
	defer l.Close()
	rc, err := l.SyscallConn()
	if err != nil {
		return false
	}
	dial := func() error {
		c, err := net.DialTimeout("tcp4", l.Addr().String(), time.Second)
		if err == nil {
			defer c.Close()
		}
		return err
	}
	if dial() != nil || bindAway(rc) != nil || !errors.Is(dial(), unix.ECONNREFUSED) {
		return false
	}
	l.SetDeadline(time.Now().Add(time.Second))
	c, err := l.Accept()
	if err != nil {
		return false
	}
	c.Close()
	return true
})
