package fairqueue

import (
	"fmt"
	"sync"
	"testing"
	"time"
)

func newQueue(slots int) *Queue {
	q := new(Queue)
	q.SetSlots(slots)
	return q
}

// wait makes a request of f wait.
func wait(t testing.TB, q *Queue, f *Flow) *Waiter {
	t.Helper()
	w := new(Waiter)
	if granted, victim := q.Enqueue(f, w); granted || victim != nil {
		t.Fatalf("granted %v, victim %p: want to wait", granted, victim)
	}
	return w
}

// TestLinger: a slot may be kept while nobody waits, or up to MaxInline.
func TestLinger(t *testing.T) {
	var a, b, c Flow
	for maxInline := range 4 {
		for _, resuming := range []bool{false, true} {
			q := newQueue(1)
			q.MaxInline = maxInline
			q.TryAcquire(&a)
			for turn := range 1000 {
				if !q.CanKeep(1 + turn) {
					t.Errorf("MaxInline %d: nobody waits, but turn %d is the last", maxInline, turn)
				}
			}
			w := new(Waiter)
			if resuming {
				q.Resume(&b, w)
			} else {
				q.Enqueue(&b, w)
			}
			for turn := 1; turn < 100; turn++ {
				if got, want := q.CanKeep(turn), turn < maxInline; got != want {
					t.Errorf("MaxInline %d, somebody waits: CanKeep(%d) = %v", maxInline, turn, got)
				}
			}
			if q.TryRelease(&a) || q.TryAcquire(&c) {
				t.Error("took or gave a slot past a waiter")
			}
			if got := q.Release(&a); got != w {
				t.Errorf("the slot went to %p, not to the waiter", got)
			}
			if !q.CanKeep(1000) || !q.TryRelease(&b) {
				t.Error("the waiter has gone, but is not forgotten")
			}
		}
	}
}

// TestFewerSlots: slots that are too many vanish as they are released, by the
// locked path only.
func TestFewerSlots(t *testing.T) {
	q := newQueue(3)
	var f Flow
	for range 3 {
		q.TryAcquire(&f)
	}
	q.SetSlots(1)
	if q.TryRelease(&f) {
		t.Error("TryRelease succeeded while more run than there are slots")
	}
	w := wait(t, q, &f)
	for want := 2; want >= 1; want-- {
		if got := q.Release(&f); got != nil || q.Snapshot().Running != want {
			t.Errorf("granted %p, %+v; want nothing, and %d running", got, q.Snapshot(), want)
		}
	}
	if q.Release(&f) != w || q.Snapshot().Running != 1 {
		t.Errorf("did not hand over the slot that is left: %+v", q.Snapshot())
	}
}

// TestUnderWay puts requests of a flow between the two atomic operations of a
// TryAcquire, or of a TryRelease that will fail: the flow may be filed wrongly,
// but must not be picked wrongly.
func TestUnderWay(t *testing.T) {
	for held := range 4 {
		q := newQueue(2*held + 2)
		var a, b Flow
		for range held + 1 {
			q.TryAcquire(&a)
			q.TryAcquire(&b)
		}
		a.held.Add(-1) // not yet counted, or no longer
		wait(t, q, &a)
		w := wait(t, q, &b)
		a.held.Add(1)
		// They hold the same, so that a slot less makes it b's turn.
		if got := q.Release(&b); got != w {
			t.Errorf("with %d slots: %p was granted, want %p", held+1, got, w)
		}
		if err := q.check([]*Flow{&a, &b}); err != nil {
			t.Error(err)
		}
	}

	// A flow that is filed wrongly goes to the back as any other.
	q := newQueue(1)
	var a, b Flow
	q.TryAcquire(&a)
	a.held.Add(-1)
	wait(t, q, &a)
	w := wait(t, q, &b)
	a.held.Add(1)
	if got := q.Release(&a); got != w {
		t.Errorf("%p was granted, want %p", got, w)
	}
}

// TestResizeUnderWay stops SetSlots between adding a slot and handing it out:
// nobody may take it meanwhile.
func TestResizeUnderWay(t *testing.T) {
	q := newQueue(1)
	var a, b Flow
	q.TryAcquire(&a)
	wait(t, q, &a)
	q.word.Add(1 << slotsShift)
	if q.TryAcquire(&b) || q.TryRelease(&a) {
		t.Error("took or gave a slot past a waiter")
	}
	if granted := q.SetSlots(2); len(granted) != 1 || a.Held() != 2 {
		t.Errorf("granted %d, %+v", len(granted), q.Snapshot())
	}
}

// TestMisuse: programming errors panic, and leave the Queue as it was.
func TestMisuse(t *testing.T) {
	q := newQueue(1)
	var f Flow
	var w Waiter
	for name, do := range map[string]func(){
		"TryRelease": func() { q.TryRelease(&f) },
		"Release":    func() { q.Release(&f) },
		"SetSlots":   func() { q.SetSlots(-1) },
		"Enqueue": func() {
			q.Enqueue(&f, &w)
			q.Enqueue(&f, &w)
			defer q.Release(&f)
			defer q.Cancel(&w)
			q.Enqueue(&f, &w)
		},
	} {
		func() {
			defer func() {
				if recover() == nil {
					t.Errorf("%s: no panic", name)
				}
			}()
			do()
		}()
		if got := q.Snapshot(); got != (Snapshot{Slots: 1}) || f.Held() != 0 {
			t.Errorf("%s: %+v", name, got)
		}
	}
}

