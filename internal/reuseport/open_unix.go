//go:build unix

package reuseport

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"slices"
	"strings"
	"syscall"

	"golang.org/x/sys/unix"
)

// Balanced says whether the system spreads connections among the sockets of an
// address. If not, a group has one socket that all seats share.
const Balanced = reuseOption != 0

type control = func(network, address string, rc syscall.RawConn) error

// listen makes a plain TCP listener, or a unix one. A Multipath TCP socket, the
// default of package net, refuses the programs that steer.
func listen(network, address string, c control) (net.Listener, error) {
	lc := net.ListenConfig{Control: c}
	lc.SetMultipathTCP(false)
	return lc.Listen(context.Background(), network, address)
}

// Open listens on the address with n sockets, or with a shared one if the
// network is "unix" or the system does not balance. Other networks are "tcp",
// "tcp4" and "tcp6". With port 0 all sockets have the port of the first.
//
// An address in use is an error that wraps EADDRINUSE, also if it is in use by
// SO_REUSEPORT sockets of the same user. On FreeBSD, two processes that open an
// address at the very same time may miss each other.
func Open(network, address string, n int) (*Group, error) {
	if n < 1 {
		return nil, fmt.Errorf("listen on %s with %d sockets: need at least one", address, n)
	}
	if err := checkNetwork(network); err != nil {
		return nil, fmt.Errorf("listen on %s: %w", address, err)
	}
	if network == "unix" || reuseOption == 0 {
		g := &Group{network: network, shared: true}
		if err := g.add(address, nil); err != nil {
			return nil, err
		}
		return g, nil
	}
	addr, err := net.ResolveTCPAddr(network, address)
	if err != nil {
		return nil, err
	}
	g := &Group{network: network, addr: addr}
	if err := g.claim(addr); err != nil {
		return nil, err
	}
	for len(g.fds) < n {
		if err := g.add(g.addr.String(), setReuse); err != nil {
			return nil, errors.Join(err, g.Close())
		}
	}
	return g, nil
}

// claim opens the first socket, if nobody listens on the address. SO_REUSEPORT
// lets in any process of the same user, so that a service started twice by mistake
// would share its connections with its double. So the socket listens without it,
// which the kernel allows to one, and gets it then, for those that follow.
func (g *Group) claim(addr *net.TCPAddr) error {
	if !joinsLate {
		// For port 0 the kernel picks one that nobody has, SO_REUSEPORT or not.
		if addr.Port != 0 {
			if err := probe(g.network, addr.String()); err != nil {
				return err
			}
		}
		return g.add(addr.String(), setReuse)
	}
	if err := g.add(addr.String(), nil); err != nil {
		return notFree(addr.String(), err)
	}
	if err := setReuse("", "", rawFD(g.fds[0])); err != nil {
		return errors.Join(err, g.Close())
	}
	return nil
}

// notFree says whose address is in use: package net names [::] 0.0.0.0.
func notFree(address string, err error) error {
	if errors.Is(err, syscall.EADDRINUSE) {
		return fmt.Errorf("address %s is not free: %w", address, err)
	}
	return err
}

// probe returns an error if someone listens on the address: a socket without
// SO_REUSEPORT finds out. As it has SO_REUSEADDR, like all listeners of package net,
// connections of a former server in TIME_WAIT do not count. Two processes that
// probe at the same time may miss each other.
//
// The socket is bound, and never listens: a client that connected to it would be
// reset.
func probe(network, address string) error {
	l, err := listen(network, address, func(_, address string, rc syscall.RawConn) error {
		var opErr error
		err := rc.Control(func(fd uintptr) { opErr = bind(int(fd), address) })
		return cmp.Or(err, opErr, errProbed)
	})
	if err == nil {
		return errors.Join(errors.New("the probe listens"), l.Close()) // cannot be
	}
	if errors.Is(err, errProbed) {
		return nil
	}
	return notFree(address, err)
}

// errProbed ends a listen that was only a probe.
var errProbed = errors.New("the address is free")

// bind binds a socket that package net has made for an address.
func bind(fd int, address string) error {
	addr, err := net.ResolveTCPAddr("tcp", address)
	if err != nil {
		return err
	}
	sa, err := unix.Getsockname(fd)
	if err != nil {
		return os.NewSyscallError("getsockname", err)
	}
	ip := addr.AddrPort().Addr()
	switch sa := sa.(type) {
	case *unix.SockaddrInet4:
		sa.Port = addr.Port
		if ip.IsValid() {
			sa.Addr = ip.Unmap().As4()
		}
	case *unix.SockaddrInet6:
		sa.Port = addr.Port
		if ip.IsValid() && !ip.IsUnspecified() {
			sa.Addr = ip.As16()
		}
		if i, err := net.InterfaceByName(addr.Zone); err == nil {
			sa.ZoneId = uint32(i.Index)
		}
	}
	return os.NewSyscallError("bind", unix.Bind(fd, sa))
}

func setReuse(_, _ string, rc syscall.RawConn) error {
	var opErr error
	err := rc.Control(func(fd uintptr) {
		opErr = unix.SetsockoptInt(int(fd), unix.SOL_SOCKET, reuseOption, 1)
	})
	return os.NewSyscallError("setsockopt", errors.Join(err, opErr))
}

// add listens with one more socket.
func (g *Group) add(address string, c control) error {
	l, err := listen(g.network, address, c)
	if err != nil {
		return err
	}
	one, err := FromListener(l)
	if err != nil {
		return errors.Join(err, l.Close())
	}
	g.addr = one.addr
	g.fds = append(g.fds, one.fds...)
	return nil
}

