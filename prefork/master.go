//go:build unix

package prefork

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"os"
	"sync"
	"syscall"
	"time"

	"github.com/seed-235859eb/usher/internal/asynclog"
	"github.com/seed-235859eb/usher/internal/fleet"
	"github.com/seed-235859eb/usher/internal/sdnotify"
)

// A Master holds the sockets, and starts, watches and stops the workers.
// [Hooks.MasterStart] gets it. All methods may be called from many goroutines at
// once; what they ask for is done one after the other.
type Master struct {
	opts    Options
	log     *slog.Logger
	events  chan func() // carried out by the one goroutine that owns what follows
	signals chan os.Signal
	caught  []os.Signal   // that come there
	done    chan struct{} // closed when the owner has returned
	gone    chan struct{} // closed when Run returns
	hooks   *queue
	manager *queue // what is sent to the service manager
	sd      *sdnotify.Notifier
	began   time.Time

	fleet      *fleet.Fleet
	endpoints  []*endpoint
	procs      map[fleet.ID]*proc
	strays     map[*stream]bool // of workers that are gone
	out        *asynclog.Writer // standard error, for what workers write
	programs   map[int]*program // by generation
	path       string           // of the program's file
	dir        string           // of new workers, maybe a symbolic link
	waiters    map[int]chan error
	tickets    int
	takenBack  string // see Stats
	spawning   int    // processes about to be started
	closing    bool   // the sockets have been closed, the fleet stops
	status     string
	fed        time.Time // when the watchdog was fed
	watchdog   time.Duration
	due        time.Time // when the goroutine was last at work, or will be again
	terms      burst
	replace    func() // replaces this process when it can be done; nil if nobody wants that
	upgrading  bool
	trials     sync.WaitGroup
	evictions  sync.WaitGroup
	reopenLog  chan struct{}
	pidFile    pidFile
	credential *syscall.Credential // of workers
	over       bool
	result     error
}

var errMasterGone = errors.New("prefork: the master has ended")

func newMaster(opts Options) *Master {
	m := &Master{
		opts: opts, log: opts.Logger.With("master", os.Getpid()),
		events:    make(chan func(), 64),
		signals:   make(chan os.Signal, 16),
		done:      make(chan struct{}),
		gone:      make(chan struct{}),
		reopenLog: make(chan struct{}, 1),
		manager:   newQueue(func() {}),
		began:     time.Now(),
		procs:     map[fleet.ID]*proc{},
		strays:    map[*stream]bool{},
		out:       asynclog.NewWriter(os.Stderr, "prefork", outPatience),
		programs:  map[int]*program{},
		waiters:   map[int]chan error{},
	}
	m.hooks = newQueue(func() { m.post(func() {}) }) // for an upgrade that waits, see calm
	return m
}

func (m *Master) fleetConfig() fleet.Config {
	o := m.opts
	return fleet.Config{
		Seats:       o.Workers,
		BootTimeout: o.BootTimeout, HeartbeatTimeout: o.HeartbeatTimeout, StopTimeout: o.StopTimeout, DumpGrace: dumpGrace,
		Probation: o.Probation, Canary: o.Canary,
		HandshakeGrace: handshakeGrace, LeaveGrace: leaveGrace, LeaveTimeout: leaveTimeout,
		MaxSurge:    o.MaxSurge,
		BackoffBase: backoffBase, BackoffMax: backoffMax, HealthyAfter: healthyAfter,
		CrashLimit: o.MaxCrashes, CrashWindow: o.CrashWindow,
		FirstBootTimeout: o.FirstBootTimeout, RestartTries: restartTries, MaxDraining: maxDraining,
		RecycleRequests: uint64(o.Recycle.Requests), RecycleAge: o.Recycle.Age, RecycleRSS: uint64(o.Recycle.Memory),
		Rand: rand.Float64,
	}
}

// post has f called by the goroutine that owns the state, unless that is gone.
func (m *Master) post(f func()) bool {
	select {
	case m.events <- f:
		return true
	case <-m.done:
		return false
	}
}

// call is post, and waits for f.
func (m *Master) call(ctx context.Context, f func()) error {
	ran := make(chan struct{})
	select {
	case m.events <- func() { f(); close(ran) }:
	case <-m.done:
		return errMasterGone
	case <-ctx.Done():
		return context.Cause(ctx)
	}
	select {
	case <-ran:
		return nil
	case <-m.done:
		return errMasterGone
	}
}

