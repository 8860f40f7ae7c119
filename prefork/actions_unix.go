//go:build unix

package prefork

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"os"
	"time"

	"github.com/seed-235859eb/usher/internal/fleet"
)

func (m *Master) restart(ticket int, why string) {
	m.fleet.Restart(m.now(), ticket)
	select {
	case m.reopenLog <- struct{}{}:
	default:
	}
	args := []any{"reason", why}
	if m.orders.takenBack != "" {
		args = append(args, "the last one", m.orders.takenBack)
	}
	m.log.Info("prefork: phased restart", args...)
}

// stop begins or hastens the stop of the whole fleet.
func (m *Master) stop(level fleet.Level, why string) {
	m.fleet.Stop(m.now(), level, why)
	m.log.Info("prefork: stopping", "reason", why, "level", int(level))
}

// carryOut does what the fleet has decided.
func (m *Master) carryOut(a fleet.Action) {
	switch a := a.(type) {
	case fleet.NewGeneration:
		m.newGeneration(a.Generation)
	case fleet.DropGeneration:
		m.programs.drop(a.Generation)
	case fleet.Spawn:
		m.spawn(a)
	case fleet.StopWorker:
		if a.Final {
			m.sockets.unpublish()
		}
		m.order(a.ID, func(p *proc) {
			p.say(m, frame{Type: frameStop, Level: a.Level, Final: a.Final, Reason: a.Why})
			if !p.ready {
				// It may be far from Run, and holds sockets.
				m.signalProc(p, stopSignal)
			}
		})
	case fleet.Dump:
		m.order(a.ID, func(p *proc) {
			m.signalProc(p, dumpSignal)
			m.log.Warn("prefork: asking a worker for a dump of its goroutines, to kill it", "seat", p.seat, "generation", p.generation, "pid", p.pid, "reason", a.Why)
		})
	case fleet.Kill:
		m.order(a.ID, func(p *proc) {
			m.signalProc(p, os.Kill)
			m.log.Warn("prefork: killing a worker", "seat", p.seat, "generation", p.generation, "pid", p.pid, "reason", a.Why)
		})
	case fleet.Live:
		m.setLive(a)
	case fleet.OpenSeat:
		if err := m.sockets.openSeat(a.Seat); err != nil {
			m.log.Error("prefork: cannot open a socket for another seat, will try again", "error", err)
		}
	case fleet.ShutSeat:
		m.sockets.shutSeat(a.Seat)
	case fleet.CloseSeat:
		m.sockets.closeSeat(a.Seat)
	case fleet.CanaryCheck:
		m.canary(a)
	case fleet.WorkerReady:
		m.workerReady(a)
	case fleet.WorkerGone:
		m.workerGone(a)
	case fleet.AllReady:
		s := m.fleet.Snapshot(time.Now())
		m.log.Info("prefork: all seats serve", "workers", s.Serving, "generation", s.Generation)
		m.manager.ready(m.summary())
		m.hooks.add(m.writePIDFile)
	case fleet.RestartDone:
		m.restartDone(a)
	case fleet.Over:
		m.over = true
		m.result = wrapError(a.Err)
	default:
		m.log.Error("prefork: unknown action", "action", fmt.Sprintf("%T", a))
	}
}

// newGeneration takes a hold on the program's file, so that a worker that
// crashes comes back as what it was, whatever has been put in the file's place.
func (m *Master) newGeneration(generation int) {
	if m.programs.held[generation] != nil {
		return
	}
	p, err := openProgram(m.programs.path, m.programs.dir, generation == 1)
	if err != nil {
		m.log.Error("prefork: cannot open the program", "generation", generation, "error", err)
	}
	if old := m.programs.held[m.fleet.Snapshot(time.Now()).Generation]; old != nil && old.dir != p.dir {
		m.log.Info("prefork: the directory of the workers has moved", "generation", generation, "path", m.programs.dir, "from", old.dir, "to", p.dir)
	}
	m.programs.held[generation] = p
	if generation > 1 {
		m.manager.tell(func() error { return m.manager.sd.Reloading(fmt.Sprintf("restarting to generation %d", generation)) })
	}
}

