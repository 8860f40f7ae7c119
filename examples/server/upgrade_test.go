//go:build unix

package main

import (
	"encoding/json"
	"os"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/seed-235859eb/usher/internal/traffic"
	"github.com/seed-235859eb/usher/prefork"
)

// TestUpgrade replaces the master, too: the process stays, and nobody notices.
func TestUpgrade(t *testing.T) {
	parallel(t)
	f := startFleet(t, 4, "-latency", "10ms")
	all := f.hold(1)
	l := f.load()
	var done time.Time
	for generation := 2; generation <= 3; generation++ {
		f.deploy(generation)
		f.signal(syscall.SIGUSR2)
		f.awaitNth(t, generation-1, "prefork: master replaced", "pid="+strconv.Itoa(f.cmd.Process.Pid)+" ")
		if generation == 2 {
			// They were begun under the first master.
			f.awaitServing(3, 2)
			f.release(all)
		}
		done = f.awaitRestarted(generation)
		f.observe(0).await("all serve", func(s prefork.Stats) bool {
			if s.PID != f.cmd.Process.Pid {
				t.Errorf("the master is %d, not %d", s.PID, f.cmd.Process.Pid)
			}
			return s.Serving == 4 && s.Generation == generation
		})
		l.awaitMore(8 * *fleetClients)
	}
	checkBuilds(t, l.finish(nil), done, time.Time{}, 3, 3)
	// Exit statuses of those who had another master are still collected.
	stopped, _ := f.find("prefork: worker stopped", "generation=1 ")
	if len(stopped) != 4 {
		t.Errorf("the end of %d workers of the first generation was seen, want 4", len(stopped))
	}
	for _, pid := range startedIn(f, 1) {
		if err := syscall.Kill(pid, 0); err == nil {
			t.Errorf("worker %d is a zombie, or alive", pid)
		}
	}
	f.stop()
}

// startedIn returns the IDs of the workers of a generation.
func startedIn(f *fleet, generation int) (pids []int) {
	lines, _ := f.find("prefork: worker started", "generation="+strconv.Itoa(generation)+" ")
	for _, line := range lines {
		_, pid, _ := strings.Cut(strings.TrimSpace(line.text), "pid=")
		n, err := strconv.Atoi(pid)
		if err != nil {
			f.t.Fatal(err)
		}
		pids = append(pids, n)
	}
	return pids
}

// TestUpgradeBroken: a program that does not come as far as it should changes
// nothing.
func TestUpgradeBroken(t *testing.T) {
	parallel(t)
	f := startFleet(t, 2, "-latency", "10ms")
	l := f.load()
	before := f.pids()
	for i, program := range []string{
		"not a program",
		"#!/bin/sh\necho does not start >&2\nexit 3\n",
		"#!/bin/sh\nexit 0\n",
	} {
		f.install(program)
		f.signal(syscall.SIGUSR2)
		line := f.awaitNth(t, i+1, "prefork: upgrade failed, nothing has changed")
		if !strings.Contains(line.text, "level=ERROR") {
			t.Errorf("not an error: %s", line.text)
		}
		if i == 1 && !strings.Contains(line.text, "does not start") {
			t.Errorf("does not say what the program said: %s", line.text)
		}
		l.awaitMore(2 * *fleetClients)
	}
	if after := f.pids(); !slices.Equal(before, after) {
		t.Errorf("workers before: %v, after: %v", before, after)
	}
	checkBuilds(t, l.finish(nil), time.Time{}, time.Time{}, 1, 1)
	f.stop()
}

// pids returns the IDs of all workers.
func (f *fleet) pids() (pids []int) {
	f.t.Helper()
	f.observe(0).await("all serve", func(s prefork.Stats) bool {
		pids = nil
		for _, seat := range s.Seats {
			for _, w := range seat.Workers {
				pids = append(pids, w.PID)
			}
		}
		return s.Serving == s.Workers
	})
	return pids
}

// install makes a script the program.
func (f *fleet) install(program string) {
	f.t.Helper()
	next := f.file + ".next"
	// A child must not be born while this is open for writing.
	syscall.ForkLock.RLock()
	err := os.WriteFile(next, []byte(program), 0o755)
	syscall.ForkLock.RUnlock()
	if err != nil {
		f.t.Fatal(err)
	}
	if err := os.Rename(next, f.file); err != nil {
		f.t.Fatal(err)
	}
}

