// Package process runs servers as processes of their own, and sees to it that
// none of them is left.
package process

import (
	"bufio"
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"sync"
	"syscall"
	"time"
)

// A Spec is a server that is to be started.
type Spec struct {
	Path string
	Args []string
	Env  []string // besides this process's own
	Dir  string

	Files []*os.File // passed on, from descriptor 3

	// Ready is a line of the server's output that says it serves, Listening
	// if nil. Its first group, if it has one, is the address.
	Ready *regexp.Regexp
	Times int // how many such lines there are to be; 1 if zero

	// Addr is the address, if no line says it. With Ready nil the server
	// serves when it accepts a connection there.
	Addr string
}

// Listening is what examples/server says, and the servers of bench. A worker of
// prefork says first who it is.
var Listening = regexp.MustCompile(`msg=listening .*\baddr=(\S+)`)

const (
	// StartPatience is how long a server may take to serve.
	StartPatience = time.Minute
	// StopPatience is how long a server may take to stop.
	StopPatience = 10 * time.Second
	// maxLines is how many lines of output are kept.
	maxLines = 10_000
)

// A Process is a server that was started.
type Process struct {
	Addr string
	PID  int

	cmd    *exec.Cmd
	output io.Closer     // of the reader
	exited chan struct{} // closed when the process is gone
	ended  chan struct{} // closed when those that it started are, too
	gone   time.Time     // when ended was closed

	mu    sync.Mutex
	lines []string
	more  chan struct{} // closed when there is another line
}

// Start starts a server and waits until it serves. It must be stopped.
func Start(ctx context.Context, spec Spec) (*Process, error) {
	p := &Process{
		Addr: spec.Addr, cmd: exec.Command(spec.Path, spec.Args...),
		exited: make(chan struct{}), ended: make(chan struct{}), more: make(chan struct{}),
	}
	p.cmd.Env = append(append(os.Environ(), "PORT="), spec.Env...)
	p.cmd.Dir, p.cmd.ExtraFiles = spec.Dir, spec.Files
	// Workers write to the same pipe: it ends with the last of them.
	r, w, err := os.Pipe()
	if err != nil {
		return nil, fmt.Errorf("start a server: %w", err)
	}
	p.cmd.Stdout, p.cmd.Stderr = w, w
	isolate(p.cmd)
	err = p.cmd.Start()
	w.Close()
	if err != nil {
		r.Close()
		return nil, fmt.Errorf("start a server: %w", err)
	}
	p.PID, p.output = p.cmd.Process.Pid, r
	go func() {
		p.cmd.Wait() // the state says how it took it
		close(p.exited)
	}()
	go func() {
		p.read(r)
		r.Close() // once more does no harm
		<-p.exited
		p.gone = time.Now()
		close(p.ended)
	}()

	ctx, cancel := context.WithTimeoutCause(ctx, StartPatience, fmt.Errorf("not ready after %v", StartPatience))
	defer cancel()
	if spec.Ready == nil && spec.Addr != "" {
		err = p.awaitConnect(ctx)
	} else {
		var m []string
		if m, err = p.Await(ctx, cmp.Or(spec.Ready, Listening), max(spec.Times, 1)); len(m) > 1 {
			p.Addr = m[1]
		}
	}
	if err == nil {
		return p, nil
	}
	p.Kill()
	return nil, &StartError{err, p.cmd.ProcessState, p.Output()}
}

// awaitConnect waits until somebody listens at Addr.
func (p *Process) awaitConnect(ctx context.Context) error {
	tick := time.NewTicker(5 * time.Millisecond)
	defer tick.Stop()
	for {
		if c, err := net.Dial("tcp", p.Addr); err == nil {
			return c.Close()
		}
		select {
		case <-tick.C:
		case <-p.ended:
			return errors.New("it has ended")
		case <-ctx.Done():
			return context.Cause(ctx)
		}
	}
}

// A StartError tells why a server did not start.
type StartError struct {
	Err    error
	State  *os.ProcessState
	Output string
}

func (e *StartError) Error() string {
	return fmt.Sprintf("the server did not start: %v (%v)\n%s", e.Err, e.State, e.Output)
}

func (e *StartError) Unwrap() error { return e.Err }

// read keeps what the server writes.
func (p *Process) read(r io.Reader) {
	br := bufio.NewReader(r)
	for long := false; ; {
		line, more, err := br.ReadLine()
		if err != nil {
			return
		}
		if !long { // what is not its continuation
			p.keep(string(line))
		}
		long = more
	}
}

func (p *Process) keep(line string) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if len(p.lines) == maxLines {
		return
	}
	p.lines = append(p.lines, line)
	close(p.more)
	p.more = make(chan struct{})
}

