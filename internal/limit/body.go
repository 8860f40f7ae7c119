package limit

import (
	"io"
	"net/http"
	"sync"
	"sync/atomic"
	"time"
)

// blockedAfter is how long a read takes that waits for the client, where the
// connection does not tell.
const blockedAfter = time.Millisecond

// A yieldingBody is a request's body whose reads give the request's slot back
// while they wait. On an HTTP/1 connection that tells, they do so when the
// kernel says that a read has to wait. Elsewhere, and over HTTP/2, where another
// goroutine reads the connection, they do so after a millisecond.
type yieldingBody struct {
	io.ReadCloser
	l         *Limiter
	lease     *lease // not to be touched without mu, or when over
	conn      *Conn
	deadlines deadlines
	orig      *http.Request // net/http's
	inner     *http.Request // the handler's copy
	outer     *yieldingBody // that of the Limiter around this one, over a connection that tells
	told      bool          // the connection tells when a read has to wait
	done      chan struct{} // closed when the handler has returned
	eof       atomic.Bool   // all of it has been read

	mu      sync.Mutex // not held while reading
	reading bool
	over    bool // the handler has returned
	timer   *time.Timer
}

func newYieldingBody(l *Limiter, e *lease, c *Conn, d deadlines, orig, inner *http.Request) *yieldingBody {
	b := &yieldingBody{
		ReadCloser: orig.Body, l: l, lease: e, conn: c, deadlines: d, orig: orig, inner: inner,
		told: c.tells(orig), done: make(chan struct{}),
	}
	if b.told {
		b.outer = c.body.Load()
		for b.outer != nil && b.outer.isOver() {
			b.outer = b.outer.outer // left behind by a request before
		}
		c.body.Store(b)
	}
	return b
}

// Read reads the body.
func (b *yieldingBody) Read(p []byte) (n int, err error) {
	b.await(func() { n, err = b.ReadCloser.Read(p) })
	if err == io.EOF {
		b.atEOF()
	}
	return n, err
}

// atEOF notes that all of the body has been read.
func (b *yieldingBody) atEOF() {
	b.eof.Store(true)
	b.mu.Lock()
	defer b.mu.Unlock()
	if !b.over {
		// net/http has put trailers that were not announced into its own.
		b.inner.Trailer = b.orig.Trailer
	}
}

// Close closes the body. net/http reads some of what the client still sends.
func (b *yieldingBody) Close() (err error) {
	b.await(func() { err = b.ReadCloser.Close() })
	return err
}

// await calls read, which may wait for the client, and waits for a slot if the
// request's was given back meanwhile.
func (b *yieldingBody) await(read func()) {
	b.mu.Lock()
	if b.over {
		b.mu.Unlock()
		read()
		return
	}
	b.reading = true
	switch {
	case b.told:
	case b.timer == nil:
		b.timer = time.AfterFunc(blockedAfter, b.blocked)
	default:
		b.timer.Reset(blockedAfter)
	}
	b.mu.Unlock()

	read()

	b.mu.Lock()
	b.reading = false
	if b.timer != nil {
		b.timer.Stop()
	}
	var ready <-chan struct{}
	if !b.over {
		ready = b.l.resume(b.lease)
	}
	b.mu.Unlock()
	if ready == nil {
		return
	}

	b.deadlines.hold()
	defer b.deadlines.release()
	granted := false
	select {
	case <-ready:
		granted = true
	case <-b.inner.Context().Done():
	case <-b.done:
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	if !b.over {
		b.l.resumed(b.lease, granted)
	}
}

// blocked is called when a read has to wait, or has taken a while.
func (b *yieldingBody) blocked() {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.reading && !b.over {
		b.l.yield(b.lease)
	}
}

func (b *yieldingBody) isOver() bool {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.over
}

// end takes the lease away from the body: what still reads it then, in a
// goroutine that the handler left behind, runs without a slot.
func (b *yieldingBody) end() {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.over = true
	close(b.done)
	if b.timer != nil {
		b.timer.Stop()
	}
	if b.told {
		b.conn.body.CompareAndSwap(b, b.outer)
	}
}
