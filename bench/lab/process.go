package main

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"strings"
	"sync"
	"time"
)

// A process is a server that the lab has started.
type process struct {
	name string
	addr string
	pid  int

	cmd  *exec.Cmd
	done chan struct{} // closed when it has been waited for
	err  error         // of that

	mu  sync.Mutex
	log strings.Builder // the first that it wrote
}

// Times that a server has.
const (
	startPatience = 20 * time.Second
	stopPatience  = 10 * time.Second
	maxLog        = 1 << 13
)

// startProcess starts a server in a process group of its own, and waits until
// a line that it writes has an address, as listening finds it. What starts has
// to be ended with [process.kill], [process.signal] or both.
func startProcess(ctx context.Context, name string, cmd *exec.Cmd, listening func(line string) string) (*process, error) {
	r, w, err := os.Pipe()
	if err != nil {
		return nil, err
	}
	cmd.Stdout, cmd.Stderr = w, w
	ownGroup(cmd)
	err = cmd.Start()
	w.Close()
	if err != nil {
		r.Close()
		return nil, fmt.Errorf("start %s: %w", name, err)
	}
	p := &process{name: name, pid: cmd.Process.Pid, cmd: cmd, done: make(chan struct{})}
	addr := make(chan string, 1)
	go p.read(r, addr, listening)
	go func() {
		p.err = cmd.Wait()
		close(p.done)
	}()
	timer := time.NewTimer(startPatience)
	defer timer.Stop()
	select {
	case p.addr = <-addr:
		return p, nil
	case <-p.done:
		err = errors.New("it ended")
	case <-ctx.Done():
		err = context.Cause(ctx)
	case <-timer.C:
		err = errors.New("it does not say where it listens")
	}
	p.kill()
	return nil, fmt.Errorf("start %s: %w\n%s", name, err, p.output())
}

// read takes what the process and its children write until the last has ended.
func (p *process) read(r io.ReadCloser, addr chan<- string, listening func(string) string) {
	defer r.Close()
	for sc := bufio.NewScanner(r); sc.Scan(); {
		if a := listening(sc.Text()); a != "" {
			select {
			case addr <- a:
			default: // there are several
			}
		}
		p.mu.Lock()
		if p.log.Len() < maxLog {
			fmt.Fprintln(&p.log, sc.Text())
		}
		p.mu.Unlock()
	}
	io.Copy(io.Discard, r) // past a line that is too long to scan
}

// output returns the first that the process wrote.
func (p *process) output() string {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.log.String()
}

// signal sends a signal to the process, not to its children.
func (p *process) signal(sig os.Signal) error { return p.cmd.Process.Signal(sig) }

// wait waits for the end of the process, but not for ever, and reports whether
// it came.
func (p *process) wait(patience time.Duration) bool {
	timer := time.NewTimer(patience)
	defer timer.Stop()
	select {
	case <-p.done:
		return true
	case <-timer.C:
		return false
	}
}

// stop asks the process to end, and kills it if it does not.
func (p *process) stop() {
	if p.signal(terminate) == nil {
		p.wait(stopPatience)
	}
	p.kill()
}

// kill ends the process and what it has started, at once.
func (p *process) kill() {
	killGroup(p.cmd)
	<-p.done
}
