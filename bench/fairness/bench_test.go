package fairness

import (
	"context"
	"net/http"
	"runtime"
	"sync/atomic"
	"testing"
	"time"

	"github.com/seed-235859eb/usher"
)

// A limiter is a middleware to be measured.
type limiter struct {
	name string
	make func(slots int) func(http.Handler) http.Handler
}

// limiters are all of them, with what a handler that nobody limits costs.
var limiters = []limiter{
	{"none", func(int) func(http.Handler) http.Handler {
		return func(h http.Handler) http.Handler { return h }
	}},
	{"usher", func(slots int) func(http.Handler) http.Handler {
		l, err := usher.NewLimiter(usher.FairnessOptions{Slots: slots})
		if err != nil {
			panic(err)
		}
		return l.Handler
	}},
	{"semaphore", SemaphoreHandler},
	{"channel", channelHandler},
	{"chi", func(slots int) func(http.Handler) http.Handler {
		return ThrottleHandler(Limits{Slots: slots, MaxQueue: 10_000, MaxWait: time.Minute})
	}},
	{"failsafe", func(slots int) func(http.Handler) http.Handler {
		return BulkheadHandler(Limits{Slots: slots, MaxWait: time.Minute})
	}},
}

// channelHandler is the least that limits: no bound on the queue, and no
// thought about who is in it.
func channelHandler(slots int) func(http.Handler) http.Handler {
	tokens := make(chan struct{}, slots)
	return func(next http.Handler) http.Handler {
		return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			select {
			case tokens <- struct{}{}:
			case <-r.Context().Done():
				return
			}
			defer func() { <-tokens }()
			next.ServeHTTP(w, r)
		})
	}
}

// request returns one as a connection of its own brings it: with the context
// that net/http gives it.
func request(ctx context.Context) *http.Request {
	ctx = context.WithValue(ctx, http.ServerContextKey, &http.Server{})
	r, err := http.NewRequestWithContext(usher.ConnContext(ctx, nil), "GET", "/", http.NoBody)
	if err != nil {
		panic(err)
	}
	return r
}

// BenchmarkFreeSlot is a request that finds a free slot.
func BenchmarkFreeSlot(b *testing.B) {
	for _, l := range limiters {
		b.Run(l.name, func(b *testing.B) {
			h := l.make(2)(http.HandlerFunc(func(http.ResponseWriter, *http.Request) {}))
			r := request(b.Context())
			b.ReportAllocs()
			for b.Loop() {
				h.ServeHTTP(nil, r)
			}
		})
	}
}

// BenchmarkHandOff passes one slot around: each request yields while it has it,
// so that all others come to wait for it. The figure is the time from one
// handler's turn to the next; %contended says how many came while others were
// there. (b.Loop is for one goroutine.)
func BenchmarkHandOff(b *testing.B) {
	const clients = 16
	for _, l := range limiters {
		b.Run(l.name, func(b *testing.B) {
			var inside, contended atomic.Int64
			h := l.make(1)(http.HandlerFunc(func(http.ResponseWriter, *http.Request) {
				runtime.Gosched()
			}))
			b.SetParallelism((clients + runtime.GOMAXPROCS(0) - 1) / runtime.GOMAXPROCS(0))
			b.ReportAllocs()
			b.RunParallel(func(pb *testing.PB) {
				r := request(b.Context())
				n := int64(0)
				for pb.Next() {
					if inside.Add(1) > 1 {
						n++ // somebody has the slot, or it is being passed on
					}
					h.ServeHTTP(nil, r)
					inside.Add(-1)
				}
				contended.Add(n)
			})
			b.ReportMetric(100*float64(contended.Load())/float64(b.N), "%contended")
		})
	}
}
