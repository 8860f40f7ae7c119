package fleet

import (
	"errors"
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"
)

// broken is a behave in which workers of a generation are like that.
func broken(gen int, b behaviour) func(Spawn) behaviour {
	return func(a Spawn) behaviour {
		if a.Generation == gen {
			return b
		}
		return behaviour{}
	}
}

// generations returns those of the workers that serve, by seat.
func (s *sim) generations() (gens []int) {
	for i := range s.seats {
		gens = append(gens, s.worker(i).Generation)
	}
	return gens
}

func all(n, gen int) []int { return slices.Repeat([]int{gen}, n) }

func TestRestart(t *testing.T) {
	s := newSim(t, config(3)).start()
	s.restart(7)
	if !s.f.Busy() {
		t.Error("not busy")
	}
	s.run(time.Minute)
	s.want("",
		"2s gen 2",
		"2s spawn #4 s0 g2",
		"3s ready #4",
		"3s live [0 1 2] [] [1 4 2 3]",
		"8s live [0 1 2] [] [4 2 3]",
		"8s stop #1 1", // when the first one is past its probation
		"8s spawn #5 s1 g2",
		"9s gone #1 asked",
		"9s ready #5",
		"9s live [0 1 2] [] [4 5 3]",
		"9s stop #2 1",
		"9s spawn #6 s2 g2", // the others follow at once
		"10s gone #2 asked",
		"10s ready #6",
		"10s live [0 1 2] [] [4 5 6]",
		"10s stop #3 1",
		"11s gone #3 asked",
		"15s done [7] g2 <nil>",
		"15s all ready",
	)
	if s.f.Busy() {
		t.Error("busy")
	}
}

// TestRestartNeverBelow samples what TestRestart shows: as many serve as ever,
// at each moment, and old and new share a seat until the old one goes.
func TestRestartNeverBelow(t *testing.T) {
	s := newSim(t, config(5))
	s.behave = func(a Spawn) behaviour {
		return behaviour{boot: time.Duration(1+a.ID%3) * time.Second, stop: time.Duration(a.ID%7) * time.Second}
	}
	s.start()
	s.run(10 * time.Second)
	s.restart(1)
	for until := s.now.Add(2 * time.Minute); s.step(until); {
		for i := range s.seats {
			if s.serving(i) == 0 {
				t.Fatalf("%v: nobody serves on seat %d", s.since(), i)
			}
		}
	}
	if err, ok := s.results[1]; !ok || err != nil || !slices.Equal(s.generations(), all(5, 2)) {
		t.Error(s.results, s.generations())
	}
}

// TestRestartDoneMeansGone: a restart is not done while an old worker is there,
// but it does not roll any more either.
func TestRestartDoneMeansGone(t *testing.T) {
	cfg := config(2)
	cfg.StopTimeout, cfg.MaxDraining = time.Hour, 0
	s := newSim(t, cfg)
	s.behave = func(a Spawn) behaviour {
		return behaviour{stop: map[ID]time.Duration{1: 100 * time.Second, 3: 300 * time.Second, 4: 200 * time.Second}[a.ID]}
	}
	s.start()
	s.restart(1)
	s.run(50 * time.Second)
	if s.asked[1] || s.f.Busy() {
		t.Fatal("done, or busy")
	}
	s.restart(2)
	s.run(10 * time.Minute)
	s.want("gen drop done all",
		"2s gen 2", "14s all ready",
		"52s gen 3", "1m4s drop 2", "1m4s all ready",
		"1m48s done [1] g2 <nil>", // 100s after 8s
		"2m4s drop 1",
		"5m58s done [2] g3 <nil>",
	)
}

// TestRestartCoalesced: all that is asked for while one rolls is one more.
func TestRestartCoalesced(t *testing.T) {
	s := newSim(t, config(2)).start()
	s.restart(1)
	s.restart(2)
	s.run(9 * time.Second)
	s.restart(3)
	s.run(time.Minute)
	s.want("gen done all",
		"2s gen 2", "14s gen 3", "14s done [1] g2 <nil>", "26s done [2 3] g3 <nil>", "26s all ready",
	)
}

