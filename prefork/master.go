//go:build unix

package prefork

import (
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

// A Master holds the sockets and looks after the workers. [Hooks.MasterStart]
// hands it out. All methods may be called from many goroutines at once; what
// they ask for is done one after the other.
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

// Restart replaces all workers by new ones, from the program's file as it is
// now. Seat by seat, the new worker serves before the old one is told to stop.
// It returns nil when all seats serve with the new generation and no process of
// an older one is left; or a [*RestartError] when the new generation failed and
// all seats are back on the old one. If ctx ends, the restart goes on without
// the caller. A call during a restart is answered by one that follows.
//
// A generation that keeps crashing after that is taken back to the last one that
// lived: [Hooks.RestartFinished] is called again, with the error, and
// [Stats].TakenBack says so.
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
