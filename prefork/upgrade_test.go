//go:build unix

package prefork

import (
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/seed-235859eb/usher/internal/traffic"
)

// upgrade has the master replaced n times, and waits until its workers are, too.
func (r *running) upgrade(n int) {
	r.t.Helper()
	starts, restarts := len(r.named("MasterStart")), len(r.named("RestartFinished"))
	for i := range n {
		r.kill(r.pid(), syscall.SIGUSR2)
		r.nth("MasterStart", starts+i+1)
		if e := r.nth("RestartFinished", restarts+i+1); e.Err != "" {
			r.t.Errorf("the restart after the upgrade: %s", e.Err)
		}
	}
}

// TestUpgrade: the master is replaced in place under load. Its process, sockets
// and workers stay, and it still learns how they end.
func TestUpgrade(t *testing.T) {
	t.Parallel()
	r := start(t, quick(3))
	load := r.load(4, traffic.PerRequest, "/")
	keepAlive := r.load(4, traffic.KeepAlive, "/")
	load.answered(50)
	before := r.stats()
	files := fds(t, r.pid())
	lowest := r.sample()
	r.deploy(func(p *plan) { p.Build = "two" })
	began := time.Now()
	r.upgrade(1)
	t.Logf("upgrade and restart of 3 workers: %v", time.Since(began))
	load.retire("one")
	keepAlive.retire("one")
	load.answered(50)
	keepAlive.answered(50)
	if n := lowest(); n < 3 {
		t.Errorf("%d workers served at some time", n)
	}
	for _, e := range r.named("MasterStart") {
		if e.PID != r.cmd.Process.Pid {
			t.Errorf("the master is process %d, was %d", e.PID, r.cmd.Process.Pid)
		}
	}
	for _, pid := range pidsOf(before) {
		if e := r.exitOfPID(pid); e.Class != ClassAsked || e.Code != 0 {
			t.Errorf("an adopted worker left like this: %s", e.Err)
		}
	}
	s := r.allServe()
	if s.Requests < before.Requests || s.Accepted < before.Accepted || s.Generation != 2 {
		t.Errorf("totals fell: %+v, then %+v", before, s)
	}
	// The statuses of those that it has started itself, and of adopted ones.
	for range 2 {
		pid := r.allServe().Seats[0].Workers[0].PID
		r.kill(pid, syscall.SIGKILL)
		if e := r.exitOfPID(pid); e.Class != ClassKilled || e.Signal != 9 {
			t.Errorf("class %s, signal %d, want killed by 9", e.Class, e.Signal)
		}
		r.until("back", func(s Stats) bool { return s.Serving == 3 })
		r.upgrade(1)
	}
	load.finish() // what ran in those that were killed is lost
	keepAlive.finish()
	r.allServe()
	if n := fds(t, r.pid()); n > files+2 { // of the load's end
		t.Errorf("%d descriptors after three upgrades, %d before: %v", n, files, links(t, r.pid()))
	}
	for pid, state := range children(t, r.pid()) {
		if state == "Z" {
			t.Errorf("process %d is a zombie", pid)
		}
	}
	r.stop()
}

// TestUpgradeLossless: nothing is lost or refused, nor when a master is replaced
// over and over, and signals come all the while.
func TestUpgradeLossless(t *testing.T) {
	t.Parallel()
	r := start(t, quick(2))
	load := r.load(4, traffic.PerRequest, "/")
	load.answered(20)
	over, done := make(chan struct{}), make(chan struct{})
	go func() {
		defer close(done)
		tick := time.NewTicker(time.Millisecond)
		defer tick.Stop()
		for i := 0; ; i++ {
			select {
			case <-tick.C:
				s := []syscall.Signal{syscall.SIGUSR2, syscall.SIGWINCH, syscall.SIGCHLD, syscall.SIGURG}[i%4]
				switch i % 300 { // a restart all the time would leave no time for another
				case 0:
					s = syscall.SIGHUP
				case 100:
					s = syscall.SIGTTIN
				case 200:
					s = syscall.SIGTTOU
				}
				syscall.Kill(r.cmd.Process.Pid, s)
			case <-over:
				return
			}
		}
	}()
	r.nth("MasterStart", 4)
	close(over)
	<-done
	r.allServe()
	load.answered(20)
	load.lossless()
	for _, e := range r.named("WorkerExit") {
		if e.Class != ClassAsked || e.Code != 0 {
			t.Errorf("a worker left like this: %s", e.Err)
		}
	}
	// Another upgrade may be under way, and SIGTERM ends a master that has not
	// come to Run yet: its workers stop all the same.
	r.kill(r.pid(), syscall.SIGTERM)
	if status := r.gone(); status != 0 && status != -int(syscall.SIGTERM) {
		t.Errorf("status %d after SIGTERM", status)
	}
}

