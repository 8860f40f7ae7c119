//go:build unix

package prefork

import (
	"bufio"
	"context"
	"flag"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/seed-235859eb/usher/internal/traffic"
	"golang.org/x/sys/unix"
)

// The long form:
//
//	go test ./prefork -run TestManyCrashes -prefork.crashes 1000 -timeout 30m
var manyCrashes = flag.Int("prefork.crashes", 24, "crashes in TestManyCrashes")

// queue dials until at least n connections with a request wait at a seat whose
// worker does not accept, and returns all that were made.
func (r *running) queue(seat, n int) (conns []net.Conn) {
	r.t.Helper()
	for len(conns) < 100*n {
		c, err := net.Dial(r.network, r.addr)
		if err != nil {
			r.t.Fatal(err)
		}
		r.t.Cleanup(func() { c.Close() })
		if _, err := io.WriteString(c, "GET / HTTP/1.1\r\nHost: usher.test\r\nConnection: close\r\n\r\n"); err != nil {
			r.t.Fatal(err)
		}
		conns = append(conns, c)
		if len(conns)%n == 0 && r.stats().Seats[seat].Queued >= n {
			return conns
		}
	}
	r.t.Fatalf("%d connections, and not %d of them wait at seat %d", len(conns), n, seat)
	return nil
}

// answers returns how many of the connections get an answer, and what the
// others get.
func answers(conns []net.Conn) (n int, errs []error) {
	for _, c := range conns {
		c.SetReadDeadline(time.Now().Add(patience))
		resp, err := http.ReadResponse(bufio.NewReader(c), nil)
		if err == nil && resp.StatusCode != http.StatusOK {
			err = fmt.Errorf("status %d", resp.StatusCode)
		}
		if err != nil {
			errs = append(errs, err)
			continue
		}
		n++
	}
	return n, errs
}

// TestQueueOutlivesWorker: kill -9 resets no connection that the worker had not
// accepted, as the master holds its socket, too.
func TestQueueOutlivesWorker(t *testing.T) {
	t.Parallel()
	t.Run("stopped", func(t *testing.T) {
		t.Parallel()
		r := start(t, quick(2))
		pid := r.stats().Seats[1].Workers[0].PID
		r.kill(pid, syscall.SIGSTOP)
		conns := r.queue(1, 20)
		r.kill(pid, syscall.SIGKILL)
		if n, errs := answers(conns); n < len(conns) {
			t.Errorf("%d of %d connections answered: %v", n, len(conns), errs)
		}
		if e := r.exitOfPID(pid); e.Class != ClassKilled || e.Signal != 9 {
			t.Errorf("class %s, signal %d, want killed by 9", e.Class, e.Signal)
		}
		r.stop()
	})
	t.Run("never accepts", func(t *testing.T) {
		t.Parallel()
		r := start(t, quick(2))
		hung := r.get("/hang")
		seat, pid := 0, 0
		fmt.Sscan(hung.Header.Get("X-Seat"), &seat)
		fmt.Sscan(hung.Header.Get("X-Pid"), &pid)
		conns := r.queue(seat, 20)
		r.kill(pid, syscall.SIGKILL)
		// Two had been accepted: one hangs in the accept loop, one came next.
		if n, errs := answers(conns); n < len(conns)-2 {
			t.Errorf("%d of %d connections answered: %v", n, len(conns), errs)
		}
		r.stop()
	})
	t.Run("nobody is left", func(t *testing.T) {
		t.Parallel()
		r := start(t, quick(1))
		pid := r.stats().Seats[0].Workers[0].PID
		r.kill(pid, syscall.SIGSTOP)
		conns := r.queue(0, 20)
		r.kill(pid, syscall.SIGKILL)
		if n, errs := answers(conns); n < len(conns) {
			t.Errorf("%d of %d connections answered: %v", n, len(conns), errs)
		}
		r.stop()
	})
	// What happens without a master that holds the sockets: those of a process
	// that dies are closed, as here.
	t.Run("control", func(t *testing.T) {
		t.Parallel()
		lc := net.ListenConfig{Control: func(_, _ string, rc syscall.RawConn) error {
			var err error
			rc.Control(func(fd uintptr) { err = unix.SetsockoptInt(int(fd), unix.SOL_SOCKET, unix.SO_REUSEPORT, 1) })
			return err
		}}
		first, err := lc.Listen(context.Background(), "tcp", "127.0.0.1:0")
		if err != nil {
			t.Skip(err)
		}
		defer first.Close()
		second, err := lc.Listen(context.Background(), "tcp", first.Addr().String())
		if err != nil {
			t.Skip(err)
		}
		defer second.Close()
		var conns []net.Conn
		for range 100 {
			c, err := net.Dial("tcp", first.Addr().String())
			if err != nil {
				t.Fatal(err)
			}
			defer c.Close()
			conns = append(conns, c)
		}
		second.Close()
		reset := 0
		for _, c := range conns {
			c.SetReadDeadline(time.Now().Add(10 * time.Millisecond)) // the reset came with Close
			if _, err := c.Read(make([]byte, 1)); err != nil && !isTimeout(err) {
				reset++
			}
		}
		t.Logf("%d of 100 connections reset", reset)
		if reset == 0 {
			t.Error("no connection was reset: the tests beside this prove nothing")
		}
	})
}

