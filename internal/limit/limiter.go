package limit

import (
	"context"
	"math"
	"net/http"
	"sync"
	"sync/atomic"
	"time"

	"github.com/seed-235859eb/usher/internal/fairqueue"
)

// Options are the options of a Limiter. All must be set, but for the last three.
type Options struct {
	Slots     int // how many handlers run at once; Unlimited for no bound
	MaxInline int // requests of a connection in a row on one slot while others wait
	MaxQueue  int // requests that may wait
	MaxWait   time.Duration

	// GivesUpAt says when the client of a request gives up; zero if it does not
	// know. It is asked if the request has to wait.
	GivesUpAt func(*http.Request) time.Time
	// Stopped is the cause of a request's context that a stop has ended.
	Stopped error
	// Outermost says that no handler stands around the Limiter's, so that a
	// request has ended when the Limiter's handler returns.
	Outermost bool
}

// Unlimited is the number of slots that limits nothing.
const Unlimited = math.MaxInt32

// A Limiter bounds how many handlers run at once. All methods may be called
// from many goroutines at once.
type Limiter struct {
	opts   Options
	queue  fairqueue.Queue
	leases *sync.Pool

	immediate atomic.Uint64 // requests that found a free slot

	mu       sync.Mutex // the lock of queue; guards the following
	keyed    map[flowKey]*keyedFlow
	counts   counts
	patience fairqueue.Patience
	lastPass time.Time     // of a slot to one who waited
	interval time.Duration // between two such passes, a moving average

	epoch time.Time // of the times that patience knows
}

// New returns a Limiter.
func New(opts Options) *Limiter {
	l := &Limiter{opts: opts, leases: newLeasePool(), keyed: make(map[flowKey]*keyedFlow), epoch: time.Now()}
	l.queue.Late = l.late
	l.queue.MaxInline = opts.MaxInline
	l.queue.MaxQueue = opts.MaxQueue
	l.queue.SetSlots(opts.Slots)
	return l
}

// SetSlots changes the number of slots. More slots go to those who wait at
// once; of fewer, the ones too many vanish as their requests end.
func (l *Limiter) SetSlots(n int) {
	l.mu.Lock()
	defer l.mu.Unlock()
	for _, w := range l.queue.SetSlots(n) {
		l.pass(w)
	}
}

// DrainTime returns how long those who wait now will have to, the last of them,
// as far as the past tells.
func (l *Limiter) DrainTime() time.Duration {
	l.mu.Lock()
	defer l.mu.Unlock()
	return time.Duration(l.queue.Snapshot().Waiting) * l.interval
}

// A Verdict is what became of a request.
type Verdict int

const (
	Served  Verdict = iota
	Full            // lost its place, or got none, because of MaxQueue
	TooLate         // its client has given up by its turn, as is known or to be expected
	Expired         // MaxWait was over
	Stopped         // its context ended with the cause that Options name
	Left            // its client left
)

// Serve calls next when the request has a slot, or returns why it did not. The
// flow that it belongs to is the connection's, or that of key if that is not
// empty, which is due weight slots for each one of another. The request that
// next gets may be a copy.
func (l *Limiter) Serve(w http.ResponseWriter, r *http.Request, key string, weight int32, next http.Handler) Verdict {
	c := connOf(r)
	e := l.leaseFor(r, c, key, weight)
	if c != nil {
		e.request.Store(requestID(r)) // before it runs: see outerLease
	}
	ctx := r.Context()
	var d deadlines
	switch {
	case e.state.Load() == leaseKept && e.state.CompareAndSwap(leaseKept, leaseRunning):
		l.mu.Lock()
		e.turn++
		l.counts.inline++
		l.mu.Unlock()
	case l.queue.TryAcquire(e.flow):
		e.turn = 1
		e.setOwner(l)
		e.state.Store(leaseRunning)
		l.immediate.Add(1)
	default:
		e.setOwner(l)
		d = deadlinesOf(w, r, c)
		if v := l.await(r, e, c, d); v != Served {
			l.returnLease(e, c)
			return v
		}
		if c == nil || e != &c.lease {
			ctx = context.WithValue(ctx, waitKey{}, time.Duration(e.wait.Load()))
		}
	}
	if c != nil {
		c.began(e)
	}
	if hasBody(r) {
		if d == (deadlines{}) {
			d = deadlinesOf(w, r, c)
		}
		l.serveBody(w, r, ctx, e, c, d, next)
		return Served
	}
	inner := r
	if ctx != r.Context() {
		inner = r.WithContext(ctx)
	}
	whole := false
	defer func() {
		handBack(r, inner)
		l.finish(e, c, ctx, whole && l.opts.Outermost && c.tells(r))
	}()
	next.ServeHTTP(w, inner)
	whole = true
	return Served
}

// serveBody serves a request that has a body, whose reads give its slot back
// while they wait.
func (l *Limiter) serveBody(w http.ResponseWriter, r *http.Request, ctx context.Context, e *lease, c *Conn, d deadlines, next http.Handler) {
	inner := r.WithContext(d.context(ctx)) // a copy: net/http looks into the Body of its own
	body := newYieldingBody(l, e, c, d, r, inner)
	inner.Body = body
	whole := false
	defer func() {
		body.end()
		d.end()
		handBack(r, inner)
		l.finish(e, c, ctx, whole && l.opts.Outermost && body.told && body.eof.Load())
	}()
	next.ServeHTTP(d.watch(w), inner)
	whole = true
}

// handBack lets the handlers around the Limiter see what the one inside has
// learned: the form, path values, trailers. Without a copy they would.
func handBack(r, inner *http.Request) {
	if inner == r {
		return
	}
	body := r.Body
	*r = *inner.WithContext(r.Context())
	r.Body = body
}

// isHTTP1 reports whether r is the one request that its connection has at a
// time. The preface of HTTP/2 without TLS comes as a request, too, for handlers
// that take the connection over, and says that it is HTTP/2.
func isHTTP1(r *http.Request) bool { return r.ProtoMajor < 2 || r.Method == "PRI" }

// hasBody reports whether r may have a body to be read.
func hasBody(r *http.Request) bool {
	return r.Body != nil && r.Body != http.NoBody && r.ContentLength != 0
}
