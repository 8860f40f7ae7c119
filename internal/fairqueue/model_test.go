package fairqueue

import (
	"fmt"
	"math/rand/v2"
	"slices"
	"testing"
)

// The model is what Queue must do, written for being read: slices, and a look
// at everything for each decision.
type model struct {
	slots, running      int
	maxQueue, maxInline int
	late                func(name int) bool
	joins               int
	flows               []*modelFlow
	resuming            []modelWaiter
}

type modelFlow struct {
	weight, held, joined int
	handed               bool  // a slot, to a waiter, since it joined
	waiters              []int // names, oldest first
}

type modelWaiter struct{ flow, name int }

func (m *model) waiting() (n int) {
	for _, f := range m.flows {
		n += len(f.waiters)
	}
	return n
}

func (m *model) anybodyWaits() bool { return m.waiting() > 0 || len(m.resuming) > 0 }

func (m *model) join(f *modelFlow) {
	m.joins++
	f.joined = m.joins
	f.handed = false
}

func (m *model) tryAcquire(flow int) bool {
	if m.anybodyWaits() || m.running >= m.slots {
		return false
	}
	m.running++
	m.flows[flow].held++
	return true
}

func (m *model) tryRelease(flow int) bool {
	if m.anybodyWaits() || m.running > m.slots {
		return false
	}
	m.running--
	m.flows[flow].held--
	return true
}

func (m *model) canLinger(turn int) bool {
	return !m.anybodyWaits() || turn < m.maxInline
}

// enqueue returns the name of the waiter turned away, or 0.
func (m *model) enqueue(flow, name int) (granted bool, victim int) {
	if m.tryAcquire(flow) {
		return true, 0
	}
	f := m.flows[flow]
	if m.maxQueue > 0 && m.waiting() == m.maxQueue {
		longest := slices.MaxFunc(m.flows, func(a, b *modelFlow) int {
			if len(a.waiters) != len(b.waiters) {
				return len(a.waiters) - len(b.waiters)
			}
			return a.joined - b.joined
		})
		if len(longest.waiters) <= len(f.waiters)+1 {
			return false, name
		}
		last := len(longest.waiters) - 1
		victim = longest.waiters[last]
		longest.waiters = longest.waiters[:last]
	}
	if len(f.waiters) == 0 {
		m.join(f)
	}
	f.waiters = append(f.waiters, name)
	return false, victim
}

func (m *model) resume(flow, name int) (granted bool) {
	if m.tryAcquire(flow) {
		return true
	}
	m.resuming = append(m.resuming, modelWaiter{flow, name})
	return false
}

func (m *model) release(flow int) (granted []int) {
	f := m.flows[flow]
	f.held--
	m.running--
	if len(f.waiters) > 0 {
		m.join(f)
	}
	return m.settle()
}

func (m *model) yield(flow int) (granted []int) {
	f := m.flows[flow]
	f.held--
	m.running--
	if len(f.waiters) > 0 && f.handed {
		m.join(f)
	}
	return m.settle()
}

func (m *model) setSlots(n int) (granted []int) {
	m.slots = n
	return m.settle()
}

func (m *model) cancel(name int) bool {
	is := func(w modelWaiter) bool { return w.name == name }
	before := m.waiting() + len(m.resuming)
	m.resuming = slices.DeleteFunc(m.resuming, is)
	for _, f := range m.flows {
		f.waiters = slices.DeleteFunc(f.waiters, func(n int) bool { return n == name })
	}
	return m.waiting()+len(m.resuming) < before
}

// settle hands out free slots.
func (m *model) settle() (granted []int) {
	for m.running < m.slots && m.anybodyWaits() {
		m.running++
		if len(m.resuming) > 0 {
			w := m.resuming[0]
			m.resuming = m.resuming[1:]
			m.flows[w.flow].held++
			granted = append(granted, w.name)
			continue
		}
		next, turn := m.next(false), 0
		if m.late(next.waiters[0]) {
			next = m.next(true)
			turn = len(next.waiters) - 1
		}
		next.held++
		next.handed = true
		granted = append(granted, next.waiters[turn])
		next.waiters = slices.Delete(next.waiters, turn, turn+1)
	}
	return granted
}

// next returns the flow whose turn it is, or nil.
func (m *model) next(newest bool) (next *modelFlow) {
	for _, f := range m.flows {
		if len(f.waiters) > 0 && (next == nil || f.comesBefore(next, newest)) {
			next = f
		}
	}
	return next
}

