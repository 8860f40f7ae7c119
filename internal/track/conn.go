package track

import (
	"crypto/tls"
	"errors"
	"io"
	"net"
	"net/http"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"github.com/seed-235859eb/usher/internal/goaway"
)

// A Conn is a connection of a [Set]. It behaves as the connection it wraps,
// with the same system calls and errors, and knows in addition in which State
// it is.
//
// A Conn must sit below TLS: net/http looks for *tls.Conn to speak HTTP/2.
//
// ReadFrom, WriteTo, CloseWrite and SyscallConn reach the wrapped connection,
// so that sendfile and splice keep working; NetConn returns it. All methods
// may be called from many goroutines at once.
type Conn struct {
	net.Conn // the accepted connection

	set   *Set
	hook  atomic.Pointer[Hook]
	tls   atomic.Pointer[tls.Conn]    // the connection above, as net/http reported it
	http2 atomic.Pointer[goaway.Conn] // the frames, if they are followed

	index    int32 // in set.conns, -1 when it has left; guarded by set.mu
	detached bool  // counted in set.detached; guarded by set.mu

	state    atomic.Uint32 // a State
	accepted time.Duration // on the Set's clock
	since    atomic.Int64  // when it last became quiet, if the Set is timed; a time.Duration

	deadlines deadlines

	raw    syscall.RawConn       // nil if there is no descriptor to read from
	readFn func(fd uintptr) bool // c.rawRead, bound once so that Read does not allocate
	readMu sync.Mutex            // one Read at a time; guards the following
	buf    []byte
	n      int
	err    error
	client client
}

// A User has something that depends on one connection: a limiter, the slot of
// its request. It is called on the goroutine that reads or closes, and must not
// block.
type User interface {
	// ReadWaits is told that a Read has nothing to return yet: the next
	// request's, between two requests, or else one of a body's. net/http's own
	// reads of one byte, by which it learns that a client leaves, are not told.
	ReadWaits(between bool)
	// Ended is told that the connection is closed, or that a handler has taken
	// it over.
	Ended(hijacked bool)
}

// A Hook is embedded in a User, so that it needs no allocation of its own.
type Hook struct{ User }

// Use has h told of what happens to c. The first hook stays: Use reports
// whether h is that.
func (c *Conn) Use(h *Hook) bool { return c.hook.CompareAndSwap(nil, h) }

// Of returns the Conn at or below nc, or nil.
func Of(nc net.Conn) *Conn {
	for {
		switch v := nc.(type) {
		case *Conn:
			return v
		case interface{ NetConn() net.Conn }:
			nc = v.NetConn()
		default:
			return nil
		}
	}
}

// Owner returns the Owner of c's Set.
func (c *Conn) Owner() Owner { return c.set.owner }

// State returns c's state at this moment.
func (c *Conn) State() State { return State(c.state.Load()) }

// change has e happen, and returns the states before and after it.
func (c *Conn) change(e event) (before, now State) {
	for {
		before = State(c.state.Load())
		now = before.after(e)
		if now == before || c.state.CompareAndSwap(uint32(before), uint32(now)) {
			return before, now
		}
	}
}

// QuietSince returns since when c is quiet, if it is, on the Set's clock:
// never before the Set kept the time, or the stop began.
func (c *Conn) QuietSince() time.Duration {
	return max(time.Duration(c.set.from.Load()), c.accepted, time.Duration(c.since.Load()))
}

// Visible reports whether c tells that its Reads wait at the moment when they
// do.
func (c *Conn) Visible() bool { return c.raw != nil }

// NetConn returns the connection that c wraps. From then on c's deadlines are
// that connection's at any time.
func (c *Conn) NetConn() net.Conn {
	c.deadlines.expose(c)
	return c.Conn
}

// SyscallConn implements [syscall.Conn]. The error wraps
// [errors.ErrUnsupported] if the wrapped connection does not.
func (c *Conn) SyscallConn() (syscall.RawConn, error) {
	if sc, ok := c.Conn.(syscall.Conn); ok {
		c.deadlines.expose(c)
		return sc.SyscallConn()
	}
	return nil, c.opError("syscallconn", errors.ErrUnsupported)
}

// CloseWrite closes the sending side, as [net.TCPConn.CloseWrite] does. The
// error wraps [errors.ErrUnsupported] if the wrapped connection cannot.
func (c *Conn) CloseWrite() error {
	if cw, ok := c.Conn.(interface{ CloseWrite() error }); ok {
		return cw.CloseWrite()
	}
	return c.opError("closewrite", errors.ErrUnsupported)
}

// ReadFrom implements [io.ReaderFrom] with the wrapped connection's own
// method, for TCP sendfile and splice.
func (c *Conn) ReadFrom(r io.Reader) (int64, error) {
	if rf, ok := c.Conn.(io.ReaderFrom); ok {
		return rf.ReadFrom(r)
	}
	return io.Copy(struct{ io.Writer }{c.Conn}, r)
}

