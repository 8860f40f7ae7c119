package usher

import (
	"errors"
	"io"
	"net"
	"net/http"
	"sync"
	"sync/atomic"
	"syscall"
	"time"
)

// A Conn is a connection accepted by a [Listener]. It behaves as the
// connection it wraps, with the same system calls and errors, and knows in
// addition whether it is quiet: whether a client can lose anything if it is
// closed now.
//
// A Conn must sit below TLS: net/http looks for *tls.Conn to speak HTTP/2.
// [http.Server.ServeTLS], [Server.ServeTLS] and [tls.NewListener] over a
// Listener all see to that.
//
// ReadFrom, WriteTo, CloseWrite and SyscallConn reach the wrapped connection,
// so that sendfile and splice keep working; NetConn returns it. All methods
// may be called from many goroutines at once.
type Conn struct {
	net.Conn // the accepted connection

	l          *Listener
	flow       atomic.Pointer[connFlow] // if a Limiter is at work
	prev, next *Conn                    // guarded by l.mu, as are the following
	aside      bool                     // counted in l.aside
	gone       bool                     // no longer in the list

	state    atomic.Uint32 // phase and flags, see below
	accepted time.Duration // on l's clock
	since    atomic.Int64  // when it last became silent, on l's clock, if that matters; a time.Duration

	raw     syscall.RawConn       // nil if there is no descriptor to read from
	readFn  func(fd uintptr) bool // c.rawRead, bound once so that Read does not allocate
	readMu  sync.Mutex            // one Read at a time; guards the following
	buf     []byte
	n       int
	err     error
	records tlsRecords
	preface uint8 // bytes of http2Preface seen; 255: something else
	full    int   // the largest buffer offered between requests: net/http's whole buffer
}

// The low bits of Conn.state hold the phase that net/http reported.
const (
	phaseNew      = iota // no request yet
	phaseActive          // a request is being read or served
	phaseIdle            // between requests
	phaseHijacked        // taken over by a handler
	phaseMask     = 0x7
)

// The other bits of Conn.state.
const (
	// flagWaiting: a Read has found nothing and waits for the client.
	flagWaiting = 1 << (3 + iota)
	// flagAhead: part of the next request has been read, and only net/http or
	// crypto/tls have it.
	flagAhead
	// flagDeadline: net/http has set the idle deadline of this idle period.
	flagDeadline
	// flagStarted: at least one byte has been read.
	flagStarted
	flagTLS
	flagHTTP2
	// flagLate: a request was running when the stop began, or began after it.
	flagLate
	// flagQueued: accepted after the stop began.
	flagQueued
	// flagEOF: the client has closed its side.
	flagEOF
	// flagRetired: usher closes it because it is quiet.
	flagRetired
	// flagCut: usher closes it because time is up.
	flagCut
	flagClosed
)

// connOf returns the Conn at or below nc, or nil.
func connOf(nc net.Conn) *Conn {
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

// NetConn returns the connection that c wraps.
func (c *Conn) NetConn() net.Conn { return c.Conn }

// SyscallConn implements [syscall.Conn]. The error wraps
// [errors.ErrUnsupported] if the wrapped connection does not.
func (c *Conn) SyscallConn() (syscall.RawConn, error) {
	if sc, ok := c.Conn.(syscall.Conn); ok {
		return sc.SyscallConn()
	}
	return nil, c.unsupported("syscallconn")
}

// CloseWrite closes the sending side, as [net.TCPConn.CloseWrite] does. The
// error wraps [errors.ErrUnsupported] if the wrapped connection cannot.
func (c *Conn) CloseWrite() error {
	if cw, ok := c.Conn.(interface{ CloseWrite() error }); ok {
		return cw.CloseWrite()
	}
	return c.unsupported("closewrite")
}

func (c *Conn) unsupported(op string) error {
	return &net.OpError{Op: op, Net: c.LocalAddr().Network(), Source: c.LocalAddr(), Addr: c.RemoteAddr(), Err: errors.ErrUnsupported}
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
		return wt.WriteTo(w)
	}
	return io.Copy(w, struct{ io.Reader }{c})
}

// Read reads from the connection.
func (c *Conn) Read(p []byte) (int, error) {
	if len(p) == 0 {
		return c.Conn.Read(p)
	}
	c.readMu.Lock()
	defer c.readMu.Unlock()
	if ph := c.state.Load() & phaseMask; ph == phaseNew || ph == phaseIdle {
		c.full = max(c.full, len(p))
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
		c.state.Or(flagEOF)
	}
	return n, err
}

