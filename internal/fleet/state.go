package fleet

import (
	"slices"
	"time"
)

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

// Snapshot returns what is to be seen of f.
func (f *Fleet) Snapshot(now time.Time) Snapshot {
	f.event(now)
	s := Snapshot{
		Generation: f.gen,
		Restarting: f.roll != nil,
		Stopping:   f.ending(),
		Want:       f.want,
		Requests:   f.requests,
		Accepted:   f.accepted,
		Crashes:    f.nCrashes,
		Seats:      []SeatSnapshot{},
	}
	if f.roll != nil && !f.roll.back {
		s.Next = f.roll.gen
	}
	for _, o := range f.seats {
		seat := SeatSnapshot{
			Seat:       o.index,
			Target:     o.target,
			Closing:    o.closing,
			Restarts:   o.Restarts,
			BackoffFor: max(0, o.backoff.Sub(f.now)),
			Workers:    []WorkerSnapshot{},
		}
		if o.LastExit != nil {
			x := *o.LastExit
			seat.LastExit = &x
		}
		for _, w := range o.workers {
			s.Requests += w.Beat.Requests
			s.Accepted += w.Beat.Accepted
			state := phaseNames[w.phase]
			if w.phase == serving {
				s.Serving++
				if w.Leaving {
					state = "leaving"
				}
			}
			seat.Workers = append(seat.Workers, WorkerSnapshot{
				ID:         w.ID,
				Seat:       o.index,
				Generation: w.Generation,
				PID:        w.PID,
				State:      state,
				StateFor:   f.now.Sub(w.phaseAt),
				Age:        f.now.Sub(w.born),
				BeatAge:    f.now.Sub(w.beatAt),
				Beat:       w.Beat,
			})
		}
		s.Seats = append(s.Seats, seat)
	}
	return s
}

// A State is all that a master hands to the one that takes its place. Times are
// in it as durations, as the clock of one process means nothing to another.
type State struct {
	Generation     int             `json:"generation"`
	LastGeneration int             `json:"last_generation"`
	Fallback       int             `json:"fallback,omitempty"` // held while Generation is on trial
	TrialFor       time.Duration   `json:"trial_ns,omitempty"`
	LastID         ID              `json:"last_id"`
	EverReady      bool            `json:"ever_ready"`
	Requests       uint64          `json:"requests"` // of workers that are gone
	Accepted       uint64          `json:"accepted"`
	Crashes        uint64          `json:"crashes"`
	CrashAges      []time.Duration `json:"crash_ages_ns"`
	Seats          []SeatState     `json:"seats"`

	// Restarts are not answered yet, as workers still drain. Who adopts but does
	// not know their tickets leaves them out.
	Restarts []RestartState `json:"restarts"`
}

// A SeatState is the part of a [State] for one seat.
type SeatState struct {
	Failures   int           `json:"failures"` // in a row, for the backoff
	BackoffFor time.Duration `json:"backoff_ns"`
	Steady     bool          `json:"steady"`   // the last that failed had served for BackoffBase
	Restarts   uint64        `json:"restarts"` // failures of any kind
	LastExit   *WorkerExit   `json:"last_exit"`
	Workers    []WorkerState `json:"workers"`
}

// A WorkerState is the part of a [State] for one worker.
type WorkerState struct {
	ID          ID            `json:"id"`
	Generation  int           `json:"generation"`
	PID         int           `json:"pid"` // 0 until it is known
	Phase       string        `json:"phase"`
	PhaseFor    time.Duration `json:"phase_ns"`
	BornFor     time.Duration `json:"born_ns"`
	ReadyFor    time.Duration `json:"ready_ns"`
	LeavingFor  time.Duration `json:"leaving_ns"`
	WasReady    bool          `json:"was_ready"`
	Passed      bool          `json:"passed"` // its probation
	Beat        Beat          `json:"beat"`
	Level       Level         `json:"level"`  // of the order to stop, or 0
	Final       bool          `json:"final"`  // that was
	Judged      Class         `json:"judged"` // Hung or Boot, when that has been found
	Failed      bool          `json:"failed"` // has been counted
	Forced      bool          `json:"forced"` // has been dumped or killed
	Leaving     bool          `json:"leaving"`
	LeaveWhy    string        `json:"leave_why"`
	LeaveLost   bool          `json:"leave_lost"` // its replacement failed
	Recycle     bool          `json:"recycle"`    // is to be replaced
	Recycling   bool          `json:"recycling"`  // that has begun
	MaxRequests uint64        `json:"max_requests"`
	MaxAge      time.Duration `json:"max_age_ns"`
	MaxRSS      uint64        `json:"max_rss"`
}

