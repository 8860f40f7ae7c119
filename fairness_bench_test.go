package usher

import (
	"context"
	"net/http"
	"runtime"
	"testing"
)

// The peers stand beside these in bench/fairness.

func benchmarkRequest(proto int) *http.Request {
	r, err := http.NewRequestWithContext(ConnContext(context.Background(), nil), "GET", "/", nil)
	if err != nil {
		panic(err)
	}
	r.ProtoMajor = proto
	return r
}

func BenchmarkFreeSlot(b *testing.B) {
	l := mustLimiter(b, FairnessOptions{Slots: 8})
	h := l.Handler(http.HandlerFunc(func(http.ResponseWriter, *http.Request) {}))
	r := benchmarkRequest(1)
	b.ReportAllocs()
	for b.Loop() {
		h.ServeHTTP(nil, r)
	}
}

// BenchmarkHandOff has two connections and one slot, so that each request waits
// for the other's end.
func BenchmarkHandOff(b *testing.B) {
	l := mustLimiter(b, FairnessOptions{Slots: 1})
	turn := make(chan struct{}, 1)
	h := l.Handler(http.HandlerFunc(func(http.ResponseWriter, *http.Request) {
		// End only when another waits.
		for l.queue.CanLinger(1<<30) && len(turn) == 0 {
			runtime.Gosched()
		}
	}))
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
	l := mustLimiter(t, FairnessOptions{Slots: 8})
	h := l.Handler(http.HandlerFunc(func(http.ResponseWriter, *http.Request) {}))
	r := benchmarkRequest(1)
	if n := testing.AllocsPerRun(1000, func() { h.ServeHTTP(nil, r) }); n != 0 {
		t.Errorf("%v allocations for a free slot", n)
	}
	res := testing.Benchmark(BenchmarkHandOff)
	if n := res.AllocsPerOp(); n != 0 {
		t.Errorf("%d allocations for a hand-off", n)
	}
}
