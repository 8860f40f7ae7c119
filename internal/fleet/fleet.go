// Package fleet decides what a master process does with its workers: whom to
// start, to stop and to kill, and when. It does none of it itself. It has no
// goroutine and no clock, and does not touch the system: what happened comes in
// as a call with the time, and what to do goes out as a list of actions. So all
// that can go wrong with processes can be tested without any.
package fleet

import (
	"math"
	"time"
)

// An ID names a worker process. It is never used again.
type ID uint64

// Config is how a fleet behaves. Where nothing else is said a duration of zero
// means without limit.
type Config struct {
	Seats int // at first; at least 1

	BootTimeout      time.Duration // from the spawn to ready
	HeartbeatTimeout time.Duration // the longest time without progress from ready on, also while draining
	StopTimeout      time.Duration // from an order to stop to the dump
	DumpGrace        time.Duration // from the dump (SIGQUIT) to SIGKILL; zero means none

	// Probation is how long a worker of a new generation must live after it was
	// ready, or the generation is to blame. Zero means none.
	Probation time.Duration

	// Canary, if not zero, is how long the first worker of a new generation must
	// live before CanaryCheck is asked. Before that, or, without Canary, before
	// it has passed its probation, the second is not started, and the worker
	// whose place it takes serves beside it.
	Canary time.Duration

	// HandshakeGrace is for connections half made when a seat is shut: they come
	// into its queue before its worker is told to stop. Zero means none.
	HandshakeGrace time.Duration

	LeaveGrace   time.Duration // see Fleet.Leaving; zero means none
	LeaveTimeout time.Duration // likewise, from the call on

	// MaxSurge is how many workers beyond one for each seat a restart may cause
	// at a time: ones that start beside one that serves, and ones that stop.
	// Less than 1 means as many as there are seats.
	MaxSurge int

	// A seat's next worker is started at once after the first failure, then
	// BackoffBase later, twice that, and so on up to BackoffMax, each with 20 %
	// of jitter. It begins again once a worker has served for HealthyAfter, or
	// with another generation. While fewer than half of the seats have a worker,
	// a seat whose last one had served for BackoffBase does not wait. Zero means
	// at once, except for BackoffMax.
	BackoffBase, BackoffMax, HealthyAfter time.Duration

	// More than CrashLimit failures of the fleet within CrashWindow end it. The
	// ones that RestartTries counts are not among them, nor those of workers
	// that were to take the place of one that still serves. If it is a worker of
	// a new generation that is one too many, it ends the restart instead. A
	// generation whose restart has succeeded is on trial for another CrashWindow:
	// more than half as many failures take it back to the last one that has passed
	// that, or to the one that the fleet began with. A CrashWindow of zero means no such
	// limit.
	CrashLimit  int
	CrashWindow time.Duration

	// FirstBootTimeout is how long after the start workers that fail before they
	// are ready are followed by others, as long as none of the fleet ever was
	// ready: what the program needs may be late, but somebody waits for the news
	// that it does not start. The last try is at that time. CrashLimit does not
	// count these. Zero means without limit.
	FirstBootTimeout time.Duration

	// RestartTries is how many workers of a new generation must fail, before
	// they are ready or in their probation, to abort the restart. Less than 1
	// means 1.
	RestartTries int

	// MaxDraining is how many generations besides the current one may have
	// workers that stop. The oldest beyond that are told to end at once. Zero
	// means without limit.
	MaxDraining int

	// A worker that has had so many requests, or is so old or so large, is
	// replaced. Each has its own limit within 10 % of these, as workers that
	// started together should not be due together. Zero means never.
	RecycleRequests uint64
	RecycleAge      time.Duration
	RecycleRSS      uint64

	Rand func() float64 // from 0 to below 1, for jitter; nil means without jitter
}

// A Level is how urgent a stop is.
type Level int

const (
	LevelStop  Level = 1 + iota // finish all there is
	LevelQuick                  // skip delays that are only for the comfort of others
	LevelNow                    // end at once
)

// A Beat is what a worker says of itself from time to time. Counters are since
// the worker's start.
type Beat struct {
	Progress    bool   `json:"progress"` // it gets on, if only with waiting
	Requests    uint64 `json:"requests"`
	Accepted    uint64 `json:"accepted"`
	InFlight    int    `json:"in_flight"`
	Connections int    `json:"connections"`
	Queued      int    `json:"queued"`
	RSS         uint64 `json:"rss"`
}

