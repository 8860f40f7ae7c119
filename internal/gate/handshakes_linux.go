package gate

import (
	"encoding/binary"
	"errors"
	"fmt"
	"net/netip"
	"syscall"
	"unsafe"

	"golang.org/x/sys/unix"
)

// Handshakes asks the kernel what is still under way on the address of the
// listening TCP socket behind rc (INET_DIAG over netlink; no privilege needed).
// The error says why it cannot be known: a seccomp profile, a socket that is in
// another network namespace, a kernel before 5.14 or an emulation of one.
//
// A handshake is seen from its SYN on until its connection is in the accept
// queue: the kernel keeps its state in the table of connections, puts the
// connection into the same place in the same moment, and calls it established
// only after it has been queued. So if there is none, whose SYN came before the
// gate, and then nobody in the queue, nobody is left. What a look cannot see is
// a SYN that the kernel is just about to take in: hence a second look, a while
// after the first.
//
// The kernel walks its whole table of connections, of all processes in the
// network namespace, and picks out our port itself: the cost is that of a step
// for each bucket of the table and each connection, not of a message for each.
// That was 0.4 to 1.4 ms on a machine with 262,144 buckets, and 5 ms with 16,000
// sockets in them (BenchmarkHandshakes): so wait as long as a look took before
// the next.
func Handshakes(rc syscall.RawConn) (Pending, error) {
	var p Pending
	err := control(rc, func(fd int) (err error) {
		p, err = handshakes(fd)
		return err
	})
	if err != nil {
		return Pending{}, fmt.Errorf("count handshakes: %w", err)
	}
	return p, nil
}

func handshakes(listener int) (Pending, error) {
	addr, err := localAddr(listener)
	if err != nil {
		return Pending{}, err
	}
	nl, err := unix.Socket(unix.AF_NETLINK, unix.SOCK_RAW|unix.SOCK_CLOEXEC, unix.NETLINK_SOCK_DIAG)
	if err != nil {
		return Pending{}, fmt.Errorf("netlink: %w", err)
	}
	defer unix.Close(nl)
	// What is asked for comes at once; this is against an emulation that hangs.
	if err := unix.SetsockoptTimeval(nl, unix.SOL_SOCKET, unix.SO_RCVTIMEO, &unix.Timeval{Sec: 1}); err != nil {
		return Pending{}, err
	}
	if err := sameNamespace(nl, listener); err != nil {
		return Pending{}, err
	}

	d := dump{addr: addr}
	families := []uint8{unix.AF_INET6, unix.AF_INET}
	if addr.Addr().Is4() {
		families = families[1:]
	}
	for _, family := range families {
		if err := d.run(nl, family); err != nil {
			return Pending{}, err
		}
	}
	if d.listeners == 0 {
		return Pending{}, fmt.Errorf("netlink does not show the listener: %w", errUnsupported)
	}
	if isBoundAway(listener) {
		d.Open = d.open
	}
	return d.Pending, nil
}

func localAddr(fd int) (netip.AddrPort, error) {
	sa, err := unix.Getsockname(fd)
	if err != nil {
		return netip.AddrPort{}, err
	}
	switch sa := sa.(type) {
	case *unix.SockaddrInet4:
		return netip.AddrPortFrom(netip.AddrFrom4(sa.Addr), uint16(sa.Port)), nil
	case *unix.SockaddrInet6:
		return netip.AddrPortFrom(netip.AddrFrom16(sa.Addr), uint16(sa.Port)), nil
	}
	return netip.AddrPort{}, errUnsupported
}

// sameNamespace returns an error unless the two sockets are in the same network
// namespace: a thread may have left the one that the listener was made in, and a
// descriptor may have come from another.
func sameNamespace(a, b int) error {
	cookieA, err := unix.GetsockoptUint64(a, unix.SOL_SOCKET, unix.SO_NETNS_COOKIE)
	if err != nil {
		return fmt.Errorf("network namespace: %w", err)
	}
	cookieB, err := unix.GetsockoptUint64(b, unix.SOL_SOCKET, unix.SO_NETNS_COOKIE)
	if err != nil {
		return fmt.Errorf("network namespace: %w", err)
	}
	if cookieA != cookieB {
		return fmt.Errorf("the socket is in another network namespace: %w", errUnsupported)
	}
	return nil
}