func isTimeout(err error) bool {
	ne, ok := err.(net.Error)
	return ok && ne.Timeout()
}

// TestRandomKills: kill -9 of a worker every 200 ms costs what runs in it.
func TestRandomKills(t *testing.T) {
	t.Parallel()
	p := quick(4)
	p.MaxCrashes = 1000
	r := start(t, p)
	calm := r.load(4, traffic.PerRequest, "/")
	calm.answered(500)
	calm.lossless()
	load := r.load(4, traffic.PerRequest, "/")
	load.answered(100)
	const kills = 8
	tick := time.NewTicker(200 * time.Millisecond)
	defer tick.Stop()
	for range kills {
		<-tick.C
		var alive []int
		s := r.until("two serve", func(s Stats) bool { return s.Serving >= 2 })
		for _, w := range workersOf(s) {
			if w.State == "serving" {
				alive = append(alive, w.PID)
			}
		}
		syscall.Kill(alive[rand.IntN(len(alive))], syscall.SIGKILL)
	}
	load.answered(500)
	res := load.finish()
	t.Logf("%d kills: %d answered, %d lost; P99 from connect to first byte %v, %v without kills",
		kills, res.Answered, res.Lost, p99(load.waits), p99(calm.waits))
	if res.Refused > 0 || res.Lost > 4*kills {
		t.Errorf("%d refused, %d lost by 4 clients in %d kills: %q", res.Refused, res.Lost, kills, res.Errors)
	}
	if got, limit := p99(load.waits), max(10*p99(calm.waits), 500*time.Millisecond); got > limit {
		t.Errorf("P99 %v, want no more than %v", got, limit)
	}
	r.stop()
}

func p99(d []time.Duration) time.Duration {
	if len(d) == 0 {
		return 0
	}
	slices.Sort(d)
	return d[len(d)*99/100]
}

// TestHungWorker: a worker that takes no connections any more is replaced, and
// its goroutines tell the hook why.
func TestHungWorker(t *testing.T) {
	t.Parallel()
	p := quick(2)
	p.HeartbeatTimeout = 2 * time.Second
	r := start(t, p)
	hung := r.get("/hang")
	seat, pid := 0, 0
	fmt.Sscan(hung.Header.Get("X-Seat"), &seat)
	fmt.Sscan(hung.Header.Get("X-Pid"), &pid)
	conns := r.queue(seat, 5)
	e := r.exitOfPID(pid)
	if e.Class != ClassHung {
		t.Errorf("class %s, want hung", e.Class)
	}
	for _, w := range []string{"SIGQUIT", "goroutine ", "plan.serve.func"} { // that hangs
		if !strings.Contains(e.Output, w) {
			t.Errorf("no %q in the dump: %.500q", w, e.Output)
		}
	}
	if n, errs := answers(conns); n < len(conns)-2 {
		t.Errorf("%d of %d connections answered: %v", n, len(conns), errs)
	}
	if got := r.allServe().Crashes; got != 1 {
		t.Errorf("%d crashes, want 1", got)
	}
	r.stop()
}