// TestRestartFirstSeat: nobody else is replaced before the first one has passed,
// however often it must be tried.
func TestRestartFirstSeat(t *testing.T) {
	cfg := config(3)
	cfg.RestartTries = 3
	s := newSim(t, cfg).start()
	s.behave = func(a Spawn) behaviour {
		switch a.ID {
		case 4:
			return behaviour{bootExit: &Exit{Code: 1}}
		case 5:
			return behaviour{die: 4900 * time.Millisecond, exit: Exit{Code: 1}}
		}
		return behaviour{}
	}
	s.restart(1)
	s.run(time.Minute)
	s.want("spawn stop done",
		"2s spawn #4 s0 g2",
		"3s spawn #5 s0 g2",
		"9.9s spawn #6 s0 g2", // after 1s of backoff from 8.9s
		"15.9s stop #1 1",
		"15.9s spawn #7 s1 g2",
		"16.9s stop #2 1",
		"16.9s spawn #8 s2 g2",
		"17.9s stop #3 1",
		"22.9s done [1] g2 <nil>",
	)
}

func TestCanary(t *testing.T) {
	cfg := config(2)
	cfg.Canary = 30 * time.Second
	s := newSim(t, cfg).start()
	verdicts := 0
	s.verdict = func(c CanaryCheck) error { verdicts++; return nil }
	s.restart(1)
	s.run(time.Minute)
	s.want("spawn check done",
		"2s spawn #3 s0 g2",
		"33s check g2 #3",
		"33s spawn #4 s1 g2",
		"39s done [1] g2 <nil>",
	)

	s.verdict = func(c CanaryCheck) error { return errors.New("too many errors") }
	s.restart(2)
	s.run(2 * time.Minute)
	s.want("spawn stop check done drop",
		"1m2s spawn #5 s0 g3",
		"1m33s check g3 #5",
		"1m33s drop 3",
		"1m33s stop #5 1",
		"1m34s done [2] g3 restart to generation 3 aborted: seat 0: canary check: too many errors; back on generation 2",
		"1m39s drop 1", // which has nothing to do with it
	)

	// A verdict about one that is gone is none about the next one.
	s.verdict = nil
	s.restart(3)
	s.run(32 * time.Second)
	s.kill9(s.worker(0))
	s.run(40 * time.Second)
	if len(s.checks) != 4 {
		t.Fatal(s.checks)
	}
	say := func(err error) { s.event(func() { s.f.Verdict(s.now, 4, err) }) }
	say(nil)
	s.run(time.Second)
	if s.serving(1) != 1 || s.worker(1).Generation != 2 {
		t.Error("goes on with half of the answers")
	}
	say(nil)
	s.run(time.Minute)
	if !slices.Equal(s.generations(), all(2, 4)) {
		t.Error(s.generations())
	}
	s.lines = nil
	say(errors.New("too late"))
	s.want("")
}

// TestCanaryDies: it is a failure of the new generation until it was approved,
// even after the probation of others.
func TestCanaryDies(t *testing.T) {
	cfg := config(2)
	cfg.Canary = time.Minute
	s := newSim(t, cfg).start()
	s.behave = broken(2, behaviour{die: 59 * time.Second, exit: Exit{Code: 1, Output: "leak"}})
	s.restart(1)
	s.run(5 * time.Minute)
	s.want("spawn done check",
		"2s spawn #3 s0 g2",
		"1m2s spawn #4 s0 g2",
		`2m2s done [1] g2 restart to generation 2 aborted: seat 0: worker 1004 of generation 2 exited after 1m0s: exit status 1: "leak"; back on generation 1`,
	)
}

