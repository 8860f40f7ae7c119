package gate

import (
	"errors"
	"fmt"
	"net"
	"sync"
	"syscall"
	"time"

	"golang.org/x/net/bpf"
	"golang.org/x/sys/unix"
)

// nowhere is the number of an interface that does not exist: the kernel gives
// out small ones. It is not looked up when a socket is tied to it.
const nowhere = 0x7ffffffe

// Shut makes the kernel refuse requests for new connections to the listening
// TCP socket behind rc. Handshakes under way finish, and the accept queue stays.
// It tries, in this order:
//
//   - [Interface]: Linux 5.1 with CAP_NET_RAW; from 5.7 on without a privilege
//     if the socket is not bound to a device. Multipath TCP too, which net.Listen
//     makes by default since Go 1.24.
//   - [Filter]: plain TCP only. The kernel wants CAP_NET_ADMIN for it since 2026,
//     stable branches included.
//
// Either belongs to the socket, not to the descriptor, and the first cannot be
// undone without CAP_NET_RAW: nobody else may have the socket, or go on with it.
// In a group of SO_REUSEPORT sockets, Interface shuts nobody out before all have
// it, see [Pending]. A second call returns what the first did.
//
// A handshake that a SYN cookie stands for, as in a flood of SYNs, has no state
// by which the kernel would find it once the listener is tied away: it is
// refused.
func Shut(rc syscall.RawConn) Outcome {
	return firstOf(
		try{Interface, func() error { return control(rc, bindAway) }},
		try{Filter, func() error { return control(rc, attachFilter) }},
	)
}

// ShutOne makes the kernel drop requests for new connections to one socket of a
// SO_REUSEPORT group, which only [Filter] can.
func ShutOne(rc syscall.RawConn) Outcome {
	return firstOf(try{Filter, func() error { return control(rc, attachFilter) }})
}

func control(rc syscall.RawConn, f func(fd int) error) error {
	var opErr error
	err := rc.Control(func(fd uintptr) { opErr = f(int(fd)) })
	return errors.Join(err, opErr)
}

// bindAway ties a socket to an interface that does not exist.
func bindAway(fd int) error {
	proto, err := unix.GetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_PROTOCOL)
	if err != nil {
		return err
	}
	switch proto {
	case unix.IPPROTO_TCP:
	case unix.IPPROTO_MPTCP:
		if !Multipath() {
			return fmt.Errorf("on Multipath TCP: %w", errUnsupported)
		}
	default:
		return fmt.Errorf("socket protocol %d: %w", proto, errUnsupported)
	}
	return setBound(fd)
}

func setBound(fd int) error {
	if isBoundAway(fd) {
		return nil // The kernel would want a privilege for a second time.
	}
	return unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_BINDTOIFINDEX, nowhere)
}

func isBoundAway(fd int) bool {
	index, err := unix.GetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_BINDTOIFINDEX)
	return err == nil && index == nowhere
}

// Multipath reports whether [Interface] works on Multipath TCP sockets. Old
// kernels take the option and do not pass it on to the TCP socket below, so one
// is tried out, once: it takes a fraction of a millisecond.
var Multipath = sync.OnceValue(func() bool {
	fd, err := unix.Socket(unix.AF_INET, unix.SOCK_STREAM|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, unix.IPPROTO_MPTCP)
	if err != nil {
		return false
	}
	defer unix.Close(fd)
	if unix.Bind(fd, &unix.SockaddrInet4{Addr: [4]byte{127, 0, 0, 1}}) != nil || unix.Listen(fd, 1) != nil || setBound(fd) != nil {
		return false
	}
	sa, err := unix.Getsockname(fd)
	if err != nil {
		return false
	}
	addr := net.TCPAddr{IP: net.IPv4(127, 0, 0, 1), Port: sa.(*unix.SockaddrInet4).Port}
	c, err := net.DialTimeout("tcp", addr.String(), time.Second)
	if err == nil {
		c.Close()
	}
	return errors.Is(err, unix.ECONNREFUSED)
})

// synFilter drops TCP segments that have SYN set and ACK clear and passes all
// others. A filter on a TCP socket sees the segment from its TCP header on,
// over IPv4 and IPv6 alike; byte 13 holds the flags.
//
// Accepted connections inherit it; it does nothing to them, as no segment of an
// established connection has SYN without ACK.
var synFilter = []bpf.Instruction{
	bpf.LoadAbsolute{Off: 13, Size: 1},
	bpf.ALUOpConstant{Op: bpf.ALUOpAnd, Val: tcpSYN | tcpACK},
	bpf.JumpIf{Cond: bpf.JumpEqual, Val: tcpSYN, SkipFalse: 1},
	bpf.RetConstant{Val: 0},
	bpf.RetConstant{Val: 1 << 31},
}

const (
	tcpSYN = 0x02
	tcpACK = 0x10
)

// attachFilter attaches synFilter. Multipath TCP sockets refuse filters
// (EOPNOTSUPP), and sockets of other families have no handshake to drop.
func attachFilter(fd int) error {
	proto, err := unix.GetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_PROTOCOL)
	if err != nil {
		return err
	}
	if proto != unix.IPPROTO_TCP {
		return fmt.Errorf("socket protocol %d: %w", proto, errUnsupported)
	}
	prog, err := bpf.Assemble(synFilter)
	if err != nil {
		return err
	}
	filter := make([]unix.SockFilter, len(prog))
	for i, in := range prog {
		filter[i] = unix.SockFilter{Code: in.Op, Jt: in.Jt, Jf: in.Jf, K: in.K}
	}
	return unix.SetsockoptSockFprog(fd, unix.SOL_SOCKET, unix.SO_ATTACH_FILTER,
		&unix.SockFprog{Len: uint16(len(filter)), Filter: &filter[0]})
}
