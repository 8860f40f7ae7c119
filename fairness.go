package usher

import (
	"cmp"
	"context"
	"fmt"
	"math"
	"net/http"
	"strconv"
	"sync"
	"sync/atomic"
	"time"

	"github.com/seed-235859eb/usher/internal/fairqueue"
)

// FairnessOptions are the options of a [Limiter]. The zero value limits
// nothing.
type FairnessOptions struct {
	// Slots is how many handlers run at a time. Zero means no limit. A
	// negative value is an error.
	Slots int

	// MaxInline is how many requests of one connection may run in a row on
	// one slot while others wait, if each has arrived when the one before it
	// ends; then the connection goes to the back of the queue. It does not
	// close the connection (Puma's setting that used to have this meaning,
	// max_fast_inline, now does). While nobody waits there is no bound.
	//
	// More than 1 saves a hand-off of about a microsecond for each request, and
	// makes the slowest wait that many times longer. It has an effect for
	// HTTP/1 connections of a [Server] on unix systems only. Zero means 1. A
	// negative value is an error.
	MaxInline int

	// MaxQueue is how many requests may wait. One more costs the flow with the
	// most waiting requests its newest, which is answered with Status; that is
	// the new one itself if its own flow is among the longest. Zero means 128
	// for each slot and at least 1024. A negative value is an error.
	MaxQueue int

	// MaxWait is how long a request may wait. Then it is answered with
	// Status, and its handler never runs. Zero means 30 s. A negative value is
	// an error.
	MaxWait time.Duration

	// Status answers requests that cannot be served, with a Retry-After: 503
	// (zero means that) or 429. Any other value is an error.
	Status int

	// Exempt says which requests need no slot, health checks for instance, and
	// streams that run for hours. Nil means none.
	Exempt func(*http.Request) bool

	// FlowKey says what is treated fairly: requests with the same key share
	// one turn, over however many connections they come. Nil, and the empty
	// key, mean the connection. It must not read the body.
	FlowKey func(*http.Request) string

	// Weight says how many slots the flow of a key is due for each one of
	// others. Nil, and less than 1, mean 1.
	Weight func(key string) int
}

const (
	defaultMaxWait  = 30 * time.Second
	minMaxQueue     = 1024
	maxQueuePerSlot = 128
	maxRetryAfter   = 32
	unlimitedSlots  = math.MaxInt32
	blockedAfter    = time.Millisecond
)

func (o FairnessOptions) validate(prefix string) error {
	for _, f := range []struct {
		name  string
		value int64
	}{{"Slots", int64(o.Slots)}, {"MaxInline", int64(o.MaxInline)}, {"MaxQueue", int64(o.MaxQueue)}} {
		if f.value < 0 {
			return fmt.Errorf("usher: %s%s is %d, must not be negative", prefix, f.name, f.value)
		}
		if f.value > math.MaxInt32 {
			return fmt.Errorf("usher: %s%s is %d, must not be above %d", prefix, f.name, f.value, math.MaxInt32)
		}
	}
	if o.MaxWait < 0 {
		return fmt.Errorf("usher: %sMaxWait is %v, must not be negative", prefix, o.MaxWait)
	}
	switch o.Status {
	case 0, http.StatusServiceUnavailable, http.StatusTooManyRequests:
		return nil
	}
	return fmt.Errorf("usher: %sStatus is %d, must be %d or %d", prefix, o.Status, http.StatusServiceUnavailable, http.StatusTooManyRequests)
}

