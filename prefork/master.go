//go:build unix

package prefork

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"net"
	"os"
	"slices"
	"sync"
	"time"

	"github.com/seed-235859eb/usher/internal/fleet"
	"github.com/seed-235859eb/usher/internal/reuseport"
	"github.com/seed-235859eb/usher/internal/sdnotify"
)

// A Master holds the sockets and looks after the workers. [Hooks.MasterStart]
// hands it out. All methods may be called from many goroutines at once; what
// they ask for is done one after the other.
type Master struct {
	opts    Options
	log     *slog.Logger
	events  chan func() // carried out by the one goroutine that owns what follows
	signals chan os.Signal
	done    chan struct{} // closed when the owner has returned
	hooks   *queue
	manager *queue // what is sent to the service manager
	sd      *sdnotify.Notifier
	began   time.Time

	fleet     *fleet.Fleet
	endpoints []*endpoint
	procs     map[fleet.ID]*proc
	programs  map[int]*program // by generation
	path      string           // of the program's file
	waiters   map[int]chan error
	tickets   int
	spawning  int  // processes about to be started
	closing   bool // the sockets have been closed, the fleet stops
	reloading bool // the service manager thinks so
	status    string
	fed       time.Time // when the watchdog was fed
	watchdog  time.Duration
	due       time.Time // when the goroutine was last at work, or will be again
	terms     burst
	replace   func() // replaces this process when it can be done; nil if nobody wants that
	upgrading bool
	trials    sync.WaitGroup
	over      bool
	result    error
}

// endpoint is an [Endpoint] with its sockets.
type endpoint struct {
	name   string
	key    string // what was asked for: the same in the next master
	group  *reuseport.Group
	unlink string // path of a unix socket that is ours to remove

	foreign bool // the socket is not ours alone
}

// proc is a worker process as the master knows it.
type proc struct {
	id               fleet.ID
	seat, generation int
	pid              int
	out              *output
	orders           []func()     // for when it has been started
	adopted          map[int]bool // seats besides its own
	ready            bool

	*started
	reading sync.WaitGroup // the goroutines that read from it
}

// started is a process that has been started, or adopted.
type started struct {
	process *os.Process
	link    *link
	stderr  *os.File
	allRead chan struct{} // closed when stderr has ended
}

var errMasterGone = errors.New("prefork: the master has ended")

func newMaster(opts Options) *Master {
	m := &Master{
		opts: opts, log: opts.Logger,
		events:   make(chan func(), 64),
		signals:  make(chan os.Signal, 16),
		done:     make(chan struct{}),
		manager:  newQueue(func() {}),
		began:    time.Now(),
		procs:    map[fleet.ID]*proc{},
		programs: map[int]*program{},
		waiters:  map[int]chan error{},
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
		BootTries: bootTries, RestartTries: restartTries, MaxDraining: maxDraining,
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

// Restart replaces all workers by new ones, from the program's file as it is
// now. Seat by seat, the new worker serves before the old one is told to stop.
// It returns nil when all seats serve with the new generation and no process of
// an older one is left; or a [*RestartError] when the new generation failed and
// all seats are back on the old one. If ctx ends, the restart goes on without
// the caller. A call during a restart is answered by one that follows.
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
	m.log.Info("prefork: phased restart", "reason", why)
	m.fleet.Restart(m.now(), ticket)
}

// Upgrade replaces the master itself by the program's file as it is now: a trial
// run of it must come as far as [Run] first. The process keeps its ID, sockets
// and workers, and then a phased restart brings the workers to the new program,
// too. It waits for a restart under way.
//
// Upgrade does not return if it succeeds. An error says that nothing has
// changed.
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

// Scale sets the number of workers. It returns when that is under way.
func (m *Master) Scale(n int) error {
	if n < 1 || n > maxWorkers {
		return fmt.Errorf("prefork: Scale to %d workers: must be between 1 and %d", n, maxWorkers)
	}
	var err error
	return errors.Join(m.call(context.Background(), func() { err = m.fleet.Scale(m.now(), n) }), err)
}

// Recycle replaces the worker of a seat by another of the same generation.
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
	m.log.Info("prefork: stopping", "reason", why, "level", int(level))
	m.fleet.Stop(m.now(), level)
}

