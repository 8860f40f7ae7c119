//go:build unix

package track

import (
	"io"
	"net"
	"os"
	"sync/atomic"
	"syscall"

	"golang.org/x/sys/unix"
)

// initRaw prepares Read on the descriptor, if there is one.
func (c *Conn) initRaw() {
	switch c.Conn.(type) {
	case *net.TCPConn, *net.UnixConn:
		rc, err := c.Conn.(syscall.Conn).SyscallConn()
		if err != nil {
			return
		}
		c.raw, c.readFn = rc, c.rawRead
	}
}

// maxRead bounds one read system call, as net does: some systems refuse more.
const maxRead = 1 << 30

// rawRead reads into c.buf and reports whether it is done; false makes the
// runtime wait until the descriptor is readable and call again.
func (c *Conn) rawRead(fd uintptr) bool {
	// Stop waiting before the read: what it returns must not be in no one's
	// sight between the kernel and noteRead.
	if _, now := c.change(readGoesOn); now&retired != 0 {
		c.err = net.ErrClosed
		return true
	}
	for {
		n, err := syscall.Read(int(fd), c.buf[:min(len(c.buf), maxRead)])
		switch {
		case err == syscall.EINTR:
			continue
		case err == syscall.EAGAIN:
			c.wait(len(c.buf))
			return false
		case err != nil:
			c.err = os.NewSyscallError("read", err)
		case n == 0:
			c.err = io.EOF
		default:
			c.n = n
		}
		return true
	}
}

// WatchHangUp returns a channel that is closed when the client closes its side,
// and what ends the watch. Reads wait meanwhile. If one is under way already,
// then net/http watches, and the channel is nil. The deadlines must be held.
func (c *Conn) WatchHangUp() (hungUp <-chan struct{}, stop func()) {
	if c.raw == nil || !c.readMu.TryLock() {
		return nil, func() {}
	}
	gone, done := make(chan struct{}), make(chan struct{})
	var stopped atomic.Bool
	go func() {
		defer close(done)
		// An error is the deadline's or a reset, which a read will find.
		c.raw.Read(func(fd uintptr) bool {
			if stopped.Load() {
				return true
			}
			if hasHungUp(int(fd)) {
				close(gone)
				return true
			}
			return false // look again when something has arrived
		})
	}()
	return gone, func() {
		stopped.Store(true)
		// No deadline that another goroutine sets now can keep the watch going.
		c.deadlines.end(c)
		<-done
		c.deadlines.ended(c)
		c.readMu.Unlock()
	}
}

// Unread reports whether the kernel holds something for c to read, the end of
// the stream included.
func (c *Conn) Unread() bool {
	if c.raw == nil {
		return false
	}
	var found bool
	err := c.raw.Control(func(fd uintptr) {
		var b [1]byte
		_, _, err := unix.Recvfrom(int(fd), b[:], unix.MSG_PEEK|unix.MSG_DONTWAIT)
		found = err == nil
	})
	return err == nil && found
}

// writable reports whether a few bytes can be written without waiting.
func (c *Conn) writable() bool {
	if c.raw == nil {
		return false
	}
	var ready bool
	err := c.raw.Control(func(fd uintptr) {
		fds := []unix.PollFd{{Fd: int32(fd), Events: unix.POLLOUT}}
		n, err := unix.Poll(fds, 0)
		ready = err == nil && n > 0 && fds[0].Revents&unix.POLLOUT != 0
	})
	return err == nil && ready
}