// TestUpgradeBroken: a program that is no good changes nothing.
func TestUpgradeBroken(t *testing.T) {
	for _, tt := range []struct {
		name  string
		build func(r *running)
		words string
	}{
		{"a script that fails", func(r *running) {
			r.replace(strings.NewReader("#!/bin/sh\necho no such table >&2\nexit 1\n"))
		}, "no such table"},
		{"a script that does not", func(r *running) {
			r.replace(strings.NewReader("#!/bin/sh\necho fine\n"))
		}, "without coming to Run"},
		{"no file", func(r *running) { os.Remove(r.file) }, "no such file"},
		{"no program", func(r *running) { r.replace(strings.NewReader("\x7fELF, but not really")) }, "format"},
		{"main fails", func(r *running) { r.deploy(func(p *plan) { p.Before = &planExit{7, "bad flag"} }) }, "bad flag"},
		{"hangs before Run", func(r *running) { r.deploy(func(p *plan) { p.HangBefore = true }) }, "not done after"},
		{"bad options", func(r *running) { r.deploy(func(p *plan) { p.Probation = -1 }) }, "Probation"},
		{"no such user", func(r *running) { r.deploy(func(p *plan) { p.User = "nobody-of-this-name" }) }, "Options.User"},
		{"no such directory", func(r *running) { r.deploy(func(p *plan) { p.Dir = "/no/such/directory" }) }, "Options.Dir"},
		{"no workers any more", func(r *running) { r.deploy(func(p *plan) { p.Workers = 0 }) }, "without workers"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			p := quick(2)
			p.BootTimeout = 2 * time.Second
			r := start(t, p)
			load := r.load(2, traffic.PerRequest, "/")
			load.answered(20)
			before := pidsOf(r.stats())
			tt.build(r)
			e := r.do("upgrade", 0)
			if !strings.Contains(e.Err, "prefork: trial run of ") || !strings.Contains(e.Err, tt.words) {
				t.Errorf("Upgrade = %q, want %q in it", e.Err, tt.words)
			}
			r.logged("upgrade failed, nothing has changed")
			s := r.stats()
			if got := pidsOf(s); !slices.Equal(got, before) || s.Generation != 1 || s.Restarting {
				t.Errorf("workers were %v, are %v, generation %d", before, got, s.Generation)
			}
			load.answered(20)
			load.lossless()
			r.kill(before[0], syscall.SIGKILL)
			r.exitOfPID(before[0])
			r.until("back", func(s Stats) bool { return s.Serving == 2 })
			r.stop()
		})
	}
}

// TestUpgradeWaits for a restart under way, and one that is asked for while it
// waits is not forgotten.
func TestUpgradeWaits(t *testing.T) {
	t.Parallel()
	p := quick(2)
	p.Probation = 500 * time.Millisecond
	r := start(t, p)
	load := r.load(2, traffic.PerRequest, "/")
	r.deploy(func(p *plan) { p.Build = "two" })
	done := r.begin("restart", 0)
	r.find("a new worker", 1, func(e event) bool { return e.Name == "AfterWorkerStart" && e.Generation == 2 })
	r.kill(r.pid(), syscall.SIGUSR2)
	if e := done(); e.Err != "" {
		t.Errorf("Restart, with an upgrade that waits: %s", e.Err)
	}
	r.nth("MasterStart", 2)
	r.find("the restart after it", 1, func(e event) bool { return e.Name == "RestartFinished" && e.Generation == 3 })
	load.retire("one")
	load.answered(20)
	load.lossless()
	r.stop()
}

