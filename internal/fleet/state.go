package fleet

import "time"

// A Snapshot is what is to be seen of a fleet at one moment.
type Snapshot struct {
	Generation int            `json:"generation"`         // the current one
	Next       int            `json:"next,omitempty"`     // the one that a restart goes to
	Restarting bool           `json:"restarting"`         // a restart rolls, forth or back
	Stopping   bool           `json:"stopping,omitempty"` // the whole fleet
	Want       int            `json:"want"`               // seats, as asked for by Scale
	Serving    int            `json:"serving"`            // workers
	Requests   uint64         `json:"requests"`           // of all workers there ever were; never falls
	Accepted   uint64         `json:"accepted"`           // likewise
	Crashes    uint64         `json:"crashes"`            // workers that failed; never falls
	Seats      []SeatSnapshot `json:"seats"`
}

// A SeatSnapshot is the part of a [Snapshot] for one seat.
type SeatSnapshot struct {
	Seat       int              `json:"seat"`
	Target     int              `json:"target"`               // generation that it wants
	Closing    bool             `json:"closing,omitempty"`    // for a smaller scale
	Restarts   uint64           `json:"restarts"`             // workers of it that failed
	BackoffFor time.Duration    `json:"backoff_ns,omitempty"` // until the next worker may be started
	LastExit   *WorkerExit      `json:"last_exit,omitempty"`
	Workers    []WorkerSnapshot `json:"workers"`
}

// A WorkerSnapshot is the part of a [Snapshot] for one worker.
type WorkerSnapshot struct {
	ID         ID            `json:"id"`
	Seat       int           `json:"seat"`
	Generation int           `json:"generation"`
	PID        int           `json:"pid"`
	State      string        `json:"state"` // starting, serving, leaving, stopping, dumped or killed
	StateFor   time.Duration `json:"state_ns"`
	Age        time.Duration `json:"age_ns"`
	BeatAge    time.Duration `json:"beat_age_ns"` // since the last beat of any kind, or ready, or the start
	Beat       Beat          `json:"beat"`
}

// A State is all that a master hands to the one that takes its place. Times are
// in it as durations, as the clock of one process means nothing to another.
type State struct {
	Generation     int `json:"generation"`
	LastGeneration int `json:"last_generation"`
	LastID         ID  `json:"last_id"`
}

// Snapshot returns what is to be seen of f.
func (f *Fleet) Snapshot(now time.Time) Snapshot { return Snapshot{} }

// State returns all that [Fleet.Adopt] needs. It is valid only while f is not
// [Fleet.Busy].
func (f *Fleet) State(now time.Time) State { return State{} }

// Adopt begins instead of [Fleet.Start] in a master that has taken the place of
// another, with what [Fleet.State] returned there.
func (f *Fleet) Adopt(now time.Time, s State) {}
