//go:build unix

package main

import (
	"bufio"
	"context"
	"flag"
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"runtime"
	"slices"
	"strconv"
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
//
// With -loss.latency 20ms the handler works; by default it answers at once.
var (
	lossStops   = flag.Int("loss.stops", 2, "stops for each mode")
	lossClients = flag.Int("loss.clients", 96, "clients")
	lossWorkers = flag.Int("loss.workers", 4, "workers, in the part with workers")
	lossLatency = flag.Duration("loss.latency", 0, "how long the server's handler sleeps before it answers")
)

// parallel has a test run beside others in the quick form. The long form's
// servers have the machine to themselves.
func parallel(t *testing.T) {
	if *lossStops <= 2 && !*long {
		t.Parallel()
	}
}

// serverBinary builds the server once.
var serverBinary = sync.OnceValues(func() (string, error) { return buildServer("") })

// buildServer builds the server with a value of X-Build.
func buildServer(build string) (string, error) {
	args := []string{"build", "-o", filepath.Join(binaryDir, "server"+build)}
	if build != "" {
		args = append(args, "-ldflags", "-s -w -X main.build="+build)
	}
	out, err := exec.Command("go", append(args, ".")...).CombinedOutput()
	if err != nil {
		return "", fmt.Errorf("go build: %w\n%s", err, out)
	}
	return args[2], nil
}

var binaryDir string

func TestMain(m *testing.M) {
	dir, err := os.MkdirTemp("", "usher-server-*")
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
	binaryDir = dir
	flag.Parse()
	flag.Set("test.parallel", strconv.Itoa(2*runtime.GOMAXPROCS(0))) // most of it is waiting
	code := m.Run()
	os.RemoveAll(dir)
	os.Exit(code)
}

// patience is far above what anything here takes.
const patience = 2 * time.Minute

// process is a running server, with its workers if it has any.
type process struct {
	cmd  *exec.Cmd
	addr string

	mu   sync.Mutex
	log  []logLine
	more chan struct{} // closed with the next line
	eof  chan struct{} // closed when nobody is left to write to the log
}

type logLine struct {
	text string
	at   time.Time // when it had been read
}

var listening = regexp.MustCompile(`msg=listening (?:\S+ )*?addr=(\S+)`)

// start starts a server on a port of the system's choice, or a unix socket,
// and waits until it serves.
func start(t *testing.T, args ...string) *process {
	t.Helper()
	binary, err := serverBinary()
	if err != nil {
		t.Fatal(err)
	}
	return startProgram(t, binary, args...)
}

func startProgram(t *testing.T, binary string, args ...string) *process {
	t.Helper()
	p := &process{eof: make(chan struct{}), more: make(chan struct{})}
	p.cmd = exec.Command(binary, append([]string{"-addr", "127.0.0.1:0"}, args...)...)
	p.cmd.Env = append(os.Environ(), "PORT=")
	p.cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	stderr, err := p.cmd.StderrPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := p.cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if p.cmd.ProcessState == nil {
			p.killAll()
			p.wait()
		}
		if t.Failed() {
			t.Logf("the server's log:\n%s", p.output())
		}
	})
	go p.read(stderr)
	if slices.Contains(args, "-workers") {
		p.await(t, "prefork: all seats serve")
	}
	p.await(t, "msg=listening") // a worker's comes its own way
	p.addr = listening.FindStringSubmatch(p.output())[1]
	return p
}

// read keeps the log, in which a line may be long.
func (p *process) read(stderr io.Reader) {
	defer close(p.eof)
	for r := bufio.NewReader(stderr); ; {
		line, err := r.ReadString('\n')
		if line != "" {
			p.mu.Lock()
			p.log = append(p.log, logLine{line, time.Now()})
			close(p.more)
			p.more = make(chan struct{})
			p.mu.Unlock()
		}
		if err != nil {
			return
		}
	}
}

func (p *process) output() string {
	p.mu.Lock()
	defer p.mu.Unlock()
	var b strings.Builder
	for _, line := range p.log {
		b.WriteString(line.text)
	}
	return b.String()
}

// find returns the lines that contain all of parts, and what is closed with the
// next line.
func (p *process) find(parts ...string) (lines []logLine, more <-chan struct{}) {
	p.mu.Lock()
	defer p.mu.Unlock()
	for _, line := range p.log {
		if !slices.ContainsFunc(parts, func(part string) bool { return !strings.Contains(line.text, part) }) {
			lines = append(lines, line)
		}
	}
	return lines, p.more
}

// await waits until the log has a line that contains all of parts, and returns
// it.
func (p *process) await(t *testing.T, parts ...string) logLine {
	t.Helper()
	return p.awaitNth(t, 1, parts...)
}

// awaitNth waits for the nth such line.
func (p *process) awaitNth(t *testing.T, n int, parts ...string) logLine {
	t.Helper()
	deadline := time.After(patience)
	for {
		lines, more := p.find(parts...)
		if len(lines) >= n {
			return lines[n-1]
		}
		select {
		case <-more:
		case <-p.eof:
			if lines, _ := p.find(parts...); len(lines) >= n {
				return lines[n-1]
			}
			t.Fatalf("the server ended (%v), and its log never said %q (%d times)\n%s", p.wait(), parts, n, p.output())
		case <-deadline:
			t.Fatalf("the log never said %q (%d times)", parts, n)
		}
	}
}

