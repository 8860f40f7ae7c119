package limit

import (
	"context"
	"net/http"
)

// An outerLease is what a request runs with in a Limiter around the one in which
// it waits. It gives that slot back meanwhile: else those who wait for one route
// would hold all slots of the server.
//
// A handler may be left behind by its request, as under http.TimeoutHandler, and
// the lease have gone to another. So each look at it asks whose it is.
type outerLease struct {
	*lease
	owner   *Limiter
	request uintptr
}

// yieldOuter gives back the slots that r holds in other Limiters.
func (l *Limiter) yieldOuter(c *Conn, r *http.Request) (outer []outerLease) {
	if c == nil {
		return nil
	}
	for _, e := range c.running(r) {
		o := outerLease{e, e.owner.Load(), requestID(r)}
		if o.owner != l && o.yield() {
			outer = append(outer, o)
		}
	}
	return outer
}

// resumeOuter waits for these slots again, with priority. Without them the
// request goes on if ctx is over: nobody is left to serve.
func resumeOuter(outer []outerLease, ctx context.Context) {
	for _, o := range outer {
		ready := o.resume()
		if ready == nil {
			continue
		}
		select {
		case <-ready:
			o.resumed(true)
		case <-ctx.Done():
			o.resumed(false)
		}
	}
}

// is reports whether the lease is in that state, and still the request's. Its
// caller holds the owner's lock, under which it leaves these states.
func (o outerLease) is(state int32) bool {
	return o.state.Load() == state && o.lease.request.Load() == o.request
}

func (o outerLease) yield() bool {
	o.owner.mu.Lock()
	defer o.owner.mu.Unlock()
	if !o.state.CompareAndSwap(leaseRunning, leaseYielded) {
		return false
	}
	if !o.is(leaseYielded) {
		o.state.Store(leaseRunning) // another's
		return false
	}
	o.owner.counts.yields++
	o.owner.release(o.lease, o.owner.queue.Yield)
	return true
}

func (o outerLease) resume() <-chan struct{} {
	o.owner.mu.Lock()
	defer o.owner.mu.Unlock()
	if !o.is(leaseYielded) {
		return nil
	}
	return o.owner.resumeLocked(o.lease)
}

func (o outerLease) resumed(granted bool) {
	o.owner.mu.Lock()
	defer o.owner.mu.Unlock()
	if o.is(leaseResumed) {
		o.owner.resumedLocked(o.lease, granted)
	}
}