// readRaw is Read on a descriptor. It costs what net's own Read costs, and
// learns from the kernel, not from a guess, that it has to wait.
func (c *Conn) readRaw(p []byte) (int, error) {
	c.buf = p
	err := c.raw.Read(c.readFn)
	n, rerr := c.n, c.err
	c.buf, c.n, c.err = nil, 0, nil
	if err != nil { // deadline or closed: no read was made, or it had to wait
		if c.state.Load()&flagWaiting != 0 {
			c.state.And(^uint32(flagWaiting))
		}
		if oe, ok := err.(*net.OpError); ok {
			oe.Op = "read" // it says raw-read; net/http asks for read
		}
		return 0, err
	}
	if rerr != nil && rerr != io.EOF {
		rerr = &net.OpError{Op: "read", Net: c.LocalAddr().Network(), Source: c.LocalAddr(), Addr: c.RemoteAddr(), Err: rerr}
	}
	return n, rerr
}

// readPlain is Read where would-block cannot be seen: to enter a Read counts
// as waiting.
func (c *Conn) readPlain(p []byte) (int, error) {
	if !c.wait(len(p)) {
		return 0, c.closedError("read")
	}
	n, err := c.Conn.Read(p)
	c.state.And(^uint32(flagWaiting))
	return n, err
}

// wait notes that a Read into a buffer of size bytes has nothing to return
// yet. It reports false if the connection has been retired meanwhile.
func (c *Conn) wait(size int) bool {
	set := uint32(flagWaiting)
	st := c.state.Load()
	if size == 1 && st&phaseMask == phaseActive {
		return true // net/http's background read; every request pays for this
	}
	if p := st & phaseMask; p == phaseNew || p == phaseIdle {
		switch {
		case st&flagHTTP2 != 0:
		case st&flagTLS != 0:
			// The rest of this record is on its way.
			if c.records.partial() {
				set |= flagAhead
			}
		case size < c.full:
			// net/http reads into all the room its buffer has. Less room than
			// before means that the buffer holds something: the beginning of
			// the next request, which it read in one piece with the last one,
			// or the byte that its background read found. crypto/tls reads
			// into buffers of any size, and says nothing that way.
			set |= flagAhead
		}
	}
	if c.state.Or(set)&flagRetired != 0 {
		return false
	}
	c.l.noteQuiet(c)
	if f := c.flow.Load(); f != nil {
		f.wouldBlock(st&phaseMask, size)
	}
	return true
}

// noteRead notes that p has arrived.
func (c *Conn) noteRead(p []byte) {
	st := c.state.Load()
	if st&flagTLS != 0 {
		c.records.feed(p)
	}
	switch st & phaseMask {
	case phaseNew:
		c.noteFirst(st, p)
	case phaseIdle:
		if st&flagAhead == 0 {
			c.state.Or(flagAhead)
		}
	}
}

// http2Preface is how a client says without TLS that it speaks HTTP/2.
const http2Preface = "PRI * HTTP/2.0"

// noteFirst looks at what arrives before the first request: a request, the
// preface of HTTP/2, or a TLS handshake.
func (c *Conn) noteFirst(st uint32, p []byte) {
	if st&flagStarted == 0 && p[0] == recordHandshake {
		st |= flagTLS
		c.records.feed(p)
	}
	set := uint32(flagStarted | flagAhead)
	switch {
	case st&flagTLS != 0:
		set |= flagTLS
		if c.records.silent(c.l.clientCerts.Load()) {
			c.since.Store(int64(c.l.now()))
			c.state.And(^uint32(flagAhead))
			set &^= flagAhead
		}
	case int(c.preface) < len(http2Preface):
		n := min(len(p), len(http2Preface)-int(c.preface))
		if string(p[:n]) != http2Preface[c.preface:int(c.preface)+n] {
			c.preface = 255
		} else if c.preface += uint8(n); int(c.preface) == len(http2Preface) {
			set |= flagHTTP2
		}
	}
	c.state.Or(set)
	if set&flagHTTP2 != 0 {
		c.l.setAside(c)
	}
}

// SetDeadline sets both deadlines.
func (c *Conn) SetDeadline(t time.Time) error {
	return errors.Join(c.SetReadDeadline(t), c.SetWriteDeadline(t))
}

// SetReadDeadline sets the read deadline.
func (c *Conn) SetReadDeadline(t time.Time) error {
	if f := c.flow.Load(); f != nil {
		at := int64(0)
		if !t.IsZero() {
			at = t.UnixNano()
		}
		f.readDeadline.Store(at)
	}
	// Between two requests net/http sets the deadline twice: when it begins to
	// wait, and when the first bytes of the next request are in its buffer.
	// Under TLS the second call is the only sign that they are, if they came
	// while the last request was still being answered; it needs four of them.
	if st := c.state.Load(); st&phaseMask == phaseIdle {
		if st&flagDeadline == 0 {
			c.state.Or(flagDeadline)
		} else if st&flagAhead == 0 {
			c.state.Or(flagAhead)
		}
	}
	return c.Conn.SetReadDeadline(t)
}