// A Limiter bounds how many handlers run at a time, and decides fairly who is
// next. A request takes a free slot at once. Otherwise it waits: the next slot
// goes to the flow that holds the fewest, and among equals to the one that has
// waited longest since it joined or since a request of it ended. A flow is a
// connection, unless FlowKey says otherwise. Over HTTP/1 that is first come,
// first served; over HTTP/2 a connection with hundreds of streams gets no more
// than one with a single stream.
//
// A slot is not held while a handler waits for its client: a read of the
// request's body that has to wait gives it back, and goes on with priority over
// requests that have not begun. So handlers may run on between a read and its
// return without a slot, but two reads never run beside each other in excess
// of Slots. Writes to a client that does not read hold the slot; set
// WriteTimeout. The same goes for the first write while a body is unread, for
// which net/http reads up to 256 KiB of it. A handler that takes its connection
// over gives its slot back, if the connection is a [Server]'s.
//
// A request that waits is taken out when its client leaves, or only closes its
// sending side, which net/http takes for the same. ReadTimeout and WriteTimeout
// do not run meanwhile; a deadline that a handler around this one has set for
// writes is replaced by WriteTimeout, if there is one.
//
// A Limiter may serve many servers, and a request may pass through several, of
// which the first gets the cheap way.
//
// To take a free slot costs two atomic operations, and to wait for one about a
// microsecond.
type Limiter struct {
	opts  FairnessOptions
	queue fairqueue.Queue

	leases *sync.Pool

	immediate atomic.Uint64 // requests that found a free slot
	exempt    atomic.Uint64

	mu       sync.Mutex // the lock of queue; guards the following
	keyed    map[flowKey]*keyedFlow
	counts   limiterCounts
	lastPass time.Time     // of a slot to one who waited
	interval time.Duration // between two such passes, a moving average
}

// limiterCounts only ever grow.
type limiterCounts struct {
	queued, passed                uint64
	inline, yields                uint64
	full, expired, shutdown, left uint64
	waits                         [waitBuckets]uint64
}

// NewLimiter returns a Limiter, to be used with its Handler method in any
// chain of handlers. A [Server] makes its own.
//
// With an http.Server that usher does not wrap, set its ConnContext to
// [ConnContext]; otherwise connections are told apart by their remote address,
// which costs a look into a map under a lock.
func NewLimiter(opts FairnessOptions) (*Limiter, error) {
	if err := opts.validate("FairnessOptions."); err != nil {
		return nil, err
	}
	return newLimiter(opts), nil
}

func newLimiter(opts FairnessOptions) *Limiter {
	l := &Limiter{opts: opts, leases: newLeasePool(), keyed: make(map[flowKey]*keyedFlow)}
	l.opts.MaxWait = cmp.Or(opts.MaxWait, defaultMaxWait)
	l.opts.Status = cmp.Or(opts.Status, http.StatusServiceUnavailable)
	l.queue.MaxInline = max(opts.MaxInline, 1)
	l.queue.MaxQueue = cmp.Or(opts.MaxQueue, min(max(minMaxQueue, maxQueuePerSlot*opts.Slots), math.MaxInt32))
	l.queue.SetSlots(cmp.Or(opts.Slots, unlimitedSlots))
	return l
}

// SetSlots changes the number of slots; zero means no limit. More slots go to
// those who wait at once; of fewer, the ones too many vanish as their requests
// end. A value that [FairnessOptions] does not allow is an error and changes
// nothing.
func (l *Limiter) SetSlots(n int) error {
	if err := (FairnessOptions{Slots: n}).validate(""); err != nil {
		return err
	}
	l.mu.Lock()
	granted := l.queue.SetSlots(cmp.Or(n, unlimitedSlots))
	for _, w := range granted {
		l.pass(w)
	}
	l.mu.Unlock()
	return nil
}

// Handler returns a handler that calls next when the request has a slot. The
// request that next gets may be a copy, if it has a body.
func (l *Limiter) Handler(next http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		cf, _ := r.Context().Value(connFlowKey{}).(*connFlow)
		if l.opts.Exempt != nil && l.opts.Exempt(r) {
			l.exempt.Add(1)
			if cf != nil {
				cf.dropLinger()
			}
			next.ServeHTTP(w, r)
			return
		}
		l.serve(w, r, cf, next)
	})
}

