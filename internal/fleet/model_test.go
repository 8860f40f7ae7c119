package fleet

import (
	"encoding/json"
	"errors"
	"fmt"
	"math/rand/v2"
	"slices"
	"strings"
	"testing"
	"time"
)

// TestModel lets everything happen at random moments: processes that do not
// start, do not get ready, crash, hang, do not stop, leave; restarts to
// generations that work or not; another scale, recycling, a master that was
// stopped or replaced itself, events that make no sense, and at last a stop. What
// must never be is checked at each action, see sim.do, and each step. When the
// chaos ends the fleet must come to rest as it should be.
func TestModel(t *testing.T) {
	episodes := 150
	if testing.Short() {
		episodes = 30
	}
	var did counts
	steps := 0
	for seed := range uint64(episodes) {
		c := &chaos{random: rand.New(rand.NewPCG(seed, 1)), did: &did}
		if !t.Run(fmt.Sprint(seed), func(t *testing.T) { c.episode(t) }) {
			return
		}
		steps += c.steps
	}
	t.Logf("%d steps; %v", steps, did)
	for i, n := range did {
		if n == 0 && !testing.Short() {
			t.Errorf("%d never happened", i)
		}
	}
}

// counts of what happened, so that none of it is missed without notice.
type counts [13]int

type chaos struct {
	*sim
	random *rand.Rand
	did    *counts
	steps  int
	calm   bool
	last   Snapshot
	ticket int
	bad    map[int]int // one in so many workers of the generation fails
}

func (c *chaos) one(in int) bool { return c.random.IntN(in) == 0 }

func (c *chaos) upTo(d time.Duration) time.Duration {
	return time.Duration(1 + c.random.Int64N(int64(d)))
}

func (c *chaos) behaviour(a Spawn) (b behaviour) {
	b.boot, b.stop, b.requests = c.upTo(3*time.Second), c.upTo(5*time.Second), 3
	if c.calm {
		return b
	}
	if c.bad[a.Generation] == 0 {
		c.bad[a.Generation] = 4
		if c.one(4) && a.Generation > 1 {
			c.bad[a.Generation] = 1
		}
	}
	if c.one(8) {
		b.stop = time.Minute // longer than it may
		if c.one(2) {
			b.stop, b.dump = -1, -1
		}
	}
	if c.one(5) {
		b.leave = c.upTo(time.Minute)
	}
	if !c.one(c.bad[a.Generation]) {
		return b
	}
	e := []Exit{{}, {Code: 1}, {Signal: sigKill}, {Signal: 11}, {Unknown: true}}[c.random.IntN(5)]
	switch c.random.IntN(6) {
	case 0:
		b.noFork = true
	case 1:
		b.boot = -1
	case 2:
		b.bootExit = &e
	case 3:
		b.hang = c.upTo(time.Minute)
	default:
		b.die, b.exit = c.upTo(time.Minute), e
	}
	return b
}

func (c *chaos) config() Config {
	cfg := config(1 + c.random.IntN(5))
	cfg.Rand = c.random.Float64
	cfg.MaxSurge = c.random.IntN(4)
	cfg.MaxDraining = c.random.IntN(3)
	cfg.RestartTries = 1 + c.random.IntN(3)
	cfg.FirstBootTimeout = time.Duration(c.random.IntN(5)) * 10 * time.Second
	cfg.CrashLimit = 1000
	if c.one(4) {
		cfg.CrashLimit = 5 + c.random.IntN(20)
	}
	if c.one(2) {
		cfg.Canary = c.upTo(10 * time.Second)
	}
	if c.one(3) {
		cfg.RecycleAge, cfg.RecycleRequests = time.Minute, 200
	}
	for _, d := range []*time.Duration{&cfg.Probation, &cfg.DumpGrace, &cfg.HandshakeGrace, &cfg.LeaveGrace, &cfg.BackoffBase, &cfg.HealthyAfter} {
		if c.one(8) {
			*d = 0
		}
	}
	return cfg
}

func (c *chaos) episode(t *testing.T) {
	c.sim = newSim(t, c.config())
	c.bad = map[int]int{}
	c.behave = c.behaviour
	c.sim.verdict = func(k CanaryCheck) error {
		c.did[0]++
		if !c.calm && c.one(4) {
			return errors.New("no")
		}
		return nil
	}
	c.event(func() { c.f.Start(c.now) })
	for range 40 {
		c.pass(c.upTo(10 * time.Second))
		c.happen()
	}
	c.calm = true
	for _, p := range c.order { // those with a fault in them go
		p := p
		c.at(c.upTo(time.Minute), func() { c.exit(p, Exit{Signal: sigKill}) })
	}
	c.pass(15 * time.Minute)
	if len(c.over) == 0 {
		c.atRest()
		for range 3 {
			c.stop([]Level{LevelStop, LevelQuick, LevelNow}[c.random.IntN(3)])
			c.pass(c.upTo(2 * time.Second))
		}
		c.pass(time.Hour)
	} else {
		c.did[1]++
	}
	for ticket, answered := range c.asked {
		if !answered {
			t.Errorf("ticket %d was not answered", ticket)
		}
	}
	if len(c.over) != 1 || len(c.order) > 0 || !c.f.Next().IsZero() {
		t.Errorf("not over: %v\n%s", c.over, strings.Join(c.lines, "\n"))
	}
}

