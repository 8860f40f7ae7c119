package fleet

import (
	"encoding/json"
	"errors"
	"fmt"
	"go/parser"
	"go/token"
	"math/rand/v2"
	"path/filepath"
	"reflect"
	"slices"
	"strings"
	"testing"
	"time"
)

// config is that of most tests.
func config(seats int) Config {
	return Config{
		Seats:            seats,
		BootTimeout:      10 * time.Second,
		HeartbeatTimeout: 5 * time.Second,
		StopTimeout:      20 * time.Second,
		DumpGrace:        2 * time.Second,
		Probation:        5 * time.Second,
		HandshakeGrace:   500 * time.Millisecond,
		LeaveGrace:       time.Second,
		LeaveTimeout:     30 * time.Second,
		BackoffBase:      time.Second,
		BackoffMax:       8 * time.Second,
		HealthyAfter:     time.Minute,
		CrashLimit:       10,
		CrashWindow:      time.Minute,
		FirstBootTimeout: 20 * time.Second,
		RestartTries:     2,
		MaxDraining:      2,
	}
}

// TestImports: what this package is for, it must not lose by the way.
func TestImports(t *testing.T) {
	names, err := filepath.Glob("*.go")
	if err != nil || len(names) == 0 {
		t.Fatal(names, err)
	}
	allowed := []string{`"errors"`, `"fmt"`, `"math"`, `"slices"`, `"strings"`, `"time"`}
	for _, name := range names {
		if strings.HasSuffix(name, "_test.go") {
			continue
		}
		f, err := parser.ParseFile(token.NewFileSet(), name, nil, parser.ImportsOnly)
		if err != nil {
			t.Fatal(err)
		}
		for _, i := range f.Imports {
			if !slices.Contains(allowed, i.Path.Value) {
				t.Errorf("%s imports %s", name, i.Path.Value)
			}
		}
	}
}

func TestStart(t *testing.T) {
	s := newSim(t, config(2))
	s.f.Start(s.now)
	s.f.Start(s.now) // has no effect
	s.take()
	s.run(10 * time.Second)
	s.want("",
		"0s gen 1",
		"0s live [0 1] [0 1] []",
		"0s spawn #1 s0 g1",
		"0s spawn #2 s1 g1",
		"1s ready #1",
		"1s live [0] [1] [1]",
		"1s ready #2",
		"1s live [0 1] [] [1 2]",
		"1s all ready",
	)
	if s.f.Busy() {
		t.Error("is busy")
	}
}

// TestClasses: what an end is called.
func TestClasses(t *testing.T) {
	for _, tc := range []struct {
		b    behaviour
		want Class
		text string
	}{
		{behaviour{die: time.Second, exit: Exit{}}, Clean, "worker 1001 of generation 1 left unasked after 2s: exit status 0"},
		{behaviour{die: time.Second, exit: Exit{Code: 3, Output: "a\nb\n\n"}}, Code, `worker 1001 of generation 1 exited after 2s: exit status 3: "b"`},
		{behaviour{die: time.Second, exit: Exit{Signal: 11}}, Signal, "worker 1001 of generation 1 died after 2s: signal 11"},
		{behaviour{die: time.Second, exit: Exit{Signal: 9}}, Killed, "worker 1001 of generation 1 was killed, not by us, after 2s: signal 9"},
		{behaviour{die: time.Second, exit: Exit{Unknown: true}}, Code, "worker 1001 of generation 1 exited after 2s: exit status unknown"},
		{behaviour{hang: time.Second}, Hung, `worker 1001 of generation 1 hung and was killed after 7.1s: exit status 2: "goroutine 1"`},
		{behaviour{bootExit: &Exit{Code: 1, Output: "no config"}}, Boot, `worker 1001 of generation 1 ended before it was ready, after 1s: exit status 1: "no config"`},
		{behaviour{boot: -1}, Boot, `worker 1001 of generation 1 was not ready in time and was killed after 10.1s: exit status 2: "goroutine 1"`},
		{behaviour{noFork: true}, Boot, "worker of generation 1 could not be started: fork: no"},
		{behaviour{leave: time.Second, die: 1500 * time.Millisecond}, Asked, "worker 1001 of generation 1 stopped after 2.5s: exit status 0"},
		{behaviour{leave: time.Second, die: 1500 * time.Millisecond, exit: Exit{Code: 1}}, Code, "worker 1001 of generation 1 exited after 2.5s: exit status 1"},
	} {
		s := newSim(t, config(1))
		s.behave = func(a Spawn) behaviour {
			if a.ID == 1 {
				return tc.b
			}
			return behaviour{}
		}
		s.f.Start(s.now)
		s.take()
		s.run(20 * time.Second)
		if len(s.gone) != 1 || s.gone[0].Class != tc.want || s.gone[0].Error() != tc.text {
			t.Errorf("got %v: %v, want %v: %v", s.gone[0].Class, s.gone[0], tc.want, tc.text)
		}
		crashes := uint64(1)
		if tc.want == Asked {
			crashes = 0
		}
		if got := s.f.Snapshot(s.now); got.Crashes != crashes || got.Seats[0].Restarts != crashes || got.Serving != 1 {
			t.Errorf("%v: %+v", tc.want, got)
		}
	}
}