func (l *Limiter) serve(w http.ResponseWriter, r *http.Request, cf *connFlow, next http.Handler) {
	e := l.leaseFor(r, cf)
	ctx := r.Context()
	switch {
	case e.state.Load() == leaseLinger && e.state.CompareAndSwap(leaseLinger, leaseRunning):
		l.mu.Lock()
		e.turn++
		l.counts.inline++
		l.mu.Unlock()
	case l.queue.TryAcquire(e.flow):
		e.turn = 1
		e.owner = l
		e.state.Store(leaseRunning)
		l.immediate.Add(1)
	default:
		e.owner = l
		if v := l.await(w, r, e, cf); v != verdictRun {
			l.returnLease(e, cf)
			l.turnAway(w, r, v)
			return
		}
		if cf == nil || e != &cf.lease {
			ctx = context.WithValue(ctx, leaseKey{}, time.Duration(e.wait.Load()))
		}
	}
	if cf != nil && r.ProtoMajor < 2 {
		cf.current.Store(e)
	}

	orig := r
	var body *yieldingBody
	hasBody := r.Body != nil && r.Body != http.NoBody && r.ContentLength != 0
	if hasBody || ctx != orig.Context() {
		// A copy: net/http looks into the Body of its own.
		r = r.WithContext(ctx)
	}
	if hasBody {
		body = &yieldingBody{
			ReadCloser: r.Body, l: l, lease: e, w: w, orig: orig, r: r,
			told: cf.followed(e), done: make(chan struct{}),
		}
		r.Body = body
		if body.told {
			cf.body.Store(body)
		}
	}
	whole := false
	defer func() {
		if body != nil {
			body.end()
			if body.told {
				cf.body.Store(nil)
			}
		}
		if r != orig {
			// What net/http cleans up, and what handlers around this one ask for.
			if orig.MultipartForm == nil {
				orig.MultipartForm = r.MultipartForm
			}
			orig.Pattern = r.Pattern
		}
		l.finish(e, cf, whole && (body == nil || body.eof.Load()))
	}()
	next.ServeHTTP(w, r)
	whole = true
}

// A verdict ends the waiting of a request.
type verdict int

const (
	verdictRun verdict = iota
	verdictFull
	verdictExpired
	verdictShutdown
	verdictLeft
)

// await waits for a slot.
func (l *Limiter) await(w http.ResponseWriter, r *http.Request, e *lease, cf *connFlow) verdict {
	began := time.Now()
	if v, waits := l.enqueue(e); !waits {
		return v
	}
	var hungUp <-chan struct{}
	if cf != nil && cf.conn != nil && r.ProtoMajor < 2 {
		cf.conn.HoldDeadlines()
		defer cf.conn.ReleaseDeadlines()
		if r.Body != http.NoBody {
			// net/http watches the connection only once the body has been read.
			var stop func()
			hungUp, stop = cf.conn.WatchHangUp()
			defer stop()
		}
	} else {
		defer suspendWriteDeadline(w, r)()
	}
	if e.timer == nil {
		e.timer = time.NewTimer(l.opts.MaxWait)
	} else {
		e.timer.Reset(l.opts.MaxWait)
	}
	defer e.timer.Stop()

	v := verdictRun
	ctx := r.Context()
	select {
	case <-e.ready:
	case <-e.timer.C:
		v = verdictExpired
	case <-hungUp:
		v = verdictLeft
	case <-ctx.Done():
		v = verdictLeft
		if context.Cause(ctx) == ErrShuttingDown {
			v = verdictShutdown
		}
	}
	return l.settle(e, v, time.Since(began))
}

// enqueue asks for a slot. If e has to wait, it says so; else the verdict is
// there.
func (l *Limiter) enqueue(e *lease) (v verdict, waits bool) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.counts.queued++
	e.evicted = false
	e.waitChan()
	granted, victim := l.queue.Enqueue(e.flow, &e.Waiter)
	switch {
	case granted:
		l.counts.passed++
		l.counts.waits[0]++
		e.turn = 1
		e.state.Store(leaseRunning)
		return verdictRun, false
	case victim == &e.Waiter:
		l.counts.full++
		return verdictFull, false
	case victim != nil:
		other := victim.Value.(*lease)
		other.evicted = true
		l.counts.full++
		other.ready <- struct{}{}
	}
	return 0, true
}

