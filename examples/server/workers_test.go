//go:build unix

package main

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/seed-235859eb/usher/internal/traffic"
	"github.com/seed-235859eb/usher/prefork"
)

// The long form, which is that of the incident:
//
//	go test ./examples/server -run TestRestart -v -fleet.workers 24 -fleet.clients 64 -long
var (
	fleetWorkers = flag.Int("fleet.workers", 6, "workers in the tests of restarts")
	fleetClients = flag.Int("fleet.clients", 12, "clients of each kind in these")
)

// builds are servers whose X-Build is the key.
var builds sync.Map

// build returns the program that says that it is build n.
func buildOf(t *testing.T, n int) string {
	t.Helper()
	once, _ := builds.LoadOrStore(n, sync.OnceValues(func() (string, error) { return buildServer(strconv.Itoa(n)) }))
	name, err := once.(func() (string, error))()
	if err != nil {
		t.Fatal(err)
	}
	return name
}

// A fleet is a running master, whose program's file can be changed.
type fleet struct {
	*process
	t    *testing.T
	file string
}

// startFleet starts build 1 with workers.
func startFleet(t *testing.T, workers int, args ...string) *fleet {
	t.Helper()
	f := &fleet{t: t, file: filepath.Join(t.TempDir(), "server")}
	f.deploy(1)
	f.process = startProgram(t, f.file, append([]string{"-workers", strconv.Itoa(workers)}, args...)...)
	return f
}

// deploy renames a build over the program's file.
func (f *fleet) deploy(build int) {
	f.t.Helper()
	next := f.file + ".next"
	if err := os.Link(buildOf(f.t, build), next); err != nil {
		f.t.Fatal(err)
	}
	if err := os.Rename(next, f.file); err != nil {
		f.t.Fatal(err)
	}
}

// awaitRestarted waits for the success of a restart and returns when that was.
func (f *fleet) awaitRestarted(generation int) time.Time {
	f.t.Helper()
	return f.await(f.t, `msg="prefork: restarted"`, fmt.Sprintf("generation=%d", generation)).at
}

// awaitServing waits until a worker of the generation serves a seat.
func (f *fleet) awaitServing(seat, generation int) {
	f.t.Helper()
	f.await(f.t, `msg="prefork: worker serves"`, fmt.Sprintf("seat=%d generation=%d ", seat, generation))
}

// stop stops the fleet gracefully.
func (f *fleet) stop() {
	f.t.Helper()
	f.signal(syscall.SIGTERM)
	f.ended(nil)
}

// ended waits for the end of all processes, of which the master's must be as
// wanted: nil, or what the error must contain.
func (f *fleet) ended(want any) {
	f.t.Helper()
	err := f.wait()
	if want == nil && err != nil || want != nil && (err == nil || !strings.Contains(err.Error(), want.(string))) {
		f.t.Errorf("the master ended with %v, want %v", err, want)
	}
	// Those that it has left are no children of this process, and are waited
	// for by somebody else.
	deadline := time.Now().Add(patience)
	for groupLives(f.cmd.Process.Pid) {
		if time.Now().After(deadline) {
			f.killAll()
			f.t.Fatal("a process is left behind")
		}
		time.Sleep(time.Millisecond)
	}
}

// groupLives reports whether a process group has members other than zombies.
func groupLives(pgid int) bool {
	if syscall.Kill(-pgid, 0) != nil {
		return false
	}
	entries, err := filepath.Glob("/proc/[0-9]*/stat")
	if err != nil || entries == nil {
		return true
	}
	for _, name := range entries {
		stat, _ := os.ReadFile(name)
		// "pid (name) state ppid pgrp …"
		rest := bytes.Fields(stat[bytes.LastIndexByte(stat, ')')+1:])
		if len(rest) > 2 && string(rest[0]) != "Z" && string(rest[2]) == strconv.Itoa(pgid) {
			return true
		}
	}
	return false
}