// TestHealth: what Options.Health says, or does not say in time, counts.
func TestHealth(t *testing.T) {
	for _, how := range []string{"fail", "hang", "panic"} {
		t.Run(how, func(t *testing.T) {
			t.Parallel()
			p := quick(1)
			p.Health = how
			p.HeartbeatTimeout = 500 * time.Millisecond
			r := launch(t, p)
			if e := r.first("WorkerExit"); e.Class != ClassHung || !strings.Contains(e.Output, "SIGQUIT") {
				t.Errorf("class %s, output %.100q, want hung with a dump", e.Class, e.Output)
			}
		})
	}
}

// TestStoppedWorker: a worker that is stopped (SIGSTOP) while its seat is
// restarted is waited for no longer than the timeouts say, and no old process is
// left when the restart has succeeded.
func TestStoppedWorker(t *testing.T) {
	t.Parallel()
	p := quick(3)
	p.HeartbeatTimeout, p.StopTimeout = 2*time.Second, 2*time.Second
	r := start(t, p)
	load := r.load(4, traffic.PerRequest, "/")
	load.answered(50)
	stopped := r.stats().Seats[1].Workers[0].PID
	r.deploy(func(p *plan) { p.Build = "two" })
	done := r.begin("restart", 0)
	r.find("a new worker", 1, func(e event) bool { return e.Name == "AfterWorkerStart" && e.Generation == 2 })
	r.kill(stopped, syscall.SIGSTOP)
	if e := done(); e.Err != "" {
		t.Fatal(e.Err)
	}
	if err := syscall.Kill(stopped, 0); err == nil {
		t.Error("the stopped worker is still there, and the restart is done")
	}
	load.retire("one")
	load.answered(50)
	res := load.finish()
	if res.Refused > 0 || res.Lost > 4 { // what ran in the one that was killed
		t.Errorf("%d lost, %d refused: %q", res.Lost, res.Refused, res.Errors)
	}
	if load.stale > 0 {
		t.Errorf("%d answers from old code: %v", load.stale, load.builds)
	}
	if e := r.exitOfPID(stopped); e.Signal != 9 {
		t.Errorf("the stopped worker: %s", e.Err)
	}
	r.stop()
}

// TestStoppedMaster: a master that was stopped itself for longer than the
// heartbeat timeout holds nobody else's silence against him (Unicorn has the
// same guard; Puma's wall clock has not).
func TestStoppedMaster(t *testing.T) {
	t.Parallel()
	p := quick(3)
	p.HeartbeatTimeout = time.Second
	r := start(t, p)
	load := r.load(2, traffic.PerRequest, "/")
	load.answered(20)
	before := pidsOf(r.stats())
	r.kill(r.pid(), syscall.SIGSTOP)
	time.Sleep(2 * p.HeartbeatTimeout)
	load.answered(20)
	r.kill(r.pid(), syscall.SIGCONT)
	// Once each has beaten again and serves, nobody can be judged for that time
	// any more.
	r.until("all have beaten", func(s Stats) bool {
		for _, w := range workersOf(s) {
			if w.State != "serving" || w.BeatAge > p.HeartbeatTimeout/2 {
				return false
			}
		}
		return s.Serving == p.Workers
	})
	if after := pidsOf(r.stats()); !slices.Equal(before, after) {
		t.Errorf("workers were %v, are %v", before, after)
	}
	if exits := r.named("WorkerExit"); len(exits) > 0 {
		t.Errorf("%d workers ended, the first: %s", len(exits), exits[0].Err)
	}
	load.lossless()
	r.stop()
}

// TestCrashStorm: more crashes than the budget end the master with an error,
// and closed sockets.
func TestCrashStorm(t *testing.T) {
	t.Parallel()
	p := quick(2)
	p.Dies = &planExit{9, "out of luck"}
	p.MaxCrashes = 6
	r := launch(t, p)
	r.addr = r.first("MasterStart").Addr[0]
	if status := r.gone(); status != 4 {
		t.Errorf("status %d, want that of a GiveUpError", status)
	}
	r.refused()
	r.logged("program: prefork: gave up", "exit status 9", "out of luck")
	if n := len(r.named("WorkerExit")); n < 7 {
		t.Errorf("gave up after %d crashes", n)
	}
}

