package limit

import (
	"context"
	"net"
	"net/http"
	"reflect"
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

	body atomic.Pointer[yieldingBody] // of that request, in the last Limiter

	mu     sync.Mutex
	others []*lease // with which requests run, besides lease; guarded by mu

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

// began notes that a request runs with e.
func (c *Conn) began(e *lease) {
	if e == &c.lease {
		return
	}
	c.mu.Lock()
	c.others = append(c.others, e)
	c.mu.Unlock()
}

// ended notes that the request runs with e no longer.
func (c *Conn) ended(e *lease) {
	if e == &c.lease {
		return
	}
	c.mu.Lock()
	if i := slices.Index(c.others, e); i >= 0 {
		c.others = slices.Delete(c.others, i, i+1)
	}
	c.mu.Unlock()
}

// running returns the leases with which requests run: all, or those of r, which
// it has from the Limiters around the one that asks.
func (c *Conn) running(r *http.Request) (all []*lease) {
	of := func(e *lease) {
		if e.state.Load() == leaseRunning && (r == nil || e.request.Load() == requestID(r)) {
			all = append(all, e)
		}
	}
	of(&c.lease)
	c.mu.Lock()
	defer c.mu.Unlock()
	for _, e := range c.others {
		of(e)
	}
	return all
}

// requestID tells requests under way apart. Copies of a request, which handlers
// make to add to its context, share its header.
func requestID(r *http.Request) uintptr { return reflect.ValueOf(r.Header).Pointer() }

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
	for _, e := range c.running(nil) {
		if e.state.CompareAndSwap(leaseRunning, leaseNone) {
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