// TestCrash: the sequence of one crash, and who is not concerned.
func TestCrash(t *testing.T) {
	s := newSim(t, config(2)).start()
	s.kill9(s.worker(0))
	s.run(2 * time.Second)
	s.want("",
		"2s gone #1 killed",
		"2s live [1] [0] [2]",
		"2s spawn #3 s0 g1",
		"3s ready #3",
		"3s live [0 1] [] [3 2]",
	)
	if s.gone[0].RespawnIn != 0 {
		t.Error(s.gone[0].RespawnIn)
	}
}

// TestBackoff: at once, then exponential to a limit, and from the beginning
// again after a healthy time. Other seats do not notice.
func TestBackoff(t *testing.T) {
	cfg := config(2)
	cfg.CrashLimit, cfg.HealthyAfter = 1000, 9*time.Second
	s := newSim(t, cfg).start()
	s.behave = func(a Spawn) behaviour {
		if a.ID == 9 {
			return behaviour{die: 10 * time.Second, exit: Exit{Code: 1}}
		}
		return behaviour{die: time.Second, exit: Exit{Code: 1}}
	}
	s.kill9(s.worker(0))
	s.run(65 * time.Second)
	s.want("spawn",
		"2s spawn #3 s0 g1",  // ends at 4s
		"5s spawn #4 s0 g1",  // 7s
		"9s spawn #5 s0 g1",  // 11s
		"15s spawn #6 s0 g1", // 17s
		"25s spawn #7 s0 g1", // 27s
		"35s spawn #8 s0 g1", // 37s
		"45s spawn #9 s0 g1", // 56s
		"56s spawn #10 s0 g1",
		"59s spawn #11 s0 g1",
		"1m3s spawn #12 s0 g1",
	)
	var in []time.Duration
	for _, g := range s.gone[:4] {
		in = append(in, g.RespawnIn)
	}
	if want := []time.Duration{0, time.Second, 2 * time.Second, 4 * time.Second}; !reflect.DeepEqual(in, want) {
		t.Errorf("RespawnIn: %v, want %v", in, want)
	}
}

// TestBackoffIsWaived when most seats have nobody, if workers serve for a while
// before they die: half of the seats do not wait. Code that fails at once does.
func TestBackoffIsWaived(t *testing.T) {
	for _, tt := range []struct {
		lives time.Duration
		least int
	}{{time.Second, 2}, {time.Second - 1, 0}} {
		cfg := config(4)
		cfg.CrashLimit = 1000
		s := newSim(t, cfg)
		s.behave = func(Spawn) behaviour { return behaviour{die: tt.lives, exit: Exit{Code: 1}} }
		s.start()
		least := 4
		for until := s.now.Add(time.Minute); s.step(until); {
			alive := 0
			for _, seat := range s.f.Snapshot(s.now).Seats {
				alive += min(1, len(seat.Workers))
			}
			least = min(least, alive)
		}
		if least != tt.least {
			t.Errorf("workers that serve for %v: at least %d seats had one, want %d", tt.lives, least, tt.least)
		}
	}
}

func TestBackoffJitter(t *testing.T) {
	cfg := config(1)
	cfg.CrashWindow = 0 // no limit
	cfg.FirstBootTimeout = 0
	cfg.BackoffMax = 8 * time.Second
	random := rand.New(rand.NewPCG(1, 2))
	cfg.Rand = random.Float64
	s := newSim(t, cfg)
	s.behave = func(Spawn) behaviour { return behaviour{noFork: true} }
	s.f.Start(s.now)
	s.take()
	s.run(time.Hour)
	least, most := time.Hour, time.Duration(0)
	for i, g := range s.gone[1:] {
		want := min(time.Second<<min(i, 10), 8*time.Second)
		if g.RespawnIn < want*8/10 || g.RespawnIn > want*12/10 {
			t.Fatalf("failure %d: in %v, want about %v", i+2, g.RespawnIn, want)
		}
		if want == 8*time.Second {
			least, most = min(least, g.RespawnIn), max(most, g.RespawnIn)
		}
	}
	if least > 6600*time.Millisecond || most < 9400*time.Millisecond {
		t.Errorf("from %v to %v is little jitter", least, most)
	}
}

