package limit

import (
	"context"
	"net/http"
	"sync"
	"sync/atomic"
	"time"

	"github.com/seed-235859eb/usher/internal/fairqueue"
)

// A lease is what a request holds a slot with, or waits for one.
type lease struct {
	fairqueue.Waiter // its Value is the lease

	flow  *fairqueue.Flow
	keyed *keyedFlow              // whose Flow flow is, or nil
	owner atomic.Pointer[Limiter] // while a request has it, or it is kept
	state atomic.Int32            // one of the following
	// request is the requestID of the one that runs with it.
	request atomic.Uintptr
	ready   chan struct{} // has an element when the waiting has ended
	timer   *time.Timer
	turn    int          // requests in a row on this slot
	wait    atomic.Int64 // of the request, before it began; a time.Duration

	queued bool // the request waits, or has waited, to begin

	came time.Duration // when it began to, on the owner's clock; guarded by the owner's mu
	ends time.Duration // when its client is known to give up, on that clock, or 0; guarded by the owner's mu
	lost Verdict       // why it has lost its place, or Served; guarded by the owner's mu
}

// The states of a lease. It becomes Yielded and Resumed, and stops being so,
// under its owner's lock.
const (
	leaseNone    = iota // no slot, or waiting to begin
	leaseRunning        // its request runs
	leaseKept           // its request has ended; kept for the connection's next
	leaseYielded        // given back while a read of the body waits, or a Limiter inside has it wait
	leaseResumed        // waiting for a slot to go on with
)

func (e *lease) init(f *fairqueue.Flow) {
	e.flow = f
	e.Value = e
}

// setOwner says whose slots e holds, and spares the store if it said so before.
func (e *lease) setOwner(l *Limiter) {
	if e.owner.Load() != l {
		e.owner.Store(l)
	}
}

// newLeasePool returns a pool for one Limiter: the channels of leases must not
// get from one testing/synctest bubble into another.
func newLeasePool() *sync.Pool {
	return &sync.Pool{New: func() any {
		e := new(lease)
		e.init(nil)
		return e
	}}
}

// waitChan returns the channel on which e is told.
func (e *lease) waitChan() chan struct{} {
	if e.ready == nil {
		e.ready = make(chan struct{}, 1)
	}
	return e.ready
}

// A flowKey names a flow that is not a connection's own: that of a name, which
// the caller gave or is a remote address, or of a connection that belongs to
// another Limiter.
type flowKey struct {
	name string
	conn *Conn
	addr bool // name is an address
}

type keyedFlow struct {
	fairqueue.Flow
	key  flowKey
	uses int // leases that have it
}

// leaseFor returns a lease for r: the connection's own if that is free, which it
// always is over HTTP/1 unless a handler has outlived its request, as under
// http.TimeoutHandler; else one from the pool.
func (l *Limiter) leaseFor(r *http.Request, c *Conn, name string, weight int32) *lease {
	key := flowKey{name: name}
	switch {
	case name != "":
	case c == nil:
		key.name, key.addr = r.RemoteAddr, true
	case c.owner.Load() == l || c.owner.CompareAndSwap(nil, l):
		if isHTTP1(r) && c.taken.CompareAndSwap(false, true) {
			return &c.lease
		}
		c.dropKept()
		e := l.leases.Get().(*lease)
		e.flow = &c.flow
		return e
	default:
		key.conn = c
	}
	if c != nil {
		c.dropKept()
	}
	e := l.leases.Get().(*lease)
	l.mu.Lock()
	defer l.mu.Unlock()
	f := l.keyed[key]
	if f == nil {
		f = &keyedFlow{key: key}
		f.Weight = max(weight, 1)
		l.keyed[key] = f
	}
	f.uses++
	e.keyed, e.flow = f, &f.Flow
	return e
}