// observer asks for the fleet's stats, on a connection that it keeps.
type observer struct {
	t    *testing.T
	http *http.Client
	addr string
}

// observe connects to a worker other than the given one.
func (f *fleet) observe(not int) *observer {
	f.t.Helper()
	for {
		o := &observer{t: f.t, addr: f.addr}
		// Who asks a worker that is stopped has to ask another.
		o.http = &http.Client{Timeout: time.Second, Transport: &http.Transport{MaxConnsPerHost: 1}}
		f.t.Cleanup(o.http.CloseIdleConnections)
		if resp, _ := o.get("/"); resp.Header.Get("X-Pid") != strconv.Itoa(not) {
			return o
		}
		o.http.CloseIdleConnections()
	}
}

func (o *observer) get(path string) (*http.Response, []byte) {
	o.t.Helper()
	for deadline := time.Now().Add(patience); ; {
		resp, err := o.http.Get("http://" + o.addr + path)
		if err == nil {
			var b []byte
			b, err = io.ReadAll(resp.Body) // or the connection is not used again
			resp.Body.Close()
			if err == nil {
				return resp, b
			}
		}
		if ne, ok := errors.AsType[net.Error](err); !ok || !ne.Timeout() || time.Now().After(deadline) {
			o.t.Fatal(err)
		}
	}
}

// stats returns what /stats says of the fleet.
func (o *observer) stats() prefork.Stats {
	o.t.Helper()
	_, b := o.get("/stats")
	var all struct{ Fleet *prefork.Stats }
	if err := json.Unmarshal(b, &all); err != nil {
		o.t.Fatal(err)
	}
	if all.Fleet == nil {
		o.t.Fatal("/stats does not show the fleet")
	}
	return *all.Fleet
}

// await asks until ok says so, and closes the connection: a worker that drains
// would wait for it.
func (o *observer) await(what string, ok func(s prefork.Stats) bool) prefork.Stats {
	o.t.Helper()
	defer o.http.CloseIdleConnections()
	for deadline := time.Now().Add(patience); ; {
		s := o.stats()
		if ok(s) {
			return s
		}
		if time.Now().After(deadline) {
			o.t.Fatalf("never %s: %+v", what, s)
		}
		time.Sleep(5 * time.Millisecond)
	}
}

// workerOf returns the ID of the process that serves a seat.
func (f *fleet) workerOf(seat int) int {
	f.t.Helper()
	return f.generationOf(seat, 0)
}

// generationOf is workerOf, of a generation.
func (f *fleet) generationOf(seat, generation int) (pid int) {
	f.t.Helper()
	f.observe(0).await("such a worker", func(s prefork.Stats) bool {
		for _, w := range s.Seats[seat].Workers {
			if w.State == "serving" && (generation == 0 || w.Generation == generation) {
				pid = w.PID
			}
		}
		return pid > 0
	})
	return pid
}

// A sample is a request as its client saw it.
type sample struct {
	traffic.Exchange
	pid, generation, build string // who answered
	before                 string // who answered the one before on the connection
}

func (s sample) String() string {
	return fmt.Sprintf("request %d of a connection (before it: %q), began %s, ended %s: %v", s.Nth, s.before,
		s.Began.Format("05.000"), s.Ended.Format("05.000"), s.Err)
}

// A load is many clients that go on, whatever happens.
type load struct {
	t    *testing.T
	stop context.CancelFunc
	wg   sync.WaitGroup

	mu      sync.Mutex
	samples []sample
	more    chan struct{} // closed with the next one
}

// load starts clients: half of them dial for each request.
func (f *fleet) load(modes ...traffic.Mode) *load {
	ctx, stop := context.WithCancel(context.Background())
	l := &load{t: f.t, stop: stop, more: make(chan struct{})}
	if len(modes) == 0 {
		modes = []traffic.Mode{traffic.PerRequest, traffic.KeepAlive}
	}
	for _, mode := range modes {
		cfg := traffic.Config{Network: "tcp", Addr: f.addr, Mode: mode}
		for range *fleetClients {
			l.wg.Go(func() { l.client(ctx, cfg) })
		}
	}
	f.t.Cleanup(func() { stop(); l.wg.Wait() })
	l.awaitMore(2 * len(modes) * *fleetClients)
	return l
}