// TestCrashBudget: a storm ends the fleet, with the last one's output; as many
// crashes at a slower pace never do.
func TestCrashBudget(t *testing.T) {
	cfg := config(2)
	cfg.CrashLimit, cfg.HeartbeatTimeout = 3, 0
	s := newSim(t, cfg)
	s.mute = true
	s.start()
	for range 1000 { // that is more than a month
		s.run(time.Hour)
		s.kill9(s.worker(0))
	}
	s.run(time.Minute)
	for range 3 {
		s.kill9(s.worker(0))
		s.run(10 * time.Second)
	}
	s.lines = nil
	s.event(func() { s.exit(s.worker(1), Exit{Code: 7, Output: "the end"}) })
	s.run(time.Minute)
	at := "1000h1m32s"
	s.want("",
		at+" gone #2 code",
		fmt.Sprintf("%s live [0] [1] [%d]", at, s.lastID),
		fmt.Sprintf("%s stop #%d 1 final", at, s.lastID),
		fmt.Sprintf("1000h1m33s gone #%d asked", s.lastID),
		`1000h1m33s over gave up: 4 workers failed within 1m0s; the last: seat 1: worker 1002 of generation 1 exited after 1000h1m32s: exit status 7: "the end"`,
	)
	var gave *GiveUpError
	var exit WorkerExit
	if err := s.over[0].Err; !errors.As(err, &gave) || !errors.As(err, &exit) || gave.Last.ID != 2 || exit != gave.Last {
		t.Errorf("%#v", err)
	}
}

// TestBudgetOfHung: the one that tips the scales is named with its output, which
// comes later than the decision.
func TestBudgetOfHung(t *testing.T) {
	cfg := config(1)
	cfg.CrashLimit = 0
	s := newSim(t, cfg)
	s.behave = func(Spawn) behaviour { return behaviour{hang: time.Second} }
	s.start()
	s.run(time.Minute)
	s.want("",
		"7s live [0] [0] []", // again as it gives up
		"7s dump #1",
		"7.1s gone #1 hung",
		`7.1s over gave up: 1 workers failed within 1m0s; the last: seat 0: worker 1001 of generation 1 hung and was killed after 7.1s: exit status 2: "goroutine 1"`,
	)
}

// TestFirstBoot: what does not get ready at first is tried again, with growing
// pauses, until the time is over.
func TestFirstBoot(t *testing.T) {
	s := newSim(t, config(2))
	s.behave = func(a Spawn) behaviour {
		if a.Seat == 1 {
			return behaviour{bootExit: &Exit{Code: 1, Output: "no database"}}
		}
		return behaviour{boot: 30 * time.Second}
	}
	s.cfg.BootTimeout, s.f.cfg.BootTimeout = 0, 0
	s.f.Start(s.now)
	s.take()
	s.run(25 * time.Second)
	s.want("spawn stop over",
		"0s spawn #1 s0 g1",
		"0s spawn #2 s1 g1",
		"1s spawn #3 s1 g1",
		"3s spawn #4 s1 g1",
		"6s spawn #5 s1 g1",
		"11s spawn #6 s1 g1",
		"20s spawn #7 s1 g1",
		"21s stop #1 1 final",
		`22s over gave up: no worker was ready within 20s of the start, and seat 1 has tried 6 times; the last: seat 1: worker 1007 of generation 1 ended before it was ready, after 1s: exit status 1: "no database"`,
	)

	// With one that was ready, some time, it goes on.
	s = newSim(t, config(2)).start()
	s.behave = func(a Spawn) behaviour { return behaviour{noFork: true} }
	s.kill9(s.worker(0))
	s.run(30 * time.Second)
	if len(s.over) > 0 || len(s.gone) < 5 {
		t.Error(s.over, len(s.gone))
	}
}

func TestBootTimeout(t *testing.T) {
	cfg := config(1)
	s := newSim(t, cfg)
	s.behave = func(a Spawn) behaviour {
		if a.ID == 1 {
			return behaviour{boot: -1, dump: -1}
		}
		return behaviour{}
	}
	s.f.Start(s.now)
	s.take()
	s.run(20 * time.Second)
	s.want("spawn dump kill gone",
		"0s spawn #1 s0 g1",
		"10s dump #1",
		"10s spawn #2 s0 g1",
		"12s kill #1",
		"12.01s gone #1 boot",
	)
}

// TestHung: one that makes no progress is replaced while it is being dumped and
// killed, and is in nobody's way. So is one that is stopped, which cannot dump.
func TestHung(t *testing.T) {
	for _, stuck := range []bool{false, true} {
		s := newSim(t, config(2))
		s.behave = func(a Spawn) behaviour {
			if b := (behaviour{hang: 10 * time.Second}); a.ID == 1 {
				if stuck {
					b.dump = -1
				}
				return b
			}
			return behaviour{}
		}
		s.start()
		s.run(20 * time.Second)
		want := []string{
			"15s live [1] [0] [2]", // its last beat was at 10s
			"15s dump #1",
			"15s spawn #3 s0 g1",
			"15.1s gone #1 hung",
			"16s ready #3",
			"16s live [0 1] [] [3 2]",
		}
		if stuck {
			want = []string{want[0], want[1], want[2], want[4], want[5], "17s kill #1", "17.01s gone #1 hung"}
		}
		s.want("", want...)
		if g := s.gone[0]; g.RespawnIn != -1 || !g.Forced {
			t.Errorf("%+v", g)
		}
	}
}