// A Fleet is the state of all workers. It must be made with [New], and used by
// one goroutine at a time. After each event [Fleet.Take] returns what to do.
//
// An event that makes no sense, as of an ID that does not exist (any more), is
// ignored. The time must not go back; if it does it is taken to stand still.
type Fleet struct {
	cfg     Config
	started bool
	over    bool
	now     time.Time

	// What an event leads to, see reconcile.
	changed bool
	next    time.Time
	before  []Action // news, and what must come before Live
	after   []Action // orders
	answers []Action // what has come to its end by that
	actions []Action // for Take
	live    Live     // the last one emitted
	isLive  bool     // there was one

	seats   []*seat
	want    int // seats, by Scale
	workers map[ID]*worker
	lastID  ID

	gen       int       // the current generation
	lastGen   int       // the last number given
	fallback  int       // the last generation that lived, while the current one is on trial; or 0
	trialAt   time.Time // when that began
	roll      *roll
	pending   []int // tickets for the next restart
	finishing []*finish

	crashes   []time.Time // within the window
	nCrashes  uint64
	everReady bool
	startedAt time.Time // begins anew in Late
	announce  bool      // AllReady is due when all are
	requests  uint64
	accepted  uint64 // of those that are gone

	level   Level  // of the stop, 0 if there is none
	told    Level  // what all were told of it
	stopWhy string // the reason for level
	giveUp  *GiveUpError
	short   []WorkerExit // since the stop: see StopError
}

// A seat is a socket and the processes that serve it: one, or more while one
// takes the place of another.
type seat struct {
	SeatState // without BackoffFor and Workers

	index     int
	target    int       // the generation that it wants
	workers   []*worker // oldest first
	closing   bool
	closedAt  time.Time // when it was shut
	backoff   time.Time // when the next worker may be started
	backFails int       // failures to return from an aborted restart
}

type phase int

const (
	starting phase = iota
	serving
	stopping // was told to stop
	dumped   // was sent SIGQUIT
	killed   // was sent SIGKILL
)

var phaseNames = []string{"starting", "serving", "stopping", "dumped", "killed"}

type worker struct {
	WorkerState // without Phase and what ends in For

	seat  *seat
	phase phase
	born  time.Time

	phaseAt  time.Time // it began
	readyAt  time.Time
	beatAt   time.Time // the last one
	leftAt   time.Time // Leaving
	leaveDue bool      // LeaveGrace is over since

	// The clocks by which it is judged. All of them begin anew in Late.
	bootAt      time.Time
	progressAt  time.Time
	probationAt time.Time
	ladderAt    time.Time // of the order to stop, or of the dump
	nowAt       time.Time // of the order to end at once, if there was one

	stopFor int           // the generation of the restart that stopped it, or 0
	blame   []*WorkerExit // to be filled in when it is gone
}

// New returns a fleet that has not started.
func New(cfg Config) *Fleet {
	cfg.Seats = max(cfg.Seats, 1)
	cfg.RestartTries = max(cfg.RestartTries, 1)
	return &Fleet{cfg: cfg, workers: map[ID]*worker{}}
}

// event begins an event. It reports whether there is something it can change.
func (f *Fleet) event(now time.Time) bool {
	if now.After(f.now) {
		f.now = now
	}
	return f.started && !f.over
}

// Start begins with generation 1 and a worker for each seat.
func (f *Fleet) Start(now time.Time) {
	if f.event(now); f.started {
		return
	}
	f.started, f.announce, f.startedAt = true, true, f.now
	f.gen, f.lastGen = 1, 1
	f.want = f.cfg.Seats
	f.before = append(f.before, NewGeneration{f.gen})
	for range f.want {
		f.addSeat()
	}
	f.reconcile()
}

// Spawned says that the process of a worker exists.
func (f *Fleet) Spawned(now time.Time, id ID, pid int) {
	if w := f.workers[id]; f.event(now) && w != nil && w.PID == 0 {
		w.PID, w.bootAt = pid, f.now
		f.reconcile()
	}
}

