//go:build unix

package gate

import (
	"errors"
	"fmt"
	"net"
	"os"
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

// Unpublish takes a unix socket's name out of the file system, if l would do
// so on Close, and returns a listener on the same socket, with its accept
// queue: from then on nobody new finds the socket, and those in the queue can
// still be accepted. It closes l.
//
// Only Close knows whether the name belongs to l: for a socket that was
// inherited, from systemd for instance, it must stay.
func Unpublish(l *net.UnixListener) (net.Listener, error) {
	rc, err := l.SyscallConn()
	if err != nil {
		return nil, err
	}
	fd := -1
	var opErr error
	err = rc.Control(func(old uintptr) {
		// Not l.File: it would return a descriptor whose use clears
		// O_NONBLOCK for all who share the socket (golang/go#29277).
		fd, opErr = unix.FcntlInt(old, unix.F_DUPFD_CLOEXEC, 0)
	})
	if err := errors.Join(err, opErr); err != nil {
		return nil, fmt.Errorf("duplicate unix listener: %w", err)
	}
	f := os.NewFile(uintptr(fd), "")
	defer f.Close() // FileListener has a descriptor of its own.
	heir, err := net.FileListener(f)
	if err != nil {
		return nil, fmt.Errorf("duplicate unix listener: %w", err)
	}
	if err := l.Close(); err != nil {
		return nil, errors.Join(fmt.Errorf("close unix listener: %w", err), heir.Close())
	}
	return heir, nil
}
