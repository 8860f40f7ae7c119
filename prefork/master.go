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
	"time"

	"github.com/seed-235859eb/usher/internal/asynclog"
	"github.com/seed-235859eb/usher/internal/fleet"
)

// A Master holds the sockets, and starts, watches and stops the workers.
// [Hooks.MasterStart] gets it. All methods may be called from many goroutines at
// once; what they ask for is done one after the other.
type Master struct {
	opts   Options
	log    *slog.Logger
	began  time.Time
	events chan func()   // carried out by the one goroutine that owns what follows
	done   chan struct{} // closed when that has returned
	gone   chan struct{} // closed when Run returns

	fleet    *fleet.Fleet // decides
	procs    map[fleet.ID]*proc
	spawning int // processes about to be started
	programs programs
	sockets  heldSockets
	output   outputs
	signals  signals
	orders   orders
	upgrades upgrades
	manager  serviceManager
	hooks    *queue

	evictions sync.WaitGroup // of the orphans of a master before, see evict
	pidFile   pidFile
	reopenLog chan struct{}

	due    time.Time // when the goroutine was last at work, or will be again
	over   bool
	result error
}

// orders are the restarts that somebody has asked for, by ticket.
type orders struct {
	last      int
	waiters   map[int]chan error
	takenBack string // see Stats
}

// add returns a ticket. The answer, unless it is nil, comes to a channel that has
// room for it.
func (o *orders) add(answer chan error) int {
	o.last++
	if answer != nil {
		o.waiters[o.last] = answer
	}
	return o.last
}

func (o *orders) answer(tickets []int, err error) {
	for _, t := range tickets {
		if answer := o.waiters[t]; answer != nil {
			answer <- err
			delete(o.waiters, t)
		}
	}
}

var errMasterGone = errors.New("prefork: the master has ended")

func newMaster(opts Options) *Master {
	log := opts.Logger.With("master", os.Getpid())
	m := &Master{
		opts: opts, log: log, began: time.Now(),
		events:    make(chan func(), 64),
		done:      make(chan struct{}),
		gone:      make(chan struct{}),
		reopenLog: make(chan struct{}, 1),
		procs:     map[fleet.ID]*proc{},
		programs:  programs{held: map[int]*program{}},
		sockets:   heldSockets{log: log},
		output:    outputs{gone: map[*stream]bool{}, to: asynclog.NewWriter(os.Stderr, "prefork", outPatience)},
		signals:   signals{ch: make(chan os.Signal, 16)},
		orders:    orders{waiters: map[int]chan error{}},
		manager:   serviceManager{log: log, queue: newQueue(func() {})},
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
		m.restart(m.orders.add(answer), "Restart called")
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
