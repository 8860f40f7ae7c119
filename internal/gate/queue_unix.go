//go:build unix

package gate

import (
	"errors"
	"fmt"
	"syscall"

	"golang.org/x/sys/unix"
)

// Queued returns the number of connections in the accept queue of the
// listening socket behind rc. Only TCP on Linux tells the number; elsewhere 1
// stands for one or more. A handshake under way does not count.
func Queued(rc syscall.RawConn) (int, error) {
	var n int
	var opErr error
	err := rc.Control(func(fd uintptr) {
		var ok bool
		if n, ok = queueLen(int(fd)); ok {
			return
		}
		n, opErr = readable(int(fd))
	})
	if err := errors.Join(err, opErr); err != nil {
		return 0, fmt.Errorf("read accept queue: %w", err)
	}
	return n, nil
}

// readable returns 1 if the socket has something to read or, when it listens,
// something to accept.
func readable(fd int) (int, error) {
	fds := []unix.PollFd{{Fd: int32(fd), Events: unix.POLLIN}}
	for {
		n, err := unix.Poll(fds, 0)
		if err == unix.EINTR {
			continue
		}
		return n, err
	}
}