// TestScale has workers more and fewer under load, down to one.
func TestScale(t *testing.T) {
	parallel(t)
	f := startFleet(t, 2, "-latency", "10ms")
	l := f.load(traffic.PerRequest, traffic.KeepAlive, traffic.Think)
	n := 2
	for _, s := range []syscall.Signal{
		syscall.SIGTTIN, syscall.SIGTTIN, syscall.SIGTTOU, syscall.SIGTTIN, syscall.SIGTTOU, syscall.SIGTTOU, syscall.SIGTTOU,
	} {
		if n--; s == syscall.SIGTTIN {
			n += 2
		}
		f.signal(s)
		f.observe(0).await("scaled", func(s prefork.Stats) bool {
			return s.Workers == n && s.Serving == n && len(s.Seats) == n
		})
		l.awaitMore(4 * *fleetClients)
	}
	// There is always one.
	f.signal(syscall.SIGTTOU)
	f.await(t, "prefork: cannot scale")
	l.awaitMore(4 * *fleetClients)
	l.finish(nil)
	f.stop()
}

// TestFleetStats: what /stats says of the fleet.
func TestFleetStats(t *testing.T) {
	parallel(t)
	f := startFleet(t, 2)
	all := f.hold(2)
	pid := all[0].pid
	// The workers' numbers come with their heartbeats.
	s := f.observe(0).await("what is held", func(s prefork.Stats) bool {
		n := 0
		for _, seat := range s.Seats {
			for _, w := range seat.Workers {
				n += w.InFlight
			}
		}
		return n >= 4
	})
	if s.PID != f.cmd.Process.Pid || s.UpFor <= 0 || s.Generation != 1 || s.Restarting || s.Stopping || s.Workers != 2 || s.Serving != 2 || len(s.Seats) != 2 {
		t.Errorf("%+v", s)
	}
	if s.Requests < 4 || s.Accepted < 4 || s.Crashes != 0 {
		t.Errorf("totals: %+v", s)
	}
	for i, seat := range s.Seats {
		if seat.Seat != i || seat.Generation != 1 || len(seat.Workers) != 1 || seat.Closing || seat.Restarts != 0 {
			t.Errorf("seat %d: %+v", i, seat)
			continue
		}
		w := seat.Workers[0]
		if w.Seat != i || w.Generation != 1 || w.PID == 0 || w.State != "serving" || w.Age <= 0 || w.StateFor <= 0 || !w.Progress || w.Requests < 2 || w.Accepted < 2 || w.InFlight < 2 || w.Open < 2 {
			t.Errorf("worker of seat %d: %+v", i, w)
		}
	}
	syscall.Kill(pid, syscall.SIGKILL)
	after := f.observe(pid).await("the crash", func(s prefork.Stats) bool { return s.Crashes == 1 && s.Serving == 2 })
	if after.Requests < s.Requests || after.Accepted < s.Accepted {
		t.Errorf("totals fell: %d to %d, %d to %d", s.Requests, after.Requests, s.Accepted, after.Accepted)
	}
	crashed := slices.IndexFunc(after.Seats, func(seat prefork.SeatStats) bool { return seat.Restarts == 1 })
	if crashed < 0 || after.Seats[crashed].LastClass != prefork.ClassKilled || !strings.Contains(after.Seats[crashed].LastExit, strconv.Itoa(pid)) {
		t.Errorf("the crash: %+v", after.Seats)
	}

	f.release(slices.DeleteFunc(all, func(h *held) bool { return h.pid == pid }))

	// The names that others read.
	_, body := get(t, f.addr, "/stats")
	var raw struct {
		Fleet map[string]any
	}
	if err := json.Unmarshal([]byte(body), &raw); err != nil {
		t.Fatal(err)
	}
	for _, name := range []string{"pid", "up_ns", "generation", "workers", "serving", "requests", "accepted", "crashes", "seats"} {
		if raw.Fleet[name] == nil {
			t.Errorf("fleet.%s is not there: %v", name, raw.Fleet)
		}
	}
	f.stop()
}
