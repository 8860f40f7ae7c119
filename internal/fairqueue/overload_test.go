package fairqueue

import (
	"cmp"
	"container/heap"
	"fmt"
	"math"
	"math/rand/v2"
	"slices"
	"strings"
	"testing"
	"time"
)

// An overload is a queue to which more requests come than it can serve, from
// clients that leave, in virtual time: ten slots, 50 ms for each request. A
// request that has begun is not stopped when its client leaves, as most
// handlers are not.
type overload struct {
	rule     rule
	q        Queue
	patience Patience
	random   *rand.Rand
	now      time.Duration
	events   overloadEvents
	n        int

	takes       func(*rand.Rand) time.Duration // a request
	interval    time.Duration                  // between two grants while somebody waits, as limit.Limiter measures it
	lastGrant   time.Duration
	lastLeft    time.Duration
	emptySince  time.Duration // the queue was last seen empty
	count       bool
	outcome     overloadOutcome
	waits, told []time.Duration
}

const (
	overloadSlots    = 10
	overloadService  = 50 * time.Millisecond
	overloadCapacity = float64(overloadSlots) / 0.05
	overloadMaxQueue = 1280 // usher's default for ten slots
)

type overloadOutcome struct{ arrived, good, wasted, told, left int }

type overloadRequest struct {
	Waiter
	flow   Flow
	came   time.Duration
	leaves time.Duration // when its client does
	ended  bool
	done   func() // for a client that comes again
}

// A rule is what decides besides the Queue.
type rule struct {
	name string
	// late, of the oldest: the newest is served instead.
	late func(o *overload, r *overloadRequest) bool
	// admit, of a newcomer that has to wait: else it is told at once.
	admit func(o *overload, r *overloadRequest) bool
	// hopeless, of the oldest: it is told so.
	hopeless func(o *overload, r *overloadRequest) bool
	maxWait  time.Duration
}

var overloadRules = []rule{
	{name: "first come", maxWait: 30 * time.Second},
	{name: "MaxWait 0.5 s", maxWait: time.Second / 2},
	{name: "CoDel", // as at Facebook: when not empty for 100 ms, newest first, and a wait of 5 ms at most
		late: func(o *overload, r *overloadRequest) bool { return o.busyFor() > 100*time.Millisecond },
		hopeless: func(o *overload, r *overloadRequest) bool {
			return o.age(r) > 100*time.Millisecond || o.busyFor() > 100*time.Millisecond && o.age(r) > 5*time.Millisecond
		}},
	{name: "newest first", late: func(*overload, *overloadRequest) bool { return true }},
	{name: "newest first for 1 s after one left", late: func(o *overload, r *overloadRequest) bool {
		return o.lastLeft > 0 && o.now-o.lastLeft < time.Second
	}},
	survival("survival, told below 1/2", 0.5),
	survival("survival, told below 1/10", 0.1),
	usherRule,
}

var usherRule = rule{
	name: "survival, told below 1/4: usher",
	late: func(o *overload, r *overloadRequest) bool { return o.patience.Late(o.now, o.age(r), o.service()) },
	admit: func(o *overload, r *overloadRequest) bool {
		wait := time.Duration(o.q.Ahead(&r.flow)) * o.interval
		return wait == 0 || !o.patience.Hopeless(o.now, wait, o.service())
	},
}

// survival is usher's rule with another chance below which one is told.
func survival(name string, none float64) rule {
	r := usherRule
	r.name = name
	r.admit = func(o *overload, r *overloadRequest) bool {
		wait := time.Duration(o.q.Ahead(&r.flow)) * o.interval
		return wait == 0 || o.patience.Chance(o.now, 0, waitMargin*wait+margin(o.service())) >= none
	}
	return r
}

func (o *overload) age(r *overloadRequest) time.Duration { return o.now - r.came }

// service is how long a request takes, as limit.Limiter knows it.
func (o *overload) service() time.Duration { return o.interval * overloadSlots }

// busyFor is how long somebody has been waiting.
func (o *overload) busyFor() time.Duration { return o.now - o.emptySince }

type overloadEvent struct {
	at time.Duration
	n  int
	do func()
}

type overloadEvents []overloadEvent