// setState notes a state that net/http reported.
func (c *Conn) setState(s http.ConnState, http2 bool) {
	switch s {
	case http.StateActive:
		c.enter(phaseActive, http2)
		if c.l.stopping.Load() {
			c.state.Or(flagLate)
		}
	case http.StateIdle:
		if c.l.opts.MaxConns > 0 || c.l.stopping.Load() {
			// Else it is enough to know that it was before the stop.
			c.since.Store(int64(c.l.now()))
		}
		c.enter(phaseIdle, http2)
		if c.l.opts.MaxConns > 0 {
			c.l.moveToBack(c)
		}
		if c.state.Load()&flagHTTP2 != 0 {
			// The reader of an HTTP/2 connection waits all the time.
			c.l.noteQuiet(c)
		}
	case http.StateHijacked:
		c.enter(phaseHijacked, http2)
		if f := c.flow.Load(); f != nil {
			f.hijacked()
		}
		c.l.setAside(c)
	}
}

// enter changes the phase and forgets what belonged to the one before.
func (c *Conn) enter(set uint32, http2 bool) {
	if http2 {
		set |= flagHTTP2
	}
	for {
		old := c.state.Load()
		keep := old &^ (phaseMask | flagAhead | flagDeadline)
		if c.state.CompareAndSwap(old, keep|set) {
			if http2 && old&flagHTTP2 == 0 {
				c.l.setAside(c)
			}
			return
		}
	}
}

// quiet reports whether st is that of a connection whose client has nothing
// under way, as far as this process can know.
func quiet(st uint32) bool {
	if st&(flagWaiting|flagRetired|flagCut|flagClosed) != flagWaiting {
		return false
	}
	switch st & phaseMask {
	case phaseNew:
		return st&flagAhead == 0
	case phaseIdle:
		// An HTTP/2 connection is idle while no stream is open, whatever
		// frames of another kind come and go.
		return st&flagAhead == 0 || st&flagHTTP2 != 0
	}
	return false
}

// silentSince returns when c's silence began to count for a stop.
func (c *Conn) silentSince() time.Duration {
	return max(c.l.stoppedAt, c.accepted, time.Duration(c.since.Load()))
}

// retire closes c if it is quiet and nothing of it waits in the kernel, and
// reports whether it did.
//
// A request that arrives between that look and the close is lost. The window
// is as long as a system call and the flight of the FIN, and no server can
// close it: only an answer ends an HTTP/1 connection without a race.
func (c *Conn) retire() bool {
	st := c.state.Load()
	if !quiet(st) || c.unread() || !c.state.CompareAndSwap(st, st|flagRetired) {
		return false
	}
	c.closeSoon()
	return true
}

// closeSoon closes c without waiting: Close of a connection that is not the
// kernel's may block, as that of a TLS connection does that has to say so
// first to a client that does not read.
func (c *Conn) closeSoon() {
	if c.raw != nil {
		c.Close()
	} else {
		go c.Close()
	}
}

// cut closes c whatever it does.
func (c *Conn) cut() {
	if c.state.Or(flagCut)&flagClosed != 0 {
		// It lingers: end that.
		c.Conn.SetReadDeadline(time.Unix(1, 0))
		return
	}
	c.closeSoon()
}

// lingerTimeout bounds how long a connection that was closed during a stop is
// kept for the client to read its last response.
const lingerTimeout = 500 * time.Millisecond

// Close closes the connection. Only the first call does; others return an
// error that wraps [net.ErrClosed].
//
// After a drain has begun, Close of a connection that has just been answered
// closes the sending side at once and the rest when the client has closed its
// own, or after half a second: if bytes that nobody read were in the receive
// buffer, the kernel would send a reset, and the client could lose the end of
// the response. Close does not wait for that.
func (c *Conn) Close() error {
	old := c.state.Or(flagClosed)
	if old&flagClosed != 0 {
		return c.closedError("close")
	}
	if f := c.flow.Load(); f != nil {
		f.dropLinger()
	}
	if c.lingers(old) {
		if err := c.CloseWrite(); err == nil {
			go c.linger()
			return nil
		}
	}
	return c.finish()
}

func (c *Conn) lingers(st uint32) bool {
	return st&phaseMask == phaseActive && st&(flagHTTP2|flagEOF|flagRetired|flagCut) == 0 && c.l.stopping.Load()
}

// linger reads what the client still sends until it closes. It ends with the
// connection, which l counts as open until then.
func (c *Conn) linger() {
	c.Conn.SetReadDeadline(time.Now().Add(lingerTimeout))
	if c.state.Load()&flagCut == 0 {
		io.Copy(io.Discard, struct{ io.Reader }{c.Conn})
	}
	c.finish()
}

// finish closes the descriptor and signs off.
func (c *Conn) finish() error {
	err := c.Conn.Close()
	c.l.remove(c)
	return err
}

func (c *Conn) closedError(op string) error {
	return &net.OpError{Op: op, Net: c.LocalAddr().Network(), Source: c.LocalAddr(), Addr: c.RemoteAddr(), Err: net.ErrClosed}
}

var (
	_ net.Conn      = (*Conn)(nil)
	_ io.ReaderFrom = (*Conn)(nil)
	_ io.WriterTo   = (*Conn)(nil)
	_ syscall.Conn  = (*Conn)(nil)
)
