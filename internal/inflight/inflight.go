// Package inflight knows which requests are in flight, so that a stop can say
// what it waits for.
package inflight

import (
	"context"
	"fmt"
	"net/http"
	"slices"
	"sync"
	"sync/atomic"
	"time"
)

// A Table is the requests in flight. It costs a request two uncontended locks
// and a look at the clock, and allocates nothing once as many have been in
// flight before. The zero value is ready. All methods may be called from many
// goroutines at once.
type Table struct {
	next   atomic.Uint32
	free   sync.Pool // of *Request
	shards [shards]shard
}

// shards keeps requests on different processors from waiting for each
// other.
const shards = 16

type shard struct {
	mu    sync.Mutex
	first *Request
	_     [48]byte // the next shard has a cache line of its own
}

// A Request is one request in flight. It stays with its shard, whose lock guards it.
type Request struct {
	shard      *shard
	prev, next *Request
	method     string
	path       string
	since      time.Time
	cancel     context.CancelCauseFunc // of a stream, else nil
}

// Begin notes that r is in flight until End is called. If stream is set, it
// returns r with a context of its own, which [Table.Streams] can end.
func (t *Table) Begin(r *http.Request, stream bool) (*Request, *http.Request) {
	e, _ := t.free.Get().(*Request)
	if e == nil {
		e = &Request{shard: &t.shards[t.next.Add(1)%shards]}
	}
	var cancel context.CancelCauseFunc
	if stream {
		var ctx context.Context
		ctx, cancel = context.WithCancelCause(r.Context())
		r = r.WithContext(ctx)
	}
	now := time.Now()
	sh := e.shard
	sh.mu.Lock()
	e.method, e.path, e.since, e.cancel = r.Method, r.URL.Path, now, cancel
	e.prev, e.next = nil, sh.first
	if sh.first != nil {
		sh.first.prev = e
	}
	sh.first = e
	sh.mu.Unlock()
	return e, r
}

// End notes that the request has ended.
func (t *Table) End(e *Request) {
	sh := e.shard
	sh.mu.Lock()
	if e.prev == nil {
		sh.first = e.next
	} else {
		e.prev.next = e.next
	}
	if e.next != nil {
		e.next.prev = e.prev
	}
	e.prev, e.next = nil, nil
	cancel := e.cancel
	e.method, e.path, e.cancel = "", "", nil
	sh.mu.Unlock()
	if cancel != nil {
		cancel(nil)
	}
	t.free.Put(e)
}

// Streams returns functions that end the contexts of the streams in flight, with
// the given cause.
func (t *Table) Streams(cause error) (ends []func()) {
	for i := range t.shards {
		sh := &t.shards[i]
		sh.mu.Lock()
		for e := sh.first; e != nil; e = e.next {
			if cancel := e.cancel; cancel != nil {
				ends = append(ends, func() { cancel(cause) })
			}
		}
		sh.mu.Unlock()
	}
	return ends
}

// Oldest describes the most requests that have been in flight longest: method,
// path without query, and age.
func (t *Table) Oldest(most int) []string {
	type request struct {
		what  string
		since time.Time
	}
	var all []request
	for i := range t.shards {
		sh := &t.shards[i]
		sh.mu.Lock()
		for e := sh.first; e != nil; e = e.next {
			all = append(all, request{e.method + " " + e.path, e.since})
		}
		sh.mu.Unlock()
	}
	slices.SortFunc(all, func(a, b request) int { return a.since.Compare(b.since) })
	var said []string
	for _, r := range all[:min(len(all), most)] {
		said = append(said, fmt.Sprintf("%s (%v)", r.what, time.Since(r.since).Round(time.Millisecond)))
	}
	return said
}