func (f *modelFlow) comesBefore(g *modelFlow, newest bool) bool {
	// Division rounds correctly: equal fractions give equal quotients.
	x, y := float64(f.held)/float64(f.weight), float64(g.held)/float64(g.weight)
	if x != y {
		return x < y
	}
	if newest {
		return f.joined > g.joined
	}
	return f.joined < g.joined
}

// A check drives a Queue and a model by the same bytes, and compares.
type check struct {
	t     testing.TB
	q     *Queue
	m     *model
	flows []*Flow

	names   int
	waiting []*request // wait for a slot
	running []*request
	yielded []*request // have begun, and hold no slot
	spare   []*request

	log  []string
	seen map[string]int // how often something of interest happened
}

type request struct {
	Waiter
	name, flow, turn int
}

// runModel checks one sequence of operations.
func runModel(t testing.TB, data []byte, seen map[string]int) {
	next := func() int {
		if len(data) == 0 {
			return 0
		}
		b := data[0]
		data = data[1:]
		return int(b)
	}
	c := &check{t: t, q: new(Queue), m: new(model), seen: seen}
	c.m.maxQueue = next() % 9
	c.m.maxInline = next() % 4
	c.q.MaxQueue, c.q.MaxInline = c.m.maxQueue, c.m.maxInline
	for range 1 + next()%6 {
		weight := next() % 4
		c.flows = append(c.flows, &Flow{Weight: int32(weight)})
		c.m.flows = append(c.m.flows, &modelFlow{weight: max(weight, 1)})
	}
	n := next() % 6
	late := next() // of eight names, a bit for each: those whose turn goes to the newest
	c.m.late = func(name int) bool { return late>>(name%8)&1 != 0 }
	c.q.Late = func(w *Waiter) bool {
		name := w.Value.(*request).name
		if c.m.late(name) {
			c.seen["late"]++
		}
		return c.m.late(name)
	}
	c.setSlots(n)
	for len(data) > 0 {
		c.step(next(), next())
		c.compare()
	}
	c.finish()
}

func pick(from *[]*request, i int) *request {
	if len(*from) == 0 {
		return nil
	}
	i %= len(*from)
	r := (*from)[i]
	*from = slices.Delete(*from, i, i+1)
	return r
}

func (c *check) step(op, arg int) {
	switch op % 16 {
	case 0, 1, 2, 3, 4:
		c.arrive(arg%len(c.flows), op&16 == 0)
	case 5, 6, 7, 8:
		if r := pick(&c.running, arg); r != nil {
			c.giveBack(r, op&16 == 0, false)
			c.spare = append(c.spare, r)
		}
	case 9:
		if r := pick(&c.running, arg); r != nil {
			c.linger(r)
		}
	case 10:
		if r := pick(&c.running, arg); r != nil {
			c.giveBack(r, op&16 == 0, true)
			c.yielded = append(c.yielded, r)
		}
	case 11, 12:
		if r := pick(&c.yielded, arg); r != nil {
			c.resume(r)
		}
	case 13:
		if r := pick(&c.waiting, arg); r != nil {
			c.cancel(r)
		}
	case 14:
		if len(c.running) > 0 {
			r := c.running[arg%len(c.running)]
			c.logf("cancel %d, which runs", r.name)
			c.same("Cancel", c.q.Cancel(&r.Waiter), false)
		}
	case 15:
		c.setSlots(arg % 7)
	}
}

func (c *check) arrive(flow int, fast bool) {
	r := pick(&c.spare, 0)
	if r == nil {
		r = new(request)
		r.Value = r
	}
	c.names++
	r.name, r.flow = c.names, flow
	f := c.flows[flow]
	if fast {
		c.logf("flow %d tries", flow)
		got, want := c.q.TryAcquire(f), c.m.tryAcquire(flow)
		c.same("TryAcquire", got, want)
		if got {
			c.run(r)
			return
		}
	}
	c.logf("%d of flow %d comes", r.name, flow)
	granted, victim := c.q.Enqueue(f, &r.Waiter)
	wantGranted, wantVictim := c.m.enqueue(flow, r.name)
	c.same("Enqueue", granted, wantGranted)
	name := 0
	if victim != nil {
		v := victim.Value.(*request)
		name = v.name
		c.same("Cancel of the victim", c.q.Cancel(victim), false)
		c.same("Cancel of the victim in the model", c.m.cancel(name), false)
		if v != r {
			c.seen["evicted"]++
			c.waiting = slices.DeleteFunc(c.waiting, func(x *request) bool { return x == v })
		} else {
			c.seen["rejected"]++
		}
		c.spare = append(c.spare, v)
	}
	c.same("victim", name, wantVictim)
	switch {
	case granted:
		c.run(r)
	case name != r.name:
		c.waiting = append(c.waiting, r)
	}
}

