package fairqueue

import (
	"cmp"
	"container/heap"
	"fmt"
	"math/rand/v2"
	"slices"
	"testing"
)

// A sim runs closed-loop clients against a Queue in virtual time, in
// milliseconds: every figure is exact.
type sim struct {
	t       *testing.T
	q       Queue
	now     int64
	events  eventHeap
	n       int // events so far
	clients []*client

	measured []*client // have their area kept
}

// A client is one flow that keeps a number of requests under way: it sends the
// next one when a response comes.
type client struct {
	flow     Flow
	service  int64 // the time that a request takes
	parallel int
	budget   int   // requests to send, -1 for any number
	think    int64 // between response and next request
	from     int64 // latencies before that do not count
	parts    int   // of the body that a request reads, each before it is served for service
	body     int64 // how long each takes to come
	latency  []int64
	area     int64 // held slots * time, if measured
}

type job struct {
	Waiter
	c       *client
	arrived int64
	turn    int
	parts   int // of the body to wait for
}

type event struct {
	at int64
	n  int
	do func()
}

type eventHeap []event

func (h eventHeap) Len() int { return len(h) }
func (h eventHeap) Less(i, j int) bool {
	return cmp.Or(cmp.Compare(h[i].at, h[j].at), cmp.Compare(h[i].n, h[j].n)) < 0
}
func (h eventHeap) Swap(i, j int) { h[i], h[j] = h[j], h[i] }
func (h *eventHeap) Push(x any)   { *h = append(*h, x.(event)) }
func (h *eventHeap) Pop() any {
	last := len(*h) - 1
	e := (*h)[last]
	*h = (*h)[:last]
	return e
}

func newSim(t *testing.T, slots, maxInline int, clients ...*client) *sim {
	s := &sim{t: t, clients: clients}
	s.q.MaxInline = maxInline
	s.q.SetSlots(slots)
	return s
}

// start lets a client send its first requests.
func (s *sim) start(at int64, c *client) {
	s.at(at, func() {
		for range c.parallel {
			if c.budget != 0 {
				c.budget--
				r := &job{c: c}
				r.Value = r
				s.arrive(r)
			}
		}
	})
}

// run starts all clients at once, and runs until the given time or until
// nothing is left to do.
func (s *sim) run(until int64) *sim {
	for _, c := range s.clients {
		s.start(0, c)
	}
	return s.resume(until)
}

func (s *sim) resume(until int64) *sim {
	for len(s.events) > 0 && s.events[0].at <= until {
		e := heap.Pop(&s.events).(event)
		for _, c := range s.measured {
			c.area += int64(c.flow.Held()) * (e.at - s.now)
		}
		s.now = e.at
		e.do()
		if got := s.q.Snapshot(); got.Waiting+got.Resuming > 0 && got.Running != got.Slots {
			s.t.Fatalf("at %d: %+v", s.now, got)
		}
	}
	return s
}

func (s *sim) at(at int64, do func()) {
	s.n++
	heap.Push(&s.events, event{at, s.n, do})
}

func (s *sim) arrive(r *job) {
	r.arrived, r.parts = s.now, r.c.parts
	if s.q.TryAcquire(&r.c.flow) {
		s.granted(r)
	} else if ok, _ := s.q.Enqueue(&r.c.flow, &r.Waiter); ok {
		s.granted(r)
	}
}

func (s *sim) granted(r *job) {
	r.turn = 1
	s.serve(r)
}

func (s *sim) serve(r *job) {
	if r.parts == r.c.parts && r.parts > 0 {
		s.wait(r)
		return
	}
	s.at(s.now+r.c.service, func() {
		if r.parts > 0 {
			s.wait(r)
		} else {
			s.finish(r)
		}
	})
}

// wait yields while the next part of a body comes.
func (s *sim) wait(r *job) {
	r.parts--
	s.giveBack(r, s.q.Yield)
	s.at(s.now+r.c.body, func() {
		if s.q.TryAcquire(&r.c.flow) || s.q.Resume(&r.c.flow, &r.Waiter) {
			s.granted(r)
		}
	})
}

func (s *sim) giveBack(r *job, give func(*Flow) *Waiter) {
	if !s.q.TryRelease(&r.c.flow) {
		if w := give(&r.c.flow); w != nil {
			s.granted(w.Value.(*job))
		}
	}
}