// TestRestartAborts: a program that does not start changes nothing.
func TestRestartAborts(t *testing.T) {
	s := newSim(t, config(2)).start()
	s.behave = broken(2, behaviour{bootExit: &Exit{Code: 1, Output: "panic: no\n\ngoroutine 1"}})
	s.restart(1)
	s.run(time.Minute)
	s.want("",
		"2s gen 2",
		"2s spawn #3 s0 g2",
		"3s gone #3 boot",
		"3s spawn #4 s0 g2",
		"4s gone #4 boot",
		"4s drop 2",
		`4s done [1] g2 restart to generation 2 aborted: seat 0: worker 1004 of generation 2 ended before it was ready, after 1s: exit status 1: "goroutine 1"; back on generation 1`,
		"4s all ready",
	)
	var r *RestartError
	var exit WorkerExit
	if err := s.results[1]; !errors.As(err, &r) || !errors.As(err, &exit) || exit.ID != 4 || r.Seat != 0 || r.BackOn != 1 || r.Generation != 2 {
		t.Errorf("%#v", err)
	}

	// The number is used up.
	s.behave = broken(2, behaviour{})
	s.restart(2)
	s.run(time.Minute)
	if err := s.results[2]; err != nil || !slices.Equal(s.generations(), all(2, 3)) {
		t.Error(err, s.generations())
	}
}

// TestRestartAbortsLate: seats that have moved go back, each started first. The
// one that has failed is named with what it said, although it hung, which is
// found before it says anything.
func TestRestartAbortsLate(t *testing.T) {
	cfg := config(4)
	cfg.RestartTries, cfg.Probation, cfg.HeartbeatTimeout = 1, 10*time.Second, 1500*time.Millisecond
	s := newSim(t, cfg).start()
	s.behave = func(a Spawn) behaviour {
		if a.Seat == 2 && a.Generation == 2 {
			return behaviour{hang: 4 * time.Second}
		}
		return behaviour{}
	}
	s.restart(1)
	s.run(time.Minute)
	s.want("spawn stop dump drop gone done all",
		"2s spawn #5 s0 g2",
		"13s stop #1 1",
		"13s spawn #6 s1 g2",
		"14s gone #1 asked",
		"14s stop #2 1",
		"14s spawn #7 s2 g2",
		"15s gone #2 asked",
		"15s stop #3 1",
		"15s spawn #8 s3 g2",
		"16s gone #3 asked",
		"16s stop #4 1",
		"17s gone #4 asked",
		"19.5s drop 2",
		"19.5s dump #7",
		"19.5s spawn #9 s0 g1",
		"19.5s spawn #10 s1 g1",
		"19.5s spawn #11 s2 g1",
		"19.5s spawn #12 s3 g1",
		"19.6s gone #7 hung",
		"20.5s stop #5 1", "20.5s stop #6 1", "20.5s stop #8 1",
		"20.5s all ready",
		"21.5s gone #5 asked", "21.5s gone #6 asked", "21.5s gone #8 asked",
		`21.5s done [1] g2 restart to generation 2 aborted: seat 2: worker 1007 of generation 2 hung and was killed after 5.6s: exit status 2: "goroutine 1"; back on generation 1`,
	)
}

