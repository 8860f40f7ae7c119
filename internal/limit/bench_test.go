package limit

import (
	"context"
	"net/http"
	"runtime"
	"testing"
	"time"
)

// The peers stand beside these in bench/fairness.

func benchmarkRequest(proto int) *http.Request {
	r, err := http.NewRequestWithContext(NewContext(context.Background(), nil), "GET", "/", nil)
	if err != nil {
		panic(err)
	}
	r.ProtoMajor = proto
	return r
}

func newTestLimiter(slots int) *Limiter {
	return New(Options{Slots: slots, MaxInline: 1, MaxQueue: 1024, MaxWait: time.Minute})
}

// handler puts h behind l.
func handler(l *Limiter, h http.HandlerFunc) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) { l.Serve(w, r, "", 1, h) })
}

func BenchmarkFreeSlot(b *testing.B) {
	h := handler(newTestLimiter(8), func(http.ResponseWriter, *http.Request) {})
	r := benchmarkRequest(1)
	b.ReportAllocs()
	for b.Loop() {
		h.ServeHTTP(nil, r)
	}
}

// BenchmarkHandOff has two connections and one slot, so that each request waits
// for the other's end.
func BenchmarkHandOff(b *testing.B) {
	l := newTestLimiter(1)
	turn := make(chan struct{}, 1)
	h := handler(l, func(http.ResponseWriter, *http.Request) {
		// End only when another waits.
		for l.queue.CanKeep(1<<30) && len(turn) == 0 {
			runtime.Gosched()
		}
	})
	b.ReportAllocs()
	done := make(chan struct{})
	go func() {
		defer close(done)
		r := benchmarkRequest(1)
		for len(turn) == 0 {
			h.ServeHTTP(nil, r)
		}
	}()
	r := benchmarkRequest(1)
	for b.Loop() {
		h.ServeHTTP(nil, r)
	}
	turn <- struct{}{}
	<-done
}

// TestLimiterDoesNotAllocate on a free slot, and on a hand-off over HTTP/1.
func TestLimiterDoesNotAllocate(t *testing.T) {
	h := handler(newTestLimiter(8), func(http.ResponseWriter, *http.Request) {})
	r := benchmarkRequest(1)
	if n := testing.AllocsPerRun(1000, func() { h.ServeHTTP(nil, r) }); n != 0 {
		t.Errorf("%v allocations for a free slot", n)
	}
	res := testing.Benchmark(BenchmarkHandOff)
	if n := res.AllocsPerOp(); n != 0 {
		t.Errorf("%d allocations for a hand-off", n)
	}
}
