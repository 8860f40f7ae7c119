package fleet

import (
	"errors"
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"
)

var epoch = time.Date(2026, 1, 2, 3, 4, 5, 0, time.UTC)

// A behaviour is what a simulated process does. Its zero value is good: it is
// ready one second after the spawn, beats every second, and is gone one second
// after it was told to stop.
type behaviour struct {
	noFork   bool          // cannot be started
	boot     time.Duration // until ready; 0 means 1s, negative never
	bootExit *Exit         // instead of ready
	die      time.Duration // this long after ready it exits with exit, if not 0
	exit     Exit
	hang     time.Duration // this long after ready it makes no progress any more, if not 0
	stop     time.Duration // from the order to stop to the exit; 0 means 1s, negative never
	dump     time.Duration // from SIGQUIT to the exit; 0 means 100ms, negative never
	leave    time.Duration // this long after ready somebody else tells it to stop, if not 0
	requests uint64        // a second
	rss      uint64
	stopExit Exit
}

// A proc is a simulated process, and what the caller of the fleet knows of it.
type proc struct {
	behaviour
	Spawn
	pid     int
	ready   bool
	level   Level
	final   bool
	dumped  bool
	killed  bool
	leaving bool
	hung    bool
	gone    bool
	beat    Beat

	spawned, beaten, told, toldNow, dumpedAt, leftAt time.Time
}

func (p *proc) serves() bool { return !p.gone && p.ready && p.level == 0 && !p.dumped && !p.killed }
func (p *proc) starts() bool { return !p.gone && !p.ready && p.level == 0 && !p.dumped && !p.killed }

// A sim is a fleet with simulated processes and time. It checks with each action
// that it is one that may be, see do.
type sim struct {
	t       testing.TB
	cfg     Config
	f       *Fleet
	now     time.Time
	behave  func(Spawn) behaviour
	verdict func(CanaryCheck) error // nil means that nobody answers
	events  []simEvent              // in order of time
	procs   map[ID]*proc
	order   []*proc // oldest first, none that is gone
	lines   []string
	whys    map[ID]string // of orders to stop
	quiet   bool          // keeps no lines
	mute    bool          // nobody beats

	seats    int
	shut     int // 1 + the seat, or 0
	gens     map[int]string
	lastGen  int
	lastID   ID
	live     Live
	stopped  bool // by us, or it gave up
	over     []Over
	asked    map[int]bool // tickets, and whether they have been answered
	results  map[int]error
	current  int               // the last generation to which a restart came
	failed   map[int]time.Time // by seat
	readyAll int
	checks   []CanaryCheck
	gone     []WorkerGone
	maxProcs int
}

type simEvent struct {
	at time.Time
	do func()
}

func newSim(t testing.TB, cfg Config) *sim {
	s := &sim{
		t: t, cfg: cfg, f: New(cfg), now: epoch, procs: map[ID]*proc{}, seats: cfg.Seats,
		gens: map[int]string{}, whys: map[ID]string{}, asked: map[int]bool{}, results: map[int]error{},
		current: 1, failed: map[int]time.Time{},
		behave: func(Spawn) behaviour { return behaviour{} },
	}
	return s
}

// start starts the fleet and waits until all serve.
func (s *sim) start() *sim {
	s.f.Start(s.now)
	s.take()
	s.run(2 * time.Second)
	s.lines = nil
	return s
}

func (s *sim) at(d time.Duration, do func()) {
	e := simEvent{s.now.Add(max(d, 0)), do}
	i, _ := slices.BinarySearchFunc(s.events, e, func(a, b simEvent) int {
		if a.at.After(b.at) {
			return 1
		}
		return -1 // after its equals
	})
	s.events = slices.Insert(s.events, i, e)
}

// run lets time pass.
func (s *sim) run(d time.Duration) {
	for until := s.now.Add(d); s.step(until); {
	}
}

// step goes to the next event, up to a time.
func (s *sim) step(until time.Time) bool {
	next := s.f.Next()
	switch {
	case len(s.events) > 0 && !s.events[0].at.After(until) && (next.IsZero() || !next.Before(s.events[0].at)):
		e := s.events[0]
		s.events = s.events[1:]
		if e.at.After(s.now) {
			s.now = e.at
		}
		e.do()
	case !next.IsZero() && !next.After(until):
		if next.After(s.now) {
			s.now = next
		}
		s.f.Tick(s.now)
		defer s.progress()
	default:
		s.now = until
		return false
	}
	s.take()
	return true
}

func (s *sim) progress() {
	if next := s.f.Next(); !next.IsZero() && !next.After(s.now) {
		s.t.Fatalf("%v: next is due again", s.since())
	}
}

