package inflight

import (
	"context"
	"errors"
	"fmt"
	"net/http/httptest"
	"sync"
	"testing"
	"testing/synctest"
	"time"
)

func TestOldest(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var table Table
		var begun []*Request
		for i := range 40 {
			e, _ := table.Begin(httptest.NewRequest("GET", fmt.Sprintf("/%d?secret=1", i), nil), false)
			begun = append(begun, e)
			time.Sleep(time.Second)
		}
		for _, e := range begun[:10] {
			table.End(e)
		}
		if got := fmt.Sprint(table.Oldest(2)); got != "[GET /10 (30s) GET /11 (29s)]" {
			t.Errorf("oldest: %s", got)
		}
		for _, e := range begun[10:] {
			table.End(e)
		}
		if got := table.Oldest(2); len(got) != 0 {
			t.Errorf("in flight after the end: %q", got)
		}
	})
}

func TestStreams(t *testing.T) {
	var table Table
	cause := errors.New("over")
	e, plain := table.Begin(httptest.NewRequest("GET", "/", nil), false)
	f, stream := table.Begin(httptest.NewRequest("GET", "/", nil), true)
	ends := table.Streams(cause)
	if len(ends) != 1 {
		t.Fatalf("%d streams", len(ends))
	}
	ends[0]()
	if context.Cause(stream.Context()) != cause || plain.Context().Err() != nil {
		t.Errorf("contexts ended with %v and %v", context.Cause(stream.Context()), plain.Context().Err())
	}
	table.End(e)
	table.End(f)
	if n := len(table.Streams(cause)); n != 0 {
		t.Errorf("%d streams after the end", n)
	}
}

func TestConcurrently(t *testing.T) {
	var table Table
	var wg sync.WaitGroup
	r := httptest.NewRequest("GET", "/", nil)
	for range 8 {
		wg.Go(func() {
			for range 1000 {
				e, _ := table.Begin(r, false)
				table.Oldest(1)
				table.End(e)
			}
		})
	}
	wg.Wait()
	if got := table.Oldest(1); len(got) != 0 {
		t.Errorf("in flight after the end: %q", got)
	}
	if n := testing.AllocsPerRun(100, func() {
		e, _ := table.Begin(r, false)
		table.End(e)
	}); n > 0 {
		t.Errorf("%v allocations for a request", n)
	}
}

func BenchmarkRequest(b *testing.B) {
	var table Table
	r := httptest.NewRequest("GET", "/", nil)
	b.ReportAllocs()
	b.RunParallel(func(pb *testing.PB) {
		for pb.Next() {
			e, _ := table.Begin(r, false)
			table.End(e)
		}
	})
}
