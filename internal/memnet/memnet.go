// Package memnet is a network in memory, for tests in virtual time: its
// connections and listeners wait on channels only, as a testing/synctest
// bubble needs it. A connection buffers 64 KiB in each direction, can be
// closed for writing alone, and honours deadlines.
package memnet

import (
	"context"
	"io"
	"net"
	"os"
	"sync"
	"time"
)

// A Listener is a [net.Listener] that connections are dialled from.
type Listener struct {
	queue  chan net.Conn
	closed chan struct{}
	once   sync.Once
}

// Listen returns a Listener.
func Listen() *Listener {
	return &Listener{queue: make(chan net.Conn), closed: make(chan struct{})}
}

// Accept waits for a Dial.
func (l *Listener) Accept() (net.Conn, error) {
	select {
	case c := <-l.queue:
		return c, nil
	case <-l.closed:
		return nil, &net.OpError{Op: "accept", Net: "mem", Addr: addr{}, Err: net.ErrClosed}
	}
}

// Close makes Accept and Dial fail.
func (l *Listener) Close() error {
	l.once.Do(func() { close(l.closed) })
	return nil
}

// Addr returns the address that all listeners have.
func (l *Listener) Addr() net.Addr { return addr{} }

// Dial waits until a connection is accepted.
func (l *Listener) Dial(ctx context.Context) (net.Conn, error) {
	client, server := Pipe()
	select {
	case l.queue <- server:
		return client, nil
	case <-l.closed:
		return nil, &net.OpError{Op: "dial", Net: "mem", Addr: addr{}, Err: net.ErrClosed}
	case <-ctx.Done():
		return nil, ctx.Err()
	}
}

type addr struct{}

func (addr) Network() string { return "mem" }
func (addr) String() string  { return "mem" }

// Pipe returns the two ends of a connection.
func Pipe() (a, b *Conn) {
	x, y := newStream(), newStream()
	return &Conn{in: x, out: y, rd: newDeadline(), wd: newDeadline()},
		&Conn{in: y, out: x, rd: newDeadline(), wd: newDeadline()}
}

// A Conn is one end of a connection.
type Conn struct {
	in, out *stream
	rd, wd  *deadline
}

// Read reads what the other end has written.
func (c *Conn) Read(p []byte) (int, error) {
	for {
		deadline := c.rd.wait() // before the look, so as not to miss it
		if c.rd.passed() {
			return 0, opError("read", os.ErrDeadlineExceeded)
		}
		n, changed, err := c.in.read(p)
		if err == io.EOF {
			return n, err
		}
		if n > 0 || err != nil || len(p) == 0 {
			return n, opError("read", err)
		}
		select {
		case <-changed:
		case <-deadline:
		}
	}
}

// Write writes to the other end's buffer.
func (c *Conn) Write(p []byte) (int, error) {
	written := 0
	for {
		deadline := c.wd.wait()
		if c.wd.passed() {
			return written, opError("write", os.ErrDeadlineExceeded)
		}
		n, changed, err := c.out.write(p[written:])
		written += n
		if err != nil || written == len(p) {
			return written, opError("write", err)
		}
		select {
		case <-changed:
		case <-deadline:
		}
	}
}

// Close closes both directions. Data that the other end has not read stays.
func (c *Conn) Close() error {
	c.out.closeWrite()
	c.in.closeRead()
	return nil
}

// CloseWrite lets the other end read what is buffered and then io.EOF.
func (c *Conn) CloseWrite() error {
	c.out.closeWrite()
	return nil
}

// LocalAddr returns the address that all connections have.
func (c *Conn) LocalAddr() net.Addr { return addr{} }

// RemoteAddr returns the address that all connections have.
func (c *Conn) RemoteAddr() net.Addr { return addr{} }

// SetDeadline sets both deadlines.
func (c *Conn) SetDeadline(t time.Time) error {
	c.rd.set(t)
	c.wd.set(t)
	return nil
}

// SetReadDeadline sets the deadline of Read.
func (c *Conn) SetReadDeadline(t time.Time) error {
	c.rd.set(t)
	return nil
}

// SetWriteDeadline sets the deadline of Write.
func (c *Conn) SetWriteDeadline(t time.Time) error {
	c.wd.set(t)
	return nil
}

func opError(op string, err error) error {
	if err == nil {
		return nil
	}
	return &net.OpError{Op: op, Net: "mem", Source: addr{}, Addr: addr{}, Err: err}
}

const streamSize = 64 << 10

// stream is one direction of a connection.
type stream struct {
	mu      sync.Mutex
	buf     []byte
	eof     bool // the writer has closed
	gone    bool // the reader has closed
	changed chan struct{}
}

func newStream() *stream { return &stream{changed: make(chan struct{})} }

// notify wakes all who wait. Its caller holds s.mu.
func (s *stream) notify() {
	close(s.changed)
	s.changed = make(chan struct{})
}

func (s *stream) read(p []byte) (n int, changed <-chan struct{}, err error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	switch {
	case s.gone:
		return 0, nil, net.ErrClosed
	case len(s.buf) > 0:
		n = copy(p, s.buf)
		s.buf = s.buf[n:]
		s.notify()
		return n, nil, nil
	case s.eof && len(p) > 0:
		return 0, nil, io.EOF
	}
	return 0, s.changed, nil
}

func (s *stream) write(p []byte) (n int, changed <-chan struct{}, err error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	switch {
	case s.eof:
		return 0, nil, net.ErrClosed
	case s.gone:
		return 0, nil, io.ErrClosedPipe
	}
	n = min(len(p), streamSize-len(s.buf))
	if n > 0 {
		s.buf = append(s.buf, p[:n]...)
		s.notify()
	}
	return n, s.changed, nil
}

func (s *stream) closeWrite() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.eof = true
	s.notify()
}

func (s *stream) closeRead() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.gone = true
	s.notify()
}

// deadline is a point in time that can be waited for and moved.
type deadline struct {
	mu    sync.Mutex
	timer *time.Timer
	moved chan struct{} // closed when the deadline passes or moves
	at    time.Time
}

func newDeadline() *deadline { return &deadline{moved: make(chan struct{})} }

func (d *deadline) set(t time.Time) {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.timer != nil {
		d.timer.Stop()
		d.timer = nil
	}
	d.at = t
	d.wake()
	if wait := time.Until(t); !t.IsZero() && wait > 0 {
		d.timer = time.AfterFunc(wait, func() {
			d.mu.Lock()
			defer d.mu.Unlock()
			d.wake()
		})
	}
}

// wake has waiters look again. Its caller holds d.mu.
func (d *deadline) wake() {
	close(d.moved)
	d.moved = make(chan struct{})
}

func (d *deadline) passed() bool {
	d.mu.Lock()
	defer d.mu.Unlock()
	return !d.at.IsZero() && !time.Now().Before(d.at)
}

func (d *deadline) wait() <-chan struct{} {
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.moved
}
