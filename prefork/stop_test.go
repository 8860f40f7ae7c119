//go:build unix

package prefork

import (
	"fmt"
	"os/exec"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/seed-235859eb/usher/internal/traffic"
)

// slow makes n requests that take a while, and returns once all of them run.
// The answer tells how many were answered.
func (r *running) slow(n int, takes time.Duration) (answered func() int) {
	r.t.Helper()
	before := len(r.named("slow"))
	results := make(chan error, n)
	for range n {
		go func() {
			_, err := r.try(fmt.Sprintf("/slow?n=%d", takes.Milliseconds()))
			results <- err
		}()
	}
	r.nth("slow", before+n)
	return func() (good int) {
		r.t.Helper()
		for range n {
			if err := <-results; err != nil {
				r.t.Log(err)
				continue
			}
			good++
		}
		return good
	}
}

// TestStop: whoever gets the signal, what runs is answered, what comes later is
// refused, nobody is left, and the status is 0.
func TestStop(t *testing.T) {
	for _, tt := range []struct {
		name   string
		signal func(r *running)
	}{
		{"TERM to the master", func(r *running) { r.kill(r.pid(), syscall.SIGTERM) }},
		{"TERM to the group", func(r *running) { r.kill(-r.pid(), syscall.SIGTERM) }},
		{"INT to the group", func(r *running) { r.kill(-r.pid(), syscall.SIGINT) }},
		{"TERM to a worker, then the master", func(r *running) {
			r.kill(r.stats().Seats[0].Workers[0].PID, syscall.SIGTERM)
			r.kill(r.pid(), syscall.SIGTERM)
		}},
		{"TERM twice", func(r *running) {
			r.kill(r.pid(), syscall.SIGTERM)
			r.logged("prefork: stopping")
			time.Sleep(burstTime * 5 / 4) // or it is the same signal still
			r.kill(r.pid(), syscall.SIGTERM)
		}},
		{"TERM twice to the group", func(r *running) {
			r.kill(-r.pid(), syscall.SIGTERM)
			r.logged("prefork: stopping")
			time.Sleep(burstTime * 5 / 4) // or it is the same signal still
			r.kill(-r.pid(), syscall.SIGTERM)
		}},
		{"TERM in a burst", func(r *running) {
			for range 5 { // not all at once, as signals that wait are one
				syscall.Kill(-r.pid(), syscall.SIGTERM)
				time.Sleep(40 * time.Millisecond)
			}
		}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			p := quick(3)
			if strings.Contains(tt.name, "twice") {
				p.Delay = patience / 4 // which the second signal ends
			}
			r := start(t, p)
			perRequest := r.load(4, traffic.PerRequest, "/")
			keepAlive := r.load(2, traffic.KeepAlive, "/")
			perRequest.answered(50)
			slow := r.slow(6, 300*time.Millisecond)
			began := time.Now()
			tt.signal(r)
			if n := slow(); n < 6 {
				t.Errorf("%d of 6 requests that ran were answered", n)
			}
			if status := r.gone(); status != 0 {
				t.Errorf("status %d", status)
			}
			if p.Delay > 0 && time.Since(began) > p.Delay {
				t.Errorf("the stop took %v", time.Since(began))
			}
			r.refused()
			for _, l := range []*load{perRequest, keepAlive} {
				// SIGINT closes connections that are silent at that moment.
				if res := l.finish(); res.Lost > 0 && tt.name != "INT to the group" {
					t.Errorf("%d answered, %d lost: %q", res.Answered, res.Lost, res.Errors)
				}
			}
			for _, e := range r.named("WorkerExit") {
				if e.Class != ClassAsked || e.Code != 0 {
					t.Errorf("a worker left like this: %s", e.Err)
				}
			}
		})
	}
}