// A rig is a Queue in steady state: all slots taken, and waiters behind them.
type rig struct {
	mu      sync.Mutex
	q       *Queue
	running []*Waiter
}

// newRig has flows with some requests each. Value is the flow.
func newRig(slots, flows, requests int) *rig {
	r := &rig{q: newQueue(slots)}
	all := make([]Flow, flows)
	for range requests {
		for i := range all {
			w := &Waiter{Value: &all[i]}
			if granted, _ := r.q.Enqueue(&all[i], w); granted {
				r.running = append(r.running, w)
			}
		}
	}
	return r
}

// handOff finishes the request that runs longest, and lets its flow send the
// next one.
func (r *rig) handOff(i int) {
	w := r.running[i%len(r.running)]
	f := w.Value.(*Flow)
	if r.q.TryRelease(f) {
		panic("somebody waits")
	}
	r.mu.Lock()
	next := r.q.Release(f)
	r.mu.Unlock()
	r.mu.Lock()
	r.q.Enqueue(f, w)
	r.mu.Unlock()
	r.running[i%len(r.running)] = next
}

func TestNoAllocations(t *testing.T) {
	q, f := newQueue(1), new(Flow)
	r := newRig(5, 20, 10)
	r.q.MaxQueue = r.q.waiting
	heavy, light := r.q.heaps[byLength][0], new(Flow)
	w, n := new(Waiter), 0
	for name, do := range map[string]func(){
		"TryAcquire, TryRelease": func() { q.TryAcquire(f); q.TryRelease(f) },
		"Enqueue, Release":       func() { r.handOff(n); n++ },
		"victim, Cancel": func() {
			_, victim := r.q.Enqueue(light, w)
			r.q.Cancel(w)
			r.q.Enqueue(victim.Value.(*Flow), victim)
		},
		"Yield, Resume": func() {
			next := r.q.Yield(heavy)
			r.q.Resume(heavy, w)
			r.q.Release(next.Value.(*Flow))
			r.q.Enqueue(next.Value.(*Flow), next)
		},
	} {
		if name == "Yield, Resume" && heavy.Held() == 0 {
			heavy = r.running[0].Value.(*Flow)
		}
		if got := testing.AllocsPerRun(1000, do); got != 0 {
			t.Errorf("%s: %v allocations", name, got)
		}
	}
}

func BenchmarkFastPath(b *testing.B) {
	q, f := newQueue(1), new(Flow)
	b.ReportAllocs()
	for b.Loop() {
		q.TryAcquire(f)
		q.TryRelease(f)
	}
}

func BenchmarkFastPathParallel(b *testing.B) {
	q := newQueue(1 << 20)
	b.ReportAllocs()
	b.RunParallel(func(pb *testing.PB) {
		f := new(Flow)
		for pb.Next() {
			q.TryAcquire(f)
			q.TryRelease(f)
		}
	})
}

// BenchmarkHandOff is one request's Release and Enqueue, with their locking and
// without waking anybody.
func BenchmarkHandOff(b *testing.B) {
	for _, bc := range []struct {
		slots, flows, requests int
		late                   bool
	}{
		{5, 10, 1, false}, {64, 10_000, 1, false}, {64, 100_000, 1, false}, {64, 100_000, 1, true},
		{5, 10, 250, false}, {64, 100, 100, false}, {1024, 1000, 100, false}, {1024, 1000, 100, true},
	} {
		b.Run(fmt.Sprintf("slots=%d/flows=%d/requests=%d/late=%v", bc.slots, bc.flows, bc.requests, bc.late), func(b *testing.B) {
			r := newRig(bc.slots, bc.flows, bc.requests)
			r.q.Late = func(*Waiter) bool { return bc.late }
			b.ReportAllocs()
			n := 0
			for b.Loop() {
				r.handOff(n)
				n++
			}
		})
	}
}

// BenchmarkVictim is one newcomer for whom the longest flow loses a place, and
// back.
func BenchmarkVictim(b *testing.B) {
	r := newRig(64, 1000, 10)
	r.q.MaxQueue = r.q.waiting
	light, w := new(Flow), new(Waiter)
	b.ReportAllocs()
	for b.Loop() {
		_, victim := r.q.Enqueue(light, w)
		r.q.Cancel(w)
		r.q.Enqueue(victim.Value.(*Flow), victim)
	}
}

// BenchmarkPatience is what the estimate costs a hand-off while clients leave.
func BenchmarkPatience(b *testing.B) {
	var p Patience
	for d := range time.Second / time.Millisecond {
		p.Saw(0, d*time.Millisecond, d%10 == 0)
	}
	b.ReportAllocs()
	for b.Loop() {
		p.Saw(0, time.Second, true)
		p.Late(0, time.Second/2, time.Second/20)
		p.Hopeless(0, time.Second/2, time.Second/20)
	}
}