// TestHungWhileDraining: a worker that stops is judged too.
func TestHungWhileDraining(t *testing.T) {
	cfg := config(1)
	cfg.StopTimeout = time.Hour
	s := newSim(t, cfg)
	s.behave = func(a Spawn) behaviour {
		if a.ID == 1 {
			return behaviour{stop: -1, hang: time.Minute}
		}
		return behaviour{}
	}
	s.start()
	s.restart(1)
	s.run(2 * time.Minute)
	s.want("stop dump gone done",
		"8s stop #1 1",
		"1m5s dump #1",
		"1m5.1s gone #1 hung",
		"1m5.1s done [1] g2 <nil>",
	)
	if n := s.f.Snapshot(s.now).Crashes; n != 0 {
		t.Error("it counts as a crash")
	}
}

// TestIdleAndDrainingBeat is Puma's #2786: with many workers a restart takes
// longer than the timeout, and those it has no use for at the moment were killed
// for being silent. Here all are judged by their own beats and nothing else.
func TestIdleAndDrainingBeat(t *testing.T) {
	cfg := config(32)
	cfg.StopTimeout, cfg.MaxSurge = time.Hour, 1
	s := newSim(t, cfg)
	s.behave = func(Spawn) behaviour { return behaviour{stop: 9 * time.Second} }
	s.start()
	s.restart(1)
	s.run(10 * time.Minute)
	for _, g := range s.gone {
		if g.Class != Asked || g.Forced {
			t.Fatal(g)
		}
	}
	if len(s.gone) != 32 || s.results[1] != nil || !s.asked[1] {
		t.Error(len(s.gone), s.results)
	}
}

// TestLate: when the master was stopped for longer than any timeout nobody is
// killed for that.
func TestLate(t *testing.T) {
	for _, late := range []bool{true, false} {
		s := newSim(t, config(4))
		s.behave = func(a Spawn) behaviour {
			return behaviour{boot: time.Duration(a.ID) * 2 * time.Second, stop: 15 * time.Second}
		}
		s.f.Start(s.now)
		s.take()
		s.run(7 * time.Second) // worker 4 still starts
		s.kill9(s.worker(2))
		s.restart(1)
		s.run(500 * time.Millisecond)
		s.lines = nil
		s.now = s.now.Add(time.Hour)
		s.events = nil // nor did they do anything
		if late {
			s.f.Late(s.now)
		} else {
			s.f.Tick(s.now)
		}
		s.take()
		dumps := strings.Count(strings.Join(s.lines, "\n"), "dump")
		if late && dumps != 0 || !late && dumps != 5 {
			t.Errorf("late %v: %v", late, s.lines)
		}
		if late {
			if got := s.f.Next().Sub(s.now); got != 5*time.Second {
				t.Errorf("the first clock is due in %v", got)
			}
		}
	}
}

// TestLateProbation: what nobody has seen is no proof.
func TestLateProbation(t *testing.T) {
	s := newSim(t, config(2)).start()
	s.restart(1)
	s.run(2 * time.Second)
	s.lines = nil
	s.now = s.now.Add(time.Hour)
	s.f.Late(s.now)
	s.take()
	s.want("spawn")
}

// TestLateLadder: nor does the ladder go on, for what was said on it may not have
// been heard, or the answer not have been seen.
func TestLateLadder(t *testing.T) {
	cfg := config(3)
	cfg.StopTimeout = 10 * time.Second
	s := newSim(t, cfg)
	s.behave = func(a Spawn) behaviour {
		if a.ID > 3 {
			return behaviour{}
		}
		return behaviour{stop: -1, dump: -1, hang: map[ID]time.Duration{3: time.Second}[a.ID]}
	}
	s.start()
	s.event(func() { s.leaves(s.worker(0)) })
	s.run(4 * time.Second)
	s.want("stop dump", "4s stop #1 1") // and worker 3 is about to be dumped
	s.run(500 * time.Millisecond)
	s.want("stop dump")
	late := func(d time.Duration) {
		s.now = s.now.Add(d)
		s.events = slices.DeleteFunc(s.events, func(e simEvent) bool { return e.at.Before(s.now) })
		for _, p := range s.order {
			if !p.hung && !p.dumped {
				s.at(time.Second, func() { s.beat(p) })
			}
		}
		s.event(func() { s.f.Late(s.now) })
	}
	late(time.Minute) // 66.5s
	s.run(9900 * time.Millisecond)
	s.want("dump kill", "1m11.5s dump #3", "1m13.5s kill #3")
	s.run(100 * time.Millisecond)
	s.want("dump kill", "1m16.5s dump #1")
	s.run(time.Second)
	late(time.Minute)
	s.run(1900 * time.Millisecond)
	s.want("dump kill")
	s.run(100 * time.Millisecond)
	s.want("dump kill", "2m19.5s kill #1")
	s.stop(LevelNow)
	s.run(900 * time.Millisecond)
	late(time.Minute)
	s.run(900 * time.Millisecond)
	s.want("dump kill")
	s.run(100 * time.Millisecond)
	s.want("dump kill", "3m21.4s kill #2")
}

