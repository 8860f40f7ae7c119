package usher

import (
	"context"
	"math"
	"net"
	"net/http"
	"sync"
	"sync/atomic"
	"time"

	"github.com/seed-235859eb/usher/internal/fairqueue"
	"github.com/seed-235859eb/usher/internal/track"
)

// A connFlow is what limiters know of a connection.
type connFlow struct {
	flow  fairqueue.Flow
	owner atomic.Pointer[Limiter] // whose flow it is: the first that asked

	// lease is for the one request that an HTTP/1 connection has at a time, so
	// that it need not be allocated; taken tells whether one has it. It may
	// outlast its request, see Limiter.finish.
	lease lease
	taken atomic.Bool

	current atomic.Pointer[lease]        // of the HTTP/1 request under way
	body    atomic.Pointer[yieldingBody] // of that request

	hook track.Hook  // of conn
	conn *track.Conn // nil if none is known
}

type connFlowKey struct{}

// ConnContext lets a [Limiter] know the connection that a request came over.
// It is to be the ConnContext of an [http.Server] that usher does not wrap.
func ConnContext(ctx context.Context, c net.Conn) context.Context {
	f := &connFlow{}
	f.lease.init(&f.flow)
	if conn := track.Of(c); conn != nil {
		f.conn = conn
		f.hook.User = f
		conn.Use(&f.hook)
	}
	return context.WithValue(ctx, connFlowKey{}, f)
}

// A flowKey names a flow that is not a connection's own: that of a name, from
// FlowKey or a remote address, or of a connection that belongs to another
// Limiter.
type flowKey struct {
	name string
	conn *connFlow
	addr bool // name is an address
}

type keyedFlow struct {
	fairqueue.Flow
	key  flowKey
	uses int // leases that have it
}

// A lease is what a request holds a slot with, or waits for one.
type lease struct {
	fairqueue.Waiter // its Value is the lease

	flow  *fairqueue.Flow
	keyed *keyedFlow    // whose Flow flow is, or nil
	owner *Limiter      // while a request has it, or it lingers
	state atomic.Int32  // one of the following
	ready chan struct{} // has an element when the waiting has ended
	timer *time.Timer
	turn  int          // requests in a row on this slot
	wait  atomic.Int64 // of the request, before it began; a time.Duration

	evicted bool // lost its place to another; guarded by owner.mu
}

// The states of a lease. It becomes Yielded and Resumed, and stops being so,
// under its owner's lock.
const (
	leaseNone    = iota // no slot, or waiting to begin
	leaseRunning        // its request runs
	leaseLinger         // its request has ended; kept for the connection's next
	leaseYielded        // given back while a read of the body waits
	leaseResumed        // waiting for a slot to go on with
)

func (e *lease) init(f *fairqueue.Flow) {
	e.flow = f
	e.Value = e
}

// leaseFor returns a lease for r: the connection's own if that is free, which it
// always is over HTTP/1 unless a handler has outlived its request, as under
// http.TimeoutHandler; else one from the pool.
func (l *Limiter) leaseFor(r *http.Request, cf *connFlow) *lease {
	key := flowKey{}
	if l.opts.FlowKey != nil {
		key.name = l.opts.FlowKey(r)
	}
	weight := 1
	switch {
	case key.name != "":
		if l.opts.Weight != nil {
			weight = min(max(l.opts.Weight(key.name), 1), math.MaxInt32)
		}
	case cf == nil:
		key.name, key.addr = r.RemoteAddr, true
	case cf.owner.Load() == l || cf.owner.CompareAndSwap(nil, l):
		if r.ProtoMajor < 2 && cf.taken.CompareAndSwap(false, true) {
			return &cf.lease
		}
		cf.dropLinger()
		e := l.leases.Get().(*lease)
		e.flow = &cf.flow
		return e
	default:
		key.conn = cf
	}
	if cf != nil {
		cf.dropLinger()
	}
	e := l.leases.Get().(*lease)
	l.mu.Lock()
	defer l.mu.Unlock()
	f := l.keyed[key]
	if f == nil {
		f = &keyedFlow{key: key}
		f.Weight = int32(weight)
		l.keyed[key] = f
	}
	f.uses++
	e.keyed, e.flow = f, &f.Flow
	return e
}

