package usher

import (
	"context"
	"io"
	"sync"
	"time"
)

// A yieldingBody is a request's body whose reads give the request's slot back
// while they wait. On a connection of a Listener they do so when the kernel
// says that a read has to wait. Elsewhere, and over HTTP/2, where it is another
// goroutine that reads the connection, they do so after a millisecond.
type yieldingBody struct {
	io.ReadCloser
	lease *lease
	ctx   context.Context
	conn  *Conn // of HTTP/1, if it tells when it has to wait

	mu    sync.Mutex // not held while reading
	over  bool       // the handler has returned
	timer *time.Timer
}

// Read reads the body.
func (b *yieldingBody) Read(p []byte) (int, error) {
	b.mu.Lock()
	if b.over {
		b.mu.Unlock()
		return b.ReadCloser.Read(p)
	}
	switch {
	case b.conn != nil:
		b.conn.state.Or(flagBody)
	case b.timer == nil:
		b.timer = time.AfterFunc(blockedAfter, b.blocked)
	default:
		b.timer.Reset(blockedAfter)
	}
	b.mu.Unlock()

	n, err := b.ReadCloser.Read(p)

	b.mu.Lock()
	over := b.over
	if b.conn != nil {
		b.conn.state.And(^uint32(flagBody))
	} else {
		b.timer.Stop()
	}
	b.mu.Unlock()
	if !over && b.lease.state.Load() == leaseYielded {
		b.lease.resume(b.ctx)
	}
	return n, err
}

// blocked is called when a read has taken a while.
func (b *yieldingBody) blocked() {
	b.mu.Lock()
	defer b.mu.Unlock()
	if !b.over {
		b.lease.yield()
	}
}

// end takes the lease away from the body: what still reads it then, in a
// goroutine that the handler left behind, runs without a slot.
func (b *yieldingBody) end() {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.over = true
	if b.timer != nil {
		b.timer.Stop()
	}
}