// TestFirstBootFails: what never serves gives up in the end, and says why.
func TestFirstBootFails(t *testing.T) {
	t.Parallel()
	p := quick(2)
	p.Boot = &planExit{3, "no such table: users"}
	p.FirstBootTimeout = time.Second
	r := launch(t, p)
	r.addr = r.first("MasterStart").Addr[0]
	if status := r.gone(); status != 4 {
		t.Errorf("status %d, want that of a GiveUpError", status)
	}
	r.refused()
	r.logged("program: prefork: gave up", "exit status 3", "no such table: users")
}

// TestFirstBootLate: a service whose database comes late serves when it is there
// (#12: it gave up after three tries, and 0.2 s).
func TestFirstBootLate(t *testing.T) {
	t.Parallel()
	p := quick(1)
	p.Boot, p.BootUntil = &planExit{3, "no database"}, filepath.Join(t.TempDir(), "database")
	r := launch(t, p)
	r.addr = r.first("MasterStart").Addr[0]
	r.nth("WorkerExit", 5)
	if err := os.WriteFile(p.BootUntil, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	r.allServe()
	r.stop()
}

// TestExitClasses: the hook is told how a worker ended, and its last words.
func TestExitClasses(t *testing.T) {
	t.Parallel()
	for _, tt := range []struct {
		name, path string
		class      Class
		code       int
		words      []string
	}{
		{"status", "/exit?n=3", ClassCode, 3, []string{"exit as asked"}},
		{"unasked", "/exit?n=0", ClassClean, 0, []string{"exit as asked"}},
		{"panic", "/panic", ClassCode, 2, []string{"panic: a goroutine panics", "goroutine ", "planApp"}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			r := start(t, quick(1))
			r.get("/stderr?n=200") // more than is kept
			r.try(tt.path)
			e := r.first("WorkerExit")
			if e.Class != tt.class || e.Code != tt.code || !e.WasReady {
				t.Errorf("%+v, want class %s and code %d", e, tt.class, tt.code)
			}
			for _, w := range tt.words {
				if !strings.Contains(e.Output, w) {
					t.Errorf("no %q in the last %d bytes: %.300q", w, len(e.Output), e.Output)
				}
			}
			if len(e.Output) > 2*outputSize {
				t.Errorf("%d bytes of output kept", len(e.Output))
			}
			s := r.allServe()
			if s.Crashes != 1 || s.Seats[0].Restarts != 1 || s.Seats[0].LastClass != tt.class {
				t.Errorf("Stats tell %+v", s)
			}
			r.stop()
		})
	}
}

// TestManyCrashes: workers that come and go leave nothing in the master.
func TestManyCrashes(t *testing.T) {
	t.Parallel()
	p := quick(4)
	p.MaxCrashes = 1 << 20
	r := start(t, p)
	crashes := 0
	round := func() {
		pids := pidsOf(r.allServe())
		for _, pid := range pids {
			r.kill(pid, syscall.SIGKILL)
		}
		for _, pid := range pids {
			r.exitOfPID(pid)
			crashes++
		}
		r.must("restart", 0) // or the pauses between starts would grow
	}
	measure := func() (files, goroutines int) {
		r.allServe()
		return fds(t, r.pid()), r.must("goroutines", 0).Goroutines
	}
	round() // the runtime keeps some things from the first on
	files, goroutines := measure()
	for crashes < *manyCrashes {
		round()
	}
	files2, goroutines2 := measure()
	t.Logf("%d crashes: descriptors %d, then %d; goroutines %d, then %d", crashes, files, files2, goroutines, goroutines2)
	if files2 > files || goroutines2 > goroutines+3 { // commands and hooks under way
		t.Errorf("after %d crashes %d descriptors and %d goroutines, from %d and %d", crashes, files2, goroutines2, files, goroutines)
	}
	for pid, state := range children(t, r.pid()) {
		if state == "Z" {
			t.Errorf("process %d is a zombie", pid)
		}
	}
	if got := r.stats().Crashes; got != uint64(crashes) {
		t.Errorf("%d crashes counted, want %d", got, crashes)
	}
	r.stop()
}