func (h overloadEvents) Len() int { return len(h) }
func (h overloadEvents) Less(i, j int) bool {
	return cmp.Or(cmp.Compare(h[i].at, h[j].at), cmp.Compare(h[i].n, h[j].n)) < 0
}
func (h overloadEvents) Swap(i, j int) { h[i], h[j] = h[j], h[i] }
func (h *overloadEvents) Push(x any)   { *h = append(*h, x.(overloadEvent)) }
func (h *overloadEvents) Pop() any {
	last := len(*h) - 1
	e := (*h)[last]
	*h = (*h)[:last]
	return e
}

func (o *overload) after(d time.Duration, do func()) {
	o.n++
	heap.Push(&o.events, overloadEvent{o.now + d, o.n, do})
}

func newOverload(r rule, seed uint64) *overload {
	o := &overload{rule: r, random: rand.New(rand.NewPCG(seed, 1))}
	o.takes = always(overloadService)
	o.q.MaxQueue = overloadMaxQueue
	if r.late != nil {
		o.q.Late = func(w *Waiter) bool { return r.late(o, w.Value.(*overloadRequest)) }
	}
	o.q.SetSlots(overloadSlots)
	return o
}

func (o *overload) run(until time.Duration) {
	for len(o.events) > 0 && o.events[0].at <= until {
		e := heap.Pop(&o.events).(overloadEvent)
		o.now = e.at
		e.do()
		if o.q.Snapshot().Waiting == 0 {
			o.emptySince = o.now
		}
	}
}

func (o *overload) arrive(patience time.Duration, done func()) {
	r := &overloadRequest{came: o.now, leaves: o.now + patience, done: done}
	r.Value = r
	if o.count {
		o.outcome.arrived++
	}
	if o.q.TryAcquire(&r.flow) {
		o.begin(r)
		return
	}
	if o.rule.admit != nil && !o.rule.admit(o, r) {
		o.tell(r)
		return
	}
	granted, victim := o.q.Enqueue(&r.flow, &r.Waiter)
	if victim != nil {
		o.tell(victim.Value.(*overloadRequest))
	}
	if granted {
		o.begin(r)
	} else if victim != &r.Waiter {
		o.after(patience, func() {
			if o.q.Cancel(&r.Waiter) {
				o.sawLeaving(r)
				o.end(r, &o.outcome.left)
			}
		})
		if o.rule.maxWait > 0 {
			o.after(o.rule.maxWait, func() {
				if o.q.Cancel(&r.Waiter) {
					o.tell(r)
				}
			})
		}
	}
}

func (o *overload) sawLeaving(r *overloadRequest) {
	o.lastLeft = o.now
	o.patience.Saw(o.now, o.age(r), true)
}

func (o *overload) end(r *overloadRequest, n *int) {
	if r.ended {
		panic("ended twice")
	}
	r.ended = true
	if o.count {
		*n++
	}
	if r.done != nil {
		r.done()
	}
}

// tell turns a request away.
func (o *overload) tell(r *overloadRequest) {
	if o.count {
		o.told = append(o.told, o.age(r))
	}
	o.end(r, &o.outcome.told)
}

func (o *overload) begin(r *overloadRequest) {
	waited := o.age(r)
	o.after(o.takes(o.random), func() {
		if good := o.now <= r.leaves; good {
			if o.count {
				o.waits = append(o.waits, waited)
			}
			if waited > 0 {
				o.patience.Saw(o.now, o.age(r), false)
			}
			o.end(r, &o.outcome.good)
		} else {
			if waited > 0 {
				o.sawLeaving(r)
			}
			o.end(r, &o.outcome.wasted)
		}
		o.giveBack(r)
	})
}

func (o *overload) giveBack(r *overloadRequest) {
	if o.q.TryRelease(&r.flow) {
		o.lastGrant = 0
		return
	}
	if o.rule.hopeless != nil {
		for f := o.q.slotless.first; f != nil && o.rule.hopeless(o, f.waiters.first.Value.(*overloadRequest)); f = o.q.slotless.first {
			w := f.waiters.first
			o.q.Cancel(w)
			o.tell(w.Value.(*overloadRequest))
		}
	}
	w := o.q.Release(&r.flow)
	if w == nil {
		o.lastGrant = 0
		return
	}
	if o.lastGrant > 0 {
		if d := o.now - o.lastGrant; o.interval == 0 {
			o.interval = d
		} else {
			o.interval += (d - o.interval) / 8
		}
	}
	o.lastGrant = o.now
	o.begin(w.Value.(*overloadRequest))
}

