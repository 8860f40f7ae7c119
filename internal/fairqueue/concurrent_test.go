package fairqueue

import (
	"math/rand/v2"
	"runtime"
	"sync"
	"sync/atomic"
	"testing"
	"time"
)

// A limiter is the least that makes a Queue one.
type limiter struct {
	mu sync.Mutex
	q  Queue

	most    int64 // slots there ever are
	running atomic.Int64
	tooMany atomic.Bool
}

func newLimiter(slots int) *limiter {
	l := &limiter{most: int64(slots)}
	l.q.SetSlots(slots)
	return l
}

// A ticket is a Waiter that can be woken.
type ticket struct {
	Waiter
	ready chan bool // buffers one: true when granted, false when turned away
}

func newTicket() *ticket {
	tk := &ticket{ready: make(chan bool, 1)}
	tk.Value = tk
	return tk
}

func wake(w *Waiter, granted bool) {
	if w != nil {
		w.Value.(*ticket).ready <- granted
	}
}

// acquire waits for a slot, until quit fires if it is not nil. It fails the
// test if it waits too long.
func (l *limiter) acquire(t *testing.T, f *Flow, tk *ticket, resume bool, quit <-chan time.Time) bool {
	if l.q.TryAcquire(f) {
		l.enter()
		return true
	}
	var granted bool
	var victim *Waiter
	l.mu.Lock()
	if resume {
		granted = l.q.Resume(f, &tk.Waiter)
	} else {
		granted, victim = l.q.Enqueue(f, &tk.Waiter)
	}
	l.mu.Unlock()
	wake(victim, false)
	if !granted {
		select {
		case granted = <-tk.ready:
		case <-quit:
			l.mu.Lock()
			cancelled := l.q.Cancel(&tk.Waiter)
			l.mu.Unlock()
			if !cancelled {
				granted = <-tk.ready // somebody was faster
			}
		case <-time.After(20 * time.Second):
			l.mu.Lock()
			defer l.mu.Unlock()
			panic(t.Name() + ": a waiter is stranded")
		}
	}
	if granted {
		l.enter()
	}
	return granted
}

func (l *limiter) enter() {
	if l.running.Add(1) > l.most {
		l.tooMany.Store(true)
	}
}

func (l *limiter) giveBack(f *Flow, give func(*Flow) *Waiter) {
	l.running.Add(-1)
	if l.q.TryRelease(f) {
		return
	}
	l.mu.Lock()
	w := give(f)
	l.mu.Unlock()
	wake(w, true)
}

// end checks that nothing is left of the load.
func (l *limiter) end(t *testing.T, flows []*Flow) {
	t.Helper()
	if got := l.q.Snapshot(); got != (Snapshot{Slots: got.Slots}) {
		t.Errorf("left behind: %+v", got)
	}
	if err := l.q.check(flows); err != nil {
		t.Error(err)
	}
	if l.tooMany.Load() {
		t.Errorf("more than %d requests ran at once", l.most)
	}
}

// TestNobodyStranded lets goroutines come and go without a lock where they can.
// A slot that stays free once while somebody waits stops all of them.
func TestNobodyStranded(t *testing.T) {
	rounds := 200_000
	if testing.Short() {
		rounds = 20_000
	}
	for _, tc := range []struct{ slots, goroutines int }{{1, 2}, {2, 3}, {2, 16}, {5, 64}} {
		l := newLimiter(tc.slots)
		flows := make([]*Flow, (tc.goroutines+1)/2)
		for i := range flows {
			flows[i] = new(Flow)
		}
		var wg sync.WaitGroup
		for i := range tc.goroutines {
			wg.Go(func() {
				f, tk := flows[i/2], newTicket()
				for range rounds / tc.goroutines {
					l.acquire(t, f, tk, false, nil)
					l.giveBack(f, l.q.Release)
				}
			})
		}
		wg.Wait()
		l.end(t, flows)
	}
}

// TestHotSlots has somebody wait, for a moment, while slots change hands all the
// time without a lock.
func TestHotSlots(t *testing.T) {
	rounds := 1_000_000
	if testing.Short() || raceEnabled {
		rounds = 100_000
	}
	for slots := 1; slots <= 2; slots++ {
		l := newLimiter(slots)
		var hot, cold Flow
		var wg sync.WaitGroup
		var done atomic.Bool
		for range slots {
			wg.Go(func() {
				for !done.Load() {
					if l.q.TryAcquire(&hot) {
						l.enter()
						l.giveBack(&hot, l.q.Release)
					}
				}
			})
		}
		w, waited := new(Waiter), 0
		for range rounds {
			used := slots
			l.mu.Lock()
			if granted, _ := l.q.Enqueue(&cold, w); granted {
				l.q.Release(&cold)
			} else {
				waited++
				used = l.q.Snapshot().Running
				l.q.Cancel(w)
			}
			l.mu.Unlock()
			if used < slots {
				t.Errorf("%d of %d slots were used while somebody waited", used, slots)
				break
			}
		}
		done.Store(true)
		wg.Wait()
		l.end(t, []*Flow{&hot, &cold})
		t.Logf("%d slots: waited %d times of %d", slots, waited, rounds)
	}
}