// Await waits for the n-th line since the start that matches.
func (p *Process) Await(ctx context.Context, re *regexp.Regexp, n int) ([]string, error) {
	for at := 0; ; {
		// Before the lines are read: what is written before it ends counts.
		over := isClosed(p.ended)
		p.mu.Lock()
		lines, more := slices.Clone(p.lines[at:]), p.more
		p.mu.Unlock()
		for _, line := range lines {
			if m := re.FindStringSubmatch(line); m != nil {
				if n--; n == 0 {
					return m, nil
				}
			}
		}
		at += len(lines)
		if over {
			return nil, errors.New("it has ended")
		}
		select {
		case <-more:
		case <-p.ended:
		case <-ctx.Done():
			return nil, context.Cause(ctx)
		}
	}
}

// Matches returns what matches, of all lines so far.
func (p *Process) Matches(re *regexp.Regexp) (all [][]string) {
	p.mu.Lock()
	defer p.mu.Unlock()
	for _, line := range p.lines {
		if m := re.FindStringSubmatch(line); m != nil {
			all = append(all, m)
		}
	}
	return all
}

// Output returns what the server wrote.
func (p *Process) Output() string {
	p.mu.Lock()
	defer p.mu.Unlock()
	return strings.Join(p.lines, "\n")
}

// Signal sends a signal to the process, not to those that it started.
func (p *Process) Signal(sig os.Signal) error { return p.cmd.Process.Signal(sig) }

// Ended is closed when the process is gone, and all those that it started and
// that write to its output.
func (p *Process) Ended() <-chan struct{} { return p.ended }

// Gone is when that was. It may be called then.
func (p *Process) Gone() time.Time { return p.gone }

// Stop asks the process to end, if it has not, and waits for it and for those
// that it started. Past StopPatience it kills them all. Anything but an exit
// status of 0 is an error, with what the server wrote.
func (p *Process) Stop() error {
	p.Signal(syscall.SIGTERM) // an error means that it is gone, or Windows
	if !p.wait(StopPatience) {
		p.Kill()
	}
	<-p.ended
	if st := p.cmd.ProcessState; !st.Success() {
		return fmt.Errorf("a server ended with %v\n%s", st, p.Output())
	}
	return nil
}

// Kill ends the process and those that it started, at once, and waits.
func (p *Process) Kill() {
	if isClosed(p.ended) {
		return // its id may be another's
	}
	killAll(p.cmd)
	if !p.wait(StopPatience) {
		p.output.Close() // which one holds that has left the group
	}
	<-p.ended
}

// wait waits for the end, and reports whether it came.
func (p *Process) wait(patience time.Duration) bool {
	timer := time.NewTimer(patience)
	defer timer.Stop()
	select {
	case <-p.ended:
		return true
	case <-timer.C:
		return false
	}
}

func isClosed(c <-chan struct{}) bool {
	select {
	case <-c:
		return true
	default:
		return false
	}
}

const rootModule = "github.com/seed-235859eb/usher"

// Checkout returns the folder of the root module. The working directory must be
// in it, or in a module that replaces it with the checkout, as bench.
func Checkout(ctx context.Context) (dir string, err error) {
	out, err := exec.CommandContext(ctx, "go", "list", "-m", "-f", "{{.Dir}}", rootModule).Output()
	if err != nil {
		return "", fmt.Errorf("find %s, to be run in its checkout: go list: %w", rootModule, err)
	}
	return strings.TrimSpace(string(out)), nil
}

// BuildServer builds examples/server of the [Checkout], and returns the
// program's name, which is in dir. What it is to send as X-Build may be empty.
func BuildServer(ctx context.Context, dir, xBuild string) (program string, err error) {
	checkout, err := Checkout(ctx)
	if err != nil {
		return "", err
	}
	program, err = filepath.Abs(filepath.Join(dir, "server"+xBuild))
	if err != nil {
		return "", err
	}
	args := []string{"build", "-o", program}
	if xBuild != "" {
		args = append(args, "-ldflags", "-X main.build="+xBuild)
	}
	cmd := exec.CommandContext(ctx, "go", append(args, "./examples/server")...)
	cmd.Dir = checkout
	// It tries to clean up when it is interrupted, and leaves the rest in dir.
	cmd.Cancel = func() error { return cmd.Process.Signal(os.Interrupt) }
	cmd.WaitDelay = StopPatience
	// If go build asks git for the revision, that must not touch the index.
	cmd.Env = append(os.Environ(), "GIT_OPTIONAL_LOCKS=0", "GOTMPDIR="+filepath.Dir(program))
	if out, err := cmd.CombinedOutput(); ctx.Err() != nil {
		return "", context.Cause(ctx)
	} else if err != nil {
		return "", fmt.Errorf("build the server: %w\n%s", err, out)
	}
	return program, nil
}
