//go:build unix

package prefork

import (
	"flag"
	"fmt"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/seed-235859eb/usher/internal/traffic"
)

// The long form:
//
//	go test ./prefork -run TestPhasedRestart -prefork.workers 24 -prefork.clients 48 -timeout 30m
var (
	manyWorkers = flag.Int("prefork.workers", 4, "workers in TestPhasedRestart")
	manyClients = flag.Int("prefork.clients", 8, "clients in TestPhasedRestart")
)

// TestPhasedRestart: three deploys in a row under load lose and refuse nothing,
// never leave fewer workers than there are seats, and once one has reported
// success nobody meets the code before it (puma#2470, #3853).
func TestPhasedRestart(t *testing.T) {
	t.Parallel()
	r := start(t, quick(*manyWorkers))
	perRequest := r.load(*manyClients, traffic.PerRequest, "/")
	keepAlive := r.load(*manyClients, traffic.KeepAlive, "/")
	perRequest.answered(50)
	keepAlive.answered(50)
	lowest := r.sample()
	for _, build := range []string{"two", "three", "four"} {
		before := r.plan.Build
		r.deploy(func(p *plan) { p.Build = build })
		began := time.Now()
		if e := r.do("restart", 0); e.Err != "" {
			t.Fatal(e.Err)
		}
		took := time.Since(began)
		perRequest.retire(before)
		keepAlive.retire(before)
		t.Logf("restart of %d workers: %v, %v for each seat", *manyWorkers, took, took/time.Duration(*manyWorkers))
		perRequest.answered(50)
		keepAlive.answered(50)
	}
	if n := lowest(); n < *manyWorkers {
		t.Errorf("%d workers served at some time, want %d at all times", n, *manyWorkers)
	}
	perRequest.lossless()
	keepAlive.lossless()
	s := r.allServe()
	if s.Generation != 4 {
		t.Errorf("generation %d, want 4", s.Generation)
	}
	for _, e := range r.named("WorkerExit") {
		if e.Class != ClassAsked || e.Code != 0 {
			t.Errorf("an old worker left like this: %s", e.Err)
		}
	}
	r.stop()
}

// TestRestartAfterCrash: wherever and whenever a worker dies, seat 0 above all,
// what comes back is of the generation that its seat is to have (puma#468,
// #3853).
func TestRestartAfterCrash(t *testing.T) {
	t.Parallel()
	r := start(t, quick(3))
	r.kill(r.stats().Seats[0].Workers[0].PID, syscall.SIGKILL)
	r.first("WorkerExit")
	load := r.load(4, traffic.PerRequest, "/")
	r.deploy(func(p *plan) { p.Build = "two" })
	done := r.begin("restart", 0)
	// The old one of a seat that has not moved, and the new one of one that has.
	r.find("a new worker", 1, func(e event) bool { return e.Name == "WorkerReady" && e.Generation == 2 })
	for _, w := range workersOf(r.stats()) {
		if w.Seat == 2 && w.Generation == 1 {
			r.kill(w.PID, syscall.SIGKILL)
		}
	}
	if e := done(); e.Err != "" {
		t.Fatal(e.Err)
	}
	load.retire("one")
	for _, w := range workersOf(r.allServe()) {
		r.kill(w.PID, syscall.SIGKILL)
		r.exitOfPID(w.PID)
		r.until("another one", func(s Stats) bool { return s.Serving == 3 })
	}
	load.answered(50)
	load.finish() // requests that ran in those that were killed are lost
	if load.stale > 0 {
		t.Errorf("%d answers from old code: %v", load.stale, load.builds)
	}
	for _, w := range workersOf(r.allServe()) {
		if w.Generation != 2 {
			t.Errorf("seat %d is back in generation %d", w.Seat, w.Generation)
		}
	}
	r.stop()
}