func (s *sim) since() time.Duration { return s.now.Sub(epoch) }

func (s *sim) event(f func()) { f(); s.take() }

func (s *sim) restart(ticket int) {
	s.asked[ticket] = false
	s.f.Restart(s.now, ticket)
	s.take()
}

func (s *sim) stop(l Level) {
	s.stopped = true
	s.f.Stop(s.now, l, "test")
	s.take()
}

func (s *sim) serving(seat int) (n int) {
	for _, p := range s.order {
		if p.serves() && (seat < 0 || p.Seat == seat) {
			n++
		}
	}
	return n
}

// worker returns the youngest process of a seat that serves.
func (s *sim) worker(seat int) *proc {
	for _, p := range slices.Backward(s.order) {
		if p.Seat == seat && p.serves() {
			return p
		}
	}
	s.t.Helper()
	s.t.Fatalf("%v: nobody serves on seat %d", s.since(), seat)
	return nil
}

// exit ends a process.
func (s *sim) exit(p *proc, e Exit) {
	if p.gone {
		return
	}
	p.gone = true
	s.order = slices.DeleteFunc(s.order, func(o *proc) bool { return o == p })
	s.f.Exited(s.now, p.ID, e)
}

func (s *sim) kill9(p *proc) { s.event(func() { s.exit(p, Exit{Signal: sigKill}) }) }

func pick(d, zero time.Duration) time.Duration {
	if d == 0 {
		return zero
	}
	return d
}

// spawn begins the life of a process.
func (s *sim) spawn(p *proc) {
	if p.noFork {
		s.at(0, func() { p.gone = true; s.drop(p); s.f.SpawnFailed(s.now, p.ID, errors.New("fork: no")) })
		return
	}
	s.at(0, func() {
		p.pid = 1000 + int(p.ID)
		s.f.Spawned(s.now, p.ID, p.pid)
	})
	if boot := pick(p.boot, time.Second); p.bootExit != nil {
		s.at(max(boot, 0), func() { s.exit(p, *p.bootExit) })
	} else if boot > 0 {
		s.at(boot, func() { s.ready(p) })
	}
}

func (s *sim) drop(p *proc) {
	s.order = slices.DeleteFunc(s.order, func(o *proc) bool { return o == p })
}

func (s *sim) ready(p *proc) {
	if p.gone || p.dumped || p.killed || p.level > LevelStop {
		return
	}
	p.ready, p.beaten = true, s.now
	s.f.Ready(s.now, p.ID)
	if !s.mute {
		s.at(time.Second, func() { s.beat(p) })
	}
	if p.die > 0 {
		s.at(p.die, func() { s.exit(p, p.exit) })
	}
	if p.hang > 0 {
		s.at(p.hang, func() { p.hung = true })
	}
	if p.leave > 0 {
		s.at(p.leave, func() { s.leaves(p) })
	}
}

func (s *sim) leaves(p *proc) {
	if !p.gone {
		if !p.leaving {
			p.leaving, p.leftAt = true, s.now
		}
		s.f.Leaving(s.now, p.ID, "SIGTERM")
	}
}

func (s *sim) beat(p *proc) {
	if p.gone || p.dumped || p.killed {
		return
	}
	p.beat.Progress = !p.hung
	if !p.hung {
		p.beaten = s.now
		p.beat.Requests += p.requests
		p.beat.Accepted += p.requests
		p.beat.RSS = p.rss
	}
	if !p.hung || p.dump >= 0 { // else it is stopped, and says nothing at all
		s.f.Beat(s.now, p.ID, p.beat)
	}
	s.at(time.Second, func() { s.beat(p) })
}

// take does what the fleet wants.
func (s *sim) take() {
	s.stopped = s.stopped || s.f.ending() // it may have given up
	for _, a := range s.f.Take() {
		s.do(a)
	}
	if !s.stopped && s.f.started {
		s.checkLive()
	}
	s.maxProcs = max(s.maxProcs, len(s.order))
}

func (s *sim) checkLive() {
	var want Live
	for i := range s.seats {
		if s.serving(i) > 0 && s.shut != i+1 {
			want.Seats = append(want.Seats, i)
		} else {
			want.Orphans = append(want.Orphans, i)
		}
		for _, p := range s.order {
			if p.Seat == i && p.serves() {
				want.To = append(want.To, p.ID)
			}
		}
	}
	if len(want.Seats) == 0 {
		for i := range s.seats {
			if s.shut != i+1 {
				want.Seats = append(want.Seats, i)
			}
		}
	}
	if got := s.live; !slices.Equal(got.Seats, want.Seats) || !slices.Equal(got.Orphans, want.Orphans) || !slices.Equal(got.To, want.To) {
		s.t.Fatalf("%v: Live is %v, want %v", s.since(), got, want)
	}
}