func (s *sim) finish(r *job) {
	c := r.c
	if r.arrived >= c.from {
		c.latency = append(c.latency, s.now-r.arrived)
	}
	more := c.budget != 0
	if more {
		c.budget--
	}
	if more && c.think == 0 && s.q.CanKeep(r.turn) {
		r.arrived = s.now
		r.turn++
		s.serve(r)
		return
	}
	s.giveBack(r, s.q.Release)
	if more && c.think == 0 {
		s.arrive(r)
	} else if more {
		s.at(s.now+c.think, func() { s.arrive(r) })
	}
}

// latencies returns those of some clients, in order.
func latencies(clients ...*client) (all []int64) {
	for _, c := range clients {
		all = append(all, c.latency...)
	}
	slices.Sort(all)
	return all
}

// percentile is the nearest-rank one.
func percentile(sorted []int64, p int) int64 {
	return sorted[max(0, (len(sorted)*p+99)/100-1)]
}

// clients returns n clients with one request at a time.
func clients(n int, service int64, budget int) (all []*client) {
	for range n {
		all = append(all, &client{service: service, parallel: 1, budget: budget})
	}
	return all
}

// countFrom ignores the latencies of requests sent before at.
func countFrom(at int64, clients []*client) []*client {
	for _, c := range clients {
		c.from = at
	}
	return clients
}

// TestKeepAlive is the incident: 10 connections, 5 slots, 200 ms, 200 requests.
func TestKeepAlive(t *testing.T) {
	for _, tc := range []struct {
		maxInline                     int
		p50, p90, p95, p99, max, mean int64
	}{
		{1, 400, 400, 400, 400, 400, 395},
		{2, 200, 600, 600, 600, 600, 390},
		{5, 200, 1200, 1200, 1200, 1200, 375},
		{10, 200, 200, 2200, 2200, 2200, 350},
		{1000, 200, 200, 200, 4200, 4200, 300},
	} {
		t.Run(fmt.Sprint("MaxInline=", tc.maxInline), func(t *testing.T) {
			s := newSim(t, 5, tc.maxInline, clients(10, 200, 20)...).run(1 << 40)
			all := latencies(s.clients...)
			got := tc
			got.p50, got.p90, got.p95, got.p99 = percentile(all, 50), percentile(all, 90), percentile(all, 95), percentile(all, 99)
			got.max = all[len(all)-1]
			got.mean = mean(all)
			if len(all) != 200 || s.now != 8000 || got != tc {
				t.Errorf("%d requests in %d ms: %+v, want 200 in 8000: %+v", len(all), s.now, got, tc)
			}
		})
	}
}

func mean(all []int64) int64 {
	sum := int64(0)
	for _, l := range all {
		sum += l
	}
	return sum / int64(len(all))
}

// TestWorstLatency: C connections, N slots, service time S and MaxInline M have
// a worst latency of S*(1+M*ceil((C-N)/N)), and reach it.
func TestWorstLatency(t *testing.T) {
	random := rand.New(rand.NewPCG(1, 1))
	runs := 300
	if testing.Short() || raceEnabled {
		runs = 50
	}
	for range runs {
		const S = 60
		C, N, M := 1+random.IntN(64), 1+random.IntN(16), 1+random.IntN(10)
		bound := int64(S)
		if C > N {
			bound = int64(S * (1 + M*((C-N+N-1)/N)))
		}
		name := fmt.Sprintf("C=%d, N=%d, M=%d", C, N, M)

		all := latencies(newSim(t, N, M, clients(C, S, -1)...).run(8 * bound).clients...)
		if got := all[len(all)-1]; got != bound {
			t.Errorf("%s: worst latency %d, want %d", name, got, bound)
		}

		// The bound holds whenever they start, and however long they think.
		s := newSim(t, N, M, clients(C, S, -1)...)
		for _, c := range s.clients {
			c.think = max(0, random.Int64N(3*S)-S)
			s.start(random.Int64N(2*S), c)
		}
		all = latencies(s.resume(8 * bound).clients...)
		if got := all[len(all)-1]; got > bound {
			t.Errorf("%s, starting and thinking as they like: worst latency %d > %d", name, got, bound)
		}
	}
}