// Grow adds one socket, at the end, unless the group is shared.
func (g *Group) Grow() error {
	if g.shared {
		return nil
	}
	if len(g.fds) == 0 {
		return fmt.Errorf("add a socket: %w", net.ErrClosed)
	}
	return g.add(g.addr.String(), setReuse)
}

// FromListener makes a shared group of l's socket and closes l; the path of a
// unix socket stays. On error, l stays open.
func FromListener(l net.Listener) (*Group, error) {
	sc, ok := l.(syscall.Conn)
	if !ok {
		return nil, fmt.Errorf("listener of type %T hides its socket: no SyscallConn method", l)
	}
	unlinker, ok := l.(interface{ SetUnlinkOnClose(bool) })
	if !ok && l.Addr().Network() == "unix" {
		return nil, fmt.Errorf("listener of type %T would remove its path: no SetUnlinkOnClose method", l)
	}
	rc, err := sc.SyscallConn()
	if err != nil {
		return nil, fmt.Errorf("socket of %T: %w", l, err)
	}
	fd := -1
	var opErr error
	err = rc.Control(func(old uintptr) { fd, opErr = dup(int(old)) })
	if err := errors.Join(err, opErr); err != nil {
		return nil, fmt.Errorf("socket of %T: %w", l, err)
	}
	g, err := FromFDs(l.Addr().Network(), []int{fd}, true)
	if err != nil {
		return nil, errors.Join(fmt.Errorf("socket of %T: %w", l, err), closeFD(fd))
	}
	if unlinker != nil {
		unlinker.SetUnlinkOnClose(false)
	}
	if err := l.Close(); err != nil {
		return nil, errors.Join(fmt.Errorf("close %T: %w", l, err), g.Close())
	}
	return g, nil
}

// FromFDs makes a group of listening sockets that come from elsewhere: the
// program that this process ran before, or systemd. Unless shared, they are in
// seat order and have SO_REUSEPORT. The descriptors become the group's; on
// error they stay the caller's.
func FromFDs(network string, fds []int, shared bool) (*Group, error) {
	if err := checkNetwork(network); err != nil {
		return nil, err
	}
	if len(fds) == 0 || shared && len(fds) > 1 {
		return nil, fmt.Errorf("%d descriptors for a group with shared = %t", len(fds), shared)
	}
	g := &Group{network: network, shared: shared}
	for _, fd := range fds {
		if err := g.adopt(fd); err != nil {
			return nil, fmt.Errorf("descriptor %d: %w", fd, err)
		}
	}
	return g, nil
}

// adopt checks a descriptor, prepares it and appends it.
func (g *Group) adopt(fd int) error {
	required := []struct {
		opt, want int
		otherwise string
	}{
		{unix.SO_TYPE, unix.SOCK_STREAM, "not a stream socket"},
		{unix.SO_ACCEPTCONN, 0, "not listening"},
		{reuseOption, 0, "one of several sockets, without SO_REUSEPORT"},
	}
	if g.shared {
		required = required[:2]
	} else if reuseOption == 0 {
		return fmt.Errorf("one of several sockets: %w", errors.ErrUnsupported)
	}
	for _, r := range required {
		v, err := unix.GetsockoptInt(fd, unix.SOL_SOCKET, r.opt)
		if err != nil {
			return os.NewSyscallError("getsockopt", err)
		}
		if v == 0 || r.want != 0 && v != r.want {
			return errors.New(r.otherwise)
		}
	}
	unix.CloseOnExec(fd)
	l, err := Listener(fd) // sets O_NONBLOCK
	if err != nil {
		return err
	}
	defer l.Close()
	switch got := l.Addr(); {
	case got.Network() != strings.TrimRight(g.network, "46"):
		return fmt.Errorf("network is %s, not %s", got.Network(), g.network)
	case g.addr != nil && g.addr.String() != got.String():
		return fmt.Errorf("address is %v, not %v", got, g.addr)
	case slices.Contains(g.fds, fd):
		return errors.New("given twice")
	default:
		g.addr = got
	}
	g.fds = append(g.fds, fd)
	return nil
}

func checkNetwork(network string) error {
	if slices.Contains([]string{"tcp", "tcp4", "tcp6", "unix"}, network) {
		return nil
	}
	return net.UnknownNetworkError(network)
}

// Listener returns a listener on the socket behind fd, which stays open and
// the caller's. Closing the listener leaves the path of a unix socket alone.
//
// It sets O_NONBLOCK and never clears it: all processes with the socket share
// the flag, and without it Close hangs while Accept waits (golang/go#29277).
// What clears it is the Fd method, which [net.FileListener] calls, of an
// [os.File] that package net made, or that itself set the flag. [os.NewFile]
// only looks whether it is set.
func Listener(fd int) (net.Listener, error) {
	own, err := dup(fd)
	if err != nil {
		return nil, fmt.Errorf("listener on descriptor %d: %w", fd, err)
	}
	f := os.NewFile(uintptr(own), "listener")
	defer f.Close() // FileListener has a descriptor of its own.
	l, err := net.FileListener(f)
	if err != nil {
		return nil, fmt.Errorf("listener on descriptor %d: %w", fd, err)
	}
	return l, nil
}

// dup returns a second descriptor of fd's socket, one that no child inherits.
func dup(fd int) (int, error) {
	own, err := unix.FcntlInt(uintptr(fd), unix.F_DUPFD_CLOEXEC, 0)
	return own, os.NewSyscallError("fcntl", err)
}

func closeFD(fd int) error { return os.NewSyscallError("close", unix.Close(fd)) }