// TestRestartNoWayBack: the old program does not start any more either. That is
// said, and another restart is the way out; if there is none the budget ends it.
func TestRestartNoWayBack(t *testing.T) {
	const aborted = `done [1] g2 restart to generation 2 aborted: seat 0: worker 1004 of generation 2 exited after 3s: exit status 1: "new"; ` +
		`generation 1 does not come back on seat 0 either: worker 1007 of generation 1 ended before it was ready, after 1s: exit status 1: "gone"`
	behave := func(a Spawn) behaviour {
		switch a.Generation {
		case 1:
			return behaviour{bootExit: &Exit{Code: 1, Output: "gone"}}
		case 2:
			return behaviour{die: 2 * time.Second, exit: Exit{Code: 1, Output: "new"}}
		}
		return behaviour{}
	}
	// The old worker of the first seat dies while it still serves there, too.
	restart := func(s *sim) {
		s.restart(1)
		s.run(1500 * time.Millisecond)
		s.kill9(s.procs[1])
	}
	cfg := config(2)
	s := newSim(t, cfg).start()
	s.behave = behave
	restart(s)
	s.run(28500 * time.Millisecond)
	s.want("gen done", "2s gen 2", "12s "+aborted)
	s.restart(2)
	s.run(time.Minute)
	s.want("gen done all", "32s gen 3", "44s done [2] g3 <nil>", "44s all ready")

	cfg.BackoffMax = 2 * time.Second
	s = newSim(t, cfg).start()
	s.behave = behave
	restart(s)
	s.run(2 * time.Minute)
	s.want("gen done over", "2s gen 2", "12s "+aborted,
		`37s over gave up: 11 workers failed within 1m0s; the last: seat 0: worker 1015 of generation 1 ended before it was ready, after 1s: exit status 1: "gone"`)

	// If that is on its last try anyway it is all said at once.
	cfg.CrashLimit = 1
	s = newSim(t, cfg).start()
	s.behave = behave
	restart(s)
	s.run(2 * time.Minute)
	s.want("gen done", "2s gen 2", "10s "+strings.ReplaceAll(aborted, "1007", "1006"))

	// As long as the new worker serves, nobody gives up: it is disapproved of,
	// but better than nothing.
	cfg.Canary = time.Second
	s = newSim(t, cfg).start()
	s.behave = broken(1, behaviour{bootExit: &Exit{Code: 1}})
	s.verdict = func(CanaryCheck) error { return errors.New("no") }
	restart(s)
	s.run(time.Hour)
	if len(s.over) > 0 || s.results[1] == nil || !slices.Equal(s.generations(), []int{2, 1}) {
		t.Error(s.over, s.results[1], s.generations())
	}
}

// TestRestartBudget: a new program that fails only after its probation does not
// end the fleet either, as long as there is a way back.
func TestRestartBudget(t *testing.T) {
	cfg := config(12)
	cfg.CrashLimit, cfg.MaxSurge = 5, 1
	s := newSim(t, cfg).start()
	s.behave = func(a Spawn) behaviour {
		if a.Generation == 2 {
			return behaviour{die: 5500 * time.Millisecond, exit: Exit{Code: 1}}
		}
		return behaviour{stop: 3 * time.Second}
	}
	s.restart(1)
	s.run(5 * time.Minute)
	if err := s.results[1]; err == nil || !strings.Contains(err.Error(), "exit status 1; 6 workers failed within 1m0s; back on generation 1") {
		t.Error(err)
	}
	if len(s.over) > 0 || !slices.Equal(s.generations(), all(12, 1)) {
		t.Error(s.over, s.generations())
	}
}

// TestRestartFromACrashLoop: a new program is tried at once, whatever the
// backoff for the old one was.
func TestRestartFromACrashLoop(t *testing.T) {
	cfg := config(2)
	cfg.CrashLimit, cfg.BackoffMax = 1000, time.Hour
	s := newSim(t, cfg).start()
	s.behave = broken(1, behaviour{bootExit: &Exit{Code: 1}})
	s.kill9(s.worker(0))
	s.kill9(s.worker(1))
	s.run(10 * time.Minute)
	s.lines = nil
	s.restart(1)
	s.run(time.Minute)
	s.want("spawn done",
		"10m2s spawn #23 s0 g2",
		"10m8s spawn #24 s1 g2",
		"10m14s done [1] g2 <nil>",
	)
}

// TestStopDuringRestart: whoever waits for a restart is told.
func TestStopDuringRestart(t *testing.T) {
	cfg := config(2)
	cfg.StopTimeout, cfg.MaxDraining = time.Hour, 0
	s := newSim(t, cfg)
	s.behave = func(a Spawn) behaviour {
		if a.ID == 1 {
			return behaviour{stop: time.Minute}
		}
		return behaviour{}
	}
	s.start()
	s.restart(1)
	s.run(20 * time.Second) // drains
	s.restart(2)
	s.run(time.Second) // rolls
	s.restart(3)       // waits
	s.lines = nil
	s.stop(LevelStop)
	s.run(2 * time.Minute)
	s.want("stop done over",
		"23s stop #1 1 final", "23s stop #3 1 final", "23s stop #5 1 final", "23s stop #4 1 final",
		"23s done [1] g2 restart to generation 2 aborted: the fleet stops",
		"23s done [2] g3 restart to generation 3 aborted: the fleet stops",
		"23s done [3] g0 no restart: the fleet stops",
		"1m8s over <nil>",
	)
}

