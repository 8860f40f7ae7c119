package usher

import (
	"cmp"
	"context"
	"fmt"
	"log/slog"
	"math"
	"net"
	"net/http"
	"strconv"
	"sync/atomic"
	"time"

	"github.com/seed-235859eb/usher/internal/asynclog"
	"github.com/seed-235859eb/usher/internal/limit"
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
	//
	// It need not be set to what clients wait: a Limiter sees when they leave.
	// A request that would have to wait until hardly any client is left is
	// answered with Status at once.
	MaxWait time.Duration

	// GivesUpAt says when the client of a request gives up, if that is known,
	// and zero if not. A router that tells when a request came, in X-Request-Start,
	// and always waits 30 s gives that plus 30 s. The deadline of the request's
	// context and gRPC's grpc-timeout count without it. A request whose turn
	// would come later is answered with Status at once. It is asked when a
	// request has to wait, and must not read the body. Nil means that nothing
	// more is known.
	GivesUpAt func(*http.Request) time.Time

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
// than one with a single stream. While clients leave because they have to wait, a
// slot that would probably be lost on the one whose turn it is goes to the
// newest request instead, of the flows that hold the fewest slots.
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
// A Limiter may serve many servers, and a request may pass through several.
//
// To take a free slot costs two atomic operations, and to wait for one about a
// microsecond.
type Limiter struct {
	opts   FairnessOptions
	core   *limit.Limiter
	exempt atomic.Uint64
	full   fullLog
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
	return newLimiter(opts, false, slog.New(asynclog.NewHandler(slog.Default().Handler()))), nil
}

func newLimiter(opts FairnessOptions, outermost bool, log *slog.Logger) *Limiter {
	opts.Status = cmp.Or(opts.Status, http.StatusServiceUnavailable)
	return &Limiter{opts: opts, full: fullLog{log: log}, core: limit.New(limit.Options{
		Slots:     cmp.Or(opts.Slots, limit.Unlimited),
		MaxInline: max(opts.MaxInline, 1),
		MaxQueue:  cmp.Or(opts.MaxQueue, min(max(minMaxQueue, maxQueuePerSlot*opts.Slots), math.MaxInt32)),
		MaxWait:   cmp.Or(opts.MaxWait, defaultMaxWait),
		GivesUpAt: opts.GivesUpAt,
		Stopped:   ErrShuttingDown,
		Outermost: outermost,
	})}
}

// SetSlots changes the number of slots; zero means no limit. More slots go to
// those who wait at once; of fewer, the ones too many vanish as their requests
// end. A value that [FairnessOptions] does not allow is an error and changes
// nothing.
func (l *Limiter) SetSlots(n int) error {
	if err := (FairnessOptions{Slots: n}).validate(""); err != nil {
		return err
	}
	l.core.SetSlots(cmp.Or(n, limit.Unlimited))
	return nil
}

// Handler returns a handler that calls next when the request has a slot. The
// request that next gets may be a copy, if it has a body.
func (l *Limiter) Handler(next http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if l.opts.Exempt != nil && l.opts.Exempt(r) {
			l.exempt.Add(1)
			limit.Passed(r)
			next.ServeHTTP(w, r)
			return
		}
		key, weight := "", 1
		if l.opts.FlowKey != nil {
			if key = l.opts.FlowKey(r); key != "" && l.opts.Weight != nil {
				weight = min(max(l.opts.Weight(key), 1), math.MaxInt32)
			}
		}
		if v := l.core.Serve(w, r, key, int32(weight), next); v != limit.Served {
			l.turnAway(w, r, v)
		}
	})
}

// turnAway answers a request that was not served.
func (l *Limiter) turnAway(w http.ResponseWriter, r *http.Request, v limit.Verdict) {
	if v == limit.Full || v == limit.Expired {
		l.full.note()
	}
	h := w.Header()
	status, text := l.opts.Status, "too many requests are waiting"
	switch v {
	case limit.TooLate:
		text = "its turn would come too late"
	case limit.Expired:
		text = "waited too long for its turn"
	case limit.Stopped:
		status, text = http.StatusServiceUnavailable, "the server is shutting down"
		h.Set("Connection", "close")
	case limit.Left:
		// Nobody is there to read it, unless the client has only closed its
		// sending side, or somebody around this handler has set a deadline.
		status, text = http.StatusServiceUnavailable, "given up while it waited for its turn"
		if r.ProtoMajor < 2 {
			h.Set("Connection", "close")
		}
	}
	if own, ok := r.Context().Value(serverKey{}).(*Server); ok && own.Phase() > PhaseLameDuck && own.mayClose(r) {
		sayClose(h, r)
	}
	// Those who wait now will have been served by then.
	seconds := math.Ceil(l.core.DrainTime().Seconds())
	h.Set("Retry-After", strconv.Itoa(int(min(max(seconds, 1), maxRetryAfter))))
	h.Set("Cache-Control", "no-store")
	http.Error(w, text, status)
}

// ConnContext lets a [Limiter] know the connection that a request came over.
// It is to be the ConnContext of an [http.Server] that usher does not wrap.
func ConnContext(ctx context.Context, c net.Conn) context.Context {
	return limit.NewContext(ctx, c)
}

// QueueWait returns how long the request that ctx belongs to has waited for a
// slot before its handler began, and zero if ctx is not that of a request.
// Reading the header and the body does not count. Ask before the handler has
// returned.
func QueueWait(ctx context.Context) time.Duration { return limit.QueueWait(ctx) }