// pass lets time pass, and checks all that must always be.
func (c *chaos) pass(d time.Duration) {
	for until := c.now.Add(d); c.step(until); c.steps++ {
		if c.steps%16 == 0 {
			c.check()
		}
	}
	c.check()
}

func (c *chaos) check() {
	s := c.f.Snapshot(c.now)
	if s.Requests < c.last.Requests || s.Accepted < c.last.Accepted || s.Crashes < c.last.Crashes {
		c.t.Fatalf("%v: totals fall: %+v, %+v", c.since(), c.last, s)
	}
	c.last = s
	recycling := 0
	n := 0
	for _, o := range c.f.seats {
		n += len(o.workers)
		for _, w := range o.workers {
			if w.Recycling {
				recycling++
			}
		}
	}
	if recycling > 1 || n != len(c.f.workers) || n != len(c.order) {
		c.t.Fatalf("%v: %d are recycled at a time, %d of %d of %d workers", c.since(), recycling, n, len(c.f.workers), len(c.order))
	}
}

// happen does one thing from outside.
func (c *chaos) happen() {
	k := 2 + c.random.IntN(11)
	var some *proc
	if len(c.order) > 0 {
		some = c.order[c.random.IntN(len(c.order))]
	}
	switch {
	case k == 2:
		c.ticket++
		c.restart(c.ticket)
		if c.one(3) {
			c.ticket++
			c.restart(c.ticket)
		}
	case k == 3 && !c.stopped:
		c.event(func() {
			if err := c.f.Scale(c.now, 1+c.random.IntN(6)); err != nil {
				c.t.Fatal(err)
			}
		})
	case k == 4:
		c.event(func() { c.f.Recycle(c.now, c.random.IntN(6)) })
	case k == 5 && some != nil && some.pid > 0:
		c.kill9(some)
	case k == 6 && some != nil:
		some.hung = true
	case k == 7 && some != nil:
		c.event(func() { c.leaves(some) })
	case k == 8 && c.one(3): // the master is stopped; the workers go on
		c.now = c.now.Add(c.upTo(time.Minute))
		c.event(func() { c.f.Late(c.now) })
	case k == 9 && !c.f.Busy() && c.allKnown():
		c.replace()
	case k == 10:
		c.nonsense()
	case k == 11 && some != nil && some.pid > 0 && c.one(3):
		for _, p := range slices.Clone(c.order) {
			if p.pid > 0 {
				c.kill9(p)
			}
		}
	case k == 12 && c.one(10):
		c.stop(LevelStop)
	default:
		return
	}
	c.did[k]++
}

func (c *chaos) allKnown() bool {
	return !slices.ContainsFunc(c.order, func(p *proc) bool { return p.pid == 0 })
}

// replace puts another fleet in place of this one.
func (c *chaos) replace() {
	text, err := json.Marshal(c.f.State(c.now))
	if err != nil {
		c.t.Fatal(err)
	}
	var s State
	if err := json.Unmarshal(text, &s); err != nil {
		c.t.Fatal(err)
	}
	c.f = New(c.cfg)
	c.event(func() { c.f.Adopt(c.now, s) })
}

func (c *chaos) nonsense() {
	id := ID(c.random.Uint64N(uint64(c.lastID) + 2))
	if p := c.procs[id]; p != nil && !p.gone {
		return
	}
	c.event(func() {
		c.f.Ready(c.now, id)
		c.f.Exited(c.now, id, Exit{Code: 1})
		c.f.Beat(c.now, id, Beat{Requests: 1 << 40})
		c.f.Spawned(c.now, id, 7)
		c.f.SpawnFailed(c.now, id, nil)
		c.f.Leaving(c.now, id, "SIGTERM")
		c.f.Verdict(c.now, c.random.IntN(3), errors.New("?"))
		c.f.Tick(c.now.Add(-time.Minute))
	})
}

// atRest checks that nothing is left to do: one worker for each seat, that
// serves, of the generation that the last restart that did not fail went to.
func (c *chaos) atRest() {
	fault := ""
	for i := range c.seats {
		var there []int
		for _, p := range c.order {
			if p.Seat == i && (c.cfg.RecycleAge == 0 || p.level == 0) {
				there = append(there, p.Generation)
			}
		}
		if c.serving(i) != 1 || !slices.Equal(there, []int{c.current}) && c.cfg.RecycleAge == 0 {
			fault += fmt.Sprintf("seat %d: generations %v instead of %d; ", i, there, c.current)
		}
	}
	if c.seats != c.f.want || c.shut != 0 || c.f.Busy() || c.f.announce {
		fault += "busy; "
	}
	for ticket, answered := range c.asked {
		if !answered {
			fault += fmt.Sprintf("ticket %d is not answered; ", ticket)
		}
	}
	if fault != "" {
		c.t.Fatalf("%v: %v\n%s", c.since(), fault, strings.Join(c.lines, "\n"))
	}
}
