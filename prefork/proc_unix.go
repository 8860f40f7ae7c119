//go:build unix

package prefork

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"sync"
	"time"

	"github.com/seed-235859eb/usher/internal/fleet"
)

// proc is a worker process as the master knows it.
type proc struct {
	id               fleet.ID
	seat, generation int
	pid              int
	orders           []func()     // for when it has been started
	adopted          map[int]bool // seats besides its own
	ready            bool

	*started
	hearing sync.WaitGroup // the goroutine that reads its link
}

// started is a process that has been started, or adopted.
type started struct {
	process *os.Process
	link    *link
	stream  *stream
}

// order carries out f for a worker, as soon as its process exists.
func (m *Master) order(id fleet.ID, f func(p *proc)) {
	p := m.procs[id]
	switch {
	case p == nil:
	case p.started == nil:
		p.orders = append(p.orders, func() { f(p) })
	default:
		f(p)
	}
}

func (p *proc) say(m *Master, f frame, fds ...int) {
	if err := p.link.send(f, fds...); err != nil && !errors.Is(err, net.ErrClosed) {
		m.log.Warn("prefork: cannot reach a worker", "seat", p.seat, "pid", p.pid, "error", err)
	}
}

func (m *Master) signalProc(p *proc, s os.Signal) {
	if err := p.process.Signal(s); err != nil && !errors.Is(err, os.ErrProcessDone) {
		m.log.Warn("prefork: cannot send a signal", "signal", s.String(), "pid", p.pid, "error", err)
	}
}

// spawn starts a worker process.
func (m *Master) spawn(a fleet.Spawn) {
	p := &proc{id: a.ID, seat: a.Seat, generation: a.Generation, adopted: map[int]bool{}}
	m.procs[a.ID] = p
	m.spawning++
	spec, err := m.spec(p)
	go func() {
		var started *started
		if err == nil {
			if f := m.opts.Hooks.BeforeWorkerStart; f != nil {
				runHook(m.log, "BeforeWorkerStart", func(ctx context.Context) { f(ctx, p.info()) })
			}
			started, err = startProcess(spec)
		}
		spec.close()
		if !m.post(func() { m.spawned(p, started, err) }) && started != nil {
			started.abandon()
		}
	}()
}

// spec says how to start p. Its sockets are duplicates: by the time they are
// used, the master may have closed its own.
func (m *Master) spec(p *proc) (processSpec, error) {
	spec := processSpec{
		setup: workerSetup{Seat: p.seat, Generation: p.generation, Master: os.Getpid(), Path: m.programs.path},
		procs: cpuShare(m.fleet.Snapshot(time.Now()).Want), credential: m.programs.credential, stdout: m.opts.LogFile != "",
	}
	var err error
	if spec.program, err = m.programs.held[p.generation].clone(); err != nil {
		return spec, err
	}
	if err := m.sockets.openSeat(p.seat); err != nil {
		return spec, err
	}
	for _, e := range m.sockets.endpoints {
		fd, err := dupFD(e.group.FD(p.seat))
		if err != nil {
			return spec, fmt.Errorf("prefork: socket of %s for seat %d: %w", e.name, p.seat, err)
		}
		spec.setup.Sockets = append(spec.setup.Sockets, workerSocket{Name: e.name, FD: fd, Foreign: e.foreign})
	}
	return spec, nil
}

func (p *proc) info() WorkerInfo {
	return WorkerInfo{Seat: p.seat, Generation: p.generation, PID: p.pid}
}

func (m *Master) spawned(p *proc, s *started, err error) {
	m.spawning--
	if err != nil {
		delete(m.procs, p.id)
		m.fleet.SpawnFailed(m.now(), p.id, err)
		return
	}
	m.attach(p, s)
	m.fleet.Spawned(m.now(), p.id, p.pid)
	m.log.Info("prefork: worker started", "seat", p.seat, "generation", p.generation, "pid", p.pid)
	if f := m.opts.Hooks.AfterWorkerStart; f != nil {
		m.hook("AfterWorkerStart", func(ctx context.Context) { f(ctx, p.info()) })
	}
	for _, f := range p.orders {
		f()
	}
	p.orders = nil
}

// attach makes p the process s, and waits for its end.
func (m *Master) attach(p *proc, s *started) {
	p.started = s
	p.pid = s.process.Pid
	m.listenTo(p)
	m.readStream(s.stream)
	go func() {
		reap := awaitExit(s.process)
		// The last words may still be in the pipe; but a child of the worker
		// may hold it open for ever.
		select {
		case <-s.stream.ended:
		case <-time.After(250 * time.Millisecond):
		}
		m.post(func() { m.exited(p, reap) })
	}()
}

// listenTo hears what p says on its link.
func (m *Master) listenTo(p *proc) {
	p.hearing.Go(func() {
		for {
			frames, _, err := p.link.receive()
			for _, f := range frames {
				if !m.post(func() { m.hear(p, f) }) {
					return
				}
			}
			if err != nil {
				if !isEnd(err) {
					m.log.Warn("prefork: bad word from a worker", "seat", p.seat, "pid", p.pid, "error", err)
				}
				return
			}
		}
	})
}

func (m *Master) exited(p *proc, reap func() fleet.Exit) {
	if m.procs[p.id] != p {
		return
	}
	e := reap()
	e.Output = p.stream.kept.String()
	delete(m.procs, p.id)
	p.link.Close()
	m.leaveStream(p.stream)
	m.fleet.Exited(m.now(), p.id, e)
}