// settle ends the waiting of e, which v did if nothing else has just then.
func (l *Limiter) settle(e *lease, v verdict, wait time.Duration) verdict {
	l.mu.Lock()
	defer l.mu.Unlock()
	if v != verdictRun && !l.queue.Cancel(&e.Waiter) {
		<-e.ready // both happened; sent under the lock
		if e.evicted || v == verdictExpired {
			v = verdictRun
		} else {
			// It has a slot, and nobody to serve.
			l.counts.passed--
			l.release(e, l.queue.Release)
		}
	}
	switch {
	case v == verdictRun && e.evicted:
		return verdictFull // counted by whoever evicted it
	case v == verdictRun:
		e.wait.Store(int64(wait))
		e.turn = 1
		e.state.Store(leaseRunning)
		l.counts.waits[waitBucket(wait)]++
	case v == verdictExpired:
		l.counts.expired++
	case v == verdictShutdown:
		l.counts.shutdown++
	case v == verdictLeft:
		l.counts.left++
	}
	return v
}

// pass tells the request behind w that it has a slot. Its caller holds l.mu.
func (l *Limiter) pass(w *fairqueue.Waiter) {
	now := time.Now()
	if !l.lastPass.IsZero() {
		// Each new one counts an eighth. A pause in which nobody waited says
		// nothing about how fast slots come.
		switch d := now.Sub(l.lastPass); {
		case l.interval == 0:
			l.interval = d
		case d < l.opts.MaxWait:
			l.interval += (d - l.interval) / 8
		}
	}
	l.lastPass = now
	e := w.Value.(*lease)
	if e.state.Load() == leaseNone {
		l.counts.passed++
	}
	e.ready <- struct{}{}
}

// turnAway answers a request that was not served.
func (l *Limiter) turnAway(w http.ResponseWriter, r *http.Request, v verdict) {
	h := w.Header()
	status, text := l.opts.Status, "too many requests are waiting"
	switch v {
	case verdictExpired:
		text = "waited too long for its turn"
	case verdictShutdown:
		status, text = http.StatusServiceUnavailable, "the server is shutting down"
		h.Set("Connection", "close")
	case verdictLeft:
		// Nobody is there to read it, unless the client has only closed its
		// sending side, or somebody around this handler has set a deadline.
		status, text = http.StatusServiceUnavailable, "given up while it waited for its turn"
		if r.ProtoMajor < 2 {
			h.Set("Connection", "close")
		}
	}
	if own, ok := r.Context().Value(serverKey{}).(*Server); ok && own.Phase() > PhaseLameDuck {
		sayClose(h, r)
	}
	h.Set("Retry-After", strconv.Itoa(l.retryAfter()))
	h.Set("Cache-Control", "no-store")
	http.Error(w, text, status)
}

// retryAfter returns the seconds after which those who wait now will have
// been served.
func (l *Limiter) retryAfter() int {
	l.mu.Lock()
	defer l.mu.Unlock()
	drained := time.Duration(l.queue.Snapshot().Waiting) * l.interval
	return int(min(max(math.Ceil(drained.Seconds()), 1), maxRetryAfter))
}

// suspendWriteDeadline stops the clock of the server's WriteTimeout, which net/http
// started when the header was read, and returns what starts it anew.
func suspendWriteDeadline(w http.ResponseWriter, r *http.Request) (resume func()) {
	srv, ok := r.Context().Value(http.ServerContextKey).(*http.Server)
	if !ok || srv.WriteTimeout <= 0 {
		return func() {}
	}
	rc := http.NewResponseController(w)
	if rc.SetWriteDeadline(time.Time{}) != nil {
		return func() {}
	}
	return func() { rc.SetWriteDeadline(time.Now().Add(srv.WriteTimeout)) }
}
