package goaway

import (
	"io"
	"sync"
	"sync/atomic"
	"time"
)

const (
	// answerTime is how long a client has to acknowledge.
	answerTime = time.Second

	// firstTime is how long a connection without a stream is left alone, after
	// it was to leave: its client has just connected, and its first request is
	// on its way. It would find nobody else to send it to.
	firstTime = 100 * time.Millisecond

	// PrefaceLen is the length of the preface of HTTP/2 (RFC 9113, section
	// 3.4), which comes before the client's first frame.
	PrefaceLen = 24
)

// A Group is the connections of a server that is to stop. The zero value is
// ready. All methods may be called from many goroutines at once.
type Group struct {
	begun    atomic.Bool
	underway atomic.Int64 // connections on the first step

	// Changed, if not nil, is called when a connection is through with the
	// first step. It must not block.
	Changed func()
}

// Begun says that all connections there are have been told to leave.
func (g *Group) Begun() { g.begun.Store(true) }

// Through reports whether all connections there are have been told to leave and
// are through with the first step: whether net/http may say GOAWAY.
func (g *Group) Through() bool { return g.begun.Load() && g.underway.Load() <= 0 }

// A step is how far a connection is.
type step = int32

const (
	serving step = iota
	waiting      // it is to leave, and no stream has come so far
	due          // the goodbye goes out as soon as a frame ends
	said         // and now the client is to acknowledge
	over         // nothing more to say
)

// A Conn is a server's side of one HTTP/2 connection. Everything that the
// server writes must go through Write, from its first frame on, and what it has
// read must be shown to Came. All methods may be called from many goroutines at
// once, but for Came.
type Conn struct {
	w     io.Writer
	step  atomic.Int32
	group atomic.Pointer[Group] // nil until it is to leave
	ended atomic.Bool           // counted out of group

	in       frames
	streamed atomic.Bool // a stream has come

	mu      sync.Mutex // one Write at a time; guards the following
	out     frames
	started bool   // the server's first frame is out
	rest    []byte // of a goodbye that was not written whole
}

// New returns a Conn that writes to w. Came is shown what follows the first
// seen bytes of the client's preface.
func New(w io.Writer, seen int) *Conn {
	return &Conn{w: w, in: afterBytes(PrefaceLen - seen)}
}

// Write writes p, whose end need not be the end of a frame.
func (c *Conn) Write(p []byte) (int, error) {
	c.mu.Lock()
	n, err := c.write(p)
	c.mu.Unlock()
	if c.step.Load() == due {
		c.say() // it found the lock taken
	}
	return n, err
}

// write is Write. Its caller holds c.mu.
func (c *Conn) write(p []byte) (int, error) {
	if c.step.Load() != due && len(c.rest) == 0 {
		n, err := c.w.Write(p)
		c.follow(p[:n])
		return n, err
	}
	at, extra := 0, c.rest
	if len(extra) == 0 {
		at = c.boundary(p)
		if at < 0 || !c.step.CompareAndSwap(due, said) {
			n, err := c.w.Write(p)
			c.follow(p[:n])
			return n, err
		}
		extra = goodbye
	}
	whole := make([]byte, 0, len(p)+len(extra))
	whole = append(append(append(whole, p[:at]...), extra...), p[at:]...)
	n, err := c.w.Write(whole)
	switch m := n - at; {
	case m < 0:
		c.step.CompareAndSwap(said, due) // it did not get there
	case m < len(extra):
		n, c.rest = at, extra[m:]
	default:
		n, c.rest = n-len(extra), nil
	}
	c.follow(p[:n])
	return n, err
}

// follow looks at what has been written. Its caller holds c.mu.
func (c *Conn) follow(p []byte) {
	for len(p) > 0 {
		p = p[c.out.advance(p):]
		if !c.out.between() {
			continue
		}
		// Another first frame than SETTINGS is no HTTP/2: something else has
		// been made of the preface. And after a GOAWAY none may name a higher
		// stream.
		if c.out.typ() == typeGoAway || !c.started && c.out.typ() != typeSettings {
			c.end()
		}
		c.started = true
	}
}

// boundary returns where in p a frame may be put, or -1. Its caller holds c.mu.
func (c *Conn) boundary(p []byte) int {
	if c.started && c.out.between() {
		return 0
	}
	f := c.out
	n := 0
	for n < len(p) {
		n += f.advance(p[n:])
		if f.between() {
			if !c.started && f.typ() != typeSettings || f.typ() == typeGoAway {
				return -1
			}
			return n
		}
	}
	return -1
}

// say says goodbye, if that is due, a frame has just ended, and nobody writes:
// who does looks again.
func (c *Conn) say() {
	if !c.mu.TryLock() {
		return
	}
	defer c.mu.Unlock()
	if !c.started || !c.out.between() || !c.step.CompareAndSwap(due, said) {
		return
	}
	if n, err := c.w.Write(goodbye); err != nil {
		c.rest = goodbye[n:]
	}
}

// Came looks at what has been read.
func (c *Conn) Came(p []byte) {
	for len(p) > 0 {
		p = p[c.in.advance(p):]
		if !c.in.between() {
			continue
		}
		switch {
		case c.in.typ() == typeHeaders && !c.streamed.Load():
			c.streamed.Store(true)
			c.proceed()
		case c.in.isPong() && c.step.Load() == said:
			c.end()
		}
	}
}

// Leave begins the first step, once, and counts c in g until the client has
// acknowledged, or is not waited for any more. It does not block.
func (c *Conn) Leave(g *Group) {
	if !c.group.CompareAndSwap(nil, g) {
		return
	}
	g.underway.Add(1)
	switch {
	case !c.step.CompareAndSwap(serving, waiting):
		c.end() // over already
	case c.streamed.Load():
		c.proceed()
	default:
		time.AfterFunc(firstTime, c.proceed)
	}
}

// proceed makes the goodbye due, if it waits for that. It is written on a
// goroutine of its own, as a client may not read; that ends with the connection
// at the latest.
func (c *Conn) proceed() {
	if c.step.CompareAndSwap(waiting, due) {
		time.AfterFunc(answerTime, c.end)
		go c.say()
	}
}

// Close says that the connection has ended.
func (c *Conn) Close() { c.end() }

// end says that nothing of the first step is waited for any more.
func (c *Conn) end() {
	c.step.Store(over)
	g := c.group.Load()
	if g == nil || c.ended.Swap(true) {
		return
	}
	g.underway.Add(-1)
	if g.Changed != nil {
		g.Changed()
	}
}
