package usher

import (
	"io"
	"net/http"
	"sync"
	"sync/atomic"
	"time"
)

// A yieldingBody is a request's body whose reads give the request's slot back
// while they wait. On an HTTP/1 connection of a Server they do so when the
// kernel says that a read has to wait. Elsewhere, and over HTTP/2, where another
// goroutine reads the connection, they do so after a millisecond.
type yieldingBody struct {
	io.ReadCloser
	l     *Limiter
	lease *lease // not to be touched without mu, or when over
	w     http.ResponseWriter
	orig  *http.Request // net/http's
	r     *http.Request // the handler's copy
	told  bool          // the connection tells when a read has to wait
	done  chan struct{} // closed when the handler has returned
	eof   atomic.Bool   // all of it has been read

	mu      sync.Mutex // not held while reading
	reading bool
	over    bool // the handler has returned
	timer   *time.Timer
}

// Read reads the body.
func (b *yieldingBody) Read(p []byte) (n int, err error) {
	b.await(func() { n, err = b.ReadCloser.Read(p) })
	if err == io.EOF {
		// net/http has put trailers that were not announced into its own.
		b.r.Trailer = b.orig.Trailer
		b.eof.Store(true)
	}
	return n, err
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

	defer suspendWriteDeadline(b.w, b.orig)()
	granted := false
	select {
	case <-ready:
		granted = true
	case <-b.r.Context().Done():
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
}
