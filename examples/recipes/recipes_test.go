//go:build unix

package recipes

import (
	"context"
	"fmt"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/seed-235859eb/usher/internal/process"
	"github.com/seed-235859eb/usher/internal/traffic"
)

const (
	clients = 32
	// patience is far above what anything here takes.
	patience = time.Minute
)

// programs is the folder of those that TestMain has built.
var programs string

func TestMain(m *testing.M) { os.Exit(run(m)) }

func run(m *testing.M) int {
	dir, err := os.MkdirTemp("", "usher-recipes-*")
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	defer os.RemoveAll(dir)
	if out, err := exec.Command("go", "build", "-o", dir+string(filepath.Separator), "./...").CombinedOutput(); err != nil {
		fmt.Fprintf(os.Stderr, "go build: %v\n%s", err, out)
		return 1
	}
	programs = dir
	return m.Run()
}

// start starts a program, and stops it when the test ends.
func start(t *testing.T, name string, env ...string) *process.Process {
	t.Helper()
	addr := reserve(t)
	p, err := process.Start(t.Context(), process.Spec{
		Path: filepath.Join(programs, name), Addr: addr, Env: append(env, "ADDR="+addr),
	})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		p.Kill()
		if t.Failed() {
			t.Logf("%s says:\n%s", name, p.Output())
		}
	})
	return p
}

// reserve returns an address to listen on.
func reserve(t *testing.T) string {
	t.Helper()
	addr, release, err := process.Reserve()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(release)
	return addr
}

// A tally is what became of requests: answered, lost, or refused because the
// server was gone.
type tally struct {
	answered, refused atomic.Int64
	lost              atomic.Int64

	mu  sync.Mutex
	err error // the first of those that were lost
}

func (n *tally) lose(err error) {
	n.lost.Add(1)
	n.mu.Lock()
	defer n.mu.Unlock()
	if n.err == nil {
		n.err = err
	}
}

// stopUnderLoad has clients ask, each with ask again and again until it reports
// that there is no more to ask, and tells the program to stop when they have
// been answered often enough. Nothing is to be lost, and the program is to end
// well.
func stopUnderLoad(t *testing.T, p *process.Process, newClient func(*tally) (ask func() bool)) {
	t.Helper()
	var n tally
	stop := sync.OnceFunc(func() { p.Signal(syscall.SIGTERM) })
	var all []func() bool
	for range clients {
		all = append(all, newClient(&n))
	}
	var wg sync.WaitGroup
	for _, ask := range all {
		wg.Go(func() {
			for ask() {
				if n.answered.Load() >= 10*clients {
					stop()
				}
			}
		})
	}
	wg.Wait()
	if n.answered.Load() < 10*clients {
		t.Errorf("%d were answered before it was told to stop", n.answered.Load())
	}
	if err := p.Stop(); err != nil {
		t.Error(err)
	}
	if n.lost.Load() > 0 {
		t.Errorf("lost %d of %d: %v", n.lost.Load(), n.lost.Load()+n.answered.Load(), n.err)
	}
	t.Logf("%d answered, %d refused", n.answered.Load(), n.refused.Load())
}

// stopUnderHTTP does the same with HTTP/1 clients of some kinds, each of which
// gets a program of its own.
func stopUnderHTTP(t *testing.T, start func(t *testing.T) *process.Process, cfg traffic.Config) {
	for _, m := range []traffic.Mode{traffic.PerRequest, traffic.KeepAlive, traffic.Think} {
		t.Run(m.String(), func(t *testing.T) {
			p := start(t)
			r := load(t, p, m, cfg)
			if r.Lost > 0 {
				t.Errorf("lost %d of %d: %v", r.Lost, r.Lost+r.Answered, r.Errors)
			}
			if err := p.Stop(); err != nil {
				t.Error(err)
			}
			t.Logf("%d answered, %d refused", r.Answered, r.Refused)
		})
	}
}

// load puts load on a program, and tells it to stop on the way.
func load(t *testing.T, p *process.Process, m traffic.Mode, cfg traffic.Config) traffic.Result {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	cfg.Network, cfg.Addr, cfg.Clients, cfg.Mode = "tcp", p.Addr, clients, m
	var answered atomic.Int64
	r, err := traffic.Run(ctx, cfg, func() {
		if answered.Add(1) == 10*clients {
			p.Signal(syscall.SIGTERM)
		}
	})
	if err != nil {
		t.Fatal(err)
	}
	if r.Answered < 10*clients {
		t.Errorf("%d were answered before it was told to stop", r.Answered)
	}
	return r
}

// checkReady wants /readyz to say yes.
func checkReady(t *testing.T, addr string) {
	t.Helper()
	if got := getStatus(t, "http://"+addr+"/readyz"); got != http.StatusOK {
		t.Errorf("/readyz answers %d", got)
	}
}

// getStatus gets a page on a connection of its own.
func getStatus(t *testing.T, url string) int {
	t.Helper()
	client := http.Client{Transport: &http.Transport{DisableKeepAlives: true}, Timeout: patience}
	resp, err := client.Get(url)
	if err != nil {
		t.Fatal(err)
	}
	resp.Body.Close()
	return resp.StatusCode
}

// TestControl: the same stop of a program without usher loses something, or
// these tests see nothing.
func TestControl(t *testing.T) {
	server, err := process.BuildServer(t.Context(), t.TempDir(), "")
	if err != nil {
		t.Fatal(err)
	}
	p, err := process.Start(t.Context(), process.Spec{Path: server, Args: []string{"-bare", "-addr", "127.0.0.1:0"}})
	if err != nil {
		t.Fatal(err)
	}
	defer p.Kill()
	if r := load(t, p, traffic.KeepAlive, traffic.Config{}); r.Lost == 0 {
		t.Errorf("http.Server.Shutdown lost none of %d", r.Answered)
	}
}