// SpawnFailed says that it could not be made.
func (f *Fleet) SpawnFailed(now time.Time, id ID, err error) {
	if w := f.workers[id]; f.event(now) && w != nil && w.PID == 0 {
		e := Exit{Unknown: true}
		if err != nil {
			e.Output = err.Error()
		}
		f.gone(w, e)
	}
}

// Ready says that a worker serves.
func (f *Fleet) Ready(now time.Time, id ID) {
	w := f.workers[id]
	if !f.event(now) || w == nil || w.WasReady || w.phase > stopping {
		return
	}
	f.everReady, w.WasReady = true, true
	w.readyAt, w.beatAt, w.progressAt, w.probationAt = f.now, f.now, f.now, f.now
	w.MaxRequests = uint64(math.Ceil(f.jitter(float64(f.cfg.RecycleRequests), 0.1)))
	w.MaxAge = time.Duration(math.Ceil(f.jitter(float64(f.cfg.RecycleAge), 0.1)))
	w.MaxRSS = uint64(math.Ceil(f.jitter(float64(f.cfg.RecycleRSS), 0.1)))
	if w.phase == starting {
		w.enter(serving, f.now)
		f.before = append(f.before, WorkerReady{w.ID, w.seat.index, w.Generation})
	}
	f.reconcile()
}

// Beat says how a worker does.
func (f *Fleet) Beat(now time.Time, id ID, b Beat) {
	w := f.workers[id]
	if !f.event(now) || w == nil {
		return
	}
	w.beatAt = f.now
	if b.Progress {
		w.progressAt = f.now
	}
	b.Requests = max(b.Requests, w.Beat.Requests) // for the totals never fall
	b.Accepted = max(b.Accepted, w.Beat.Accepted)
	w.Beat = b
	if w.MaxRequests > 0 && b.Requests >= w.MaxRequests || w.MaxRSS > 0 && b.RSS >= w.MaxRSS {
		w.Recycle = true
	}
	f.reconcile()
}

// Leaving says that a worker wants to leave, since somebody other than the
// master told it to. It goes on serving. If the fleet stops, or begins to within
// LeaveGrace, it is told so. Otherwise it is replaced, and told to stop when the
// replacement serves or has failed, or after LeaveTimeout. Why is told to it then.
func (f *Fleet) Leaving(now time.Time, id ID, why string) {
	if w := f.workers[id]; f.event(now) && w != nil && !w.Leaving {
		w.Leaving, w.leftAt, w.LeaveWhy = true, f.now, why
		f.reconcile()
	}
}

// Exited says that the process of a worker is gone.
func (f *Fleet) Exited(now time.Time, id ID, e Exit) {
	if w := f.workers[id]; f.event(now) && w != nil {
		f.gone(w, e)
	}
}

// Tick says that time has passed. It is due at [Fleet.Next].
func (f *Fleet) Tick(now time.Time) {
	if f.event(now) {
		f.reconcile()
	}
}

// Late says that the caller was not there for a while, as the process or the
// machine was stopped. Nobody is judged for that time: what workers said
// meanwhile has not been heard, and they may have been stopped themselves.
func (f *Fleet) Late(now time.Time) {
	if !f.event(now) {
		return
	}
	f.startedAt = f.now
	for _, w := range f.workers {
		w.bootAt, w.progressAt, w.probationAt, w.ladderAt = f.now, f.now, f.now, f.now
		if !w.nowAt.IsZero() {
			w.nowAt = f.now
		}
	}
	f.reconcile()
}

// Stop stops the whole fleet. A higher level later escalates. Why is told to the
// workers.
func (f *Fleet) Stop(now time.Time, level Level, why string) {
	f.event(now)
	if f.over {
		return
	}
	f.started = true // if it was not it is over at once
	if level = min(max(level, LevelStop), LevelNow); level > f.level {
		f.level, f.stopWhy = level, why
	}
	f.reconcile()
}

// Next returns when Tick is due, or the zero time if no time matters.
func (f *Fleet) Next() time.Time { return f.next }

// Take returns what to do now, in this order.
func (f *Fleet) Take() []Action {
	a := f.actions
	f.actions = nil
	return a
}

// Busy reports whether a restart rolls, the scale changes or the fleet stops.
func (f *Fleet) Busy() bool {
	return f.roll != nil || len(f.pending) > 0 || f.scaling() || f.ending() || f.over
}
