//go:build unix

package prefork

import (
	"bytes"
	"cmp"
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"strconv"
	"sync"
	"syscall"
	"time"

	"github.com/seed-235859eb/usher/internal/sdnotify"
)

const (
	// masterEnv holds the descriptor of a masterState: this process was a
	// master before, and has executed the program again.
	masterEnv = "USHER_PREFORK_MASTER"

	// checkEnv is set for a trial run, which Run ends, saying which state it
	// could take over.
	checkEnv = "USHER_PREFORK_TRIAL"

	stateVersion = 2
	trialSays    = "prefork trial: state version "
	trialAlone   = "prefork trial: no workers"
)

// trial reports whether this is a trial run, which has come as far as it is to, and
// what a master would find wrong before it has taken anything over.
func (o Options) trial() (bool, error) {
	if os.Getenv(checkEnv) == "" {
		return false, nil
	}
	if o.Workers > 0 {
		if err := o.checkMaster(); err != nil {
			return true, err
		}
		fmt.Fprintln(os.Stdout, trialSays+strconv.Itoa(stateVersion))
	} else {
		fmt.Fprintln(os.Stdout, trialAlone) // and would leave workers and sockets to nobody
	}
	return true, nil
}

// checkMaster returns what is wrong with the options on this system.
func (o Options) checkMaster() error {
	_, userErr := o.credential()
	_, fileErr := o.pidFile()
	return errors.Join(userErr, fileErr, o.checkDir())
}

func (o Options) checkDir() error {
	if o.Dir == "" {
		return nil
	}
	info, err := os.Stat(workDir(o.Dir))
	if err != nil || !info.IsDir() {
		return fmt.Errorf("prefork: Options.Dir is %q: %w", o.Dir, cmp.Or(err, error(syscall.ENOTDIR)))
	}
	return nil
}

// tryProgram runs the program at path until it comes to Run.
func tryProgram(ctx context.Context, path string, timeout time.Duration) error {
	ctx, cancel := context.WithTimeoutCause(ctx, timeout, fmt.Errorf("not done after %v", timeout))
	defer cancel()
	cmd := exec.CommandContext(ctx, path)
	cmd.Args = os.Args
	if _, err := os.Stat(startedAs.dir); err == nil {
		cmd.Dir = startedAs.dir
	}
	cmd.Env = append(sdnotify.Scrub(os.Environ()), checkEnv+"=1", "PWD="+cmp.Or(cmd.Dir, os.Getenv("PWD")))
	cmd.WaitDelay = time.Second
	var out bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &out
	err := cmd.Run()
	if ctx.Err() != nil {
		err = context.Cause(ctx)
	}
	said := bytes.Contains(out.Bytes(), []byte(trialSays+strconv.Itoa(stateVersion)+"\n"))
	switch {
	case err != nil:
		return fmt.Errorf("prefork: trial run of %s: %w; output: %q", path, err, lastBytes(out.String(), 1<<10))
	case !said && bytes.Contains(out.Bytes(), []byte(trialSays)):
		return fmt.Errorf("prefork: trial run of %s: its version of prefork takes another state than version %d over", path, stateVersion)
	case !said && bytes.Contains(out.Bytes(), []byte(trialAlone)):
		return fmt.Errorf("prefork: trial run of %s: it would run without workers", path)
	case !said:
		return fmt.Errorf("prefork: trial run of %s ended without coming to Run; output: %q", path, lastBytes(out.String(), 1<<10))
	}
	return nil
}

// upgrades is how far an upgrade has come.
type upgrades struct {
	running bool
	trials  sync.WaitGroup
	replace func() // replaces this process when that can be done; nil if nobody wants it
}

// upgrade tries the program, and then replaces this process when nothing is
// under way.
func (m *Master) upgrade(ctx context.Context, why string, answer chan error) {
	switch {
	case m.sockets.closing:
		answer <- errors.New("prefork: upgrade: the fleet stops")
		return
	case m.upgrades.running:
		m.log.Info("prefork: upgrade: one is under way", "reason", why)
		answer <- errors.New("prefork: upgrade: one is under way")
		return
	}
	m.upgrades.running = true
	ctx, cancel := context.WithCancelCause(ctx)
	go func() { // a trial run must not outlive the master
		select {
		case <-m.done:
			cancel(errMasterGone)
		case <-ctx.Done():
		}
	}()
	m.log.Info("prefork: upgrade: trial run", "reason", why, "program", m.programs.path)
	fail := func(err error) {
		m.log.Error("prefork: upgrade failed, nothing has changed", "error", err)
		m.upgrades.running = false
		cancel(nil)
		answer <- err
	}
	var try func()
	try = func() {
		tried := fileOf(m.programs.path)
		m.upgrades.trials.Go(func() {
			err := tryProgram(ctx, m.programs.path, m.opts.BootTimeout)
			m.post(func() {
				if err != nil {
					fail(err)
					return
				}
				m.log.Info("prefork: upgrade: the trial run went well")
				var attempt func()
				attempt = func() {
					if m.sockets.closing {
						fail(errors.New("prefork: upgrade: the fleet stops"))
					} else if !tried.same(fileOf(m.programs.path)) {
						try() // what was tried is not what would run
					} else if err := m.execute(why); errors.Is(err, errNotCalm) {
						m.upgrades.replace = attempt
					} else {
						fail(err)
					}
				}
				m.upgrades.replace = attempt
			})
		})
	}
	try()
}

// file tells one build of a program from another at the same path.
type file struct{ info os.FileInfo }

func fileOf(path string) file {
	info, err := os.Stat(path)
	if err != nil {
		return file{} // whoever uses it will say so
	}
	return file{info}
}

func (f file) same(g file) bool {
	return f.info != nil && g.info != nil && os.SameFile(f.info, g.info) && f.info.ModTime().Equal(g.info.ModTime()) && f.info.Size() == g.info.Size()
}
