package main

import (
	"bufio"
	"context"
	"debug/buildinfo"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"runtime"
	"strings"
	"sync"
	"syscall"
	"time"
)

const rootModule = "github.com/seed-235859eb/usher"

// build builds examples/server of the checkout that this module replaces the
// root module with.
func (l *lab) build(ctx context.Context) error {
	out, err := exec.CommandContext(ctx, "go", "list", "-m", "-f", "{{.Dir}}", rootModule).Output()
	if err != nil {
		return fmt.Errorf("find %s, to be run below bench: go list: %w", rootModule, err)
	}
	l.server = filepath.Join(l.dir, "server")
	cmd := exec.CommandContext(ctx, "go", "build", "-o", l.server, "./examples/server")
	cmd.Dir = strings.TrimSpace(string(out))
	// If go build asks git for the revision, that must not touch the index.
	cmd.Env = append(os.Environ(), "GIT_OPTIONAL_LOCKS=0")
	if out, err := cmd.CombinedOutput(); err != nil {
		return fmt.Errorf("build the server: %w\n%s", err, out)
	}
	info, err := buildinfo.ReadFile(l.server)
	if err != nil {
		return fmt.Errorf("read the server's build information: %w", err)
	}
	l.about = fmt.Sprintf("%s, %s/%s, kernel %s, %d CPUs, usher %s",
		info.GoVersion, runtime.GOOS, runtime.GOARCH, kernel(), runtime.NumCPU(), revision(ctx, cmd.Dir))
	if l.usherSlots > 0 {
		l.about += fmt.Sprintf(" with Slots: %d", l.usherSlots)
	}
	return nil
}

// revision says what is checked out in dir. The build information would know
// it too, unless GOFLAGS forbids that.
func revision(ctx context.Context, dir string) string {
	git := func(args ...string) (string, error) {
		cmd := exec.CommandContext(ctx, "git", append([]string{"--no-optional-locks", "-C", dir}, args...)...)
		out, err := cmd.Output()
		return strings.TrimSpace(string(out)), err
	}
	commit, err := git("rev-parse", "--short=12", "HEAD")
	if err != nil {
		return "of unknown revision"
	}
	if changed, err := git("status", "--porcelain", "--", "*.go", "go.mod"); err != nil || changed != "" {
		commit += " with changes"
	}
	return commit
}

// A process is a running server.
type process struct {
	addr   string
	pid    int
	cancel context.CancelFunc
	cmd    *exec.Cmd
	ended  <-chan struct{} // closed when its log has ended

	mu  sync.Mutex
	log strings.Builder
}

var listening = regexp.MustCompile(`msg=listening addr=(\S+)`)

// stopPatience is how long a process may take to stop before it is killed.
const stopPatience = 10 * time.Second

// start starts a server and waits until it listens. It ends with [process.stop]
// or with ctx.
func (l *lab) start(ctx context.Context, binary string, env []string, args ...string) (*process, error) {
	ctx, cancel := context.WithCancel(ctx)
	p := &process{cancel: cancel, cmd: exec.CommandContext(ctx, binary, args...)}
	p.cmd.Cancel = func() error { return p.cmd.Process.Signal(syscall.SIGTERM) }
	p.cmd.WaitDelay = stopPatience
	p.cmd.Env = append(append(os.Environ(), "PORT=", "TMPDIR="+l.dir), env...)
	dieWithParent(p.cmd)
	stderr, err := p.cmd.StderrPipe()
	if err != nil {
		cancel()
		return nil, fmt.Errorf("start a server: %w", err)
	}
	if err := p.cmd.Start(); err != nil {
		cancel()
		return nil, fmt.Errorf("start a server: %w", err)
	}
	p.pid = p.cmd.Process.Pid

	addr, ended := make(chan string, 1), make(chan struct{})
	p.ended = ended
	go func() {
		defer close(ended)
		for sc := bufio.NewScanner(stderr); sc.Scan(); {
			if m := listening.FindStringSubmatch(sc.Text()); m != nil {
				addr <- m[1]
				continue
			}
			p.mu.Lock()
			if p.log.Len() < 1<<12 {
				fmt.Fprintln(&p.log, sc.Text())
			}
			p.mu.Unlock()
		}
		io.Copy(io.Discard, stderr) // past a line that is too long to scan
	}()
	select {
	case p.addr = <-addr:
		return p, nil
	case <-p.ended:
		err := p.stop()
		return nil, fmt.Errorf("the server did not start: %w", err)
	}
}

// stop ends the process and waits for it. The error carries the process's log.
func (p *process) stop() error {
	p.cancel()
	<-p.ended
	p.cmd.Wait() // says that it was cancelled; the state says how it took it
	if st := p.cmd.ProcessState; st == nil || !st.Success() {
		p.mu.Lock()
		defer p.mu.Unlock()
		return fmt.Errorf("a server ended with %v\n%s", st, &p.log)
	}
	return nil
}