// closeSockets gives up the master's share of the sockets once the fleet stops:
// the workers have theirs, and when they are done new connects must be refused.
func (m *Master) closeSockets() {
	m.closing = true
	m.manage(func() error { return m.sd.Stopping("stopping") })
	m.unpublish()
	for _, e := range m.endpoints {
		if err := e.group.Close(); err != nil {
			m.log.Warn("prefork: close of a socket failed", "endpoint", e.name, "error", err)
		}
	}
}

// unpublish takes away the names of unix sockets, so that nobody new comes.
func (m *Master) unpublish() {
	for _, e := range m.endpoints {
		if e.unlink == "" {
			continue
		}
		if err := os.Remove(e.unlink); err != nil {
			m.log.Warn("prefork: cannot remove a unix socket", "endpoint", e.name, "error", err)
		}
		e.unlink = ""
	}
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
			p.say(m, frame{Type: frameStop, Level: a.Level, Final: a.Final})
			if !p.ready {
				// It may be far from Run, and holds sockets.
				m.signalProc(p, stopSignal)
			}
		})
	case fleet.Dump:
		m.order(a.ID, func(p *proc) {
			m.log.Warn("prefork: asking a worker for a dump of its goroutines, to kill it", "seat", p.seat, "generation", p.generation, "pid", p.pid, "reason", a.Why)
			m.signalProc(p, dumpSignal)
		})
	case fleet.Kill:
		m.order(a.ID, func(p *proc) {
			m.log.Warn("prefork: killing a worker", "seat", p.seat, "generation", p.generation, "pid", p.pid, "reason", a.Why)
			m.signalProc(p, os.Kill)
		})
	case fleet.Live:
		m.setLive(a)
	case fleet.OpenSeat:
		if err := m.openSeat(a.Seat); err != nil {
			m.log.Error("prefork: cannot open a socket for another seat, will try again", "error", err)
		}
	case fleet.ShutSeat:
		for _, e := range m.endpoints {
			if e.group.Shared() {
				continue
			}
			if err := e.group.Shut(a.Seat); err != nil {
				m.log.Warn("prefork: new handshakes on a seat that closes cannot be stopped", "seat", a.Seat, "endpoint", e.name, "error", err)
			}
		}
	case fleet.CloseSeat:
		for _, e := range m.endpoints {
			if e.group.FD(a.Seat) < 0 {
				continue // could not be opened
			}
			if err := e.group.Shrink(); err != nil {
				m.log.Warn("prefork: close of a seat failed", "seat", a.Seat, "endpoint", e.name, "error", err)
			}
		}
	case fleet.CanaryCheck:
		m.canary(a)
	case fleet.WorkerReady:
		m.workerReady(a)
	case fleet.WorkerGone:
		m.workerGone(a)
	case fleet.AllReady:
		m.reloading = false
		s := m.fleet.Snapshot(time.Now())
		m.log.Info("prefork: all seats serve", "workers", s.Serving, "generation", s.Generation)
		m.status = m.summary()
		m.manage(func() error { return m.sd.Ready(m.status) })
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
	p, err := openProgram(m.path, generation == 1)
	if err != nil {
		m.log.Error("prefork: cannot open the program", "generation", generation, "error", err)
	}
	m.programs[generation] = p
	if generation > 1 {
		m.reloading = true
		m.manage(func() error { return m.sd.Reloading(fmt.Sprintf("restarting to generation %d", generation)) })
	}
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
	p := &proc{id: a.ID, seat: a.Seat, generation: a.Generation, out: &output{}, adopted: map[int]bool{}}
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

// openSeat opens the sockets of a seat that do not exist yet.
func (m *Master) openSeat(seat int) error {
	for _, e := range m.endpoints {
		if e.group.FD(seat) >= 0 {
			continue
		}
		if err := e.group.Grow(); err != nil {
			return fmt.Errorf("prefork: socket of %s for seat %d: %w", e.name, seat, err)
		}
	}
	return nil
}