// TestUpgradeTellsHooks: the next master does not know what has not been told, so
// it comes when all is.
func TestUpgradeTellsHooks(t *testing.T) {
	t.Parallel()
	p := quick(3)
	p.HookHangs, p.HookTimeout = "WorkerExit", 300*time.Millisecond
	r := start(t, p)
	for _, pid := range pidsOf(r.stats()) {
		r.kill(pid, syscall.SIGKILL)
	}
	r.until("three crashes", func(s Stats) bool { return s.Crashes == 3 && s.Serving == 3 })
	r.kill(r.pid(), syscall.SIGUSR2)
	r.nth("MasterStart", 2)
	if n := len(r.named("WorkerExit")); n < 3 {
		t.Errorf("hooks were told of %d of 3 crashes", n)
	}
	r.first("RestartFinished")
	r.stop()
}

// TestUpgradeTriesAgain: what was tried is what runs. Whoever deploys while an
// upgrade waits has his build tried, too.
func TestUpgradeTriesAgain(t *testing.T) {
	t.Parallel()
	p := quick(2)
	p.Probation = time.Second
	r := start(t, p)
	done := r.begin("restart", 0)
	r.find("a new worker", 1, func(e event) bool { return e.Name == "AfterWorkerStart" && e.Generation == 2 })
	r.kill(r.pid(), syscall.SIGUSR2)
	r.logged("upgrade: the trial run went well")
	r.deploy(func(p *plan) { p.Before = &planExit{7, "bad flag"} })
	if e := done(); e.Err != "" {
		t.Error(e.Err)
	}
	r.logged("upgrade failed, nothing has changed", "bad flag")
	r.get("/")
	r.stop()
}

// TestStopDuringTrial: a trial run does not outlive the master.
func TestStopDuringTrial(t *testing.T) {
	t.Parallel()
	r := start(t, quick(1))
	r.deploy(func(p *plan) { p.HangBefore = true })
	r.kill(r.pid(), syscall.SIGUSR2)
	r.logged("upgrade: trial run")
	for len(r.processes()) < 3 {
		time.Sleep(time.Millisecond) // the trial is to have begun
	}
	r.stop()
	if left := r.processes(); len(left) > 0 {
		t.Errorf("processes %v are left", left)
	}
}

// processes returns all that run the program, as it is now or was.
func (r *running) processes() (pids []string) {
	all, err := filepath.Glob("/proc/[0-9]*/exe")
	if err != nil || len(all) == 0 {
		r.t.Skip("no /proc")
	}
	for _, link := range all {
		if exe, err := os.Readlink(link); err == nil && strings.HasPrefix(exe, r.file) {
			pids = append(pids, filepath.Base(filepath.Dir(link)))
		}
	}
	return pids
}

// TestSymlink: a deploy often is a symbolic link that is changed. What it names
// by then is the new program, and not what it named at the start.
func TestSymlink(t *testing.T) {
	t.Parallel()
	link := filepath.Join(t.TempDir(), "current")
	r := start(t, quick(2), func(c *exec.Cmd) {
		if err := os.Symlink(c.Path, link); err != nil {
			t.Fatal(err)
		}
		c.Path, c.Args[0] = link, link
	})
	deploy := func(build string) {
		r.file = filepath.Join(t.TempDir(), "program")
		r.deploy(func(p *plan) { p.Build = build })
		if err := os.Symlink(r.file, link+".new"); err != nil {
			t.Fatal(err)
		}
		if err := os.Rename(link+".new", link); err != nil {
			t.Fatal(err)
		}
	}
	load := r.load(2, traffic.PerRequest, "/")
	load.answered(20)
	deploy("two")
	r.must("restart", 0)
	load.retire("one")
	load.answered(20)
	deploy("three")
	r.kill(r.pid(), syscall.SIGUSR2)
	r.nth("MasterStart", 2)
	r.nth("RestartFinished", 2)
	load.retire("two")
	load.answered(20)
	load.lossless()
	r.stop()
}

// TestTermBeforeRun: a stop that comes while the main function of the next master
// is on its way to Run is a graceful one.
func TestTermBeforeRun(t *testing.T) {
	t.Parallel()
	r := start(t, quick(2))
	ready := filepath.Join(t.TempDir(), "ready")
	r.deploy(func(p *plan) { p.Build, p.WaitBefore = "two", ready })
	slow := r.slow(2, time.Second)
	r.kill(r.pid(), syscall.SIGUSR2)
	r.first("before Run")
	r.kill(r.pid(), syscall.SIGTERM)
	if err := os.WriteFile(ready, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	if status := r.gone(); status != 0 {
		t.Errorf("status %d", status)
	}
	if n := slow(); n < 2 {
		t.Errorf("%d of 2 requests were answered", n)
	}
	r.refused()
}