// TestRestartBadCode: what does not work takes the restart back. The error says
// where, how and with what last words, and nobody notices.
func TestRestartBadCode(t *testing.T) {
	for _, tt := range []struct {
		name  string
		bad   func(p *plan)
		class Class
		code  int
		words string
		least int // workers that serve at all times
	}{
		{"does not boot", func(p *plan) { p.Boot = &planExit{3, "no such table: users"} }, ClassBoot, 3, "no such table: users", 2},
		{"main fails", func(p *plan) { p.Before = &planExit{7, "bad flag"} }, ClassBoot, 7, "bad flag", 2},
		{"boots and dies", func(p *plan) { p.Dies, p.DiesAfter = &planExit{9, "out of luck"}, 5*time.Millisecond }, ClassCode, 9, "out of luck", 2},
		{"is never ready", func(p *plan) { p.NeverReady, p.Deaf = true, true }, ClassBoot, 2, "not ready, ever", 2},
		{"hangs before Run", func(p *plan) { p.HangBefore = true }, ClassBoot, 2, "SIGQUIT", 2},
	} {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			p := quick(2)
			p.Probation = 500 * time.Millisecond
			p.BootTimeout = 1500 * time.Millisecond
			r := start(t, p)
			load := r.load(4, traffic.PerRequest, "/")
			lowest := r.sample()
			r.deploy(func(p *plan) { p.Build = "two"; tt.bad(p) })
			e := r.do("restart", 0)
			if e.RestartError == nil {
				t.Fatalf("Restart = %q, want a RestartError", e.Err)
			}
			got := *e.RestartError
			if got.Seat != 0 || got.Generation != 2 || got.BackOn != 1 || got.Class != tt.class || got.Code != tt.code || !strings.Contains(got.Output, tt.words) {
				t.Errorf("%+v, want class %s, code %d and %q", got, tt.class, tt.code, tt.words)
			}
			for _, w := range []string{"seat 0", "generation 2", fmt.Sprintf("exit status %d", tt.code), "back on generation 1"} {
				if !strings.Contains(e.Err, w) {
					t.Errorf("error %q does not say %q", e.Err, w)
				}
			}
			s := r.allServe()
			if n := lowest(); n < tt.least {
				t.Errorf("%d workers served at some time", n)
			}
			// The bad code is still there, but not what a crash brings back.
			pid := s.Seats[0].Workers[0].PID
			if tt.class == ClassBoot {
				load.lossless()
			} else if res := load.finish(); res.Refused > 0 || res.Lost > 3*4 {
				// What ran in each of three that died, for four clients, is lost.
				t.Errorf("%d lost, %d refused: %q", res.Lost, res.Refused, res.Errors)
			}
			r.kill(pid, syscall.SIGKILL)
			r.exitOfPID(pid)
			for _, w := range workersOf(r.until("back", func(s Stats) bool { return s.Serving == 2 })) {
				if w.Generation != 1 {
					t.Errorf("generation %d serves", w.Generation)
				}
			}
			r.stop()
		})
	}
}

// TestTakenBack: code that serves for longer than its probation, and then dies
// again and again, is taken back, and everybody learns of it (#12: the restart was
// called a success, and then the crash budget ended the service).
func TestTakenBack(t *testing.T) {
	t.Parallel()
	p := quick(2)
	r := start(t, p)
	load := r.load(4, traffic.PerRequest, "/")
	load.answered(20)
	r.deploy(func(p *plan) {
		p.Build = "two"
		p.Dies, p.DiesAfter = &planExit{9, "out of luck"}, 300*time.Millisecond
	})
	r.must("restart", 0)
	e := r.nth("RestartFinished", 2)
	if x := e.RestartError; x == nil || !x.TakenBack || x.Generation != 2 || x.BackOn != 1 || x.Code != 9 || !strings.Contains(x.Output, "out of luck") {
		t.Errorf("RestartFinished says %q, %+v", e.Err, x)
	}
	r.logged("level=ERROR", "taken back", "out of luck")
	load.retire("two")
	if s := r.allServe(); s.Generation != 1 || !strings.Contains(s.TakenBack, "generation 2 taken back") {
		t.Errorf("generation %d, taken back: %q", s.Generation, s.TakenBack)
	}
	load.answered(20)
	r.deploy(func(p *plan) { p.Build, p.Dies = "three", nil })
	r.must("restart", 0)
	if s := r.allServe(); s.Generation != 3 || s.TakenBack != "" {
		t.Errorf("then generation %d, taken back: %q", s.Generation, s.TakenBack)
	}
	load.retire("one")
	load.answered(20)
	res := load.finish()
	if res.Refused > 0 || load.stale > 0 {
		t.Errorf("%d refused, %d answers from old code", res.Refused, load.stale)
	}
	r.stop()
}