func (c *check) run(r *request) {
	r.turn = 1
	c.running = append(c.running, r)
}

func (c *check) giveBack(r *request, fast, yield bool) {
	f := c.flows[r.flow]
	c.logf("%d of flow %d gives its slot back, yield=%v", r.name, r.flow, yield)
	if fast {
		got, want := c.q.TryRelease(f), c.m.tryRelease(r.flow)
		c.same("TryRelease", got, want)
		if got {
			return
		}
	}
	give, want := c.q.Release, c.m.release
	if yield {
		give, want = c.q.Yield, c.m.yield
	}
	var granted []*Waiter
	if w := give(f); w != nil {
		granted = append(granted, w)
	}
	c.granted(granted, want(r.flow))
}

func (c *check) linger(r *request) {
	c.logf("%d of flow %d finishes its request %d", r.name, r.flow, r.turn)
	got := c.q.CanKeep(r.turn)
	c.same("CanKeep", got, c.m.canLinger(r.turn))
	if got {
		c.seen["lingered"]++
		r.turn++
		c.running = append(c.running, r)
		return
	}
	c.giveBack(r, false, false)
	c.spare = append(c.spare, r)
}

func (c *check) resume(r *request) {
	c.logf("%d of flow %d resumes", r.name, r.flow)
	got := c.q.Resume(c.flows[r.flow], &r.Waiter)
	c.same("Resume", got, c.m.resume(r.flow, r.name))
	if got {
		c.run(r)
	} else {
		c.seen["waited to resume"]++
		c.waiting = append(c.waiting, r)
	}
}

func (c *check) cancel(r *request) {
	c.logf("cancel %d", r.name)
	c.same("Cancel in the model", c.m.cancel(r.name), true)
	c.same("Cancel", c.q.Cancel(&r.Waiter), true)
	c.same("second Cancel", c.q.Cancel(&r.Waiter), false)
	c.spare = append(c.spare, r)
}

func (c *check) setSlots(n int) {
	c.logf("%d slots", n)
	if n < c.m.running {
		c.seen["fewer slots than running"]++
	}
	c.granted(c.q.SetSlots(n), c.m.setSlots(n))
}

func (c *check) granted(got []*Waiter, want []int) {
	var names []int
	for _, w := range got {
		r := w.Value.(*request)
		names = append(names, r.name)
		c.waiting = slices.DeleteFunc(c.waiting, func(x *request) bool { return x == r })
		c.run(r)
	}
	if !slices.Equal(names, want) {
		c.fatalf("granted %v, want %v", names, want)
	}
	if len(names) > 1 {
		c.seen["granted many"]++
	}
}

// finish lets everything end, and checks that nobody is left behind.
func (c *check) finish() {
	if c.m.slots == 0 {
		c.setSlots(1)
	}
	for len(c.running)+len(c.yielded) > 0 {
		if r := pick(&c.yielded, 0); r != nil {
			c.resume(r)
		}
		if r := pick(&c.running, 0); r != nil {
			c.giveBack(r, true, false)
		}
		c.compare()
	}
	if len(c.waiting) > 0 || c.q.Snapshot() != (Snapshot{Slots: c.m.slots}) {
		c.fatalf("left behind: %d waiters, %+v", len(c.waiting), c.q.Snapshot())
	}
}

func (c *check) compare() {
	got := c.q.Snapshot()
	want := Snapshot{Slots: c.m.slots, Running: c.m.running, Waiting: c.m.waiting(), Resuming: len(c.m.resuming)}
	for i, f := range c.flows {
		m := c.m.flows[i]
		if len(m.waiters) > 0 {
			want.Flows++
		}
		if f.Held() != m.held || f.Waiting() != len(m.waiters) {
			c.fatalf("flow %d holds %d slots and has %d waiters, want %d and %d", i, f.Held(), f.Waiting(), m.held, len(m.waiters))
		}
		w := f.waiters.first
		for _, name := range m.waiters {
			if w == nil || w.Value.(*request).name != name {
				c.fatalf("flow %d has its waiters in another order than %v", i, m.waiters)
			}
			w = w.next
		}
	}
	for i, f := range c.flows {
		m := c.m.flows[i]
		ahead := 0
		for _, other := range c.m.flows {
			if len(other.waiters) > 0 {
				ahead += len(m.waiters)/m.weight + 1
			}
		}
		if got, want := c.q.Ahead(f), min(ahead, c.m.waiting()); got != want {
			c.fatalf("%d are ahead of one more of flow %d, want %d", got, i, want)
		}
	}
	if got != want {
		c.fatalf("state is %+v, want %+v", got, want)
	}
	if err := c.q.check(c.flows); err != nil {
		c.fatalf("%v", err)
	}
}