// wait waits until the process has ended, and whoever it has left behind, and
// returns its exit status.
func (p *process) wait() error {
	select {
	case <-p.eof:
	case <-time.After(patience):
		p.killAll()
		<-p.eof
		return fmt.Errorf("did not end within %v, or left somebody behind; now: %v", patience, p.cmd.Wait())
	}
	return p.cmd.Wait()
}

// killAll ends the process group. Its number is the process's ID, which is in
// use as long as it has not been waited for.
func (p *process) killAll() { syscall.Kill(-p.cmd.Process.Pid, syscall.SIGKILL) }

// signal sends a signal to the process.
func (p *process) signal(s syscall.Signal) { p.cmd.Process.Signal(s) }

// signalGroup sends one to all of it.
func (p *process) signalGroup(s syscall.Signal) { syscall.Kill(-p.cmd.Process.Pid, s) }

// stopUnderLoad starts a server and clients, sends SIGTERM while they are busy,
// and returns what they saw, and how long usher says the longest stop of a process
// took.
func stopUnderLoad(t *testing.T, cfg traffic.Config, args ...string) (traffic.Result, time.Duration) {
	t.Helper()
	p := start(t, append([]string{"-latency", lossLatency.String()}, args...)...)
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
			p.signal(syscall.SIGTERM)
		}
	}
	res, err := traffic.Run(context.Background(), cfg, stop)
	if err != nil {
		t.Fatal(err)
	}
	if err := p.wait(); err != nil {
		t.Errorf("the server ended with %v", err)
	}
	var longest time.Duration
	for _, m := range stopTook.FindAllStringSubmatch(p.output(), -1) {
		took, err := time.ParseDuration(m[1])
		if err != nil {
			t.Error(err)
		}
		longest = max(longest, took)
	}
	return res, longest
}

var stopTook = regexp.MustCompile(`msg="usher: stopped" .*took=(\S+)`)

// TestIdleStop: a server without a connection does not wait for HandshakeGrace.
func TestIdleStop(t *testing.T) {
	for kind, args := range kinds() {
		t.Run(kind, func(t *testing.T) {
			const grace = 20 * time.Second
			p := start(t, append([]string{"-handshake-grace", grace.String(), "-grace", "10m"}, args...)...)
			began := time.Now()
			p.signal(syscall.SIGTERM)
			if err := p.wait(); err != nil {
				t.Error(err)
			}
			took := time.Since(began)
			t.Logf("from SIGTERM to the end of the process: %v", took)
			if took >= grace {
				t.Errorf("that is HandshakeGrace, which is %v", grace)
			}
		})
	}
}

// kinds are one process, and a master with workers.
func kinds() map[string][]string {
	return map[string][]string{
		"one process": nil,
		"workers":     {"-workers", strconv.Itoa(*lossWorkers)},
	}
}

func TestLoss(t *testing.T) {
	for _, mode := range traffic.Modes {
		for kind, args := range kinds() {
			t.Run(mode.String()+"/"+kind, func(t *testing.T) {
				parallel(t)
				var total traffic.Result
				var longest time.Duration
				for range *lossStops {
					res, took := stopUnderLoad(t, traffic.Config{Mode: mode}, args...)
					longest = max(longest, took)
					total.Answered += res.Answered
					total.Lost += res.Lost
					total.Refused += res.Refused
					total.Slow += res.Slow
					for _, e := range res.Errors {
						t.Error(e)
					}
				}
				t.Logf("%d stops, %d clients: %d answered, %d refused, %d slow connects, longest stop %v, LOST = %d", *lossStops, *lossClients, total.Answered, total.Refused, total.Slow, longest, total.Lost)
				if total.Lost > 0 {
					t.Errorf("%d requests were lost", total.Lost)
				}
			})
		}
	}
}

// TestLossVariants stops servers whose sockets are of another kind.
func TestLossVariants(t *testing.T) {
	for _, tt := range []struct {
		name string
		tls  bool
		args []string
	}{
		{"tls", true, []string{"-tls"}},
		{"unix", false, []string{"-addr", "unix:"}},
		{"lame duck", false, []string{"-delay", "50ms"}},
		{"max-conns", false, []string{"-max-conns", "16"}},
	} {
		for _, mode := range []traffic.Mode{traffic.PerRequest, traffic.KeepAlive} {
			for kind, more := range kinds() {
				t.Run(tt.name+"/"+mode.String()+"/"+kind, func(t *testing.T) {
					parallel(t)
					args := slices.Concat(tt.args, more)
					if tt.name == "unix" {
						args[1] += filepath.Join(t.TempDir(), "s")
					}
					for range (*lossStops + 1) / 2 {
						res, _ := stopUnderLoad(t, traffic.Config{Mode: mode, TLS: tt.tls}, args...)
						if res.Lost > 0 {
							t.Errorf("%d of %d requests were lost: %s", res.Lost, res.Lost+res.Answered, strings.Join(res.Errors, "; "))
						}
					}
				})
			}
		}
	}
}

// TestLossBare proves that TestLoss can see losses: net/http's own Shutdown
// must show some.
func TestLossBare(t *testing.T) {
	parallel(t)
	total := 0
	for _, mode := range traffic.Modes {
		lost := 0
		for range *lossStops {
			res, _ := stopUnderLoad(t, traffic.Config{Mode: mode}, "-bare")
			lost += res.Lost
		}
		t.Logf("%s: %d stops, %d clients: LOST = %d", mode, *lossStops, *lossClients, lost)
		total += lost
	}
	if total == 0 {
		t.Error("http.Server.Shutdown lost nothing: this test sees nothing")
	}
}