// spec says how to start p. Its sockets are duplicates: by the time they are
// used, the master may have closed its own.
func (m *Master) spec(p *proc) (processSpec, error) {
	spec := processSpec{
		setup: workerSetup{Seat: p.seat, Generation: p.generation},
		procs: cpuShare(m.fleet.Snapshot(time.Now()).Want),
	}
	var err error
	if spec.program, err = m.programs[p.generation].clone(); err != nil {
		return spec, err
	}
	if err := m.openSeat(p.seat); err != nil {
		return spec, err
	}
	for _, e := range m.endpoints {
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
	m.startReading(p)
	go func() {
		reap := awaitExit(s.process)
		// The last words may still be in the pipe; but a child of the worker
		// may hold it open for ever.
		select {
		case <-s.allRead:
		case <-time.After(250 * time.Millisecond):
		}
		m.post(func() { m.exited(p, reap) })
	}()
}

// startReading listens to what p says on both channels.
func (m *Master) startReading(p *proc) {
	s := p.started
	p.reading.Go(func() {
		if copyOutput(p.out, s.stderr) {
			close(s.allRead)
		}
	})
	p.reading.Go(func() {
		for {
			frames, _, err := s.link.receive()
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

// copyOutput reads what a worker writes to standard error, and writes it to the
// master's. The reading goes on if the master's does not take it. It reports
// whether that was all.
func copyOutput(out *output, from *os.File) bool {
	buf := make([]byte, 16<<10)
	for {
		n, err := from.Read(buf)
		if n > 0 {
			out.Write(buf[:n])
			os.Stderr.Write(buf[:n])
		}
		if err != nil {
			return !errors.Is(err, os.ErrDeadlineExceeded)
		}
	}
}

func (m *Master) exited(p *proc, reap func() fleet.Exit) {
	if m.procs[p.id] != p {
		return
	}
	e := reap()
	e.Output = p.out.String()
	delete(m.procs, p.id)
	p.close()
	m.fleet.Exited(m.now(), p.id, e)
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
		m.log.Info("prefork: a worker was told to stop by somebody else", "seat", p.seat, "pid", p.pid)
		m.fleet.Leaving(now, p.id)
	case frameFleet:
		p.say(m, m.answer(f.Ask))
	}
}

// answer is Stats in a frame.
func (m *Master) answer(ask int) frame {
	s := m.stats()
	for i := range s.Seats {
		s.Seats[i].LastOutput = lastBytes(s.Seats[i].LastOutput, 200)
	}
	f := frame{Type: frameFleet, Ask: ask}
	raw, err := json.Marshal(s)
	switch {
	case err != nil:
		f.Error = err.Error()
	case len(raw) > maxAnswer:
		f.Error = fmt.Sprintf("%d workers are too many for the control socket", s.Workers)
	default:
		f.Fleet = raw
	}
	return f
}

// setLive steers new connections to the seats that are served, and has those
// who serve accept what has come to the others.
func (m *Master) setLive(a fleet.Live) {
	for _, e := range m.endpoints {
		if err := e.group.Steer(a.Seats); err != nil {
			if !errors.Is(err, errors.ErrUnsupported) {
				m.log.Warn("prefork: cannot steer new connections", "endpoint", e.name, "error", err)
			}
		}
	}
	for _, id := range a.To {
		m.order(id, func(p *proc) { m.setOrphans(p, a.Orphans) })
	}
}

func (m *Master) setOrphans(p *proc, seats []int) {
	f := frame{Type: frameOrphans, Seats: seats}
	var fds []int
	now := map[int]bool{}
	for _, seat := range seats {
		if seat == p.seat || !p.adopted[seat] && len(fds)+len(m.endpoints) > maxRights {
			continue // its siblings will do
		}
		now[seat] = true
		for _, e := range m.endpoints {
			fd := e.group.FD(seat)
			if p.adopted[seat] || e.group.Shared() || fd < 0 {
				continue
			}
			f.Fresh = append(f.Fresh, fmt.Sprintf("%d %s", seat, e.name))
			fds = append(fds, fd)
		}
	}
	if len(now) == 0 && len(p.adopted) == 0 {
		return
	}
	p.adopted = now
	p.say(m, f, fds...)
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
	if err != nil {
		m.log.Error("prefork: restart aborted", "generation", a.Generation, "error", err)
	} else {
		m.log.Info("prefork: restarted", "generation", a.Generation)
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

// summary is one line for the service manager.
func (m *Master) summary() string {
	s := m.fleet.Snapshot(time.Now())
	return fmt.Sprintf("generation %d, %d of %d workers serve", s.Generation, s.Serving, s.Want)
}

// tellManager keeps the service manager up to date. Its watchdog is fed only
// while a worker serves and gets on.
func (m *Master) tellManager() {
	if m.sd == nil || m.closing {
		return
	}
	if s := m.summary(); s != m.status {
		m.status = s
		m.manage(func() error { return m.sd.Status(s) })
	}
	if m.watchdog == 0 || time.Since(m.fed) < m.watchdog/3 {
		return
	}
	healthy := func(w fleet.WorkerSnapshot) bool {
		return (w.State == "serving" || w.State == "leaving") && w.Beat.Progress && w.BeatAge < m.opts.HeartbeatTimeout
	}
	for _, seat := range m.fleet.Snapshot(time.Now()).Seats {
		if slices.ContainsFunc(seat.Workers, healthy) {
			m.fed = time.Now()
			m.manage(m.sd.Watchdog)
			return
		}
	}
}

// manage sends something to the service manager, in order, without waiting.
func (m *Master) manage(send func() error) {
	if m.sd == nil {
		return
	}
	m.manager.add(func() {
		if err := send(); err != nil {
			m.log.Warn("prefork: service manager", "error", err)
		}
	})
}

// stats is Stats, for the goroutine that owns the state.
func (m *Master) stats() Stats {
	f := m.fleet.Snapshot(time.Now())
	s := Stats{
		PID: os.Getpid(), UpFor: time.Since(m.began),
		Generation: f.Generation, Next: f.Next, Restarting: f.Restarting, Stopping: f.Stopping,
		Workers: f.Want, Serving: f.Serving,
		Requests: f.Requests, Accepted: f.Accepted, Crashes: f.Crashes,
		Seats: make([]SeatStats, 0, len(f.Seats)),
	}
	for _, fs := range f.Seats {
		seat := SeatStats{
			Seat: fs.Seat, Generation: fs.Target, Closing: fs.Closing, Restarts: fs.Restarts, BackoffFor: fs.BackoffFor,
			Queued: m.queued(fs.Seat), Workers: make([]WorkerStats, 0, len(fs.Workers)),
		}
		if e := fs.LastExit; e != nil {
			seat.LastExit, seat.LastClass, seat.LastOutput = e.String(), Class(e.Class), lastBytes(e.Exit.Output, 1<<10)
		}
		for _, w := range fs.Workers {
			seat.Workers = append(seat.Workers, statsOf(w))
		}
		s.Seats = append(s.Seats, seat)
	}
	return s
}

func (m *Master) workerStats(id fleet.ID) (WorkerStats, bool) {
	for _, seat := range m.fleet.Snapshot(time.Now()).Seats {
		for _, w := range seat.Workers {
			if w.ID == id {
				return statsOf(w), true
			}
		}
	}
	return WorkerStats{}, false
}

// queued returns how many connections wait in the accept queues of a seat.
func (m *Master) queued(seat int) int {
	sum := 0
	for _, e := range m.endpoints {
		if m.closing || e.group.Shared() && seat > 0 {
			continue
		}
		if n, err := e.group.Queued(seat); err == nil {
			sum += n
		}
	}
	return sum
}

func (m *Master) hook(name string, f func(ctx context.Context)) {
	m.hooks.add(func() { runHook(m.log, name, f) })
}