// check checks what must hold inside of a Queue used by the given flows only.
func (q *Queue) check(flows []*Flow) error {
	word := q.word.Load()
	if wait := q.waiting+q.resuming > 0; wait != (word&waits != 0) {
		return fmt.Errorf("waits bit is %v", !wait)
	} else if wait && running(word) < slots(word) {
		return fmt.Errorf("%d of %d slots used while %d wait", running(word), slots(word), q.waiting+q.resuming)
	}
	held, inEmpty, long, sharing, newest := uint64(0), 0, 0, 0, 0
	for i, f := range flows {
		held += uint64(f.Held())
		if f.waiting > 0 && int(f.filed) != f.Held() {
			return fmt.Errorf("flow %d is filed under %d, and holds %d", i, f.filed, f.Held())
		}
		if f.listed && (f.waiting == 0 || f.Held() > 0) || (f.at[byShare] > 0) != (f.waiting > 0 && !f.listed) || (f.at[byShareNewest] > 0) != (f.at[byShare] > 0) || (f.at[byLength] > 0) != (f.waiting > 1) {
			return fmt.Errorf("flow %d with %d slots and %d waiters: listed %v, at %v", i, f.Held(), f.waiting, f.listed, f.at)
		}
		for o, n := range []*int{&sharing, &newest, &long} {
			if at := f.at[o]; at > 0 {
				*n++
				if q.heaps[o][at-1] != f {
					return fmt.Errorf("flow %d is not at %d", i, at)
				}
				if parent := at / 2; parent > 0 && order(o).before(f, q.heaps[o][parent-1]) {
					return fmt.Errorf("heap %d is out of order at %d", o, at)
				}
			}
		}
	}
	for f := q.slotless.first; f != nil; f = f.next {
		inEmpty++
		if f.next != nil && f.joined >= f.next.joined {
			return fmt.Errorf("list of flows without slots is out of order")
		}
	}
	for _, f := range flows {
		if f.listed {
			inEmpty--
		}
	}
	if inEmpty != 0 || sharing != len(q.heaps[byShare]) || newest != len(q.heaps[byShareNewest]) || long != len(q.heaps[byLength]) || held != running(word) {
		return fmt.Errorf("counts do not add up: list %+d, heaps %d/%d %d/%d, held %d/%d", inEmpty,
			sharing, len(q.heaps[byShare]), long, len(q.heaps[byLength]), held, running(word))
	}
	return nil
}

func (c *check) same(what string, got, want any) {
	if got != want {
		c.fatalf("%s: %v, want %v", what, got, want)
	}
}

func (c *check) logf(format string, args ...any) {
	if testing.Verbose() {
		c.log = append(c.log, fmt.Sprintf(format, args...))
	}
}

func (c *check) fatalf(format string, args ...any) {
	c.t.Helper()
	for _, line := range c.log {
		c.t.Log(line)
	}
	c.t.Fatalf(format, args...)
}

// TestModel compares Queue and model after each of millions of random steps.
func TestModel(t *testing.T) {
	runs, steps := 4000, 1000
	if testing.Short() || raceEnabled { // the detector sees nothing here, and takes its time
		runs = 200
	}
	seed := 0
	defer func() {
		if t.Failed() {
			t.Logf("seed %d; -v shows the steps", seed)
		}
	}()
	seen := make(map[string]int)
	data := make([]byte, 2*steps)
	for ; seed < runs; seed++ {
		rand.NewChaCha8([32]byte{byte(seed), byte(seed >> 8)}).Read(data)
		runModel(t, data, seen)
	}
	for _, what := range []string{"evicted", "rejected", "lingered", "waited to resume", "fewer slots than running", "granted many", "late"} {
		if seen[what] < runs {
			t.Errorf("%s: only %d times", what, seen[what])
		}
	}
	t.Logf("%d steps: %v", runs*steps, seen)
}

func FuzzModel(f *testing.F) {
	for seed := range byte(8) {
		data := make([]byte, 200)
		rand.NewChaCha8([32]byte{seed, 1}).Read(data)
		f.Add(data)
	}
	f.Fuzz(func(t *testing.T, data []byte) {
		runModel(t, data, make(map[string]int))
	})
}