// A RestartState is the part of a [State] for a restart.
type RestartState struct {
	Generation int           `json:"generation"`
	Tickets    []int         `json:"tickets"`
	Aborted    *RestartError `json:"aborted"` // its Err is lost, but for the text
}

// State returns all that [Fleet.Adopt] needs. It is valid only while f is not
// [Fleet.Busy].
func (f *Fleet) State(now time.Time) State {
	f.event(now)
	s := State{
		Generation:     f.gen,
		LastGeneration: f.lastGen,
		Fallback:       f.fallback,
		TrialFor:       f.now.Sub(f.trialAt),
		LastID:         f.lastID,
		EverReady:      f.everReady,
		Requests:       f.requests,
		Accepted:       f.accepted,
		Crashes:        f.nCrashes,
	}
	for _, t := range f.crashes {
		s.CrashAges = append(s.CrashAges, f.now.Sub(t))
	}
	for _, o := range f.seats {
		seat := o.SeatState
		seat.BackoffFor, seat.Workers = max(0, o.backoff.Sub(f.now)), nil
		for _, w := range o.workers {
			seat.Workers = append(seat.Workers, f.workerState(w))
		}
		s.Seats = append(s.Seats, seat)
	}
	for _, e := range f.finishing {
		r := RestartState{Generation: e.gen, Tickets: e.tickets}
		if e.err != nil {
			a := *e.err
			if a.Err != nil {
				a.Reason += ": " + a.Err.Error()
				a.Err = nil
			}
			r.Aborted = &a
		}
		s.Restarts = append(s.Restarts, r)
	}
	return s
}

func (f *Fleet) workerState(w *worker) WorkerState {
	s := w.WorkerState
	s.Phase, s.PhaseFor, s.BornFor = phaseNames[w.phase], f.now.Sub(w.phaseAt), f.now.Sub(w.born)
	if w.WasReady {
		s.ReadyFor = f.now.Sub(w.readyAt)
	}
	if w.Leaving {
		s.LeavingFor = f.now.Sub(w.leftAt)
	}
	return s
}

// Adopt begins instead of [Fleet.Start] in a master that has taken the place of
// another, with what [Fleet.State] returned there. The clocks by which workers
// are judged begin anew, as after [Fleet.Late]. The number of seats is that of
// s, whatever Config says. A worker without a PID is left out.
func (f *Fleet) Adopt(now time.Time, s State) {
	if len(s.Seats) == 0 || s.Generation < 1 {
		f.Start(now)
		return
	}
	if f.event(now); f.started {
		return
	}
	f.started, f.announce, f.startedAt = true, true, f.now
	f.gen, f.lastGen = s.Generation, max(s.LastGeneration, s.Generation)
	f.fallback, f.trialAt = s.Fallback, f.now.Add(-s.TrialFor)
	f.lastID, f.everReady = s.LastID, s.EverReady
	f.requests, f.accepted, f.nCrashes = s.Requests, s.Accepted, s.Crashes
	for _, age := range s.CrashAges {
		f.crashes = append(f.crashes, f.now.Add(-age))
	}
	for _, o := range s.Seats {
		f.addSeat()
		seat := f.last()
		seat.SeatState, seat.backoff = o, f.now.Add(o.BackoffFor)
		for _, w := range o.Workers {
			f.adopt(seat, w)
		}
	}
	f.want = len(f.seats)
	for _, r := range s.Restarts {
		f.finishing = append(f.finishing, &finish{r.Generation, r.Tickets, r.Aborted})
	}
	f.reconcile()
}

func (f *Fleet) adopt(o *seat, s WorkerState) {
	p := phase(slices.Index(phaseNames, s.Phase))
	if f.workers[s.ID] != nil || s.PID == 0 || p < 0 {
		return
	}
	f.lastID, f.lastGen = max(f.lastID, s.ID), max(f.lastGen, s.Generation)
	w := &worker{
		WorkerState: s, seat: o, phase: p, born: f.now.Add(-s.BornFor),
		phaseAt: f.now.Add(-s.PhaseFor), readyAt: f.now.Add(-s.ReadyFor), beatAt: f.now, leftAt: f.now.Add(-s.LeavingFor),
		bootAt: f.now, progressAt: f.now, probationAt: f.now, ladderAt: f.now,
	}
	if w.Level >= LevelNow {
		w.nowAt = f.now
	}
	o.workers = append(o.workers, w)
	f.workers[w.ID] = w
}