// Restart replaces all workers by new ones, from the program's file as it is now.
// On each seat the new worker serves before the old one is told to stop.
//
// Restart returns nil when all seats serve with the new generation and no process
// of an older one is left. It returns a [*RestartError] when the new generation has
// failed and all seats are back on the old one. If ctx ends, Restart returns its
// error, and the restart goes on. A call during a restart begins another one after
// it.
//
// If the new generation keeps crashing after that, the restart is taken back to the
// last generation that lived. [Hooks.RestartFinished] is called again, with the
// error, and [Stats].TakenBack says so. See [Options].MaxCrashes.
func (m *Master) Restart(ctx context.Context) error {
	answer := make(chan error, 1)
	err := m.call(ctx, func() {
		m.tickets++
		m.waiters[m.tickets] = answer
		m.restart(m.tickets, "Restart called")
	})
	if err != nil {
		return err
	}
	select {
	case err := <-answer:
		return err
	case <-ctx.Done():
		return context.Cause(ctx)
	case <-m.done:
		select {
		case err := <-answer:
			return err
		default:
			return errMasterGone
		}
	}
}

func (m *Master) restart(ticket int, why string) {
	m.fleet.Restart(m.now(), ticket)
	select {
	case m.reopenLog <- struct{}{}:
	default:
	}
	args := []any{"reason", why}
	if m.takenBack != "" {
		args = append(args, "the last one", m.takenBack)
	}
	m.log.Info("prefork: phased restart", args...)
}

// Upgrade replaces the master itself by the program's file as it is now. First a
// trial run of that file must come as far as [Run]. Then the process executes it and
// keeps its ID, its sockets and its workers. A phased restart then replaces the
// workers, too. Upgrade waits for a restart under way.
//
// Upgrade does not return if it succeeds. An error means that nothing has changed.
func (m *Master) Upgrade(ctx context.Context) error {
	answer := make(chan error, 1)
	if err := m.call(ctx, func() { m.upgrade(ctx, "Upgrade called", answer) }); err != nil {
		return err
	}
	select {
	case err := <-answer:
		return err
	case <-ctx.Done():
		return context.Cause(ctx)
	case <-m.done:
		return errMasterGone
	}
}

// Scale sets the number of workers. It returns when the change has begun. A number
// below 1 or above 1024 is an error.
func (m *Master) Scale(n int) error {
	if n < 1 || n > maxWorkers {
		return fmt.Errorf("prefork: Scale to %d workers: must be between 1 and %d", n, maxWorkers)
	}
	var err error
	return errors.Join(m.call(context.Background(), func() { err = m.fleet.Scale(m.now(), n) }), err)
}

// Recycle replaces the worker of a seat by another one of the same generation. It
// returns when that has begun. A seat that does not exist is an error.
func (m *Master) Recycle(seat int) error {
	var err error
	return errors.Join(m.call(context.Background(), func() { err = m.fleet.Recycle(m.now(), seat) }), err)
}

// Stats returns a snapshot of all workers.
func (m *Master) Stats() (Stats, error) {
	var s Stats
	err := m.call(context.Background(), func() { s = m.stats() })
	return s, err
}

// slack is how late the master may be, beyond what it had planned to sleep,
// before it holds itself to have been stopped.
func (m *Master) slack() time.Duration { return max(m.opts.HeartbeatTimeout/4, 20*time.Millisecond) }

// now returns the time, for the fleet to judge by. If this goroutine was not
// there for a while, in its sleep or at work, as the whole process was stopped
// or whoever reads its log, the fleet is told first.
func (m *Master) now() time.Time {
	now := time.Now()
	late := now.Sub(m.due)
	if m.due.IsZero() || late < 0 {
		late = 0
	}
	m.due = now
	if late > m.slack() {
		m.fleet.Late(now)
		m.log.Warn("prefork: the master was not there for a while, nobody is judged for it", "late", late)
	}
	return now
}

// loop owns the state until the fleet is over.
func (m *Master) loop(ctx context.Context) error {
	defer close(m.done)
	received := 0
	stopped := ctx.Done()
	timer := time.NewTimer(0)
	defer timer.Stop()
	for {
		m.settle()
		if m.over {
			return m.result
		}
		nap := m.nap()
		m.due = time.Now().Add(nap)
		timer.Reset(nap)
		var event func()
		select {
		case event = <-m.events:
		case <-timer.C:
		case <-stopped:
			stopped = nil
			event = func() { m.stop(fleet.LevelStop, context.Cause(ctx).Error()) }
		case s := <-m.signals:
			event = func() { received = m.signal(s, received) }
		}
		m.now()
		if event != nil {
			event()
		}
	}
}

