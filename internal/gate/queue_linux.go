package gate

import "golang.org/x/sys/unix"

// queueLen reads the accept queue's length from TCP_INFO, which for a
// listening socket reports it in the field of unacknowledged segments.
func queueLen(fd int) (int, bool) {
	info, err := unix.GetsockoptTCPInfo(fd, unix.IPPROTO_TCP, unix.TCP_INFO)
	if err != nil {
		return 0, false
	}
	return int(info.Unacked), true
}
