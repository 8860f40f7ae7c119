package limit

import (
	"context"
	"net"
	"net/http"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/seed-235859eb/usher/internal/fairqueue"
	"github.com/seed-235859eb/usher/internal/track"
)

// A Conn is what Limiters know of a connection.
type Conn struct {
	flow  fairqueue.Flow
	owner atomic.Pointer[Limiter] // whose flow it is: the first that asked

	// lease is for the one request that an HTTP/1 connection has at a time, so
	// that it need not be allocated; taken tells whether one has it. It may
	// outlast its request, see Limiter.finish.
	lease lease
	taken atomic.Bool

	running atomic.Pointer[lease]        // of the HTTP/1 request under way, in the first Limiter
	body    atomic.Pointer[yieldingBody] // of that request, in the last Limiter

	mu    sync.Mutex
	inner []*lease // of the HTTP/1 request under way, in further Limiters; guarded by mu

	hook  track.Hook
	track *track.Conn // nil if nobody follows the connection
}

type connKey struct{}

// NewContext returns a context by which a Limiter knows c.
func NewContext(ctx context.Context, c net.Conn) context.Context {
	lc := &Conn{}
	lc.lease.init(&lc.flow)
	if tc := track.Of(c); tc != nil {
		lc.track = tc
		lc.hook.User = lc
		tc.Use(&lc.hook)
	}
	return context.WithValue(ctx, connKey{}, lc)
}

// connOf returns the connection that r came over, or nil.
func connOf(r *http.Request) *Conn {
	c, _ := r.Context().Value(connKey{}).(*Conn)
	return c
}

// Passed notes that r is served without a Limiter.
func Passed(r *http.Request) {
	if c := connOf(r); c != nil {
		c.dropKept()
	}
}

// tells reports whether the connection tells when a read for r has to wait.
func (c *Conn) tells(r *http.Request) bool {
	return c != nil && c.track != nil && c.track.Visible() && isHTTP1(r) &&
		c.track.State().Reported() == http.StateActive
}

// began notes that a request of HTTP/1 runs with e, for Ended.
func (c *Conn) began(e *lease) {
	if c.running.CompareAndSwap(nil, e) {
		return
	}
	c.mu.Lock()
	c.inner = append(c.inner, e)
	c.mu.Unlock()
}

// ended notes that the request runs with e no longer.
func (c *Conn) ended(e *lease) {
	if c.running.CompareAndSwap(e, nil) {
		return
	}
	c.mu.Lock()
	if i := slices.Index(c.inner, e); i >= 0 {
		c.inner = slices.Delete(c.inner, i, i+1)
	}
	c.mu.Unlock()
}

// dropKept gives a slot back that is kept for the next request, once.
func (c *Conn) dropKept() {
	if c.lease.state.Load() == leaseKept && c.lease.state.CompareAndSwap(leaseKept, leaseNone) {
		c.lease.owner.Load().giveBack(&c.lease)
	}
}

// ReadWaits implements [track.User]. Between two requests it means that the
// next one is not there yet; in a request, that a read of its body waits for
// the client.
func (c *Conn) ReadWaits(between bool) {
	switch {
	case !c.track.Visible():
	case between:
		c.dropKept()
	default:
		for b := c.body.Load(); b != nil; b = b.outer {
			b.blocked()
		}
	}
}

// Ended implements [track.User]. A handler that takes its connection over gives
// back the slots of all Limiters that it went through.
func (c *Conn) Ended(hijacked bool) {
	if !hijacked {
		c.dropKept()
		return
	}
	c.mu.Lock()
	leases := append([]*lease{c.running.Load()}, c.inner...)
	c.mu.Unlock()
	for _, e := range leases {
		if e != nil && e.state.CompareAndSwap(leaseRunning, leaseNone) {
			e.owner.Load().giveBack(e)
		}
	}
}

type waitKey struct{}

// QueueWait returns how long the request that ctx belongs to has waited for a
// slot before its handler began.
func QueueWait(ctx context.Context) time.Duration {
	if d, ok := ctx.Value(waitKey{}).(time.Duration); ok {
		return d
	}
	if c, ok := ctx.Value(connKey{}).(*Conn); ok {
		return time.Duration(c.lease.wait.Load())
	}
	return 0
}