// TestTermToWorker: SIGTERM to a worker replaces it, the successor first.
func TestTermToWorker(t *testing.T) {
	t.Parallel()
	r := start(t, quick(2))
	load := r.load(4, traffic.PerRequest, "/")
	load.answered(20)
	lowest := r.sample()
	pid := r.stats().Seats[1].Workers[0].PID
	r.kill(pid, syscall.SIGTERM)
	if e := r.exitOfPID(pid); e.Class != ClassAsked || e.Code != 0 {
		t.Errorf("the worker left like this: %s", e.Err)
	}
	s := r.allServe()
	if n := lowest(); n < 2 {
		t.Errorf("%d workers served at some time", n)
	}
	if s.Crashes != 0 {
		t.Errorf("%d crashes counted", s.Crashes)
	}
	// Not what a person wants of one process of many.
	for _, sig := range []syscall.Signal{syscall.SIGINT, syscall.SIGHUP, syscall.SIGUSR1, syscall.SIGUSR2, syscall.SIGTTIN, syscall.SIGTTOU} {
		for _, pid := range pidsOf(s) {
			r.kill(pid, sig)
		}
	}
	load.answered(50)
	if got := pidsOf(r.allServe()); !slices.Equal(got, pidsOf(s)) {
		t.Errorf("workers were %v, are %v", pidsOf(s), got)
	}
	load.lossless()
	r.stop()
}

// TestEndNow: a third signal waits for nobody.
func TestEndNow(t *testing.T) {
	t.Parallel()
	r := start(t, quick(2))
	slow := r.slow(2, 2*patience)
	r.kill(r.pid(), syscall.SIGTERM)
	r.logged("prefork: stopping", "level=1")
	for level := 2; level <= 3; level++ {
		r.kill(r.pid(), syscall.SIGINT)
		r.logged("prefork: stopping", fmt.Sprintf("level=%d", level))
	}
	began := time.Now()
	r.gone()
	if took := time.Since(began); took > patience/4 {
		t.Errorf("the end took %v", took)
	}
	if n := slow(); n > 0 {
		t.Errorf("%d requests were answered", n)
	}
}

// TestBusyLoop: a handler that computes for ever is no hung worker; but it must
// not hold up a stop.
func TestBusyLoop(t *testing.T) {
	t.Parallel()
	p := quick(2)
	p.HeartbeatTimeout, p.StopTimeout = 2*time.Second, time.Second
	r := start(t, p)
	go r.try("/spin")
	spin := r.first("spin")
	time.Sleep(p.HeartbeatTimeout)
	load := r.load(2, traffic.PerRequest, "/")
	load.answered(20)
	load.lossless()
	if s := r.stats(); s.Crashes != 0 {
		t.Errorf("%d workers are gone", s.Crashes)
	}
	r.kill(r.pid(), syscall.SIGTERM)
	e := r.exitOfPID(spin.PID)
	if e.Class != ClassAsked || !strings.Contains(e.Output, "SIGQUIT") {
		t.Errorf("class %s, output %.300q, want a dump", e.Class, e.Output)
	}
	if status := r.gone(); status != 5 {
		t.Errorf("status %d, want that of a StopError", status)
	}
	r.logged("program: prefork: stop fell short", fmt.Sprintf("worker %d", spin.PID))
}

// TestMasterDies: kill -9 of the master under load. The workers answer what
// runs, and what waits, and leave.
func TestMasterDies(t *testing.T) {
	t.Parallel()
	r := start(t, quick(3))
	perRequest := r.load(4, traffic.PerRequest, "/")
	keepAlive := r.load(2, traffic.KeepAlive, "/")
	perRequest.answered(50)
	slow := r.slow(6, 500*time.Millisecond)
	r.kill(r.pid(), syscall.SIGKILL)
	if n := slow(); n < 6 {
		t.Errorf("%d of 6 requests that ran were answered", n)
	}
	if status := r.gone(); status != -9 {
		t.Errorf("status %d", status)
	}
	r.refused()
	for _, l := range []*load{perRequest, keepAlive} {
		if res := l.finish(); res.Lost > 0 {
			t.Errorf("%d answered, %d lost: %q", res.Answered, res.Lost, res.Errors)
		}
	}
}

// TestMasterDiesBusyWorker: an orphan that does not stop ends itself, as nobody
// else would.
func TestMasterDiesBusyWorker(t *testing.T) {
	t.Parallel()
	p := quick(2)
	p.StopTimeout = time.Second
	r := start(t, p)
	go r.try("/spin")
	r.first("spin")
	r.kill(r.pid(), syscall.SIGKILL)
	r.gone()
	r.refused()
}

