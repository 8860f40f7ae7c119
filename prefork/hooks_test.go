//go:build unix

package prefork

import (
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/seed-235859eb/usher/internal/traffic"
)

// TestHooks: what happens is told once, in order.
func TestHooks(t *testing.T) {
	t.Parallel()
	r := start(t, quick(1))
	r.must("restart", 0)
	r.stop()
	var got []string
	for _, e := range r.all(func(e event) bool { return e.Name != "answer" && e.Name != "listening" }) {
		got = append(got, e.Name)
		if e.Seat != 0 || e.Generation > 2 {
			t.Errorf("%+v", e)
		}
	}
	// BeforeWorkerStart has a place of its own, and may overtake.
	want := []string{
		"MasterStart", "BeforeWorkerStart", "AfterWorkerStart", "WorkerReady",
		"BeforeWorkerStart", "AfterWorkerStart", "WorkerReady", "WorkerExit", "RestartFinished", "WorkerExit",
	}
	i, j := slices.Index(got, "MasterStart"), slices.Index(got, "BeforeWorkerStart")
	if i > j && j >= 0 {
		got[i], got[j] = got[j], got[i]
	}
	if !slices.Equal(got, want) {
		t.Errorf("hooks %q, want %q", got, want)
	}
}

// TestBadHooks: a hook that panics, or does not return, is left behind.
func TestBadHooks(t *testing.T) {
	names := []string{"MasterStart", "BeforeWorkerStart", "AfterWorkerStart", "WorkerReady", "WorkerExit", "RestartFinished"}
	for _, name := range names {
		t.Run(name+" panics", func(t *testing.T) {
			t.Parallel()
			p := quick(2)
			p.HookPanics = name
			r := start(t, p)
			r.try("/exit?n=3")
			r.first("WorkerExit")
			r.must("restart", 0)
			r.first("RestartFinished")
			r.logged("a hook panicked", "hook="+name, "program_test.go")
			r.stop()
		})
	}
	for _, name := range names {
		if name == "BeforeWorkerStart" {
			continue // it is waited for
		}
		t.Run(name+" hangs", func(t *testing.T) {
			t.Parallel()
			p := quick(3)
			p.HookTimeout = 2 * time.Second
			p.HookHangs = name
			r := start(t, p)
			for _, w := range workersOf(r.stats()) {
				r.kill(w.PID, syscall.SIGKILL)
			}
			r.until("three crashes", func(s Stats) bool { return s.Crashes == 3 && s.Serving == 3 })
			r.must("restart", 0)
			load := r.load(2, traffic.PerRequest, "/")
			load.answered(20)
			load.lossless()
			began := time.Now()
			r.stop()
			// Five hang, and all that is left gets as long as one.
			if took := time.Since(began); took > 3*p.HookTimeout {
				t.Errorf("hooks that hang held the end up for %v", took)
			}
		})
	}
}

// TestCanary: the first worker of a generation shows for a while how it does,
// before the next seat is touched, and CanaryCheck has the last word.
func TestCanary(t *testing.T) {
	for _, tt := range []struct{ check, words string }{
		{"", ""},
		{"ok", ""},
		{"fail", "the bird has fallen silent"},
		{"panic", "did not return in time, or panicked"},
		{"hang", "did not return in time, or panicked"},
	} {
		t.Run("check "+tt.check, func(t *testing.T) {
			t.Parallel()
			p := quick(3)
			p.Canary = 300 * time.Millisecond
			p.CanaryCheck = tt.check
			r := start(t, p)
			load := r.load(4, traffic.PerRequest, "/")
			lowest := r.sample()
			r.deploy(func(p *plan) { p.Build = "two" })
			began := time.Now()
			e := r.do("restart", 0)
			if time.Since(began) < p.Canary {
				t.Error("the restart did not wait for the canary")
			}
			if n := lowest(); n < 3 {
				t.Errorf("%d workers served at some time", n)
			}
			s := r.allServe()
			if tt.words == "" {
				if e.Err != "" || s.Generation != 2 {
					t.Errorf("Restart = %q, generation %d", e.Err, s.Generation)
				}
				load.retire("one")
			} else {
				if !strings.Contains(e.Err, tt.words) || e.RestartError == nil || e.RestartError.BackOn != 1 || s.Generation != 1 {
					t.Errorf("Restart = %q, generation %d, want %q", e.Err, s.Generation, tt.words)
				}
				load.retire("two")
			}
			load.answered(20)
			load.lossless()
			checked := false
			for _, e := range r.all(func(e event) bool { return e.Generation == 2 }) {
				checked = checked || e.Name == "CanaryCheck"
				if tt.check != "" && e.Seat > 0 && !checked {
					t.Errorf("before the check: %s of seat %d", e.Name, e.Seat)
				}
				if tt.words != "" && e.Seat > 0 && e.Name == "AfterWorkerStart" {
					t.Errorf("seat %d was touched", e.Seat)
				}
			}
			if checked != (tt.check != "") {
				t.Errorf("checked: %v", checked)
			}
			r.stop()
		})
	}
}