// open has clients come by themselves, for good.
func (o *overload) open(times float64, patience func(*rand.Rand) time.Duration) {
	var next func()
	next = func() {
		o.arrive(patience(o.random), nil)
		o.after(time.Duration(o.random.ExpFloat64()/(times*overloadCapacity)*float64(time.Second)), next)
	}
	next()
}

func always(d time.Duration) func(*rand.Rand) time.Duration {
	return func(*rand.Rand) time.Duration { return d }
}

func mixed(part float64, a, b time.Duration) func(*rand.Rand) time.Duration {
	return func(r *rand.Rand) time.Duration {
		if r.Float64() < part {
			return a
		}
		return b
	}
}

func exponential(mean time.Duration) func(*rand.Rand) time.Duration {
	return func(r *rand.Rand) time.Duration { return time.Duration(r.ExpFloat64() * float64(mean)) }
}

var overloadPatience = []struct {
	name  string
	of    func(*rand.Rand) time.Duration
	least float64 // goodput; what leaves while it is served is lost to any rule
}{
	{"all 1 s", always(time.Second), 0.97},
	{"half 1 s, half 10 s", mixed(.5, time.Second, 10*time.Second), 0.97},
	{"half 0.5 s, half 10 s", mixed(.5, time.Second/2, 10*time.Second), 0.97},
	{"exponential, mean 1 s", exponential(time.Second), 0.92},
	{"exponential, mean 2 s", exponential(2 * time.Second), 0.95},
	{"1 % leave at 0.1 s, the rest at 30 s", mixed(.01, 100*time.Millisecond, 30*time.Second), 0.97},
	{"all 60 s", always(time.Minute), 0.97},
}

var overloadLoads = []float64{.9, 1.1, 2, 4, 10}

// watch counts for some time, after the first seconds.
func (o *overload) watch(d time.Duration) *overload {
	const first = 5 * time.Second
	o.run(first)
	o.count = true
	o.run(first + d)
	slices.Sort(o.waits)
	slices.Sort(o.told)
	return o
}

// goodput is what was answered in time, of what could have been.
func (o *overload) goodput(d time.Duration, times float64) float64 {
	return float64(o.outcome.good) / d.Seconds() / (min(times, 1) * overloadCapacity)
}

// toldAtOnce is the part of those not served that were told within 100 ms.
func (o *overload) toldAtOnce() float64 {
	n, _ := slices.BinarySearch(o.told, 100*time.Millisecond)
	return float64(n) / float64(max(1, o.outcome.told+o.outcome.left+o.outcome.wasted))
}

func (o *overload) wait(p int) time.Duration {
	if len(o.waits) == 0 {
		return 0
	}
	return o.waits[min(len(o.waits)*p/100, len(o.waits)-1)].Truncate(time.Millisecond)
}

// closed has clients that come again when they are answered, and others that
// leave for reasons of their own, so many a second.
func (o *overload) closed(clients int, patience time.Duration, leavers float64) {
	for range clients {
		var again func()
		again = func() { o.arrive(patience, func() { o.after(0, again) }) }
		again()
	}
	var next func()
	next = func() {
		o.arrive(time.Duration(o.random.Int64N(int64(150*time.Millisecond))), nil)
		o.after(time.Duration(o.random.ExpFloat64()/leavers*float64(time.Second)), next)
	}
	if leavers > 0 {
		next()
	}
}

// bursts is four times capacity for a second of five.
func (o *overload) bursts(patience func(*rand.Rand) time.Duration) {
	var next func()
	next = func() {
		times := 0.02
		if o.now%(5*time.Second) < time.Second {
			o.arrive(patience(o.random), nil)
			times = 4
		}
		o.after(time.Duration(o.random.ExpFloat64()/(times*overloadCapacity)*float64(time.Second)), next)
	}
	next()
}

