package usher

import (
	"context"
	"math"
	"net"
	"net/http"
	"sync/atomic"
	"time"

	"github.com/seed-235859eb/usher/internal/fairqueue"
)

// A connFlow is the flow of a connection.
type connFlow struct {
	fairqueue.Flow
	// lease is that of the one request that an HTTP/1 connection has at a
	// time; it may outlast the request, see Limiter.finish.
	lease        lease
	conn         *Conn     // nil if what it does cannot be seen
	readDeadline time.Time // of conn, as the goroutine that serves it has set it
}

type connFlowKey struct{}

// ConnContext lets a [Limiter] know the connection that a request came over.
// It is to be the ConnContext of an [http.Server] that usher does not wrap.
func ConnContext(ctx context.Context, c net.Conn) context.Context {
	f := &connFlow{}
	f.lease.init(&f.Flow)
	if conn := connOf(c); conn != nil && conn.raw != nil {
		f.conn = conn
		conn.flow = f
	}
	return context.WithValue(ctx, connFlowKey{}, f)
}

// A keyedFlow is the flow of a key.
type keyedFlow struct {
	fairqueue.Flow
	key  string
	uses int // leases that have it
}

// A lease is what a request holds a slot with, or waits for one.
type lease struct {
	fairqueue.Waiter // its Value is the lease

	flow  *fairqueue.Flow
	keyed *keyedFlow    // whose Flow flow is, or nil
	owner *Limiter      // while the request is under way
	state atomic.Int32  // one of the following
	ready chan struct{} // has an element when the waiting has ended
	timer *time.Timer
	turn  int           // requests in a row on this slot
	wait  time.Duration // of the request, before it began

	// Guarded by owner.mu.
	evicted bool // lost its place to another
}

// The states of a lease.
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
	e.ready = make(chan struct{}, 1)
}

// leaseFor returns the lease for r: the connection's own if it is HTTP/1 and the
// flow is the connection, else one from the pool.
func (l *Limiter) leaseFor(r *http.Request, cf *connFlow) *lease {
	key := ""
	if l.opts.FlowKey != nil {
		key = l.opts.FlowKey(r)
	}
	if key == "" && cf != nil {
		if r.ProtoMajor < 2 {
			return &cf.lease
		}
		e := l.leases.Get().(*lease)
		e.flow = &cf.Flow
		return e
	}
	weight := 1
	if key == "" {
		key = "\x00" + r.RemoteAddr // no FlowKey's
	} else if l.opts.Weight != nil {
		weight = min(max(l.opts.Weight(key), 1), math.MaxInt32)
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
	if cf != nil && e == &cf.lease {
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
// whether the next request is there; see connFlow.wouldBlock.
func (l *Limiter) finish(e *lease, cf *connFlow, whole bool) {
	if whole && e.turn < l.queue.MaxInline && !l.queue.CanLinger(l.queue.MaxInline) && cf.followed(e) &&
		e.state.CompareAndSwap(leaseRunning, leaseLinger) {
		if cf.conn.state.Load()&flagClosed != 0 {
			cf.dropLinger()
		}
		return
	}
	if e.state.CompareAndSwap(leaseRunning, leaseNone) {
		l.giveBack(e)
	} else {
		l.mu.Lock()
		if e.state.Load() == leaseResumed {
			// A goroutine that the handler left behind reads the body. It keeps
			// the channel that it waits on, and gets nothing more.
			if !l.queue.Cancel(&e.Waiter) {
				l.release(e, l.queue.Release)
			}
			e.ready = make(chan struct{}, 1)
		}
		e.state.Store(leaseNone)
		l.mu.Unlock()
	}
	l.returnLease(e, cf)
}

// followed reports whether e is the lease of an HTTP/1 connection that tells
// when a Read has to wait, and of whose requests a Server knows.
func (f *connFlow) followed(e *lease) bool {
	return f != nil && e == &f.lease && f.conn != nil && f.conn.state.Load()&phaseMask == phaseActive
}

// dropLinger gives a lingering slot back, once.
func (f *connFlow) dropLinger() {
	if f.lease.state.Load() == leaseLinger && f.lease.state.CompareAndSwap(leaseLinger, leaseNone) {
		f.lease.owner.giveBack(&f.lease)
	}
}

// wouldBlock is called when a Read of the connection has nothing to return.
// Between two requests that means that the next one is not there yet; in a
// request, while its body is read, that the handler waits for its client.
func (f *connFlow) wouldBlock(phase uint32) {
	switch {
	case phase == phaseIdle:
		f.dropLinger()
	case phase == phaseActive && f.conn.state.Load()&flagBody != 0:
		f.lease.yield()
	}
}

// hijacked is called when a handler has taken the connection over.
func (f *connFlow) hijacked() {
	if f.lease.state.CompareAndSwap(leaseRunning, leaseNone) {
		f.lease.owner.giveBack(&f.lease)
	}
}

// yield gives the slot of a running request back while it waits for its client.
func (e *lease) yield() {
	l := e.owner
	l.mu.Lock()
	defer l.mu.Unlock()
	if e.state.CompareAndSwap(leaseRunning, leaseYielded) {
		l.counts.yields++
		l.release(e, l.queue.Yield)
	}
}

// resume waits for a slot to go on with. If ctx ends first the request goes on
// without one: its client is gone, and it will end soon.
func (e *lease) resume(ctx context.Context) {
	l := e.owner
	l.mu.Lock()
	if !e.state.CompareAndSwap(leaseYielded, leaseResumed) {
		l.mu.Unlock()
		return
	}
	if l.queue.Resume(e.flow, &e.Waiter) {
		e.state.Store(leaseRunning)
		l.mu.Unlock()
		return
	}
	ready := e.ready
	l.mu.Unlock()
	granted := false
	select {
	case <-ready:
		granted = true
	case <-ctx.Done():
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	if e.ready != ready {
		return // the request is over
	}
	switch {
	case granted:
		e.state.Store(leaseRunning)
	case l.queue.Cancel(&e.Waiter):
		e.state.Store(leaseNone)
	default:
		<-ready
		e.state.Store(leaseRunning)
	}
}

type leaseKey struct{}

// QueueWait returns how long the request that ctx belongs to has waited for a
// slot before its handler began, and zero if ctx is not that of a request.
// Reading the header and the body does not count.
func QueueWait(ctx context.Context) time.Duration {
	if d, ok := ctx.Value(leaseKey{}).(time.Duration); ok {
		return d
	}
	if f, ok := ctx.Value(connFlowKey{}).(*connFlow); ok {
		return f.lease.wait
	}
	return 0
}
