//go:build unix

package prefork

import (
	"context"
	"fmt"
	"log/slog"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/seed-235859eb/usher/internal/fleet"
	"github.com/seed-235859eb/usher/internal/traffic"
)

// scaled waits until there are n seats, each with one worker.
func (r *running) scaled(n int) Stats {
	r.t.Helper()
	return r.until(fmt.Sprintf("%d seats", n), func(s Stats) bool {
		if s.Workers != n || len(s.Seats) != n || s.Serving != n {
			return false
		}
		for _, seat := range s.Seats {
			if len(seat.Workers) != 1 {
				return false
			}
		}
		return true
	})
}

// TestScale: seats come and go under load, and nobody is lost with the last one.
func TestScale(t *testing.T) {
	t.Parallel()
	r := start(t, quick(2))
	load := r.load(4, traffic.PerRequest, "/")
	slowStart := r.load(4, traffic.SlowStart, "/")
	load.answered(50)
	r.kill(r.pid(), syscall.SIGTTIN)
	r.scaled(3)
	load.answered(50)
	for _, n := range []int{5, 1, 4} {
		r.must("scale", n)
		r.scaled(n)
		load.answered(50)
	}
	// While seats close, and beyond.
	r.must("scale", 2)
	r.must("scale", 3)
	r.deploy(func(p *plan) { p.Build = "two" })
	r.must("restart", 0)
	load.retire("one")
	r.scaled(3)
	r.kill(r.pid(), syscall.SIGTTOU)
	r.scaled(2)
	load.answered(50)
	for _, n := range []int{0, -1, maxWorkers + 1} {
		if e := r.do("scale", n); e.Err == "" {
			t.Errorf("Scale(%d) succeeds", n)
		}
	}
	slowStart.lossless()
	load.lossless()
	for _, e := range r.named("WorkerExit") {
		if e.Class != ClassAsked || e.Code != 0 {
			t.Errorf("a worker left like this: %s", e.Err)
		}
	}
	for range 3 { // one is the least
		r.kill(r.pid(), syscall.SIGTTOU)
		r.scaled(1)
	}
	r.logged("cannot scale", "least=1")
	sockets := map[string]bool{}
	for _, link := range links(t, r.pid()) {
		if strings.HasPrefix(link, "socket:") {
			sockets[link] = true
		}
	}
	if len(sockets) > 3 { // of the seat, of its worker, and of nothing else
		t.Errorf("the master has sockets %v", sockets)
	}
	r.stop()
}

// TestScaleDownQueue: connections that wait at the seat that closes are served
// by others, although its worker takes none.
func TestScaleDownQueue(t *testing.T) {
	t.Parallel()
	p := quick(2)
	p.StopTimeout = time.Second
	r := start(t, p)
	r.kill(r.stats().Seats[1].Workers[0].PID, syscall.SIGSTOP)
	conns := r.queue(1, 20)
	r.must("scale", 1)
	if n, errs := answers(conns); n < len(conns) {
		t.Errorf("%d of %d connections answered: %v", n, len(conns), errs)
	}
	r.scaled(1)
	r.stop()
}

// TestRecycle: workers are replaced after so many requests, the successor first,
// and one at a time.
func TestRecycle(t *testing.T) {
	t.Parallel()
	p := quick(3)
	p.Recycle.Requests = 100
	p.HeartbeatTimeout = 2 * time.Second // each beat tells of requests
	r := start(t, p)
	load := r.load(4, traffic.PerRequest, "/")
	lowest := r.sample()
	r.nth("WorkerExit", 4)
	if n := lowest(); n < 3 {
		t.Errorf("%d workers served at some time", n)
	}
	load.lossless()
	exits := r.named("WorkerExit")
	for _, e := range exits {
		if e.Class != ClassAsked || e.Code != 0 || e.Generation != 1 {
			t.Errorf("a worker left like this: %+v", e)
		}
	}
	// More than one too many were there never: the next comes when one is gone.
	more, most := 0, 0
	for _, e := range r.all(func(e event) bool { return e.Name == "AfterWorkerStart" || e.Name == "WorkerExit" }) {
		if e.Name == "WorkerExit" {
			more--
		} else {
			more++
		}
		most = max(most, more)
	}
	if most > 4 {
		t.Errorf("%d workers at a time, want 4 at most", most)
	}
	if s := r.stats(); s.Requests < 300 || s.Crashes > 0 {
		t.Errorf("%d requests, %d crashes", s.Requests, s.Crashes)
	}
	for _, seat := range []int{-1, 3} {
		if e := r.do("recycle", seat); e.Err == "" {
			t.Errorf("Recycle(%d) succeeds", seat)
		}
	}
	r.stop()
}

// TestRecycleAge, with the same care.
func TestRecycleAge(t *testing.T) {
	t.Parallel()
	p := quick(2)
	p.Recycle.Age = 300 * time.Millisecond
	r := start(t, p)
	load := r.load(2, traffic.KeepAlive, "/")
	r.nth("WorkerExit", 3)
	load.lossless()
	r.kill(r.pid(), syscall.SIGTERM)
	if status := r.gone(); status != 0 {
		t.Errorf("status %d", status)
	}
}

// TestFleetOfThousand: what a worker learns of a fleet has no limit, though more
// than fits into the control socket cannot be sent there at once.
func TestFleetOfThousand(t *testing.T) {
	opts := Options{Workers: maxWorkers, Logger: slog.New(slog.DiscardHandler)}.withDefaults()
	m := newMaster(opts)
	defer m.end()
	m.fleet = fleet.New(m.fleetConfig())
	m.fleet.Start(time.Now())

	ours, theirs, err := socketPair()
	if err != nil {
		t.Fatal(err)
	}
	master, err := newLink(ours)
	if err != nil {
		t.Fatal(err)
	}
	worker, err := newLink(theirs)
	if err != nil {
		t.Fatal(err)
	}
	w := newWorker(t.Context(), opts, 0, 1)
	w.link, w.master = worker, true
	wp := &workerProcess{w: w, link: worker, done: make(chan struct{})}
	wp.wg.Go(wp.listen)
	wp.wg.Go(func() {
		p := &proc{started: &started{link: master}}
		for {
			frames, _, err := master.receive()
			if err != nil {
				return
			}
			for _, f := range frames {
				m.answer(p, f.Ask)
			}
		}
	})
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	s, err := w.Fleet(ctx)
	if err != nil || len(s.Seats) != maxWorkers {
		t.Errorf("%d seats, %v", len(s.Seats), err)
	}
	close(wp.done)
	worker.Close()
	master.Close()
	wp.wg.Wait()
}