func TestStop(t *testing.T) {
	s := newSim(t, config(3))
	s.behave = func(a Spawn) behaviour {
		return []behaviour{1: {stop: 5 * time.Second}, 2: {stop: -1}, 3: {boot: 9 * time.Second}, 4: {}}[a.ID]
	}
	s.start()
	s.stop(LevelStop)
	s.f.Restart(s.now, 1)
	s.asked[1] = false
	s.take()
	s.run(time.Minute)
	s.want("",
		"2s live [0 1] [2] [1 2]",
		"2s stop #1 1 final",
		"2s stop #2 1 final",
		"2s stop #3 1 final",
		"2s done [1] g0 no restart: the fleet does not run",
		"3s gone #3 asked",
		"7s gone #1 asked",
		"22s dump #2",
		"22.1s gone #2 asked",
		`22.1s over 1 of the workers: seat 1: worker 1002 of generation 1 did not stop in time and was killed after 22.1s: exit status 2: "goroutine 1"`,
	)
	var stop *StopError
	var exit WorkerExit
	if err := s.over[0].Err; !errors.As(err, &stop) || !errors.As(err, &exit) || exit.ID != 2 {
		t.Errorf("%#v", err)
	}
	if err := s.f.Scale(s.now, 2); err == nil {
		t.Error("scaled")
	}
	if err := s.f.Recycle(s.now, 0); err == nil {
		t.Error("recycled")
	}
	if !s.f.Next().IsZero() || !s.f.Busy() {
		t.Error("is not over")
	}
}

// TestStopFallsShort: a worker that could not finish says so by its status.
func TestStopFallsShort(t *testing.T) {
	s := newSim(t, config(2))
	s.behave = func(a Spawn) behaviour {
		return behaviour{stopExit: Exit{Code: a.Seat, Output: "2 connections cut"}}
	}
	s.start()
	s.stop(LevelStop)
	s.run(time.Minute)
	s.want("over", `3s over 1 of the workers: seat 1: worker 1002 of generation 1 stopped after 3s: exit status 1: "2 connections cut"`)
}

// TestStopInTime: a fleet in which nobody had to be killed says so by nil. A
// crash meanwhile changes nothing.
func TestStopInTime(t *testing.T) {
	s := newSim(t, config(3)).start()
	s.stop(LevelStop)
	s.kill9(s.order[0])
	s.run(time.Minute)
	s.want("gone over", "2s gone #1 asked", "3s gone #2 asked", "3s gone #3 asked", "3s over <nil>")
}

func TestStopEscalates(t *testing.T) {
	s := newSim(t, config(2))
	s.behave = func(a Spawn) behaviour { return behaviour{stop: time.Duration(a.ID) * time.Hour} }
	s.start()
	s.stop(LevelStop)
	s.stop(LevelStop)
	s.run(time.Second)
	s.stop(LevelQuick)
	s.stop(LevelStop) // no way back
	s.run(time.Second)
	s.stop(LevelNow)
	s.stop(LevelNow)
	s.run(2 * time.Second)
	s.want("stop dump kill over",
		"2s stop #1 1 final", "2s stop #2 1 final",
		"3s stop #1 2 final", "3s stop #2 2 final",
		"4s stop #1 3 final", "4s stop #2 3 final",
		"4.01s over <nil>",
	)

	// Who does not listen to that either is killed, and not dumped any more.
	s = newSim(t, config(2))
	s.behave = func(a Spawn) behaviour { return behaviour{stop: -1, dump: -1} }
	s.start()
	s.stop(LevelNow)
	s.run(2 * time.Second)
	s.want("stop dump kill",
		"2s stop #1 3 final", "2s stop #2 3 final",
		"3s kill #1", "3s kill #2",
	)
	if s.over[0].Err == nil {
		t.Error("nobody was killed")
	}

	// Even if one would have been dumped by then for another reason.
	s = newSim(t, config(1))
	s.behave = func(a Spawn) behaviour { return behaviour{stop: -1, hang: time.Second} }
	s.start()
	s.run(4500 * time.Millisecond)
	s.stop(LevelNow)
	s.run(2 * time.Second)
	s.want("stop dump kill", "6.5s stop #1 3 final", "7.5s kill #1")
}

func TestStopBeforeStart(t *testing.T) {
	s := newSim(t, config(2))
	s.stop(LevelStop)
	s.f.Start(s.now)
	s.take()
	s.want("", "0s over <nil>")
}

// TestLeaving: a worker that somebody else told to stop serves until another one
// does.
func TestLeaving(t *testing.T) {
	s := newSim(t, config(2)).start()
	s.event(func() { s.leaves(s.worker(0)) })
	s.run(10 * time.Second)
	s.want("",
		"3s spawn #3 s0 g1",
		"4s ready #3",
		"4s live [0 1] [] [3 2]",
		"4s stop #1 1",
		"5s gone #1 asked",
	)
	if n := s.f.Snapshot(s.now).Crashes; n != 0 {
		t.Error("it counts as a crash")
	}
}