// TestFiledTooLow: while TryAcquire or TryRelease are under way a flow may be
// filed under fewer slots than it turns out to hold, but never under more.
func TestFiledTooLow(t *testing.T) {
	rounds, enough := 20_000, time.Now().Add(time.Second)
	if testing.Short() {
		rounds = 2000
	}
	q := newQueue(1)
	var f Flow
	var waiters [2]Waiter
	var asked, answered atomic.Int64 // rounds, and -1 to end
	holds, change := false, 0
	await := func(n *atomic.Int64, after int64) int64 {
		for spins := 0; n.Load() == after; spins++ {
			if spins > 1000 {
				runtime.Gosched()
			}
		}
		return n.Load()
	}
	go func() {
		for n := int64(0); await(&asked, n) > 0; {
			n++
			change = 0
			switch {
			case holds && q.TryRelease(&f):
				change = -1
			case !holds && q.TryAcquire(&f):
				change = 1
			}
			answered.Store(n)
		}
	}()
	defer asked.Store(-1)
	for n := range int64(rounds) {
		if n%64 == 0 && time.Now().After(enough) {
			break // on a busy machine
		}
		held := 0
		if holds = n%2 == 0; holds {
			q.TryAcquire(&f)
			held++
		}
		asked.Store(n + 1)
		for range n / 2 % 64 {
			held += 0 // another moment each time
		}
		for i := range waiters {
			if granted, _ := q.Enqueue(&f, &waiters[i]); granted {
				held++
			}
		}
		await(&answered, n)
		if held += change; f.Held() != held || f.waiting > 0 && int(f.filed) > held {
			t.Fatalf("round %d: holds %d slots, want %d; filed under %d", n, f.Held(), held, f.filed)
		}
		for f.Held() > 0 {
			q.Release(&f)
		}
	}
}

// TestConcurrent does everything at once.
func TestConcurrent(t *testing.T) {
	const mostSlots = 6
	goroutines, rounds := 48, 400
	if testing.Short() {
		rounds = 50
	}
	l := newLimiter(mostSlots)
	l.q.MaxQueue, l.q.MaxInline = 30, 2
	flows := make([]*Flow, 12)
	for i := range flows {
		flows[i] = &Flow{Weight: int32(i % 3)}
	}
	var served, refused, left, lingered atomic.Int64
	done := make(chan struct{})
	resized := make(chan struct{})
	go func() {
		defer close(resized)
		for n := 0; ; n++ {
			select {
			case <-done:
				return
			case <-time.After(50 * time.Microsecond):
			}
			l.mu.Lock()
			granted := l.q.SetSlots(1 + n%mostSlots)
			l.mu.Unlock()
			for _, w := range granted {
				wake(w, true)
			}
		}
	}()
	var wg sync.WaitGroup
	for i := range goroutines {
		wg.Go(func() {
			random := rand.New(rand.NewPCG(1, uint64(i)))
			f, tk := flows[random.IntN(len(flows))], newTicket()
			timer := time.NewTimer(time.Hour)
			for range rounds {
				var quit <-chan time.Time
				impatient := random.IntN(3) == 0
				if impatient {
					timer.Reset(time.Duration(random.IntN(200)) * time.Microsecond)
					quit = timer.C
				}
				if !l.acquire(t, f, tk, false, quit) {
					if impatient {
						left.Add(1)
					} else {
						refused.Add(1)
					}
					continue
				}
				for turn := 1; ; turn++ {
					served.Add(1)
					if random.IntN(2) == 0 {
						time.Sleep(time.Duration(random.IntN(20)) * time.Microsecond)
					}
					for range random.IntN(3) {
						l.giveBack(f, l.q.Yield)
						l.acquire(t, f, tk, true, nil)
						turn = 1
					}
					if random.IntN(2) == 0 || !l.q.CanKeep(turn) {
						break
					}
					lingered.Add(1)
				}
				l.giveBack(f, l.q.Release)
			}
		})
	}
	wg.Wait()
	close(done)
	<-resized
	l.end(t, flows)
	t.Logf("%d served, %d of these inline, %d refused, %d left or refused", served.Load(), lingered.Load(), refused.Load(), left.Load())
	for _, n := range []*atomic.Int64{&served, &refused, &left, &lingered} {
		if n.Load() == 0 && !testing.Short() {
			t.Error("something never happened")
		}
	}
}

// TestCancelRace cancels at the moment of granting: exactly one of both wins.
func TestCancelRace(t *testing.T) {
	rounds := 20_000
	if testing.Short() {
		rounds = 2000
	}
	l := newLimiter(1)
	a, b := new(Flow), new(Flow)
	tk := newTicket()
	now := make(chan time.Time)
	close(now)
	won := 0
	for range rounds {
		l.acquire(t, a, nil, false, nil)
		released := make(chan struct{})
		go func() {
			l.giveBack(a, l.q.Release)
			close(released)
		}()
		if l.acquire(t, b, tk, false, now) {
			won++
			l.giveBack(b, l.q.Release)
		}
		<-released
		l.end(t, []*Flow{a, b})
	}
	t.Logf("granted %d of %d", won, rounds)
}
