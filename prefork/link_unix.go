//go:build unix

package prefork

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"sync"
	"syscall"

	"golang.org/x/sys/unix"
)

// A link is one end of the socket pair between master and worker. The death of
// either side is an end of file for the other, at once.
type link struct {
	conn *net.UnixConn
	raw  syscall.RawConn

	mu     sync.Mutex // one writer at a time
	broken bool

	split splitter // reader's
	fds   []int    // reader's: descriptors that have come and are in no frame yet
}

// newLink takes over fd.
func newLink(fd int) (*link, error) {
	if err := unix.SetNonblock(fd, true); err != nil {
		unix.Close(fd)
		return nil, fmt.Errorf("prefork: control socket: %w", err)
	}
	f := os.NewFile(uintptr(fd), "control")
	defer f.Close() // FileConn has a descriptor of its own
	c, err := net.FileConn(f)
	if err != nil {
		return nil, fmt.Errorf("prefork: control socket: %w", err)
	}
	uc, ok := c.(*net.UnixConn)
	if !ok {
		c.Close()
		return nil, fmt.Errorf("prefork: control socket is a %T", c)
	}
	raw, err := uc.SyscallConn()
	if err != nil {
		c.Close()
		return nil, fmt.Errorf("prefork: control socket: %w", err)
	}
	return &link{conn: uc, raw: raw}, nil
}

var errLinkFull = errors.New("prefork: control socket is full")

// send sends f without waiting: the other side may be stopped, and neither the
// master's one goroutine nor a request may hang for that. The descriptors are
// only lent. A line that was begun and cannot be ended breaks the link.
func (l *link) send(f frame, fds ...int) error {
	line, err := json.Marshal(f)
	if err != nil {
		return fmt.Errorf("prefork: encode %s: %w", f.Type, err)
	}
	line = append(line, '\n')
	var rights []byte
	if len(fds) > 0 {
		rights = unix.UnixRights(fds...)
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.broken {
		return net.ErrClosed
	}
	var n int
	var sendErr error
	err = l.raw.Write(func(fd uintptr) bool {
		for {
			n, sendErr = unix.SendmsgN(int(fd), line, rights, nil, sendFlags)
			if sendErr != unix.EINTR {
				return true
			}
		}
	})
	switch err := errors.Join(err, sendErr); {
	case errors.Is(err, unix.EAGAIN):
		return errLinkFull
	case err != nil:
		return fmt.Errorf("prefork: send %s: %w", f.Type, err)
	case n < len(line):
		l.broken = true
		l.conn.CloseWrite()
		return errLinkFull
	}
	return nil
}

// receive returns the next frames and the descriptors that came with them.
func (l *link) receive() ([]frame, []int, error) {
	buf := make([]byte, 16<<10)
	oob := make([]byte, unix.CmsgSpace(maxRights*4))
	for {
		n, oobn, _, _, err := l.conn.ReadMsgUnix(buf, oob)
		if oobn > 0 {
			fds, perr := parseRights(oob[:oobn])
			l.fds = append(l.fds, fds...)
			err = errors.Join(err, perr)
		}
		if err == nil && n == 0 {
			err = io.EOF
		}
		if err != nil {
			for _, fd := range l.fds {
				unix.Close(fd)
			}
			l.fds = nil
			return nil, nil, err
		}
		frames, err := l.split.feed(buf[:n])
		if len(frames) > 0 || err != nil {
			// Those of a frame that is not whole yet may be here already.
			mine := 0
			for _, f := range frames {
				mine += f.descriptors()
			}
			fds := l.fds[:min(mine, len(l.fds))]
			l.fds = l.fds[len(fds):]
			return frames, fds, err
		}
	}
}

// maxRights is how many descriptors come with one frame at most; the kernel
// allows 253.
const maxRights = 250

func parseRights(oob []byte) (fds []int, err error) {
	messages, err := unix.ParseSocketControlMessage(oob)
	if err != nil {
		return nil, fmt.Errorf("prefork: control message: %w", err)
	}
	for _, m := range messages {
		got, err := unix.ParseUnixRights(&m)
		if err != nil {
			continue // of another kind
		}
		for _, fd := range got {
			unix.CloseOnExec(fd)
		}
		fds = append(fds, got...)
	}
	return fds, nil
}

// Close ends receive, too.
func (l *link) Close() error { return l.conn.Close() }