func (s *sim) fail(a Action, why string) {
	s.t.Helper()
	s.t.Fatalf("%v: %T%v: %s\n%s", s.since(), a, a, why, strings.Join(s.lines, "\n"))
}

func (s *sim) known(a Action, id ID) *proc {
	p := s.procs[id]
	if p == nil || p.gone {
		s.fail(a, "no such worker")
	}
	return p
}

// do does one action, and checks that it is sane.
func (s *sim) do(a Action) {
	line := ""
	if _, done := a.(RestartDone); len(s.over) > 0 && !done {
		s.fail(a, "after the end")
	}
	switch a := a.(type) {
	case NewGeneration:
		if a.Generation <= s.lastGen {
			s.fail(a, "not new")
		}
		s.lastGen = a.Generation
		s.gens[a.Generation] = "held"
		line = fmt.Sprintf("gen %d", a.Generation)
	case DropGeneration:
		if s.gens[a.Generation] != "held" {
			s.fail(a, "not held")
		}
		s.gens[a.Generation] = "dropped"
		line = fmt.Sprintf("drop %d", a.Generation)
	case Spawn:
		switch {
		case a.ID <= s.lastID:
			s.fail(a, "ID not new")
		case a.Seat >= s.seats || s.shut == a.Seat+1:
			s.fail(a, "no such seat")
		case s.stopped:
			s.fail(a, "while stopping")
		case s.gens[a.Generation] != "held":
			s.fail(a, "generation is not held")
		}
		for _, p := range s.order {
			if p.Seat == a.Seat && p.starts() {
				s.fail(a, "another one starts there")
			}
		}
		s.lastID = a.ID
		p := &proc{Spawn: a, behaviour: s.behave(a), spawned: s.now}
		s.procs[a.ID] = p
		s.order = append(s.order, p)
		s.spawn(p)
		line = fmt.Sprintf("spawn #%d s%d g%d", a.ID, a.Seat, a.Generation)
	case StopWorker:
		p := s.known(a, a.ID)
		switch {
		case a.Final != s.stopped:
			s.fail(a, "wrong Final")
		case a.Level < p.level || a.Level == p.level && p.final == a.Final:
			s.fail(a, "was said before")
		case slices.Contains(s.live.To, a.ID) && !a.Final:
			s.fail(a, "still in Live")
		}
		s.whys[a.ID] = a.Why
		serving, first := p.serves(), p.level == 0
		p.level, p.final = a.Level, a.Final
		if first {
			p.told = s.now
		}
		if a.Level == LevelNow && p.toldNow.IsZero() {
			p.toldNow = s.now
		}
		if serving && !a.Final && s.serving(p.Seat) == 0 {
			switch {
			case s.shut == p.Seat+1:
				if s.serving(-1) == 0 {
					s.fail(a, "nobody else serves")
				}
			case !p.leaving:
				s.fail(a, "nobody else serves on the seat")
			case s.now.Sub(p.leftAt) < s.cfg.LeaveTimeout && s.failed[p.Seat].Before(p.leftAt):
				s.fail(a, "nobody else serves on the seat, nor has anything failed")
			}
			if !slices.Contains(s.live.Orphans, p.Seat) {
				s.fail(a, "its seat is not an orphan yet")
			}
		}
		if p.stop >= 0 && (first || a.Level == LevelNow) {
			d := pick(p.stop, time.Second)
			if a.Level == LevelNow {
				d = min(d, 10*time.Millisecond)
			}
			s.at(d, func() { s.exit(p, p.stopExit) })
		}
		line = fmt.Sprintf("stop #%d %d", a.ID, a.Level)
		if a.Final {
			line += " final"
		}
	case Dump:
		p := s.known(a, a.ID)
		if p.dumped || p.killed {
			s.fail(a, "again")
		}
		switch {
		case p.ready && s.now.Sub(p.beaten) >= s.cfg.HeartbeatTimeout:
		case !p.ready && p.level == 0 && s.now.Sub(p.spawned) >= s.cfg.BootTimeout:
		case p.level > 0 && s.now.Sub(p.told) >= s.cfg.StopTimeout:
		default:
			s.fail(a, "for nothing")
		}
		p.dumped, p.dumpedAt = true, s.now
		s.failed[p.Seat] = s.now
		if d := pick(p.dump, 100*time.Millisecond); d > 0 {
			s.at(d, func() { s.exit(p, Exit{Code: 2, Output: "SIGQUIT\ngoroutine 1"}) })
		}
		line = fmt.Sprintf("dump #%d", a.ID)
	case Kill:
		p := s.known(a, a.ID)
		if p.killed {
			s.fail(a, "again")
		}
		switch {
		case p.dumped && s.now.Sub(p.dumpedAt) >= s.cfg.DumpGrace:
		case p.level == LevelNow && s.now.Sub(p.toldNow) >= time.Second:
		case p.dumped && (s.f.level == LevelNow || s.cfg.MaxDraining > 0): // was told to end at once
		default:
			s.fail(a, "too early")
		}
		p.killed = true
		s.at(10*time.Millisecond, func() { s.exit(p, Exit{Signal: sigKill}) })
		line = fmt.Sprintf("kill #%d", a.ID)
	case Live:
		s.live = a
		line = fmt.Sprintf("live %v %v %v", a.Seats, a.Orphans, a.To)
	case OpenSeat:
		if a.Seat != s.seats {
			s.fail(a, "not the next one")
		}
		s.seats++
		line = fmt.Sprintf("open %d", a.Seat)
	case ShutSeat:
		if a.Seat != s.seats-1 || s.shut != 0 || slices.Contains(s.live.Seats, a.Seat) {
			s.fail(a, "not the last one, or not out of Live")
		}
		s.shut = a.Seat + 1
		line = fmt.Sprintf("shut %d", a.Seat)
	case CloseSeat:
		if s.shut != a.Seat+1 || s.shut != s.seats {
			s.fail(a, "not shut")
		}
		for _, p := range s.order {
			if p.Seat == a.Seat {
				s.fail(a, "has workers")
			}
		}
		s.seats--
		s.shut = 0
		line = fmt.Sprintf("close %d", a.Seat)
	case CanaryCheck:
		s.checks = append(s.checks, a)
		if s.verdict != nil {
			err := s.verdict(a)
			s.at(0, func() { s.f.Verdict(s.now, a.Generation, err) })
		}
		line = fmt.Sprintf("check g%d #%d", a.Generation, a.ID)
	case WorkerReady:
		line = fmt.Sprintf("ready #%d", a.ID)
	case WorkerGone:
		s.gone = append(s.gone, a)
		if a.Class != Asked {
			s.failed[a.Seat] = s.now
		}
		line = fmt.Sprintf("gone #%d %s", a.ID, a.Class)
	case AllReady:
		s.readyAll++
		for i := range s.seats {
			if s.serving(i) == 0 {
				s.fail(a, "one does not serve")
			}
		}
		line = "all ready"
	case RestartDone:
		for _, ticket := range a.Tickets {
			if answered, ok := s.asked[ticket]; !ok || answered {
				s.fail(a, "nobody asks")
			}
			s.asked[ticket], s.results[ticket] = true, a.Err
		}
		if a.Err == nil {
			s.current = max(s.current, a.Generation)
		}
		for _, p := range s.order {
			if a.Err == nil && p.Generation < a.Generation {
				s.fail(a, "an older worker is there")
			}
			if e, _ := errors.AsType[*RestartError](a.Err); e != nil && e.BackOn != 0 && !s.stopped && p.Generation == a.Generation {
				s.fail(a, "a worker of the aborted generation is there")
			}
		}
		line = fmt.Sprintf("done %v g%d %v", a.Tickets, a.Generation, a.Err)
	case Over:
		if len(s.order) > 0 {
			s.fail(a, "there are workers")
		}
		s.over = append(s.over, a)
		s.stopped = true
		line = fmt.Sprintf("over %v", a.Err)
	default:
		s.fail(a, "unknown")
	}
	if !s.quiet {
		s.lines = append(s.lines, fmt.Sprintf("%v %s", s.since(), line))
	}
}

// want compares what was done since the last time, only actions whose names are
// given, or all.
func (s *sim) want(names string, want ...string) {
	s.t.Helper()
	var got []string
	for _, l := range s.lines {
		_, action, _ := strings.Cut(l, " ")
		name, _, _ := strings.Cut(action, " ")
		if names == "" || slices.Contains(strings.Fields(names), name) {
			got = append(got, l)
		}
	}
	all := s.lines
	s.lines = nil
	if !slices.Equal(got, want) {
		s.t.Fatalf("got\n\t%s\nwant\n\t%s\nall\n\t%s", strings.Join(got, "\n\t"), strings.Join(want, "\n\t"), strings.Join(all, "\n\t"))
	}
}
