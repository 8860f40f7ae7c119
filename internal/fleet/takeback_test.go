package fleet

import (
	"errors"
	"testing"
	"time"
)

// dying has the workers of some generations die when they have served for a
// while, longer than their probation.
func dying(s *sim, generations ...int) {
	s.behave = func(a Spawn) behaviour {
		for _, g := range generations {
			if a.Generation == g {
				return behaviour{die: 15 * time.Second, exit: Exit{Code: 3, Output: "leaks"}}
			}
		}
		return behaviour{}
	}
}

// aborted returns the error of the last answer to a restart.
func (s *sim) aborted(ticket int) *RestartError {
	e, _ := errors.AsType[*RestartError](s.results[ticket])
	return e
}

func takeBackConfig() Config {
	cfg := config(2)
	cfg.CrashLimit = 4
	return cfg
}

// TestTakeBack: a generation that keeps crashing after its restart has succeeded is
// taken back to the one before.
func TestTakeBack(t *testing.T) {
	s := newSim(t, takeBackConfig()).start()
	dying(s, 2)
	s.restart(1)
	s.run(3 * time.Minute)
	s.want("gen drop done over",
		"2s gen 2",
		"14s done [1] g2 <nil>",
		"34s drop 2",
		`36s done [] g2 generation 2 taken back after its restart had succeeded: seat 0: worker 1005 of generation 2 exited after 16s: exit status 3: "leaks"; 3 workers failed within 1m0s; back on generation 1`,
	)
	if s.serving(-1) != 2 || s.f.Snapshot(s.now).Generation != 1 {
		t.Errorf("%d serve, generation %d", s.serving(-1), s.f.Snapshot(s.now).Generation)
	}
	// What follows is as ever.
	s.behave = func(Spawn) behaviour { return behaviour{} }
	s.restart(2)
	s.run(time.Minute)
	if err, ok := s.results[2]; !ok || err != nil {
		t.Errorf("the next restart: %v", err)
	}
}

// TestTakeBackLast: what crashes when there is no generation left that lived ends
// the fleet.
func TestTakeBackLast(t *testing.T) {
	s := newSim(t, takeBackConfig()).start()
	dying(s, 1, 2)
	s.restart(1)
	s.run(3 * time.Minute)
	if len(s.over) != 1 || s.f.gen != 1 {
		t.Errorf("over %v, generation %d", s.over, s.f.gen)
	}
}

// TestTrialEnds: a generation that has lived for long enough is the one to return
// to, and the one before is let go of.
func TestTrialEnds(t *testing.T) {
	s := newSim(t, takeBackConfig()).start()
	s.restart(1)
	s.run(2 * time.Minute)
	s.want("gen drop done over", "2s gen 2", "14s done [1] g2 <nil>", "1m14s drop 1")
	dying(s, 3)
	s.restart(2)
	s.run(3 * time.Minute)
	if s.f.gen != 2 || s.serving(-1) != 2 || len(s.over) > 0 {
		t.Errorf("generation %d, %d serve, over %v", s.f.gen, s.serving(-1), s.over)
	}
}

// TestTakeBackTwo: a generation that is on trial itself is none to return to.
func TestTakeBackTwo(t *testing.T) {
	s := newSim(t, takeBackConfig()).start()
	s.restart(1)
	s.run(20 * time.Second)
	dying(s, 3)
	s.restart(2)
	s.run(3 * time.Minute)
	if s.f.gen != 1 || s.serving(-1) != 2 || len(s.over) > 0 {
		t.Errorf("generation %d, %d serve, over %v", s.f.gen, s.serving(-1), s.over)
	}
}

// TestTakeBackBeforeDone: who waits for the answer that the restart has succeeded,
// while an old worker drains, is told that it was taken back.
func TestTakeBackBeforeDone(t *testing.T) {
	cfg := takeBackConfig()
	cfg.StopTimeout = 10 * time.Minute
	s := newSim(t, cfg)
	s.behave = func(Spawn) behaviour { return behaviour{stop: 5 * time.Minute} }
	s.start()
	dying(s, 2)
	s.restart(1)
	s.run(20 * time.Minute)
	if e := s.aborted(1); e == nil || e.Generation != 2 || e.BackOn != 1 || e.Exit.Exit.Output != "leaks" {
		t.Errorf("answered %v", s.results[1])
	}
}

// TestTakeBackInTheNextMaster: the trial goes on there.
func TestTakeBackInTheNextMaster(t *testing.T) {
	s := newSim(t, takeBackConfig()).start()
	s.restart(1)
	s.run(20 * time.Second)
	state := s.f.State(s.now)
	if state.Fallback != 1 || state.TrialFor != 8*time.Second {
		t.Errorf("state has generation %d, on trial for %v", state.Fallback, state.TrialFor)
	}
	f := New(s.cfg)
	f.Adopt(s.now, state)
	if got := f.State(s.now); got.Fallback != 1 || got.TrialFor != state.TrialFor {
		t.Errorf("then generation %d, on trial for %v", got.Fallback, got.TrialFor)
	}
}
