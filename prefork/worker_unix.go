//go:build unix

package prefork

import (
	"context"
	"errors"
	"fmt"
	"log"
	"log/slog"
	"net"
	"os"
	"os/signal"
	"path/filepath"
	"sync"
	"syscall"
	"time"

	"github.com/seed-235859eb/usher/internal/reuseport"
	"golang.org/x/sys/unix"
)

// isWorker reports whether this process is a worker. A process that finds the
// variable, but not the socket, has it from somewhere else.
func isWorker() (workerSetup, bool, error) {
	value, ok := os.LookupEnv(workerEnv)
	if !ok {
		return workerSetup{}, false, nil
	}
	setup, err := parseSetup(value)
	if err != nil {
		return setup, false, err
	}
	var st unix.Stat_t
	if err := unix.Fstat(setup.Control, &st); err != nil || st.Mode&unix.S_IFMT != unix.S_IFSOCK {
		return setup, false, nil
	}
	return setup, true, nil
}

// who says in a line of log whose it is.
func (s workerSetup) who() []any {
	return []any{"seat", s.Seat, "generation", s.Generation, "pid", os.Getpid()}
}

// setDefaultLogger is [slog.SetDefault] that leaves package log as it is.
func setDefaultLogger(l *slog.Logger) {
	out, flags := log.Writer(), log.Flags()
	slog.SetDefault(l)
	log.SetOutput(out)
	log.SetFlags(flags)
}

// workerProcess is what a worker keeps besides the Worker.
type workerProcess struct {
	w       *Worker
	link    *link
	stderr  int // the master's own
	signals chan os.Signal
	done    chan struct{}
	wg      sync.WaitGroup
}

// startWorker makes a Worker of what the master passed.
func startWorker(ctx context.Context, opts Options, setup workerSetup) (*workerProcess, error) {
	os.Unsetenv(workerEnv) // children of this process are not workers
	if setup.MaxProcs {
		os.Unsetenv("GOMAXPROCS") // nor have they its share
	}
	opts.Logger = opts.Logger.With(setup.who()...)
	setDefaultLogger(slog.Default().With(setup.who()...))
	p := &workerProcess{
		w:       newWorker(ctx, opts, setup.Seat, setup.Generation),
		stderr:  setup.Stderr,
		signals: make(chan os.Signal, 4),
		done:    make(chan struct{}),
	}
	if setup.Program > 0 {
		unix.Close(setup.Program)
	}
	for _, fd := range append([]int{setup.Control, setup.Stderr}, fdsOf(setup.Sockets)...) {
		unix.CloseOnExec(fd)
	}
	var errs []error
	for _, s := range setup.Sockets {
		l, err := reuseport.Listener(s.FD)
		unix.Close(s.FD)
		if err != nil {
			errs = append(errs, fmt.Errorf("prefork: inherited socket %q: %w", s.Name, err))
			continue
		}
		p.w.addListener(s.Name, &socket{Listener: l, foreign: s.Foreign})
	}
	var err error
	if p.link, err = newLink(setup.Control); err != nil {
		errs = append(errs, err)
	}
	if err := errors.Join(errs...); err != nil {
		for _, l := range p.w.listeners {
			l.Close()
		}
		return nil, err
	}
	p.w.link, p.w.master = p.link, true
	// The name of the file that was executed is a number: see program.exec.
	os.WriteFile("/proc/self/comm", []byte(filepath.Base(os.Args[0])), 0)

	// A terminal's and a group's signals come to workers too; what they mean is
	// the master's business. Without SIGPIPE here, a line of log would kill a
	// worker whose master, at the other end of standard error, is gone.
	signal.Notify(p.signals, syscall.SIGTERM, os.Interrupt, syscall.SIGHUP, syscall.SIGUSR1, syscall.SIGUSR2,
		syscall.SIGTTIN, syscall.SIGTTOU)
	signal.Notify(make(chan os.Signal, 1), syscall.SIGPIPE)
	p.wg.Go(p.watchSignals)
	p.wg.Go(p.listen)
	return p, nil
}

func (p *workerProcess) watchSignals() {
	for {
		select {
		case s := <-p.signals:
			switch {
			case s == syscall.SIGTERM:
				p.w.leave(signalName(s))
			case s == os.Interrupt && p.w.alone():
				p.w.interrupt(signalName(s))
			case s == hurrySignal && p.w.alone():
				p.w.endDelay()
			}
		case <-p.done:
			return
		}
	}
}

// listen carries out what the master says, until it or the worker is gone.
func (p *workerProcess) listen() {
	for {
		frames, fds, err := p.link.receive()
		for _, f := range frames {
			if f.File && len(fds) > 0 {
				content, err := readScratch(fds[0])
				if f.Fleet, fds = content, fds[1:]; err != nil {
					f.Error = err.Error()
				}
			}
			herr := p.w.handle(f, func(seat int, endpoint string) {
				if len(fds) == 0 {
					p.w.log.Warn("prefork: no descriptor came for an orphan", "seat", seat, "endpoint", endpoint)
					return
				}
				fd := fds[0]
				fds = fds[1:]
				p.adopt(seat, endpoint, fd)
			})
			if herr != nil {
				p.w.log.Warn("prefork: bad word from the master", "error", herr)
			}
		}
		for _, fd := range fds {
			unix.Close(fd)
		}
		if err != nil {
			select {
			case <-p.done:
			default:
				p.orphaned()
			}
			return
		}
	}
}

// orphaned has the worker stop, as its master is gone, and bounds the stop, as
// that did. The process has to end by then, too: what main does after Run may
// wait for ever, as a log line does if nobody reads standard error.
func (p *workerProcess) orphaned() {
	unix.Dup2(p.stderr, 2) // the master was at the other end
	time.AfterFunc(p.w.opts.StopTimeout, func() {
		p.w.log.Error("prefork: not stopped in time, ending", "timeout", p.w.opts.StopTimeout)
		flush(p.w.log)
		os.Exit(1)
	})
	p.w.orphaned()
}

// adopt accepts from the socket of a seat without a worker, too.
func (p *workerProcess) adopt(seat int, endpoint string, fd int) {
	defer unix.Close(fd)
	l, err := reuseport.Listener(fd)
	if err != nil {
		p.w.log.Warn("prefork: cannot adopt a seat", "seat", seat, "endpoint", endpoint, "error", err)
		return
	}
	ours, ok := p.w.byName[endpoint].(*listener)
	if !ok {
		l.Close()
		return
	}
	ours.adopt(seat, &socket{Listener: l})
}

// end is called when the program's function has returned.
func (p *workerProcess) end() {
	close(p.done)
	signal.Stop(p.signals)
	if err := p.link.Close(); err != nil && !errors.Is(err, net.ErrClosed) {
		p.w.log.Warn("prefork: control socket", "error", err)
	}
	p.wg.Wait()
	unix.Close(p.stderr)
}
