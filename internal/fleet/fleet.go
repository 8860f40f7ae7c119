// Package fleet decides what a master process does with its workers: whom to
// start, to stop and to kill, and when. It does none of it itself. It has no
// goroutine and no clock, and does not touch the system: what happened comes in
// as a call with the time, and what to do goes out as a list of actions. So all
// that can go wrong with processes can be tested without any.
package fleet

import "time"

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
	// live before CanaryCheck is asked. The second is not started before that,
	// or, without Canary, before the first has passed its probation.
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
	// with another generation.
	BackoffBase, BackoffMax, HealthyAfter time.Duration

	// More than CrashLimit failures of the fleet within CrashWindow end it. The
	// ones that RestartTries counts are not among them. A CrashWindow of zero
	// means no such limit.
	CrashLimit  int
	CrashWindow time.Duration

	// BootTries is how many workers of one seat may fail to get ready as long as
	// none of the fleet ever was: nobody waits for the service yet, but somebody
	// for the news that it does not start. Zero means without limit.
	BootTries int

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
	actions []Action
}

// New returns a fleet that has not started.
func New(cfg Config) *Fleet {
	return &Fleet{cfg: cfg}
}

// Start begins with generation 1 and a worker for each seat.
func (f *Fleet) Start(now time.Time) {}

// Spawned says that the process of a worker exists.
func (f *Fleet) Spawned(now time.Time, id ID, pid int) {}

// SpawnFailed says that it could not be made.
func (f *Fleet) SpawnFailed(now time.Time, id ID, err error) {}

// Ready says that a worker serves.
func (f *Fleet) Ready(now time.Time, id ID) {}

// Beat says how a worker does.
func (f *Fleet) Beat(now time.Time, id ID, b Beat) {}

// Leaving says that a worker wants to leave, since somebody other than the
// master told it to. It goes on serving. If the fleet stops, or begins to within
// LeaveGrace, it is told so. Otherwise it is replaced, and told to stop when the
// replacement serves or has failed, or after LeaveTimeout.
func (f *Fleet) Leaving(now time.Time, id ID) {}

// Exited says that the process of a worker is gone.
func (f *Fleet) Exited(now time.Time, id ID, e Exit) {}

// Tick says that time has passed. It is due at [Fleet.Next].
func (f *Fleet) Tick(now time.Time) {}

// Late says that the caller was not there for a while, as the process or the
// machine was stopped. Nobody is judged for that time.
func (f *Fleet) Late(now time.Time) {}

// Restart replaces all workers by ones of a new generation. RestartDone with the
// ticket answers.
func (f *Fleet) Restart(now time.Time, ticket int) {}

// Verdict answers CanaryCheck.
func (f *Fleet) Verdict(now time.Time, generation int, err error) {}

// Scale sets the number of seats.
func (f *Fleet) Scale(now time.Time, n int) error { return nil }

// Recycle replaces the worker of a seat.
func (f *Fleet) Recycle(now time.Time, seat int) error { return nil }

// Stop stops the whole fleet. A higher level later escalates.
func (f *Fleet) Stop(now time.Time, level Level) {}

// Next returns when Tick is due, or the zero time if no time matters.
func (f *Fleet) Next() time.Time { return time.Time{} }

// Take returns what to do now, in this order.
func (f *Fleet) Take() []Action { return nil }

// Busy reports whether a restart rolls, the scale changes or the fleet stops.
func (f *Fleet) Busy() bool { return false }
