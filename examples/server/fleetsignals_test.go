//go:build unix

package main

import (
	"bufio"
	"fmt"
	"io"
	"net"
	"net/http"
	"strconv"
	"syscall"
	"testing"
	"time"

	"github.com/seed-235859eb/usher/prefork"
)

// A held request runs in a worker for as long as the test wants: its handler
// reads a body.
type held struct {
	conn net.Conn
	r    *bufio.Reader
	pid  int
}

// hold starts n such requests in each worker.
func (f *fleet) hold(n int) (all []*held) {
	f.t.Helper()
	var workers int
	f.observe(0).await("all serve", func(s prefork.Stats) bool {
		workers = s.Workers
		return s.Serving == s.Workers
	})
	have := map[int]int{}
	for len(all) < n*workers {
		c, err := net.Dial("tcp", f.addr)
		if err != nil {
			f.t.Fatal(err)
		}
		f.t.Cleanup(func() { c.Close() })
		c.SetDeadline(time.Now().Add(patience))
		h := &held{conn: c, r: bufio.NewReader(c)}
		fmt.Fprint(c, "GET / HTTP/1.1\r\nHost: usher.test\r\n\r\n")
		if h.pid, err = h.answer(); err != nil {
			f.t.Fatal(err)
		}
		if have[h.pid] == n {
			c.Close()
			continue
		}
		have[h.pid]++
		fmt.Fprint(c, "POST / HTTP/1.1\r\nHost: usher.test\r\nExpect: 100-continue\r\nContent-Length: 4\r\n\r\n")
		resp, err := http.ReadResponse(h.r, nil)
		if err != nil || resp.StatusCode != http.StatusContinue {
			f.t.Fatalf("the handler does not read: %v, %v", resp, err)
		}
		all = append(all, h)
	}
	return all
}

// answer reads a whole response, and returns who sent it.
func (h *held) answer() (pid int, err error) {
	resp, err := http.ReadResponse(h.r, nil)
	if err != nil {
		return 0, err
	}
	if _, err := io.Copy(io.Discard, resp.Body); err != nil {
		return 0, err
	}
	if resp.StatusCode != 200 {
		return 0, fmt.Errorf("status %d", resp.StatusCode)
	}
	return strconv.Atoi(resp.Header.Get("X-Pid"))
}

// release has them answered, by those who had them, and without a cut.
func (f *fleet) release(all []*held) {
	f.t.Helper()
	for _, h := range all {
		fmt.Fprint(h.conn, "body")
		if pid, err := h.answer(); err != nil || pid != h.pid {
			f.t.Errorf("a request that process %d held was answered by %d, %v", h.pid, pid, err)
		}
		h.conn.Close()
	}
}

// TestFleetSignals: whoever gets a signal, what is running is answered, nobody is
// left behind, and the exit status is as documented.
func TestFleetSignals(t *testing.T) {
	const workers = 4
	draining := func(f *fleet) { f.awaitNth(f.t, workers, "usher: stopping") }
	for _, tt := range []struct {
		name string
		send func(f *fleet)
		want any // exit status
	}{
		{"TERM to the master", func(f *fleet) {
			f.signal(syscall.SIGTERM)
			draining(f)
		}, nil},
		{"TERM to the group", func(f *fleet) {
			f.signalGroup(syscall.SIGTERM)
			draining(f)
		}, nil},
		{"TERM to the group again and again", func(f *fleet) {
			for range 5 {
				f.signalGroup(syscall.SIGTERM)
			}
			draining(f)
			f.signalGroup(syscall.SIGTERM)
		}, nil},
		{"INT to the group", func(f *fleet) {
			f.signalGroup(syscall.SIGINT)
			draining(f)
		}, nil},
		{"TERM, then INT", func(f *fleet) {
			f.signal(syscall.SIGTERM)
			draining(f)
			f.signal(syscall.SIGINT)
			f.await(f.t, "prefork: stopping", "level=2")
		}, nil},
		{"HUP, USR1, USR2, TTIN and TTOU to all workers, then TERM", func(f *fleet) {
			for _, s := range []syscall.Signal{syscall.SIGHUP, syscall.SIGUSR1, syscall.SIGUSR2, syscall.SIGTTIN, syscall.SIGTTOU, syscall.SIGINT} {
				for seat := range workers {
					syscall.Kill(f.workerOf(seat), s)
				}
			}
			f.signal(syscall.SIGTERM)
			draining(f)
			if n, _ := f.find("usher: stopping", "reason=SIGTERM"); len(n) != workers {
				f.t.Errorf("%d workers were stopped by the master, want %d", len(n), workers)
			}
		}, nil},
		{"KILL to the master", func(f *fleet) {
			f.signal(syscall.SIGKILL)
			draining(f)
		}, "signal: killed"},
		{"QUIT to the master", func(f *fleet) {
			f.signal(syscall.SIGQUIT)
			draining(f)
		}, "exit status 2"},
		{"KILL to the master, then TERM to the group", func(f *fleet) {
			f.signal(syscall.SIGKILL)
			draining(f)
			f.signalGroup(syscall.SIGTERM)
		}, "signal: killed"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			parallel(t)
			f := startFleet(t, workers)
			all := f.hold(2)
			tt.send(f)
			// Connects are refused while requests are held.
			awaitRefusal(f.addr)
			f.release(all)
			f.ended(tt.want)
			if n, _ := f.find("prefork: worker started"); len(n) != workers {
				t.Errorf("%d workers were started, want %d", len(n), workers)
			}
		})
	}

	// A third of them, with pauses, is meant: it cuts.
	t.Run("INT three times", func(t *testing.T) {
		parallel(t)
		f := startFleet(t, workers)
		all := f.hold(1)
		for i := range 3 {
			f.signal(syscall.SIGINT)
			f.awaitNth(t, i+1, "prefork: stopping")
		}
		for _, h := range all {
			if pid, err := h.answer(); err == nil {
				t.Errorf("process %d answered before it had read the request", pid)
			}
		}
		f.ended("exit status 1")
	})

	// A worker that somebody stops is replaced: its successor serves first.
	for _, times := range []int{1, 2} {
		t.Run(fmt.Sprintf("TERM to a worker, %d times", times), func(t *testing.T) {
			parallel(t)
			f := startFleet(t, workers, "-latency", "5ms")
			pid := f.workerOf(1)
			all := f.hold(2)
			l := f.load()
			for range times {
				syscall.Kill(pid, syscall.SIGTERM)
			}
			f.awaitNth(t, 2, "prefork: worker serves", "seat=1 generation=1 ")
			f.await(t, "usher: stopping")
			f.release(all)
			f.await(t, `"prefork: worker stopped"`, fmt.Sprintf("seat=1 generation=1 pid=%d", pid))
			l.awaitMore(8 * *fleetClients)
			l.finish(nil)
			f.observe(0).await("all serve", func(s prefork.Stats) bool { return s.Serving == workers && s.Crashes == 0 })
			f.stop()
		})
	}
}