// WriteTo implements [io.WriterTo] with the wrapped connection's own method,
// for splice.
func (c *Conn) WriteTo(w io.Writer) (int64, error) {
	if wt, ok := c.Conn.(io.WriterTo); ok {
		c.deadlines.expose(c)
		return wt.WriteTo(w)
	}
	return io.Copy(w, struct{ io.Reader }{c})
}

// Write writes to the connection.
func (c *Conn) Write(p []byte) (int, error) {
	if c.State()&(isHTTP2|overTLS) == isHTTP2 {
		if h := c.http2.Load(); h != nil {
			return h.Write(p)
		}
	}
	return c.Conn.Write(p)
}

// Read reads from the connection.
func (c *Conn) Read(p []byte) (int, error) {
	if len(p) == 0 {
		return c.Conn.Read(p)
	}
	c.readMu.Lock()
	defer c.readMu.Unlock()
	switch {
	case c.State()&(retired|closed) != 0:
		return 0, c.opError("read", net.ErrClosed) // it may linger
	case c.deadlines.passed(c):
		return 0, c.opError("read", errDeadline)
	}
	var n int
	var err error
	if c.raw != nil {
		n, err = c.readRaw(p)
	} else {
		n, err = c.readPlain(p)
	}
	if n > 0 {
		c.noteRead(p[:n])
	} else if err == io.EOF {
		c.change(clientClosed)
	}
	return n, err
}

// readRaw is Read on a descriptor. It costs what net's own Read costs, and
// learns from the kernel, not from a guess, that it has to wait.
func (c *Conn) readRaw(p []byte) (int, error) {
	c.buf = p
	err := c.raw.Read(c.readFn)
	for errors.Is(err, errDeadline) && c.deadlines.retry(c) {
		err = c.raw.Read(c.readFn)
	}
	n, rerr := c.n, c.err
	c.buf, c.n, c.err = nil, 0, nil
	if err != nil { // deadline or closed: no read was made, or it had to wait
		c.change(readGoesOn)
		if oe, ok := err.(*net.OpError); ok {
			oe.Op = "read" // it says raw-read; net/http asks for read
		}
		return 0, err
	}
	if rerr != nil && rerr != io.EOF {
		rerr = c.opError("read", rerr)
	}
	return n, rerr
}

// readPlain is Read where would-block cannot be seen: to enter a Read counts
// as waiting.
func (c *Conn) readPlain(p []byte) (int, error) {
	c.wait(len(p))
	n, err := c.Conn.Read(p)
	c.change(readGoesOn)
	return n, err
}

// wait notes that a Read into a buffer of size bytes has nothing to return yet.
func (c *Conn) wait(size int) {
	st := c.State()
	e := readWaits
	if c.client.isAhead(st, size) {
		e = readWaitsAhead
	}
	before, now := c.change(e)
	c.deadlines.readWaits(c)
	if isBackgroundRead(st, size) {
		return // each request pays for this
	}
	if now.Quiet() {
		if before&^now&ahead != 0 && c.set.wanted(timed) {
			// A TLS handshake has ended, or something came that is no request,
			// as far as can be seen.
			c.since.Store(int64(c.set.Now()))
		}
		c.set.notice(c, Quiet)
	}
	if h := c.hook.Load(); h != nil {
		switch now.Reported() {
		case http.StateIdle:
			h.ReadWaits(true)
		case http.StateActive:
			h.ReadWaits(false)
		}
	}
}

// noteRead notes that p has come.
func (c *Conn) noteRead(p []byte) {
	st := c.State()
	e, ok := c.client.came(st, p)
	switch {
	case e == prefaceCame && c.set.wanted(frames):
		h := goaway.New(c.Conn, len(http2Preface))
		h.Came(p[len(p)-c.client.beyond:])
		c.follow(h)
	case st&(isHTTP2|overTLS) == isHTTP2:
		if h := c.http2.Load(); h != nil {
			h.Came(p)
		}
	}
	if !ok {
		return
	}
	if before, now := c.change(e); now.Detached() && !before.Detached() {
		c.set.detach(c)
	}
}

// follow says that c speaks HTTP/2, and that h follows its frames.
func (c *Conn) follow(h *goaway.Conn) {
	c.http2.Store(h)
	if g := c.set.leaving.Load(); g != nil {
		h.Leave(g)
	}
}

func (c *Conn) opError(op string, err error) error {
	return &net.OpError{Op: op, Net: c.LocalAddr().Network(), Source: c.LocalAddr(), Addr: c.RemoteAddr(), Err: err}
}

var (
	_ net.Conn      = (*Conn)(nil)
	_ io.ReaderFrom = (*Conn)(nil)
	_ io.WriterTo   = (*Conn)(nil)
	_ syscall.Conn  = (*Conn)(nil)
)