// returnLease puts e back where leaseFor had it from.
func (l *Limiter) returnLease(e *lease, c *Conn) {
	if e.wait.Load() != 0 {
		e.wait.Store(0) // a store that others see costs more than a look
	}
	e.queued = false
	if c != nil && e == &c.lease {
		c.taken.Store(false)
		return
	}
	if f := e.keyed; f != nil {
		l.mu.Lock()
		if f.uses--; f.uses == 0 {
			delete(l.keyed, f.key)
		}
		l.mu.Unlock()
	}
	e.flow, e.keyed = nil, nil
	e.owner.Store(nil)
	l.leases.Put(e)
}

// release gives e's slot back with f, which is Release or Yield of the queue,
// and passes it on. Its caller holds l.mu.
func (l *Limiter) release(e *lease, f func(*fairqueue.Flow) *fairqueue.Waiter) {
	if w := f(e.flow); w != nil {
		l.pass(w)
	} else {
		l.lastPass = time.Time{}
	}
}

// giveBack gives e's slot back, fast if that concerns nobody else.
func (l *Limiter) giveBack(e *lease) {
	if l.queue.TryRelease(e.flow) {
		return
	}
	l.mu.Lock()
	l.release(e, l.queue.Release)
	l.mu.Unlock()
}

// finish ends a request. If its connection may serve one more in this turn, the
// slot is kept until the connection's next Read says whether the next request
// is there; see Conn.ReadWaits. That is so only if mayKeep: the handlers have
// returned, and no rest of a body has to be read.
func (l *Limiter) finish(e *lease, c *Conn, ctx context.Context, mayKeep bool) {
	if c != nil {
		c.ended(e)
	}
	if e.queued || ctx.Err() != nil {
		l.noteEnd(e, ctx)
	}
	if mayKeep && e == &c.lease && e.turn < l.queue.MaxInline && !l.queue.CanKeep(l.queue.MaxInline) &&
		e.state.CompareAndSwap(leaseRunning, leaseKept) {
		l.returnLease(e, c)
		if c.track.State().Closed() {
			c.dropKept()
		}
		return
	}
	if e.state.CompareAndSwap(leaseRunning, leaseNone) {
		l.giveBack(e)
	} else {
		l.abandon(e)
	}
	l.returnLease(e, c)
}

// abandon ends a request that does not run, or has begun to again just now: its
// connection was taken over, or a goroutine that the handler left behind is in
// a read of the body.
func (l *Limiter) abandon(e *lease) {
	l.mu.Lock()
	defer l.mu.Unlock()
	switch e.state.Load() {
	case leaseRunning:
		l.release(e, l.queue.Release)
	case leaseResumed:
		if !l.queue.Cancel(&e.Waiter) {
			l.release(e, l.queue.Release)
		}
		// That goroutine keeps the channel that it waits on.
		e.ready = nil
	}
	e.state.Store(leaseNone)
}

// yield gives the slot of a running request back while it waits for its client.
func (l *Limiter) yield(e *lease) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if e.state.CompareAndSwap(leaseRunning, leaseYielded) {
		l.counts.yields++
		l.release(e, l.queue.Yield)
	}
}

// resume asks for a slot for a request that has yielded, and returns what to
// wait for, or nil if nothing.
func (l *Limiter) resume(e *lease) (ready <-chan struct{}) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if e.state.Load() != leaseYielded {
		return nil
	}
	return l.resumeLocked(e)
}

func (l *Limiter) resumeLocked(e *lease) (ready <-chan struct{}) {
	if l.queue.Resume(e.flow, &e.Waiter) {
		e.state.Store(leaseRunning)
		return nil
	}
	e.state.Store(leaseResumed)
	return e.waitChan()
}

// resumed ends the waiting that resume began. Without a slot the request goes
// on all the same: its client is gone, and it will end soon.
func (l *Limiter) resumed(e *lease, granted bool) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.resumedLocked(e, granted)
}

func (l *Limiter) resumedLocked(e *lease, granted bool) {
	if !granted && l.queue.Cancel(&e.Waiter) {
		e.state.Store(leaseNone)
		return
	}
	if !granted {
		<-e.ready // sent under the lock
	}
	e.state.Store(leaseRunning)
}
