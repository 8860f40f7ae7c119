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
// nothing: all requests run at once.
type FairnessOptions struct {
	// Slots is how many handlers may run at once. Zero means no limit. A
	// negative value is an error.
	Slots int

	// MaxInline is how many requests of one connection may run in a row on one
	// slot while others wait. A request runs inline if it has arrived when the one
	// before it ends. After MaxInline requests the connection goes to the back of
	// the queue. It is not closed (Puma's max_fast_inline, which used to have this
	// meaning, now closes it). While nobody waits there is no bound.
	//
	// A value above 1 saves a hand-off of about a microsecond for each request,
	// and makes the longest wait that many times longer. It works for HTTP/1
	// connections of a [Server] on unix systems. Zero means 1. A negative value is
	// an error.
	MaxInline int

	// MaxQueue is how many requests may wait at once. When one more arrives, one
	// request is answered with Status and leaves the queue: the newest of the flow
	// with the most waiting requests. It is the arriving request itself if no flow
	// has more waiting than its own. Zero means 128 for each slot, and at least
	// 1024. A negative value is an error.
	MaxQueue int

	// MaxWait is how long a request may wait before its handler begins. After
	// that it is answered with Status, and the handler never runs. Zero means
	// 30 s. A negative value is an error.
	//
	// MaxWait need not match how long clients wait: a Limiter sees when they
	// leave. A request that would have to wait longer than nearly all clients do
	// is answered with Status at once.
	MaxWait time.Duration

	// GivesUpAt says when the client of a request gives up, if that is known,
	// and zero if not. A router that tells when a request came, in X-Request-Start,
	// and always waits 30 s gives that plus 30 s. The deadline of the request's
	// context and gRPC's grpc-timeout count without it. A request whose turn
	// would come later is answered with Status at once. It is asked when a
	// request has to wait, and must not read the body. Nil means that nothing
	// more is known.
	GivesUpAt func(*http.Request) time.Time

	// Status is the status code for requests that are turned away: 503 or 429.
	// Such a response has a Retry-After header. Zero means 503. Any other value is
	// an error.
	Status int

	// Exempt reports whether a request needs no slot: a health check, for
	// instance, or a stream that runs for hours. Nil means that none is exempt.
	Exempt func(*http.Request) bool

	// FlowKey returns the flow that a request belongs to, for example its tenant.
	// Slots are shared between flows: all requests with the same key are one flow,
	// over however many connections they come. If FlowKey is nil or returns "", the
	// flow is the connection. FlowKey must not read the body.
	FlowKey func(*http.Request) string

	// Weight returns how many slots the flow of a key gets for each slot of a flow
	// with weight 1. Nil, and values below 1, mean 1. It is not asked for the empty
	// key.
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

// A Limiter bounds how many handlers run at once, and decides fairly which
// request is next. A request that finds a free slot takes it. Otherwise its flow
// waits. A flow is a connection, unless FlowKey says otherwise.
//
// A slot that becomes free goes to the flow that holds the fewest slots. Among
// equals it goes to the one that has waited longest since it joined, or since one
// of its requests ended. Over HTTP/1 this is first come, first served. Over HTTP/2
// a connection with hundreds of streams gets no more slots than a connection with
// one stream. While clients leave because they have to wait, the order may change:
// if the client whose turn it is will probably have left when it is answered, the
// slot goes to the newest request of the flows that hold the fewest slots.
//
// A slot is not held while a handler waits for its client. A read of the request's
// body that has to wait gives the slot back. When the bytes have come, the read
// waits for a slot, with priority over requests that have not begun, and returns.
// A goroutine that the handler has started may run on without a slot meanwhile.
// Two cases hold the slot, though the handler waits for its client: writes to a
// client that does not read, and the first write while a body is unread, because
// net/http then reads up to 256 KiB of the body. WriteTimeout bounds them. A
// handler that hijacks a connection of a [Server] gives its slot back.
//
// A waiting request leaves the queue when its client leaves, or closes its sending
// side: net/http takes the two for the same. Read and write deadlines stand still
// while a request waits.
//
// A Limiter may serve many servers, and a request may pass through several
// Limiters. While it waits in one of them, it gives back its slots in those around
// it. It takes them again, with priority, before its handler begins: a full route
// does not fill the server. This needs connections that the Limiters know, and
// handlers between them that keep the request's Header. All methods may be called
// from many goroutines at once.
//
// Taking a free slot costs two atomic operations. Waiting costs about a
// microsecond.
type Limiter struct {
	opts   FairnessOptions
	core   *limit.Limiter
	exempt atomic.Uint64
	full   fullLog
}

// NewLimiter returns a Limiter, whose Handler method fits into any chain of
// handlers. A [Server] makes its own Limiter. An option that is out of range is an
// error.
//
// With an http.Server that usher does not wrap, set its ConnContext to
// [ConnContext]. Without that, connections are told apart by their remote address,
// which costs each request a look into a map under a lock.
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

// SetSlots sets the number of slots. Zero means no limit. Additional slots go to
// waiting requests at once. If there are fewer slots than before, no running
// request is stopped: a slot too many goes when its request ends. A value that
// [FairnessOptions] does not allow is an error and changes nothing.
func (l *Limiter) SetSlots(n int) error {
	if err := (FairnessOptions{Slots: n}).validate(""); err != nil {
		return err
	}
	l.core.SetSlots(cmp.Or(n, limit.Unlimited))
	return nil
}

// Handler returns a handler that calls next when the request has a slot, and else
// answers with Status. The request that next gets may be a copy.
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
	if v == limit.Full || v == limit.Expired || v == limit.TooLate {
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

// ConnContext lets a [Limiter] know the connection that a request came over. Set
// it as the ConnContext of an [http.Server] that usher does not wrap.
func ConnContext(ctx context.Context, c net.Conn) context.Context {
	return limit.NewContext(ctx, c)
}

// QueueWait returns how long the request that ctx belongs to has waited for a slot
// before its handler began. It is zero if the request did not wait, or if ctx
// belongs to no request of a [Limiter]. Reading the header and the body does not
// count. Call QueueWait before the handler returns.
func QueueWait(ctx context.Context) time.Duration { return limit.QueueWait(ctx) }
