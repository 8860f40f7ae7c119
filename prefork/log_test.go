//go:build unix

package prefork

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/seed-235859eb/usher/internal/traffic"
)

// fillLog has nobody read the log, and workers and master write so much that it
// takes no more.
func (r *running) fillLog() {
	r.t.Helper()
	r.pauseLog()
	r.get("/stderr?n=256") // more than the pipe holds, and a reader has buffered
}

// TestNobodyReadsTheLog: a fleet whose log nobody reads serves, replaces who
// dies, restarts, scales and stops like any other (#12: it did none of these).
func TestNobodyReadsTheLog(t *testing.T) {
	t.Parallel()
	p := quick(3)
	p.HeartbeatTimeout = time.Second
	r := start(t, p)
	r.fillLog()
	load := r.load(2, traffic.PerRequest, "/")
	killed := r.stats().Seats[0].Workers[0].PID
	r.kill(killed, syscall.SIGSTOP) // so that nobody is in it
	r.kill(killed, syscall.SIGKILL)
	r.exitOfPID(killed)
	r.allServe()
	r.kill(r.pid(), syscall.SIGHUP)
	r.first("RestartFinished")
	r.kill(r.pid(), syscall.SIGTTIN)
	r.until("four serve", func(s Stats) bool { return s.Serving == 4 })
	for _, e := range r.named("WorkerExit") {
		if e.PID != killed && e.Class != ClassAsked {
			t.Errorf("a worker left like this: %s", e.Err)
		}
	}
	load.answered(20)
	if res := load.finish(); res.Refused > 0 || res.Lost > 2 { // what ran in the one that was killed
		t.Errorf("%d lost, %d refused: %q", res.Lost, res.Refused, res.Errors)
	}
	r.kill(r.pid(), syscall.SIGTERM)
	select {
	case err := <-r.status:
		if err != nil {
			t.Errorf("after SIGTERM: %v", err)
		}
	case <-time.After(patience):
		t.Fatal("the master does not end")
	}
	r.resumeLog()
	select {
	case <-r.left:
	case <-time.After(patience):
		t.Fatal("the master has left processes behind")
	}
}

// TestDroppedLines: what nobody read in time is counted, and the log goes on.
func TestDroppedLines(t *testing.T) {
	t.Parallel()
	r := start(t, quick(1))
	r.pauseLog()
	r.get("/stderr?n=4096") // more than waits
	r.resumeLog()
	r.logged("prefork: ", "log lines were dropped")
	r.get("/lines?who=w0&n=1")
	r.logged("line w0 0 3000")
	r.stop()
}

// TestMasterDiesNobodyReads: the workers of a master that was killed leave, also
// if nobody reads their log.
func TestMasterDiesNobodyReads(t *testing.T) {
	t.Parallel()
	p := quick(2)
	p.StopTimeout = time.Second
	p.LogAtEnd = true // main writes to standard error at its end
	r := start(t, p)
	workers := pidsOf(r.stats())
	r.fillLog()
	r.kill(r.pid(), syscall.SIGKILL)
	r.ended(workers)
	r.resumeLog()
	r.gone()
}

// TestWholeLines: what a worker writes as one line comes out as one, whatever
// others write at the time.
func TestWholeLines(t *testing.T) {
	t.Parallel()
	const workers, n = 4, 300
	r := start(t, quick(workers))
	var writing sync.WaitGroup
	for seat := range workers {
		writing.Go(func() { r.try(fmt.Sprintf("/lines?who=w%d&n=%d", seat, n)) }) // to some of the workers
	}
	writing.Wait()
	r.stop() // after which all has been read
	want := map[string]int{}
	for seat := range workers {
		for i := range n {
			for _, size := range lineSizes {
				want[lineOf(fmt.Sprintf("w%d", seat), i, size)]++
			}
		}
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	torn, dropped := 0, 0
	for _, line := range r.log {
		switch {
		case want[line] > 0:
			want[line]--
		case strings.Contains(line, "xxx"):
			if torn++; torn < 5 {
				t.Errorf("torn: %.60q…, %d bytes", line, len(line))
			}
		case strings.HasPrefix(line, "prefork: "): // this test may read too slowly
			n := 0
			fmt.Sscanf(line, "prefork: %d log lines were dropped", &n)
			dropped += n
		}
	}
	missing := 0
	for _, left := range want {
		missing += left
	}
	if missing > dropped || torn > 0 {
		t.Errorf("%d of %d lines missing, %d dropped, %d torn", missing, len(want), dropped, torn)
	}
}

// TestHelperOutlivesWorker: a process that a worker has started writes to standard
// error when its worker has left, and is heard, also across an upgrade.
func TestHelperOutlivesWorker(t *testing.T) {
	for _, how := range []string{"restart", "restart and upgrade"} {
		t.Run(how, func(t *testing.T) {
			t.Parallel()
			r := start(t, quick(1))
			file := filepath.Join(t.TempDir(), "speak")
			old := r.get("/helper?file=" + file).Header.Get("X-Pid")
			r.must("restart", 0)
			pid := 0
			fmt.Sscan(old, &pid)
			r.exitOfPID(pid)
			if how != "restart" {
				r.kill(r.pid(), syscall.SIGUSR2)
				r.nth("MasterStart", 2)
				r.nth("RestartFinished", 2)
			}
			if err := os.WriteFile(file, nil, 0o600); err != nil {
				t.Fatal(err)
			}
			r.logged("helper speaks")
			r.logged("helper speaks again")
			r.allServe()
			files := fds(t, r.pid())
			r.must("restart", 0)
			if after := fds(t, r.pid()); after > files {
				t.Errorf("%d descriptors, then %d", files, after)
			}
			r.stop()
		})
	}
}

// TestWhoSpeaks: each line of the fleet's log says who it is from, and gives the
// reason of what happens.
func TestWhoSpeaks(t *testing.T) {
	t.Parallel()
	r := start(t, quick(2))
	first := r.stats().Seats[1].Workers[0].PID
	r.must("restart", 0)
	second := r.stats().Seats[1].Workers[0].PID
	r.must("scale", 1)
	r.exitOfPID(second)
	third := r.stats().Seats[0].Workers[0].PID
	r.stop()
	r.logged("reason=restart", "seat=1 generation=1 pid="+fmt.Sprint(first))
	r.logged("reason=scale", "seat=1 generation=2 pid="+fmt.Sprint(second))
	r.logged("reason=SIGTERM", "seat=0 generation=2 pid="+fmt.Sprint(third))
	r.mu.Lock()
	defer r.mu.Unlock()
	for _, line := range r.log {
		master := strings.Contains(line, fmt.Sprintf(" master=%d", r.cmd.Process.Pid))
		worker := strings.Contains(line, " seat=") && strings.Contains(line, " generation=") && strings.Contains(line, " pid=")
		if strings.HasPrefix(line, "time=") && !master && !worker {
			t.Errorf("who says: %s", line)
		}
	}
}