// nap returns how long nothing is to be done.
func (m *Master) nap() time.Duration {
	nap := max(m.opts.HeartbeatTimeout/4, 10*time.Millisecond)
	if m.watchdog > 0 {
		nap = min(nap, m.watchdog/4)
	}
	if next := m.fleet.Next(); !next.IsZero() {
		nap = min(nap, time.Until(next))
	}
	return max(nap, 0)
}

// settle does all that is to be done now.
func (m *Master) settle() {
	for {
		acted := m.act()
		if m.over {
			return
		}
		if !m.closing && m.fleet.Snapshot(time.Now()).Stopping {
			m.closeSockets()
		}
		if replace := m.replace; replace != nil && m.calm() {
			m.replace = nil
			replace()
		}
		if !acted {
			break
		}
	}
	m.tellManager()
}

// act does what the fleet wants at this moment, and reports whether that was
// anything.
func (m *Master) act() bool {
	now := m.now()
	if next := m.fleet.Next(); !next.IsZero() && !next.After(now) {
		m.fleet.Tick(now)
	}
	actions := m.fleet.Take()
	for _, a := range actions {
		m.carryOut(a)
	}
	return len(actions) > 0
}

// calm reports whether nothing is under way that another master could not take
// over. Hooks belong to it: the next master does not know what was not told yet.
func (m *Master) calm() bool { return m.spawning == 0 && !m.fleet.Busy() && m.hooks.idle() }

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
		m.programs[a.Generation].close()
		delete(m.programs, a.Generation)
	case fleet.Spawn:
		m.spawn(a)
	case fleet.StopWorker:
		if a.Final {
			m.unpublish()
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
		if err := m.openSeat(a.Seat); err != nil {
			m.log.Error("prefork: cannot open a socket for another seat, will try again", "error", err)
		}
	case fleet.ShutSeat:
		m.shutSeat(a.Seat)
	case fleet.CloseSeat:
		m.closeSeat(a.Seat)
	case fleet.CanaryCheck:
		m.canary(a)
	case fleet.WorkerReady:
		m.workerReady(a)
	case fleet.WorkerGone:
		m.workerGone(a)
	case fleet.AllReady:
		s := m.fleet.Snapshot(time.Now())
		m.log.Info("prefork: all seats serve", "workers", s.Serving, "generation", s.Generation)
		status := m.summary() // m.status may have changed when it is sent
		m.status = status
		m.manage(func() error { return m.sd.Ready(status) })
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
	if m.programs[generation] != nil {
		return
	}
	p, err := openProgram(m.path, m.dir, generation == 1)
	if err != nil {
		m.log.Error("prefork: cannot open the program", "generation", generation, "error", err)
	}
	if old := m.programs[m.fleet.Snapshot(time.Now()).Generation]; old != nil && old.dir != p.dir {
		m.log.Info("prefork: the directory of the workers has moved", "generation", generation, "path", m.dir, "from", old.dir, "to", p.dir)
	}
	m.programs[generation] = p
	if generation > 1 {
		m.manage(func() error { return m.sd.Reloading(fmt.Sprintf("restarting to generation %d", generation)) })
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
		m.shutEndpoint(f.Endpoint)
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
	if m.closing {
		m.closeEndpoints() // who does not say when would leave newcomers to nobody
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
		m.takenBack = ""
		m.log.Info("prefork: restarted", "generation", a.Generation)
	case aborted != nil && aborted.TakenBack:
		m.takenBack = err.Error()
		m.log.Error("prefork: restart taken back, though it had succeeded", "generation", a.Generation, "back on", aborted.BackOn, "error", err)
	default:
		m.log.Error("prefork: restart aborted", "generation", a.Generation, "error", err)
	}
	for _, t := range a.Tickets {
		if answer := m.waiters[t]; answer != nil {
			answer <- err
			delete(m.waiters, t)
		}
	}
	if f := m.opts.Hooks.RestartFinished; f != nil {
		m.hook("RestartFinished", func(ctx context.Context) { f(ctx, a.Generation, err) })
	}
}

func (m *Master) hook(name string, f func(ctx context.Context)) {
	m.hooks.add(func() { runHook(m.log, name, f) })
}