// TestOverloadRules is how usher's rule was chosen: -v prints the table of
// docs/overload.md. It holds usher's to its word.
func TestOverloadRules(t *testing.T) {
	rules, length := overloadRules, 20*time.Second
	if testing.Short() || raceEnabled {
		rules = []rule{usherRule}
	}
	var b strings.Builder
	line := func(name string, cell func(rule) string) {
		fmt.Fprintf(&b, "| %s |", name)
		for _, r := range rules {
			fmt.Fprintf(&b, " %s |", cell(r))
		}
		b.WriteString("\n")
	}
	line("goodput, of capacity", func(r rule) string { return r.name })
	for _, p := range overloadPatience {
		for _, times := range overloadLoads {
			line(fmt.Sprintf("%s, %g times", p.name, times), func(r rule) string {
				o := newOverload(r, 1)
				o.open(times, p.of)
				got := o.watch(length).goodput(length, times)
				if r.name == usherRule.name && got < p.least {
					t.Errorf("%s, %g times capacity: goodput is %.3f", p.name, times, got)
				}
				return fmt.Sprintf("%.2f", got)
			})
		}
	}
	line("all 1 s, 4 times: told within 0.1 s, of those not served", func(r rule) string {
		o := newOverload(r, 1)
		o.open(4, always(time.Second))
		got := o.watch(length).toldAtOnce()
		if r.name == usherRule.name && got < 0.8 {
			t.Errorf("told at once: %.2f", got)
		}
		return fmt.Sprintf("%.2f", got)
	})
	line("half 0.5 s, half 10 s, bursts of 4 times: answered", func(r rule) string {
		o := newOverload(r, 1)
		o.bursts(mixed(.5, time.Second/2, 10*time.Second))
		o.watch(5 * length)
		return fmt.Sprintf("%.2f", float64(o.outcome.good)/float64(o.outcome.arrived))
	})
	line("closed loop of 40: P99 of the wait, turned away", func(r rule) string {
		o := newOverload(r, 1)
		o.closed(40, time.Minute, 0)
		o.watch(length)
		if got := o.wait(100); r.name == usherRule.name && (got != 150*time.Millisecond || o.outcome.told > 0) {
			t.Errorf("in a closed loop one waited %v, and %d were turned away", got, o.outcome.told)
		}
		return fmt.Sprintf("%v, %d", o.wait(99), o.outcome.told)
	})
	line("the same, and somebody leaves each second", func(r rule) string {
		o := newOverload(r, 1)
		o.closed(40, time.Minute, 1)
		o.watch(length)
		if got := o.wait(100); r.name == usherRule.name && (got > 200*time.Millisecond || o.outcome.told > 0) {
			t.Errorf("in a closed loop of which some leave one waited %v, and %d were turned away", got, o.outcome.told)
		}
		return fmt.Sprintf("%v, %d", o.wait(99), o.outcome.told)
	})
	t.Log("\n" + b.String())
}

// TestPatience: the estimate is that of Kaplan and Meier, computed from a list.
func TestPatience(t *testing.T) {
	random := rand.New(rand.NewPCG(1, 2))
	for range 200 {
		var p Patience
		type seen struct {
			bucket int
			left   bool
		}
		var all []seen
		for range random.IntN(200) {
			age := time.Duration(math.Exp(random.Float64()*18) * float64(time.Microsecond))
			s := seen{bucket(age), random.IntN(3) == 0}
			all = append(all, s)
			p.Saw(0, age, s.left)
		}
		from := time.Duration(math.Exp(random.Float64()*18) * float64(time.Microsecond))
		until := from + time.Duration(random.Int64N(int64(10*time.Second)))
		want := 1.0
		for b := bucket(from); b <= bucket(until); b++ {
			there, left := float64(patienceDoubt), 0.0
			for _, s := range all {
				if s.bucket >= b {
					there++
				}
				if s.bucket == b && s.left {
					left++
				}
			}
			want *= 1 - left/there
		}
		if got := p.Chance(0, from, until); math.Abs(got-want) > 1e-9 {
			t.Fatalf("chance from %v until %v is %v, want %v", from, until, got, want)
		}
		for d := time.Duration(0); d < 20*time.Second; d += 100 * time.Millisecond {
			p.Saw(d, 0, false)
		}
		if got := p.Chance(20*time.Second, from, until); p.Known() || got != 1 {
			t.Fatalf("after 20 s the chance is %v, want 1", got)
		}
	}
	last := -1
	for age := time.Duration(0); age < time.Minute; age += 1 + age/50 {
		if b := bucket(age); b != last && b != last+1 {
			t.Fatalf("ages up to %v are in bucket %d, after %d", age, b, last)
		} else {
			last = b
		}
	}
	if last != patienceBuckets-1 {
		t.Errorf("the last bucket is %d of %d", last, patienceBuckets)
	}
}