// returnLease puts e back where leaseFor had it from.
func (l *Limiter) returnLease(e *lease, cf *connFlow) {
	e.wait.Store(0)
	if cf != nil && e == &cf.lease {
		cf.taken.Store(false)
		return
	}
	if f := e.keyed; f != nil {
		l.mu.Lock()
		if f.uses--; f.uses == 0 {
			delete(l.keyed, f.key)
		}
		l.mu.Unlock()
	}
	e.flow, e.keyed, e.owner = nil, nil, nil
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

// finish ends a request. While others wait, and its connection may serve one
// more in this turn, the slot lingers until the connection's next Read says
// whether the next request is there; see connFlow.wouldBlock. That is so only
// if mayLinger: the handler has returned, and no rest of a body has to be read.
func (l *Limiter) finish(e *lease, cf *connFlow, mayLinger bool) {
	if cf != nil {
		cf.current.CompareAndSwap(e, nil)
	}
	if mayLinger && e.turn < l.queue.MaxInline && !l.queue.CanLinger(l.queue.MaxInline) && cf.followed(e) &&
		e.state.CompareAndSwap(leaseRunning, leaseLinger) {
		l.returnLease(e, cf)
		if cf.conn.State().Closed() {
			cf.dropLinger()
		}
		return
	}
	if e.state.CompareAndSwap(leaseRunning, leaseNone) {
		l.giveBack(e)
	} else {
		l.abandon(e)
	}
	l.returnLease(e, cf)
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

// followed reports whether e is the lease of an HTTP/1 connection that tells
// when a Read has to wait, and of whose requests a Server knows.
func (f *connFlow) followed(e *lease) bool {
	return f != nil && e == &f.lease && f.conn != nil && f.conn.Visible() && f.conn.State().Reported() == http.StateActive
}

// dropLinger gives a lingering slot back, once.
func (f *connFlow) dropLinger() {
	if f.lease.state.Load() == leaseLinger && f.lease.state.CompareAndSwap(leaseLinger, leaseNone) {
		f.lease.owner.giveBack(&f.lease)
	}
}

// ReadWaits implements [track.User]. Between two requests it means that the
// next one is not there yet; in a request, that a read of its body waits for
// the client.
func (f *connFlow) ReadWaits(between bool) {
	switch {
	case !f.conn.Visible():
	case between:
		f.dropLinger()
	default:
		if b := f.body.Load(); b != nil {
			b.blocked()
		}
	}
}

// Ended implements [track.User].
func (f *connFlow) Ended(hijacked bool) {
	if !hijacked {
		f.dropLinger()
	} else if e := f.current.Load(); e != nil && e.state.CompareAndSwap(leaseRunning, leaseNone) {
		e.owner.giveBack(e)
	}
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
	if !granted && l.queue.Cancel(&e.Waiter) {
		e.state.Store(leaseNone)
		return
	}
	if !granted {
		<-e.ready // sent under the lock
	}
	e.state.Store(leaseRunning)
}

// waitChan returns the channel on which e is told.
func (e *lease) waitChan() chan struct{} {
	if e.ready == nil {
		e.ready = make(chan struct{}, 1)
	}
	return e.ready
}

type leaseKey struct{}

// QueueWait returns how long the request that ctx belongs to has waited for a
// slot before its handler began, and zero if ctx is not that of a request.
// Reading the header and the body does not count. Ask before the handler has
// returned.
func QueueWait(ctx context.Context) time.Duration {
	if d, ok := ctx.Value(leaseKey{}).(time.Duration); ok {
		return d
	}
	if f, ok := ctx.Value(connFlowKey{}).(*connFlow); ok {
		return time.Duration(f.lease.wait.Load())
	}
	return 0
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
