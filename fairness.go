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
	defaultMaxWait   = 30 * time.Second
	minMaxQueue      = 1024
	maxQueuePerSlot  = 128
	maxRetryAfter    = 32
	unlimitedSlots   = math.MaxInt32
	blockedAfter     = time.Millisecond
	firstBucketUpper = time.Millisecond
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
// WriteTimeout. A handler that takes its connection over gives its slot back.
//
// A request that waits is taken out when its client leaves. Its write deadline
// does not run meanwhile.
//
// To take a free slot costs two atomic operations, and to wait for one about a
// microsecond.
type Limiter struct {
	opts  FairnessOptions
	queue fairqueue.Queue

	// Not shared by all Limiters: the channels of leases must not get from one
	// testing/synctest bubble into another.
	leases sync.Pool

	immediate atomic.Uint64 // requests that found a free slot
	exempt    atomic.Uint64

	mu       sync.Mutex // the lock of queue; guards the following
	keyed    map[string]*keyedFlow
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
	l := &Limiter{opts: opts, keyed: make(map[string]*keyedFlow)}
	l.leases.New = func() any {
		e := new(lease)
		e.init(nil)
		return e
	}
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

// Handler returns a handler that calls next when the request has a slot.
func (l *Limiter) Handler(next http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if l.opts.Exempt != nil && l.opts.Exempt(r) {
			l.exempt.Add(1)
			next.ServeHTTP(w, r)
			return
		}
		l.serve(w, r, next)
	})
}

func (l *Limiter) serve(w http.ResponseWriter, r *http.Request, next http.Handler) {
	cf, _ := r.Context().Value(connFlowKey{}).(*connFlow)
	e := l.leaseFor(r, cf)
	e.owner = l
	e.wait = 0
	switch {
	case e.state.Load() == leaseLinger && e.state.CompareAndSwap(leaseLinger, leaseRunning):
		l.mu.Lock()
		e.turn++
		l.counts.inline++
		l.mu.Unlock()
	case l.queue.TryAcquire(e.flow):
		e.turn = 1
		e.state.Store(leaseRunning)
		l.immediate.Add(1)
	default:
		if v := l.await(w, r, e, cf); v != verdictRun {
			l.returnLease(e, cf)
			l.turnAway(w, r, v)
			return
		}
		if cf == nil || e != &cf.lease {
			r = r.WithContext(context.WithValue(r.Context(), leaseKey{}, e.wait))
		}
	}
	var body *yieldingBody
	if r.Body != nil && r.Body != http.NoBody {
		// A copy: net/http looks into the Body of its own.
		r = r.WithContext(r.Context())
		body = &yieldingBody{ReadCloser: r.Body, lease: e, ctx: r.Context()}
		if cf.followed(e) {
			body.conn = cf.conn
		}
		r.Body = body
	}
	whole := false
	defer func() {
		if body != nil {
			body.end()
		}
		l.finish(e, cf, whole)
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
	ctx := r.Context()
	l.mu.Lock()
	l.counts.queued++
	e.evicted = false
	granted, victim := l.queue.Enqueue(e.flow, &e.Waiter)
	switch {
	case granted:
		l.begin(e, 0)
		l.mu.Unlock()
		return verdictRun
	case victim == &e.Waiter:
		l.counts.full++
		l.mu.Unlock()
		return verdictFull
	case victim != nil:
		v := victim.Value.(*lease)
		v.evicted = true
		l.counts.full++
		v.ready <- struct{}{}
	}
	l.mu.Unlock()

	resume := suspendWriteDeadline(w, r)
	defer resume()
	var hungUp <-chan struct{}
	if cf.followed(e) && r.Body != http.NoBody {
		// net/http watches the connection only once the body has been read.
		var stop func()
		hungUp, stop = cf.conn.watchHangUp()
		defer stop()
	}
	if e.timer == nil {
		e.timer = time.NewTimer(l.opts.MaxWait)
	} else {
		e.timer.Reset(l.opts.MaxWait)
	}
	defer e.timer.Stop()

	v := verdictRun
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
	l.mu.Lock()
	defer l.mu.Unlock()
	if v != verdictRun && !l.queue.Cancel(&e.Waiter) {
		<-e.ready // both happened; sent under the lock
		if !e.evicted && v != verdictExpired {
			// It has a slot, and nobody to serve.
			l.release(e, l.queue.Release)
		} else {
			v = verdictRun
		}
	}
	switch {
	case v == verdictRun && e.evicted:
		return verdictFull // counted by whoever evicted it
	case v == verdictRun:
		l.begin(e, time.Since(began))
	case v == verdictExpired:
		l.counts.expired++
	case v == verdictShutdown:
		l.counts.shutdown++
	case v == verdictLeft:
		l.counts.left++
	}
	return v
}

// begin notes that e, which has a slot, begins after a wait. Its caller holds
// l.mu.
func (l *Limiter) begin(e *lease, wait time.Duration) {
	e.wait = wait
	e.turn = 1
	e.state.Store(leaseRunning)
	l.counts.passed++
	l.counts.waits[waitBucket(wait)]++
}

// pass tells the request behind w that it has a slot. Its caller holds l.mu.
func (l *Limiter) pass(w *fairqueue.Waiter) {
	now := time.Now()
	if !l.lastPass.IsZero() {
		// An eighth of the newest, as TCP does it. A pause without anybody
		// waiting says nothing about how fast slots come.
		if d := now.Sub(l.lastPass); d < l.opts.MaxWait {
			l.interval += (d - l.interval) / 8
		}
	}
	l.lastPass = now
	w.Value.(*lease).ready <- struct{}{}
}

// turnAway answers a request that was not served.
func (l *Limiter) turnAway(w http.ResponseWriter, r *http.Request, v verdict) {
	if v == verdictLeft {
		return // nobody is there to read it
	}
	h := w.Header()
	status, text := l.opts.Status, "too many requests are waiting"
	switch v {
	case verdictExpired:
		text = "waited too long for its turn"
	case verdictShutdown:
		status, text = http.StatusServiceUnavailable, "the server is shutting down"
		h.Set("Connection", "close")
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