func (l *load) client(ctx context.Context, cfg traffic.Config) {
	for ctx.Err() == nil {
		s := sample{Exchange: traffic.Exchange{Began: time.Now()}}
		c, err := traffic.Dial(cfg, s.Began.Add(patience))
		if err != nil {
			s.Ended, s.Err = time.Now(), err
			l.add(s)
			return
		}
		for again := true; again && ctx.Err() == nil; {
			again = c.Do(&s.Exchange, time.Now().Add(patience)) && cfg.Mode == traffic.KeepAlive
			s.pid, s.generation, s.build = s.Header.Get("X-Pid"), s.Header.Get("X-Generation"), s.Header.Get("X-Build")
			s.Header = nil
			l.add(s)
			s = sample{before: s.pid}
		}
		c.Close()
	}
}

func (l *load) add(s sample) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.samples = append(l.samples, s)
	close(l.more)
	l.more = make(chan struct{})
}

// awaitMore waits for n more answers.
func (l *load) awaitMore(n int) {
	l.t.Helper()
	deadline := time.After(patience)
	target := -1
	for {
		l.mu.Lock()
		got, more := len(l.samples), l.more
		l.mu.Unlock()
		if target < 0 {
			target = got + n
		}
		if got >= target {
			return
		}
		select {
		case <-more:
		case <-deadline:
			l.t.Fatal("nobody is answered any more")
		}
	}
}

// finish ends the load, and reports all that were lost or refused without an
// excuse.
func (l *load) finish(excuse func(s sample) bool) []sample {
	l.t.Helper()
	l.stop()
	l.wg.Wait()
	bad, excused := 0, 0
	for _, s := range l.samples {
		switch {
		case s.Err == nil && s.Status == 200:
		case s.Nth > 0 && excuse != nil && excuse(s):
			excused++
		default:
			if bad++; bad <= 5 {
				l.t.Errorf("status %d, %v", s.Status, s)
			}
		}
	}
	if bad > 0 {
		l.t.Errorf("%d of %d requests were lost or refused", bad, len(l.samples))
	}
	l.t.Logf("%d requests, %d lost or refused, %d more lost with a worker that was killed", len(l.samples), bad, excused)
	return l.samples
}

// checkBuilds reports all requests that began between two moments and were
// answered by another build or generation. A zero time is no bound.
func checkBuilds(t *testing.T, samples []sample, from, to time.Time, generation, build int) {
	t.Helper()
	n, bad := 0, 0
	for _, s := range samples {
		if s.Err != nil || s.Began.Before(from) || !to.IsZero() && s.Ended.After(to) {
			continue
		}
		n++
		if s.build == strconv.Itoa(build) && s.generation == strconv.Itoa(generation) {
			continue
		}
		if bad++; bad <= 5 {
			t.Errorf("%v after it should have been over, build %s of generation %s answered (process %s)", s.Began.Sub(from), s.build, s.generation, s.pid)
		}
	}
	if n == 0 {
		t.Errorf("no request began while all is of build %d", build)
	}
	if bad > 0 {
		t.Errorf("%d of %d answers are not of build %d, generation %d", bad, n, build, generation)
	}
}

// halt stops a process (SIGSTOP), and returns when it has, and when that was.
func halt(t *testing.T, pid int) time.Time {
	t.Helper()
	if _, err := os.Stat("/proc/self/task"); err != nil {
		t.Skip("cannot see here whether a process has stopped")
	}
	if err := syscall.Kill(pid, syscall.SIGSTOP); err != nil {
		t.Fatal(err)
	}
	deadline := time.Now().Add(patience)
	for running := true; running; {
		running = false
		tasks, _ := filepath.Glob(fmt.Sprintf("/proc/%d/task/*/stat", pid))
		for _, name := range tasks {
			stat, _ := os.ReadFile(name)
			rest := bytes.Fields(stat[bytes.LastIndexByte(stat, ')')+1:])
			running = running || len(rest) > 0 && string(rest[0]) != "T"
		}
		if time.Now().After(deadline) {
			t.Fatalf("process %d does not stop", pid)
		}
	}
	return time.Now()
}