// TestLeavingAll: a service manager that stops tells all at once, the master
// too. Nobody is started for that.
func TestLeavingAll(t *testing.T) {
	s := newSim(t, config(2)).start()
	s.event(func() { s.leaves(s.worker(0)); s.leaves(s.worker(1)) })
	s.run(900 * time.Millisecond)
	s.stop(LevelStop)
	s.run(10 * time.Second)
	s.want("spawn stop over", "2.9s stop #1 1 final", "2.9s stop #2 1 final", "3.9s over <nil>")
}

// TestLeavingAlone: it is not kept for ever if there is no replacement.
func TestLeavingAlone(t *testing.T) {
	s := newSim(t, config(2)).start()
	s.behave = func(Spawn) behaviour { return behaviour{bootExit: &Exit{Code: 1}} }
	s.event(func() { s.leaves(s.worker(0)) })
	s.run(2500 * time.Millisecond)
	s.want("",
		"3s spawn #3 s0 g1",
		"4s gone #3 boot",
		"4s live [1] [0] [2]",
		"4s stop #1 1",
		"4s spawn #4 s0 g1",
	)

	cfg := config(2)
	cfg.BootTimeout = time.Hour
	s = newSim(t, cfg).start()
	s.behave = func(Spawn) behaviour { return behaviour{boot: -1} }
	s.event(func() { s.leaves(s.worker(0)) })
	s.run(time.Minute)
	s.want("",
		"3s spawn #3 s0 g1",
		"32s live [1] [0] [2]",
		"32s stop #1 1",
		"33s gone #1 asked",
	)

	// One that has not begun to serve just goes.
	s = newSim(t, config(1))
	s.behave = func(a Spawn) behaviour {
		if a.ID == 1 {
			return behaviour{boot: -1}
		}
		return behaviour{}
	}
	s.f.Start(s.now)
	s.take()
	s.event(func() { s.leaves(s.order[0]) })
	s.run(5 * time.Second)
	s.want("spawn stop ready", "0s spawn #1 s0 g1", "1s stop #1 1", "1s spawn #2 s0 g1", "2s ready #2")
}

// TestRecycle: each limit, one worker at a time, each started first.
func TestRecycle(t *testing.T) {
	for name, set := range map[string]func(*Config, *behaviour){
		"requests": func(c *Config, b *behaviour) { c.RecycleRequests = 1000; b.requests = 10 },
		"age":      func(c *Config, b *behaviour) { c.RecycleAge = 100 * time.Second },
		"rss":      func(c *Config, b *behaviour) { c.RecycleRSS = 1000; b.rss = 0 },
	} {
		cfg := config(3)
		b := behaviour{stop: 5 * time.Second}
		set(&cfg, &b)
		s := newSim(t, cfg)
		s.behave = func(a Spawn) behaviour { return b }
		s.start()
		if name == "rss" {
			s.at(99*time.Second, func() {
				for _, p := range s.order {
					p.rss = 1001
				}
			})
		}
		s.run(150 * time.Second)
		s.want("spawn stop gone",
			"1m41s spawn #4 s0 g1",
			"1m42s stop #1 1",
			"1m47s gone #1 asked",
			"1m47s spawn #5 s1 g1",
			"1m48s stop #2 1",
			"1m53s gone #2 asked",
			"1m53s spawn #6 s2 g1",
			"1m54s stop #3 1",
			"1m59s gone #3 asked",
		)
	}
}

// TestRecycleJitter: workers that started together are not due together.
func TestRecycleJitter(t *testing.T) {
	cfg := config(100)
	cfg.RecycleAge, cfg.RecycleRequests, cfg.RecycleRSS = 1000*time.Second, 1000, 1
	random := rand.New(rand.NewPCG(1, 2))
	cfg.Rand = random.Float64
	s := newSim(t, cfg).start()
	least, most := time.Hour, time.Duration(0)
	for _, w := range s.f.workers {
		if w.MaxAge < 900*time.Second || w.MaxAge > 1100*time.Second || w.MaxRequests < 900 || w.MaxRequests > 1100 || w.MaxRSS < 1 {
			t.Fatal(w.MaxAge, w.MaxRequests)
		}
		least, most = min(least, w.MaxAge), max(most, w.MaxAge)
	}
	if most-least < 150*time.Second {
		t.Error("little jitter:", least, most)
	}
}

// TestRecycleBySeat is what somebody asks for.
func TestRecycleBySeat(t *testing.T) {
	s := newSim(t, config(3)).start()
	for _, seat := range []int{2, 0, 2} {
		if err := s.f.Recycle(s.now, seat); err != nil {
			t.Fatal(err)
		}
	}
	s.take()
	for _, seat := range []int{-1, 3} {
		if err := s.f.Recycle(s.now, seat); err == nil {
			t.Fatal("there is no seat", seat)
		}
	}
	s.run(10 * time.Second)
	s.want("spawn stop",
		"2s spawn #4 s2 g1", "3s stop #3 1",
		"4s spawn #5 s0 g1", "5s stop #1 1",
	)
}