// TestMaxDraining: generations that do not want to go do not pile up, and no
// restart is refused for them.
func TestMaxDraining(t *testing.T) {
	cfg := config(1)
	cfg.StopTimeout, cfg.MaxDraining = time.Hour, 2
	s := newSim(t, cfg)
	s.behave = func(a Spawn) behaviour {
		if a.Generation == 2 {
			return behaviour{stop: -1} // nor by being told to go at once
		}
		return behaviour{stop: 30 * time.Minute}
	}
	s.start()
	for i := range 5 {
		s.restart(i)
		s.run(10 * time.Second)
	}
	s.want("drop stop kill done",
		"8s stop #1 1",
		"18s drop 2", "18s stop #2 1",
		"28s drop 3", "28s stop #3 1",
		"28s stop #1 3", "28.01s done [0] g2 <nil>",
		"38s drop 4", "38s stop #4 1", "38s stop #2 3",
		"39s kill #2", "39.01s done [1] g3 <nil>",
		"48s drop 5", "48s stop #5 1", "48s stop #3 3", "48.01s done [2] g4 <nil>",
	)
}

// TestMaxSurge: the number of processes is bounded while a restart rolls, on the
// way back too.
func TestMaxSurge(t *testing.T) {
	for _, surge := range []int{1, 2, 3} {
		for _, fails := range []bool{false, true} {
			cfg := config(6)
			cfg.MaxSurge, cfg.Probation, cfg.RestartTries = surge, 30*time.Second, 1
			s := newSim(t, cfg)
			s.behave = func(a Spawn) behaviour {
				b := behaviour{stop: 7 * time.Second}
				if fails && a.Generation == 2 && a.Seat == 4 {
					b.die, b.exit = 20*time.Second, Exit{Code: 1}
				}
				return b
			}
			s.start()
			s.restart(1)
			s.run(10 * time.Minute)
			if (s.results[1] != nil) != fails || s.maxProcs != 6+surge {
				t.Errorf("surge %d, fails %v: %d processes, %v", surge, fails, s.maxProcs, s.results)
			}
		}
	}
}

// TestStaleCodeSeat0KilledBefore is Puma's #3853: after the death of worker 0
// its list of workers was in another order, and the restart took code from one
// that had not been restarted.
func TestStaleCodeSeat0KilledBefore(t *testing.T) {
	s := newSim(t, config(4)).start()
	s.kill9(s.worker(0))
	s.run(10 * time.Second)
	s.lines = nil
	s.restart(1)
	s.run(time.Minute)
	s.want("spawn done",
		"12s spawn #6 s0 g2", "18s spawn #7 s1 g2", "19s spawn #8 s2 g2", "20s spawn #9 s3 g2", "26s done [1] g2 <nil>")
}

// TestStaleCodeSeat0KilledDuring: at each moment of a restart, old or new.
func TestStaleCodeSeat0KilledDuring(t *testing.T) {
	for at := time.Duration(0); at < 20*time.Second; at += 250 * time.Millisecond {
		cfg := config(4)
		cfg.RestartTries = 3
		s := newSim(t, cfg).start()
		s.restart(1)
		s.run(at)
		for _, p := range slices.Clone(s.order) {
			if p.Seat == 0 {
				s.kill9(p)
			}
		}
		s.run(time.Minute)
		if err, ok := s.results[1]; !ok || err != nil || !slices.Equal(s.generations(), all(4, 2)) {
			t.Errorf("killed after %v: %v, %v", at, s.generations(), s.results)
		}
		s.kill9(s.worker(0))
		s.kill9(s.worker(3))
		s.run(time.Minute)
		if !slices.Equal(s.generations(), all(4, 2)) {
			t.Errorf("killed again after %v: %v", at, s.generations())
		}
	}
}