// TestLogReaderDies: who reads the log is gone, and the service is not.
func TestLogReaderDies(t *testing.T) {
	t.Parallel()
	stderr, theirs := pipe(t)
	r := start(t, quick(2), func(c *exec.Cmd) { c.Stderr = theirs })
	theirs.Close()
	stderr.Close()
	r.get("/stderr?n=16")
	r.must("recycle", 0) // of which the master has something to say
	r.first("WorkerExit")
	load := r.load(2, traffic.PerRequest, "/")
	load.answered(20)
	load.lossless()
	r.kill(r.pid(), syscall.SIGTERM)
	if status := r.gone(); status != 0 {
		t.Errorf("status %d", status)
	}
}

// TestFloodWhileMasterIsStopped: a worker that logs more than a pipe holds while
// the master is stopped waits, and loses nothing.
func TestFloodWhileMasterIsStopped(t *testing.T) {
	t.Parallel()
	p := quick(2)
	p.HeartbeatTimeout = time.Second
	r := start(t, p)
	before := pidsOf(r.stats())
	r.kill(r.pid(), syscall.SIGSTOP)
	flood := make(chan error, 1)
	go func() {
		_, err := r.try("/stderr?n=256")
		flood <- err
	}()
	load := r.load(2, traffic.PerRequest, "/")
	load.answered(50) // by both workers
	time.Sleep(2 * p.HeartbeatTimeout)
	r.kill(r.pid(), syscall.SIGCONT)
	if err := <-flood; err != nil {
		t.Error(err)
	}
	load.answered(50)
	load.lossless()
	if after := pidsOf(r.allServe()); !slices.Equal(before, after) {
		t.Errorf("workers were %v, are %v", before, after)
	}
	r.stop()
}

// TestStopAtBoot: a stop that comes while workers boot ends them, too.
func TestStopAtBoot(t *testing.T) {
	for _, how := range []string{"before Run", "not ready"} {
		t.Run(how, func(t *testing.T) {
			t.Parallel()
			p := quick(2)
			p.HangBefore = how == "before Run"
			p.NeverReady = !p.HangBefore
			if p.HangBefore {
				// The master itself must come to Run.
				good := p
				good.HangBefore = false
				r := start(t, good)
				r.write(p)
				r.begin("restart", 0)
				r.find("a new worker", 1, func(e event) bool { return e.Name == "AfterWorkerStart" && e.Generation == 2 })
				r.stop()
				return
			}
			r := launch(t, p)
			r.nth("AfterWorkerStart", 2)
			r.stop()
		})
	}
}

// TestIgnoredSignals: what was ignored when the program was started stays ignored,
// also after an upgrade: SIGHUP by nohup, SIGINT by a shell for what runs in the
// background.
func TestIgnoredSignals(t *testing.T) {
	t.Parallel()
	r := start(t, quick(1), func(c *exec.Cmd) {
		c.Args = []string{"sh", "-c", `trap '' HUP INT; exec "$0"`, c.Path}
		c.Path = "/bin/sh"
	})
	harm := func() {
		t.Helper()
		r.kill(r.cmd.Process.Pid, syscall.SIGHUP)
		r.kill(r.cmd.Process.Pid, syscall.SIGINT)
	}
	harm()
	r.must("restart", 0) // as one that is asked for works
	harm()
	r.kill(r.cmd.Process.Pid, syscall.SIGUSR2)
	r.nth("MasterStart", 2)
	r.nth("RestartFinished", 2)
	harm()
	if s := r.allServe(); s.Generation != 3 || s.Stopping {
		t.Errorf("generation %d, stopping %t", s.Generation, s.Stopping)
	}
	r.kill(r.cmd.Process.Pid, syscall.SIGUSR1)
	r.nth("RestartFinished", 3)
	if n := len(r.named("RestartFinished")); n != 3 {
		t.Errorf("%d restarts", n)
	}
	r.stop()
}