// TestRecycleWaitsForRestart: one that has begun is taken back.
func TestRecycleWaitsForRestart(t *testing.T) {
	s := newSim(t, config(2)).start()
	s.f.Recycle(s.now, 1)
	s.take()
	s.run(500 * time.Millisecond)
	s.restart(1)
	s.f.Recycle(s.now, 0)
	s.take()
	s.run(time.Minute)
	s.want("spawn stop done",
		"2s spawn #3 s1 g1",
		"2.5s spawn #4 s0 g2",
		"2.5s stop #3 1",
		"8.5s stop #1 1",
		"8.5s spawn #5 s1 g2",
		"9.5s stop #2 1",
		"14.5s done [1] g2 <nil>",
	)
}

// TestRecycleFails: a fleet in which each seat serves never gives up, however
// often a replacement fails.
func TestRecycleFails(t *testing.T) {
	cfg := config(2)
	cfg.CrashLimit, cfg.CrashWindow = 2, time.Hour
	s := newSim(t, cfg).start()
	s.behave = func(Spawn) behaviour { return behaviour{bootExit: &Exit{Code: 1}} }
	s.f.Recycle(s.now, 1)
	s.take()
	s.run(time.Hour)
	if s.serving(-1) != 2 || len(s.over) > 0 || len(s.gone) < 400 || len(s.gone) > 500 {
		t.Error(s.serving(-1), s.over, len(s.gone))
	}
}

// TestNonsense: no event that comes at a bad time does harm.
func TestNonsense(t *testing.T) {
	events := func(s *sim, id ID) {
		s.f.Spawned(s.now, id, 1)
		s.f.SpawnFailed(s.now, id, nil)
		s.f.Ready(s.now, id)
		s.f.Beat(s.now, id, Beat{})
		s.f.Leaving(s.now, id, "SIGTERM")
		s.f.Exited(s.now, id, Exit{})
		s.f.Verdict(s.now, int(id), errors.New("no"))
		s.f.Tick(s.now)
		s.f.Late(s.now)
		s.take()
	}
	s := newSim(t, config(1))
	events(s, 1)
	if s.f.Scale(s.now, 2) == nil || s.f.Recycle(s.now, 0) == nil {
		t.Error("not started")
	}
	s.asked[1] = false
	s.f.Restart(s.now, 1)
	s.take()
	s.want("", "0s done [1] g0 no restart: the fleet does not run")
	s.start()
	if s.f.Scale(s.now, 0) == nil {
		t.Error("scaled to 0")
	}
	s.take()
	s.lines = nil
	events(s, 99)
	s.f.Tick(s.now.Add(-time.Hour))
	s.f.Start(s.now)
	s.f.Adopt(s.now, State{Generation: 7, Seats: make([]SeatState, 7)})
	s.take()
	s.want("")

	// Out of order.
	s.behave = func(Spawn) behaviour { return behaviour{boot: -1} }
	s.kill9(s.worker(0))
	id := s.lastID
	s.f.Beat(s.now, id, Beat{Progress: true})
	s.f.Ready(s.now, id)
	s.f.Ready(s.now, id)
	s.procs[id].ready = true
	s.take()
	s.f.Spawned(s.now, id, 77)
	s.f.Spawned(s.now, id, 78)
	s.f.SpawnFailed(s.now, id, nil)
	s.take()
	s.want("ready gone", "2s gone #1 killed", "2s ready #2")
	if got := s.f.Snapshot(s.now).Seats[0].Workers[0].PID; got != 77 {
		t.Error(got)
	}
	s.stop(LevelNow)
	s.run(time.Minute)
	s.lines = nil
	events(s, id)
	s.f.Stop(s.now, LevelNow, "test")
	s.take()
	s.want("")
}

