//go:build unix

package main

import (
	"bufio"
	"context"
	"flag"
	"fmt"
	"math/rand/v2"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/seed-235859eb/usher/internal/traffic"
)

// The long form, of which README tells:
//
//	go test ./examples/server -run TestLoss -v -loss.stops 20 -loss.clients 256 -timeout 60m
var (
	lossStops   = flag.Int("loss.stops", 2, "stops for each mode")
	lossClients = flag.Int("loss.clients", 96, "clients")
)

// serverBinary builds the server once.
var serverBinary = sync.OnceValues(func() (string, error) {
	dir, err := os.MkdirTemp("", "usher-server-*")
	if err != nil {
		return "", err
	}
	binaryDir = dir
	name := filepath.Join(dir, "server")
	out, err := exec.Command("go", "build", "-o", name, ".").CombinedOutput()
	if err != nil {
		return "", fmt.Errorf("go build: %w\n%s", err, out)
	}
	return name, nil
})

var binaryDir string

func TestMain(m *testing.M) {
	code := m.Run()
	if binaryDir != "" {
		os.RemoveAll(binaryDir)
	}
	os.Exit(code)
}

// process is a running server.
type process struct {
	cmd  *exec.Cmd
	addr string

	mu  sync.Mutex
	log strings.Builder
	eof chan struct{}
}

var listening = regexp.MustCompile(`msg=listening addr=(\S+)`)

// start starts a server on a port of the system's choice, or a unix socket,
// and waits until it listens.
func start(t *testing.T, args ...string) *process {
	t.Helper()
	binary, err := serverBinary()
	if err != nil {
		t.Fatal(err)
	}
	p := &process{eof: make(chan struct{})}
	p.cmd = exec.Command(binary, append([]string{"-addr", "127.0.0.1:0"}, args...)...)
	p.cmd.Env = append(os.Environ(), "PORT=")
	stderr, err := p.cmd.StderrPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := p.cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if p.cmd.ProcessState == nil {
			p.cmd.Process.Kill()
			p.wait()
		}
		if t.Failed() {
			t.Logf("the server's log:\n%s", p.output())
		}
	})
	addr := make(chan string, 1)
	go func() {
		defer close(p.eof)
		for sc := bufio.NewScanner(stderr); sc.Scan(); {
			if m := listening.FindStringSubmatch(sc.Text()); m != nil {
				addr <- m[1]
			}
			p.mu.Lock()
			fmt.Fprintln(&p.log, sc.Text())
			p.mu.Unlock()
		}
	}()
	select {
	case p.addr = <-addr:
	case <-p.eof:
		p.wait()
		t.Fatalf("the server did not start: %v\n%s", p.cmd.ProcessState, p.output())
	}
	return p
}

func (p *process) output() string {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.log.String()
}

// wait waits for the process to end.
func (p *process) wait() error {
	<-p.eof
	return p.cmd.Wait()
}

// stopUnderLoad starts a server and clients, sends SIGTERM while they are busy,
// and returns what they saw.
func stopUnderLoad(t *testing.T, cfg traffic.Config, args ...string) traffic.Result {
	t.Helper()
	p := start(t, args...)
	cfg.Network, cfg.Addr, cfg.Clients = "tcp", p.addr, *lossClients
	if !strings.Contains(p.addr, ":") {
		cfg.Network = "unix"
	}

	// The signal comes at a random moment after each client could have been
	// answered.
	after := cfg.Clients + rand.IntN(8*cfg.Clients)
	var mu sync.Mutex
	stop := func() {
		mu.Lock()
		defer mu.Unlock()
		if after--; after == 0 {
			p.cmd.Process.Signal(syscall.SIGTERM)
		}
	}
	res, err := traffic.Run(context.Background(), cfg, stop)
	if err != nil {
		t.Fatal(err)
	}
	if err := p.wait(); err != nil {
		t.Errorf("the server ended with %v", err)
	}
	return res
}

func TestLoss(t *testing.T) {
	for _, mode := range traffic.Modes {
		t.Run(mode.String(), func(t *testing.T) {
			var total traffic.Result
			for range *lossStops {
				res := stopUnderLoad(t, traffic.Config{Mode: mode})
				total.Answered += res.Answered
				total.Lost += res.Lost
				total.Refused += res.Refused
				for _, e := range res.Errors {
					t.Error(e)
				}
			}
			t.Logf("%d stops, %d clients: %d answered, %d refused, LOST = %d", *lossStops, *lossClients, total.Answered, total.Refused, total.Lost)
			if total.Lost > 0 {
				t.Errorf("%d requests were lost", total.Lost)
			}
		})
	}
}

// TestLossVariants stops servers whose sockets are of another kind.
func TestLossVariants(t *testing.T) {
	socket := filepath.Join(t.TempDir(), "s")
	for _, tt := range []struct {
		name string
		tls  bool
		args []string
	}{
		{"tls", true, []string{"-tls"}},
		{"unix", false, []string{"-addr", "unix:" + socket}},
		{"lame duck", false, []string{"-delay", "50ms"}},
		{"max-conns", false, []string{"-max-conns", "16"}},
	} {
		for _, mode := range []traffic.Mode{traffic.PerRequest, traffic.KeepAlive} {
			t.Run(tt.name+"/"+mode.String(), func(t *testing.T) {
				for range *lossStops {
					res := stopUnderLoad(t, traffic.Config{Mode: mode, TLS: tt.tls}, tt.args...)
					if res.Lost > 0 {
						t.Errorf("%d of %d requests were lost: %s", res.Lost, res.Lost+res.Answered, strings.Join(res.Errors, "; "))
					}
				}
			})
		}
	}
}

// TestLossBare proves that TestLoss can see losses: net/http's own Shutdown
// must show some.
func TestLossBare(t *testing.T) {
	total := 0
	for _, mode := range traffic.Modes {
		lost := 0
		for range *lossStops {
			lost += stopUnderLoad(t, traffic.Config{Mode: mode}, "-bare").Lost
		}
		t.Logf("%s: %d stops, %d clients: LOST = %d", mode, *lossStops, *lossClients, lost)
		total += lost
	}
	if total == 0 {
		t.Error("http.Server.Shutdown lost nothing: this test sees nothing")
	}
}

// TestFirstRequestStops is the reproduction of the H13 story: a handler that
// has its own server stopped on the first of many requests.
func TestFirstRequestStops(t *testing.T) {
	p := start(t, "-term-on-first-request")
	conns := make([]net.Conn, 20)
	for i := range conns {
		c, err := net.Dial("tcp", p.addr)
		if err != nil {
			t.Fatal(err)
		}
		defer c.Close()
		c.SetDeadline(time.Now().Add(time.Minute))
		conns[i] = c
	}
	for _, c := range conns {
		fmt.Fprint(c, "GET / HTTP/1.1\r\nHost: usher.test\r\nConnection: close\r\n\r\n")
	}
	for i, c := range conns {
		status, err := bufio.NewReader(c).ReadString('\n')
		if err != nil || !strings.Contains(status, "200 OK") {
			t.Errorf("request %d: %q, %v", i+1, status, err)
		}
	}
	if err := p.wait(); err != nil {
		t.Error(err)
	}
}