// TestStaleCodeHungDuringRestart is the report that Puma's #2470 begins with, 24
// workers, and its cause: one of them is taken for hung in the middle of it.
func TestStaleCodeHungDuringRestart(t *testing.T) {
	for seat := 0; seat < 24; seat += 5 {
		s := newSim(t, config(24)).start()
		for restart := 1; restart <= 2; restart++ {
			s.restart(restart)
			s.run(12 * time.Second)
			s.worker(seat).hung = true
			s.worker((seat + 11) % 24).hung = true
			s.run(time.Minute)
			if err, ok := s.results[restart]; !ok || err != nil || !slices.Equal(s.generations(), all(24, 1+restart)) {
				t.Fatalf("seat %d: %v, %v", seat, s.generations(), s.results)
			}
		}
	}
}

// TestCrashAfterRestartIsNew: whoever crashes afterwards, in whatever order,
// comes back in the generation that the restart has ended with. See Puma's #468.
func TestCrashAfterRestartIsNew(t *testing.T) {
	for _, aborted := range []bool{false, true} {
		cfg := config(4)
		cfg.CrashLimit = 100
		s := newSim(t, cfg).start()
		want := 2
		if aborted {
			want = 1
			s.behave = func(a Spawn) behaviour {
				if a.Generation == 2 && a.Seat == 3 {
					return behaviour{bootExit: &Exit{Code: 1}}
				}
				return behaviour{}
			}
		}
		s.restart(1)
		s.run(time.Minute)
		if err, ok := s.results[1]; !ok || (err != nil) != aborted {
			t.Fatal(s.results)
		}
		for _, seat := range []int{0, 3, 0, 1, 2, 2, 3, 1} {
			s.kill9(s.worker(seat))
			s.run(20 * time.Second)
			if !slices.Equal(s.generations(), all(4, want)) {
				t.Fatalf("aborted %v: %v, want %d", aborted, s.generations(), want)
			}
		}
		for i := range 4 {
			s.kill9(s.worker(3 - i))
		}
		s.run(time.Minute)
		if !slices.Equal(s.generations(), all(4, want)) {
			t.Fatalf("aborted %v: %v, want %d", aborted, s.generations(), want)
		}
	}
}

// TestTriesAreNotCrashes: a restart to a program that does not work must not end
// a fleet that does.
func TestTriesAreNotCrashes(t *testing.T) {
	cfg := config(1)
	cfg.CrashLimit, cfg.CrashWindow, cfg.RestartTries = 1, time.Hour, 5
	s := newSim(t, cfg).start()
	s.behave = broken(2, behaviour{die: time.Second, exit: Exit{Code: 1}})
	s.restart(1)
	s.run(5 * time.Minute)
	if len(s.over) > 0 || s.results[1] == nil || !slices.Equal(s.generations(), []int{1}) {
		t.Error(s.over, s.results)
	}
	if n := strings.Count(strings.Join(s.lines, "\n"), "gone"); n != 5 {
		t.Error(n, "ended")
	}
}

// TestLateReady: a worker that was told to stop while it started may get ready
// all the same, and serves nobody.
func TestLateReady(t *testing.T) {
	s := newSim(t, config(1))
	s.behave = func(a Spawn) behaviour { return behaviour{boot: 3 * time.Second, stop: 10 * time.Second} }
	s.f.Start(s.now)
	s.take()
	s.run(time.Second)
	s.restart(1)
	s.run(time.Minute)
	s.want("spawn stop ready gone done",
		"0s spawn #1 s0 g1", "1s stop #1 1", "1s spawn #2 s0 g2", "4s ready #2", "11s gone #1 asked", "11s done [1] g2 <nil>")
}

func Example_restartError() {
	exit := WorkerExit{PID: 4711, Generation: 3, Class: Code, Exit: Exit{Code: 1, Output: "no such table\n"}, Age: 2 * time.Second, WasReady: true}
	fmt.Println(&RestartError{Generation: 3, Seat: 0, Exit: &exit, BackOn: 2})
	// Output:
	// restart to generation 3 aborted: seat 0: worker 4711 of generation 3 exited after 2s: exit status 1: "no such table"; back on generation 2
}
