package usher

import (
	"context"
	"fmt"
	"net/http"
	"slices"
	"sync"
	"sync/atomic"
	"time"
)

// requestTable knows which requests are in flight, so that a stop can say what
// it waits for. It costs a request two uncontended locks and a look at the
// clock, and allocates nothing once as many have been in flight before.
type requestTable struct {
	next   atomic.Uint32
	free   sync.Pool // of *requestEntry
	shards [requestShards]requestShard
}

// requestShards keeps requests on different processors from waiting for each
// other.
const requestShards = 16

type requestShard struct {
	mu    sync.Mutex
	first *requestEntry
	_     [48]byte // the next shard has a cache line of its own
}

// A requestEntry is one request. It stays with its shard, whose lock guards it.
type requestEntry struct {
	shard      *requestShard
	prev, next *requestEntry
	method     string
	path       string
	since      time.Time
	cancel     context.CancelCauseFunc // of an event stream, else nil
}

// begin notes that r is in flight until end is called. It returns r with a
// context of its own if it asks for an event stream.
func (t *requestTable) begin(r *http.Request) (*requestEntry, *http.Request) {
	e, _ := t.free.Get().(*requestEntry)
	if e == nil {
		e = &requestEntry{shard: &t.shards[t.next.Add(1)%requestShards]}
	}
	var cancel context.CancelCauseFunc
	if isEventStream(r) {
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

func (t *requestTable) end(e *requestEntry) {
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

// streams returns functions that end the event streams in flight.
func (t *requestTable) streams() (ends []func()) {
	for i := range t.shards {
		sh := &t.shards[i]
		sh.mu.Lock()
		for e := sh.first; e != nil; e = e.next {
			if cancel := e.cancel; cancel != nil {
				ends = append(ends, func() { cancel(ErrShuttingDown) })
			}
		}
		sh.mu.Unlock()
	}
	return ends
}

// oldest describes the most requests that have been in flight longest: method,
// path without query, and age.
func (t *requestTable) oldest(most int) []string {
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