// TestSnapshot: the totals include those that are gone, and never fall.
func TestSnapshot(t *testing.T) {
	cfg := config(2)
	s := newSim(t, cfg)
	s.behave = func(a Spawn) behaviour { return behaviour{requests: 10} }
	s.start()
	s.run(9 * time.Second)
	s.kill9(s.worker(0))
	total := s.f.Snapshot(s.now).Requests
	s.f.Beat(s.now, 2, Beat{Requests: 1}) // goes back
	if got := s.f.Snapshot(s.now).Requests; got != total {
		t.Errorf("the total falls from %d to %d", total, got)
	}
	s.run(1500 * time.Millisecond)
	s.restart(1)
	s.event(func() { s.leaves(s.worker(1)) })
	got := s.f.Snapshot(s.now)
	want := Snapshot{
		Generation: 1, Next: 2, Restarting: true, Want: 2, Serving: 2,
		Requests: 100 + 110, Accepted: 100 + 110, Crashes: 1,
		Seats: []SeatSnapshot{
			{Seat: 0, Target: 2, Restarts: 1, LastExit: &WorkerExit{1, 0, 1, 1001, Killed, Exit{Signal: 9}, 11 * time.Second, true, false}, Workers: []WorkerSnapshot{
				{3, 0, 1, 1003, "serving", 500 * time.Millisecond, 1500 * time.Millisecond, 500 * time.Millisecond, Beat{}},
				{4, 0, 2, 1004, "starting", 0, 0, 0, Beat{}},
			}},
			{Seat: 1, Target: 1, Workers: []WorkerSnapshot{
				{2, 1, 1, 1002, "leaving", 11500 * time.Millisecond, 12500 * time.Millisecond, 500 * time.Millisecond, Beat{Progress: true, Requests: 110, Accepted: 110}},
			}},
		},
	}
	want.Seats[0].Workers[1].PID = 0 // not known yet
	if !reflect.DeepEqual(got, want) {
		t.Errorf("got  %+v\nwant %+v", got, want)
	}
	text, err := json.Marshal(got)
	if err != nil || strings.Contains(string(text), `"Seat`) || !strings.Contains(string(text), `"last_exit":{"id":1,`) {
		t.Error(string(text), err)
	}
	if empty := New(cfg).Snapshot(s.now); empty.Seats == nil {
		t.Error("null in JSON")
	}
}

// TestAdopt: a fleet that goes through JSON into another one goes on as it was.
func TestAdopt(t *testing.T) {
	cfg := config(3)
	cfg.MaxDraining, cfg.RecycleRequests, cfg.StopTimeout = 0, 1000, time.Minute
	begin := func() *sim {
		s := newSim(t, cfg)
		s.behave = func(a Spawn) behaviour {
			if a.Generation == 1 {
				return behaviour{requests: 1, stop: 40 * time.Second}
			}
			return behaviour{requests: 1}
		}
		s.start()
		s.restart(1)
		s.run(15 * time.Second) // all have moved, and some of the first generation drain
		s.kill9(s.worker(1))
		s.run(1500 * time.Millisecond)
		s.kill9(s.worker(1)) // so that one is in its backoff
		s.event(func() { s.leaves(s.worker(2)) })
		if s.f.Busy() || s.asked[1] {
			t.Fatal("busy, or done")
		}
		s.lines = nil
		return s
	}
	a := begin()
	b := begin()
	text, err := json.Marshal(b.f.State(b.now))
	if err != nil {
		t.Fatal(err)
	}
	before := b.f.Snapshot(b.now)
	var state State
	if err := json.Unmarshal(text, &state); err != nil {
		t.Fatal(err)
	}
	b.f = New(Config{Seats: 1})
	b.f.cfg = cfg
	b.f.cfg.Seats = 77
	b.f.Adopt(b.now, state)
	b.take()
	if after := b.f.Snapshot(b.now); !reflect.DeepEqual(before, after) {
		for i := range after.Seats {
			for j := range after.Seats[i].Workers {
				after.Seats[i].Workers[j].BeatAge = before.Seats[i].Workers[j].BeatAge
			}
		}
		if !reflect.DeepEqual(before, after) {
			t.Errorf("before %+v\nafter  %+v", before, after)
		}
	}
	b.want("", "18.5s live [0 2] [1] [4 6]")
	a.run(2 * time.Minute)
	b.run(2 * time.Minute)
	var want []string
	for _, l := range a.lines {
		if want = append(want, l); l == "20.5s live [0 1 2] [] [4 8 6]" {
			want = append(want, "20.5s all ready") // as it is a new master
		}
	}
	b.want("", want...)
	if len(want) < 10 || !b.asked[1] || b.results[1] != nil {
		t.Error("the restart was not answered", want)
	}
	// What is held against it is not forgotten.
	cfg = config(2)
	cfg.CrashLimit, cfg.HeartbeatTimeout = 2, 0
	b = newSim(t, cfg).start()
	b.mute = true
	b.kill9(b.worker(0))
	b.kill9(b.worker(1))
	b.run(2 * time.Second)
	state = b.f.State(b.now)
	b.f = New(cfg)
	b.f.Adopt(b.now, state)
	b.take()
	b.kill9(b.worker(0))
	b.run(2 * time.Second)
	if len(b.over) != 1 {
		t.Error("goes on after 3 crashes")
	}
	b = newSim(t, config(2)).start()
	state = b.f.State(b.now)
	for i := range state.Seats {
		w := &state.Seats[i].Workers[0]
		w.Phase = []string{"killed", "?"}[i] // one is as good as dead, the other makes no sense
	}
	state.LastID = 0
	b.f = New(cfg)
	b.f.Adopt(b.now, state)
	if got := b.f.Snapshot(b.now); len(got.Seats[0].Workers) != 2 || len(got.Seats[1].Workers) != 1 || b.f.lastID != 3 || !b.f.everReady {
		t.Errorf("%+v", got)
	}

	c := newSim(t, config(1))
	c.f.Adopt(c.now, State{}) // of nobody
	c.take()
	c.want("spawn", "0s spawn #1 s0 g1")
}