// hear takes a frame from a worker.
func (m *Master) hear(p *proc, f frame) {
	now := m.now()
	switch f.Type {
	case frameBeat:
		if f.Beat != nil {
			m.fleet.Beat(now, p.id, *f.Beat)
		}
		if f.Ready {
			m.fleet.Ready(now, p.id)
		}
	case frameLeaving:
		m.fleet.Leaving(now, p.id, cmp.Or(f.Reason, "SIGTERM"))
		m.log.Info("prefork: a worker was told to stop by somebody else", "seat", p.seat, "generation", p.generation, "pid", p.pid, "reason", f.Reason)
	case frameFleet:
		m.answer(p, f.Ask)
	case frameShut:
		m.sockets.shutEndpoint(f.Endpoint)
		p.say(m, frame{Type: frameShut, Ask: f.Ask})
	}
}

func (m *Master) canary(a fleet.CanaryCheck) {
	check := m.opts.CanaryCheck
	stats, ok := m.workerStats(a.ID)
	if check == nil || !ok {
		// Of one that is gone its end tells enough; the next is asked about.
		m.fleet.Verdict(m.now(), a.Generation, nil)
		return
	}
	m.hooks.add(func() {
		err := errors.New("CanaryCheck did not return in time, or panicked")
		verdict := make(chan error, 1)
		runHook(m.log, "CanaryCheck", func(ctx context.Context) { verdict <- check(ctx, stats) })
		select {
		case err = <-verdict:
		default:
		}
		m.post(func() { m.fleet.Verdict(m.now(), a.Generation, err) })
	})
}

func (m *Master) workerReady(a fleet.WorkerReady) {
	p := m.procs[a.ID]
	if p == nil {
		return
	}
	p.ready = true
	m.log.Info("prefork: worker serves", "seat", a.Seat, "generation", a.Generation, "pid", p.pid)
	if f := m.opts.Hooks.WorkerReady; f != nil {
		m.hook("WorkerReady", func(ctx context.Context) { f(ctx, p.info()) })
	}
}

func (m *Master) workerGone(a fleet.WorkerGone) {
	if m.sockets.closing {
		m.sockets.closeEndpoints() // who does not say when would leave newcomers to nobody
	}
	e := exitOf(a.WorkerExit)
	args := []any{"seat", e.Seat, "generation", e.Generation, "pid", e.PID, "class", string(e.Class), "exit", e.Error()}
	switch {
	case a.Class == fleet.Asked && !a.Forced && e.Code == 0:
		m.log.Info("prefork: worker stopped", "seat", e.Seat, "generation", e.Generation, "pid", e.PID, "age", e.Age)
	case a.RespawnIn >= 0:
		m.log.Warn("prefork: worker is gone", append(args, "next in", a.RespawnIn)...)
	default:
		m.log.Warn("prefork: worker is gone", args...)
	}
	if f := m.opts.Hooks.WorkerExit; f != nil {
		m.hook("WorkerExit", func(ctx context.Context) { f(ctx, e) })
	}
}

func (m *Master) restartDone(a fleet.RestartDone) {
	err := wrapError(a.Err)
	aborted, _ := errors.AsType[*RestartError](err)
	switch {
	case err == nil:
		m.orders.takenBack = ""
		m.log.Info("prefork: restarted", "generation", a.Generation)
	case aborted != nil && aborted.TakenBack:
		m.orders.takenBack = err.Error()
		m.log.Error("prefork: restart taken back, though it had succeeded", "generation", a.Generation, "back on", aborted.BackOn, "error", err)
	default:
		m.log.Error("prefork: restart aborted", "generation", a.Generation, "error", err)
	}
	m.orders.answer(a.Tickets, err)
	if f := m.opts.Hooks.RestartFinished; f != nil {
		m.hook("RestartFinished", func(ctx context.Context) { f(ctx, a.Generation, err) })
	}
}

func (m *Master) hook(name string, f func(ctx context.Context)) {
	m.hooks.add(func() { runHook(m.log, name, f) })
}