// TestThroughput: work is conserved, and the mean latency is C*S/N whatever
// MaxInline is.
func TestThroughput(t *testing.T) {
	for _, m := range []int{1, 3, 10} {
		s := newSim(t, 5, m, clients(12, 200, -1)...).run(2_000_000)
		all := latencies(s.clients...)
		if len(all) != 5*2_000_000/200 {
			t.Errorf("MaxInline %d: %d requests served", m, len(all))
		}
		if got := mean(all); got < 480*99/100 || got > 480*101/100 {
			t.Errorf("MaxInline %d: mean latency %d, want about 480", m, got)
		}
	}
}

// TestFlood: a flow with many requests at once takes no turn of a flow with
// one, however many they are, and all that nobody else wants.
func TestFlood(t *testing.T) {
	for _, k := range []int{10, 100, 250} {
		for _, floodFirst := range []bool{false, true} {
			t.Run(fmt.Sprintf("%d requests, first=%v", k, floodFirst), func(t *testing.T) {
				flood := &client{service: 200, parallel: k, budget: -1}
				others := countFrom(1000, clients(9, 200, 500))
				s := newSim(t, 5, 1, append(others, flood)...)
				if floodFirst {
					s.clients = append([]*client{flood}, others...)
				}
				s.run(100_000)
				all := latencies(others...)
				if p50, p99, worst := percentile(all, 50), percentile(all, 99), all[len(all)-1]; p50 != 400 || p99 != 400 || worst != 400 {
					t.Errorf("others wait: P50 %d, P99 %d, max %d; want 400", p50, p99, worst)
				}
				total := float64(100_000 / 200 * 5)
				if share := float64(len(flood.latency)) / total; share < 0.095 || share > 0.105 {
					t.Errorf("share of the flood is %.4f, want 0.100", share)
				}
				s.resume(250_000) // the others have sent all of theirs
				before := len(flood.latency)
				s.resume(350_000)
				if got := len(flood.latency) - before; flood.flow.Held() != 5 || got != 2500 {
					t.Errorf("alone it holds %d slots and has %d requests served, want 5 and 2500", flood.flow.Held(), got)
				}
			})
		}
	}
}

// TestUploadFlood: nor does it take them by requests that yield at once, to
// wait for their clients; and one that yields often does not keep the others of
// its flow waiting for ever.
func TestUploadFlood(t *testing.T) {
	for _, k := range []int{10, 100, 250} {
		for _, parts := range []int{1, 10} {
			flood := &client{service: int64(200 / parts), parallel: k, budget: -1, body: 50, parts: parts}
			others := countFrom(10_000, clients(9, 200, -1))
			newSim(t, 5, 1, append(others, flood)...).run(200_000)
			all := latencies(others...)
			p50, worst := percentile(all, 50), all[len(all)-1]
			share := float64(len(flood.latency)) / (200_000 / 200 * 5)
			if p50 > 420 || worst > 600 || share < 0.085 || share > 0.105 {
				t.Errorf("%d uploads in %d parts: others wait P50 %d, max %d; want about 400, 600; share %.4f", k, parts, p50, worst, share)
			}
		}
	}
}

// TestHeldShares: what is shared is slots, by weight, however long requests
// take.
func TestHeldShares(t *testing.T) {
	for _, tc := range []struct {
		slots            int
		serviceA, weight int64
		serviceB         int64
		areaA, areaB     int64 // per 1000 ms
	}{
		{4, 10, 1, 1000, 2000, 2000},
		{4, 100, 1, 100, 2000, 2000},
		{4, 100, 3, 100, 1000, 3000},
		{4, 1000, 3, 10, 1000, 3000},
		{8, 10, 3, 1000, 2000, 6000},
		{5, 7, 4, 1000, 1000, 4000},
	} {
		a := &client{service: tc.serviceA, parallel: 20, budget: -1}
		b := &client{service: tc.serviceB, parallel: 20, budget: -1}
		b.flow.Weight = int32(tc.weight)
		s := newSim(t, tc.slots, 1, a, b).run(10_000) // a takes all at first
		s.measured = s.clients
		s.resume(110_000)
		if gotA, gotB := a.area/100, b.area/100; gotA != tc.areaA || gotB != tc.areaB {
			t.Errorf("%+v: held %d and %d", tc, gotA, gotB)
		}
	}
}