// The states of TCP sockets (include/net/tcp_states.h).
const (
	tcpSynRecv = 3
	tcpListen  = 10
)

// sockID, diagRequest and diagMessage are inet_diag_sockid, inet_diag_req_v2
// and inet_diag_msg of linux/inet_diag.h.
type sockID struct {
	sport, dport [2]byte // big endian
	src, dst     [16]byte
	iface        uint32
	cookie       [2]uint32
}

type diagRequest struct {
	family, protocol, ext, pad uint8
	states                     uint32
	id                         sockID
}

type diagMessage struct {
	family, state, timer, retrans       uint8
	id                                  sockID
	expires, rqueue, wqueue, uid, inode uint32
}

// dump adds up what the kernel has on an address.
type dump struct {
	Pending
	addr      netip.AddrPort
	listeners int
	open      int
}

// run asks for the sockets of a family. Those of a socket of both families are
// AF_INET6, whatever the client uses.
func (d *dump) run(nl int, family uint8) error {
	req := struct {
		unix.NlMsghdr
		diagRequest
	}{
		unix.NlMsghdr{Type: unix.SOCK_DIAG_BY_FAMILY, Flags: unix.NLM_F_REQUEST | unix.NLM_F_DUMP},
		diagRequest{family: family, protocol: unix.IPPROTO_TCP, states: 1<<tcpSynRecv | 1<<tcpListen},
	}
	req.Len = uint32(unsafe.Sizeof(req))
	binary.BigEndian.PutUint16(req.id.sport[:], d.addr.Port())
	if err := unix.Sendto(nl, unsafe.Slice((*byte)(unsafe.Pointer(&req)), unsafe.Sizeof(req)), 0, &unix.SockaddrNetlink{Family: unix.AF_NETLINK}); err != nil {
		return fmt.Errorf("netlink: %w", err)
	}
	buf := make([]byte, 32<<10)
	for {
		n, _, err := unix.Recvfrom(nl, buf, 0)
		if err == unix.EINTR {
			continue
		}
		if err != nil {
			return fmt.Errorf("netlink: %w", err)
		}
		msgs, err := syscall.ParseNetlinkMessage(buf[:n])
		if err != nil {
			return fmt.Errorf("netlink: %w", err)
		}
		for _, m := range msgs {
			if m.Header.Flags&unix.NLM_F_DUMP_INTR != 0 {
				return errors.New("netlink: the dump was interrupted")
			}
			switch m.Header.Type {
			case unix.NLMSG_DONE, unix.NLMSG_ERROR:
				return netlinkError(m.Data)
			case unix.SOCK_DIAG_BY_FAMILY:
				if len(m.Data) < int(unsafe.Sizeof(diagMessage{})) {
					return fmt.Errorf("netlink: a message of %d bytes", len(m.Data))
				}
				d.add((*diagMessage)(unsafe.Pointer(&m.Data[0])))
			}
		}
	}
}

// netlinkError returns the error, if there is one, with which a dump ended.
func netlinkError(data []byte) error {
	if len(data) < 4 {
		return fmt.Errorf("netlink: the end has %d bytes", len(data))
	}
	if code := int32(binary.NativeEndian.Uint32(data)); code < 0 {
		return fmt.Errorf("netlink: %w", unix.Errno(-code))
	}
	return nil
}

func (d *dump) add(m *diagMessage) {
	src := netip.AddrFrom16(m.id.src)
	if m.family == unix.AF_INET {
		src = netip.AddrFrom4([4]byte(m.id.src[:4]))
	}
	src = src.Unmap()
	own := d.addr.Addr().Unmap()
	switch m.state {
	case tcpSynRecv:
		if own.IsUnspecified() || src == own {
			d.Handshakes++
		}
	case tcpListen:
		if src != own || own.Is4() != (m.family == unix.AF_INET) && own.IsUnspecified() {
			return
		}
		d.listeners++
		if m.id.iface != nowhere {
			d.open++
		}
	}
}
