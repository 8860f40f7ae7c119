package gate

import (
	"errors"
	"fmt"
	"syscall"

	"golang.org/x/net/bpf"
	"golang.org/x/sys/unix"
)

// synFilter drops TCP segments that have SYN set and ACK clear and passes all
// others. A filter on a TCP socket sees the segment from its TCP header on,
// over IPv4 and IPv6 alike; byte 13 holds the flags.
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

// Shut makes the kernel drop requests for new connections to the listening TCP
// socket behind rc. Handshakes under way finish, and the accept queue stays.
// A client whose request is dropped sends it again, after one second on most
// systems, and by then meets a closed socket or another listener.
//
// Accepted connections inherit the filter; it does nothing to them, as no
// segment of an established connection has SYN without ACK.
//
// Multipath TCP sockets, which net.Listen makes by default since Go 1.24,
// refuse filters (EOPNOTSUPP), and sockets of other families have no
// handshake to drop.
func Shut(rc syscall.RawConn) error {
	prog, err := bpf.Assemble(synFilter)
	if err != nil {
		return fmt.Errorf("assemble SYN filter: %w", err)
	}
	filter := make([]unix.SockFilter, len(prog))
	for i, in := range prog {
		filter[i] = unix.SockFilter{Code: in.Op, Jt: in.Jt, Jf: in.Jf, K: in.K}
	}
	fprog := &unix.SockFprog{Len: uint16(len(filter)), Filter: &filter[0]}

	var opErr error
	err = rc.Control(func(fd uintptr) {
		proto, err := unix.GetsockoptInt(int(fd), unix.SOL_SOCKET, unix.SO_PROTOCOL)
		if err != nil {
			opErr = err
			return
		}
		if proto != unix.IPPROTO_TCP {
			opErr = fmt.Errorf("socket protocol %d: %w", proto, errUnsupported)
			return
		}
		opErr = unix.SetsockoptSockFprog(int(fd), unix.SOL_SOCKET, unix.SO_ATTACH_FILTER, fprog)
	})
	if err := errors.Join(err, opErr); err != nil {
		return fmt.Errorf("attach SYN filter: %w", err)
	}
	return nil
}

// queueLen reads the accept queue's length from TCP_INFO, which for a
// listening socket reports it in the field of unacknowledged segments.
func queueLen(fd int) (int, bool) {
	info, err := unix.GetsockoptTCPInfo(fd, unix.IPPROTO_TCP, unix.TCP_INFO)
	if err != nil {
		return 0, false
	}
	return int(info.Unacked), true
}