// killAccepting kills a worker that has stopped accepting, once connections
// wait in its seat's queue, and returns the bounds of the time in which all that
// was begun was not in its hands.
func (f *fleet) killWithQueue(seat, pid int) (halted, killed time.Time) {
	f.t.Helper()
	o := f.observe(pid)
	halted = halt(f.t, pid)
	o.await("a queue", func(s prefork.Stats) bool { return s.Seats[seat].Queued >= *fleetClients/2 })
	killed = time.Now()
	if err := syscall.Kill(pid, syscall.SIGKILL); err != nil {
		f.t.Fatal(err)
	}
	return halted, killed
}

// heldBy excuses what was lost in a worker that was killed: what was begun
// before it stopped, and what was sent on a connection that it had.
func heldBy(pid int, halted time.Time) func(s sample) bool {
	return func(s sample) bool { return s.Began.Before(halted) || s.before == strconv.Itoa(pid) }
}

// queued counts requests that waited in the queue of a worker while it was
// killed.
func queued(samples []sample, halted, killed time.Time) (n int) {
	for _, s := range samples {
		if s.Nth == 1 && s.Began.After(halted) && s.Began.Before(killed) && s.Ended.After(killed) && s.Err == nil {
			n++
		}
	}
	return n
}

// TestRestart is the incident of the stale code: once a restart has reported
// success, not one response comes from the code before it. And nothing is lost,
// nor refused, on the way.
func TestRestart(t *testing.T) {
	// Load that leaves the machine time for the workers' starts.
	args := []string{"-latency", "10ms"}

	t.Run("three in a row", func(t *testing.T) {
		parallel(t)
		f := startFleet(t, *fleetWorkers, args...)
		l := f.load()
		var done []time.Time
		for i, sig := range []syscall.Signal{syscall.SIGHUP, syscall.SIGUSR1, syscall.SIGHUP} {
			f.deploy(i + 2)
			f.signal(sig)
			f.alwaysServing(i + 2)
			done = append(done, f.awaitRestarted(i+2))
			l.awaitMore(8 * *fleetClients)
		}
		samples := l.finish(nil)
		for i, from := range done {
			var to time.Time
			if i+1 < len(done) {
				lines, _ := f.find("prefork: phased restart")
				to = lines[i+1].at
			}
			checkBuilds(t, samples, from, to, i+2, i+2)
		}
		f.stop()
	})

	// What comes back is of the generation that serves, also when other code has
	// been put in its place already.
	t.Run("seat 0 killed before", func(t *testing.T) {
		parallel(t)
		f := startFleet(t, *fleetWorkers, args...)
		l := f.load()
		f.deploy(2)
		pid := f.workerOf(0)
		halted, killed := f.killWithQueue(0, pid)
		f.awaitNth(t, 2, "prefork: worker serves", "seat=0 generation=1 ")
		back := f.awaitNth(t, 2, "prefork: worker serves", "seat=0 generation=1 ").at
		l.awaitMore(8 * *fleetClients)
		f.signal(syscall.SIGHUP)
		began := f.await(t, "prefork: phased restart").at
		done := f.awaitRestarted(2)
		l.awaitMore(8 * *fleetClients)
		samples := l.finish(heldBy(pid, halted))
		if queued(samples, halted, killed) == 0 {
			t.Error("nobody waited in the queue of the worker that was killed")
		}
		checkBuilds(t, samples, back, began, 1, 1)
		checkBuilds(t, samples, done, time.Time{}, 2, 2)
		f.stop()
	})

	// Each worker of seat 0 is killed as soon as it serves, while the others
	// are being replaced.
	t.Run("seat 0 killed during", func(t *testing.T) {
		parallel(t)
		f := startFleet(t, *fleetWorkers, args...)
		l := f.load()
		f.deploy(2)
		f.signal(syscall.SIGHUP)
		f.awaitServing(0, 2)
		first := f.generationOf(0, 2)
		halted, killed := f.killWithQueue(0, first)
		f.awaitServing(1, 2)
		second := f.generationOf(0, 2)
		halted2, killed2 := f.killWithQueue(0, second)
		done := f.awaitRestarted(2)
		l.awaitMore(8 * *fleetClients)
		samples := l.finish(func(s sample) bool { return heldBy(first, halted)(s) || heldBy(second, halted2)(s) })
		if queued(samples, halted, killed) == 0 || queued(samples, halted2, killed2) == 0 {
			t.Error("nobody waited in the queue of a worker that was killed")
		}
		checkBuilds(t, samples, done, time.Time{}, 2, 2)
		f.stop()
	})

	// As long as an old process exists, even one that does nothing, no success
	// is reported.
	t.Run("a worker stopped and continued", func(t *testing.T) {
		parallel(t)
		f := startFleet(t, *fleetWorkers, args...)
		l := f.load()
		last := *fleetWorkers - 1
		pid := f.workerOf(last)
		halt(t, pid)
		f.deploy(2)
		f.signal(syscall.SIGUSR1)
		f.awaitServing(last, 2)
		f.observe(pid).await("all of generation 2", func(s prefork.Stats) bool { return s.Generation == 2 && !s.Restarting })
		if err := syscall.Kill(pid, syscall.SIGCONT); err != nil {
			t.Fatal(err)
		}
		done := f.awaitRestarted(2)
		l.awaitMore(8 * *fleetClients)
		checkBuilds(t, l.finish(nil), done, time.Time{}, 2, 2)
		f.inOrder(fmt.Sprintf("seat=%d generation=2 ", last), fmt.Sprintf(`"prefork: worker stopped" master=%d seat=%d generation=1 pid=%d`, f.cmd.Process.Pid, last, pid), `"prefork: restarted"`)
		f.stop()
	})

	// One that never continues is killed, with what it holds.
	t.Run("a worker stopped for good", func(t *testing.T) {
		parallel(t)
		f := startFleet(t, *fleetWorkers, append(args, "-grace", "1s", "-idle-grace", "500ms")...)
		l := f.load()
		pid := f.workerOf(1)
		halted := halt(t, pid)
		f.deploy(2)
		f.signal(syscall.SIGHUP)
		done := f.awaitRestarted(2)
		l.awaitMore(8 * *fleetClients)
		checkBuilds(t, l.finish(heldBy(pid, halted)), done, time.Time{}, 2, 2)
		f.inOrder("prefork: killing a worker", fmt.Sprintf(`"prefork: worker is gone" master=%d seat=1 generation=1 pid=%d`, f.cmd.Process.Pid, pid), `"prefork: restarted"`)
		f.stop()
	})
}

// alwaysServing watches a restart, in which there are never fewer workers that
// serve than before.
func (f *fleet) alwaysServing(generation int) {
	f.t.Helper()
	seen := 0
	f.observe(0).await("restarted", func(s prefork.Stats) bool {
		if s.Serving < s.Workers {
			f.t.Errorf("%d of %d workers serve", s.Serving, s.Workers)
		}
		if s.Restarting {
			seen++
		}
		return s.Generation == generation
	})
	if seen == 0 {
		f.t.Error("the restart was not seen")
	}
}

// inOrder checks that the log says these, one after the other.
func (f *fleet) inOrder(lines ...string) {
	f.t.Helper()
	log := f.output()
	for _, line := range lines {
		i := strings.Index(log, line)
		if i < 0 {
			f.t.Errorf("the log does not say %q, or too early", line)
			return
		}
		log = log[i:]
	}
}
