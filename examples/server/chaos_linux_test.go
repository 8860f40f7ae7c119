package main

import (
	"context"
	"flag"
	"fmt"
	"math/rand/v2"
	"os"
	"strconv"
	"strings"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/seed-235859eb/usher/internal/traffic"
)

// The long form:
//
//	go test ./examples/server -run TestChaos -v -chaos.time 5m -timeout 10m
var (
	chaosTime = flag.Duration("chaos.time", 5*time.Second, "how long TestChaos goes on")
	chaosSeed = flag.Uint64("chaos.seed", 0, "of TestChaos; 0 means any")
)

// TestChaos sends a master and its workers all that an operator could, in any
// order and at any moment: nothing is lost or refused, and it still stops as it
// should. One seed found that SIGTTIN stopped a master for ever that was just
// being replaced.
func TestChaos(t *testing.T) {
	parallel(t)
	seed := *chaosSeed
	if seed == 0 {
		seed = rand.Uint64()
	}
	t.Logf("-chaos.seed %d", seed)
	random := rand.New(rand.NewPCG(seed, 0))
	p := start(t, "-workers", "3")

	var stopping atomic.Bool
	var refused atomic.Int64
	results := make(chan traffic.Result)
	modes := []traffic.Mode{traffic.PerRequest, traffic.KeepAlive, traffic.Think}
	for _, mode := range modes {
		go func() {
			r, err := traffic.Run(context.Background(), traffic.Config{
				Network: "tcp", Addr: p.addr, Clients: 4, Mode: mode,
				Each: func(x *traffic.Exchange) {
					if x.Err != nil && x.Nth == 0 && !stopping.Load() {
						refused.Add(1)
					}
				},
			}, nil)
			if err != nil {
				t.Error(err)
			}
			results <- r
		}()
	}

	var done []string
	workers := 3
	for end := time.Now().Add(*chaosTime); time.Now().Before(end); {
		what := "nothing"
		switch random.IntN(8) {
		case 0, 1:
			what = "SIGHUP"
			p.signal(syscall.SIGHUP)
		case 2:
			what = "SIGUSR2"
			p.signal(syscall.SIGUSR2)
		case 3:
			if workers < 6 {
				what = "SIGTTIN"
				workers++
				p.signal(syscall.SIGTTIN)
			}
		case 4:
			what = "SIGTTOU" // below one worker it does nothing
			workers = max(workers-1, 1)
			p.signal(syscall.SIGTTOU)
		case 5:
			if pids := children(p.cmd.Process.Pid); len(pids) > 0 {
				pid := pids[random.IntN(len(pids))]
				what = fmt.Sprintf("SIGTERM to worker %d", pid)
				syscall.Kill(pid, syscall.SIGTERM)
			}
		case 6:
			what = "SIGSTOP, SIGCONT"
			p.signal(syscall.SIGSTOP)
			time.Sleep(time.Duration(random.IntN(200)) * time.Millisecond)
			p.signal(syscall.SIGCONT)
		}
		done = append(done, what)
		time.Sleep(time.Duration(random.IntN(300)) * time.Millisecond)
	}
	stopping.Store(true)
	p.signal(syscall.SIGTERM)
	answered := 0
	for range modes {
		r := <-results
		answered += r.Answered
		if r.Lost > 0 {
			t.Errorf("%d lost: %v", r.Lost, r.Errors)
		}
	}
	if err := p.wait(); err != nil {
		// SIGTERM to a master that is being replaced ends it, and only that.
		if upgrading, _ := p.find("upgrade: replacing the master"); len(upgrading) == 0 || !strings.Contains(err.Error(), "signal: terminated") {
			t.Errorf("the master ended with %v", err)
		}
	}
	if n := refused.Load(); n > 0 {
		t.Errorf("%d refused", n)
	}
	t.Logf("%d answered; %d actions", answered, len(done))
	if t.Failed() {
		t.Log(strings.Join(done, ", "))
	}
}

// children returns the processes that pid has started.
func children(pid int) (pids []int) {
	b, err := os.ReadFile(fmt.Sprintf("/proc/%d/task/%d/children", pid, pid))
	if err != nil {
		return nil
	}
	for f := range strings.FieldsSeq(string(b)) {
		if n, err := strconv.Atoi(f); err == nil {
			pids = append(pids, n)
		}
	}
	return pids
}
