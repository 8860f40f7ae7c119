package prefork

import (
	"errors"
	"fmt"
	"time"

	"github.com/seed-235859eb/usher/internal/fleet"
)

// Stats is a snapshot of the master and all workers.
type Stats struct {
	PID        int           `json:"pid"`                  // the master's
	UpFor      time.Duration `json:"up_ns"`                // of this master; an upgrade begins anew
	Generation int           `json:"generation"`           // of the program's code, from 1 on
	Next       int           `json:"next,omitempty"`       // the one that a restart goes to
	Restarting bool          `json:"restarting,omitempty"` // forth or back
	Stopping   bool          `json:"stopping,omitempty"`
	TakenBack  string        `json:"taken_back,omitempty"` // why the last restart that had succeeded was taken back, until another succeeds
	Workers    int           `json:"workers"`              // wanted
	Serving    int           `json:"serving"`

	// Totals of all workers there ever were. They never fall; of a worker that
	// was killed, what it did since its last heartbeat is missing.
	Requests uint64 `json:"requests"`
	Accepted uint64 `json:"accepted"` // connections
	Crashes  uint64 `json:"crashes"`  // workers that ended unasked

	Seats []SeatStats `json:"seats"`
}

// SeatStats is a seat in [Stats].
type SeatStats struct {
	Seat       int           `json:"seat"`
	Generation int           `json:"generation"`            // that it should have
	Closing    bool          `json:"closing,omitempty"`     // for want of work
	Restarts   uint64        `json:"restarts"`              // after crashes
	BackoffFor time.Duration `json:"backoff_ns,omitempty"`  // until the next start
	Queued     int           `json:"queued"`                // in the accept queues of its sockets; of shared ones with seat 0
	LastExit   string        `json:"last_exit,omitempty"`   // in a line
	LastClass  Class         `json:"last_class,omitempty"`  // and its class
	LastOutput string        `json:"last_output,omitempty"` // the end of what it wrote to standard error
	Workers    []WorkerStats `json:"workers"`               // more than one while it is being replaced
}

// WorkerStats is a worker in [Stats].
type WorkerStats struct {
	Seat       int           `json:"seat"`
	Generation int           `json:"generation"`
	PID        int           `json:"pid"`
	State      string        `json:"state"` // starting, serving, leaving, stopping, dumped or killed
	StateFor   time.Duration `json:"state_ns"`
	Age        time.Duration `json:"age_ns"`
	BeatAge    time.Duration `json:"beat_age_ns"` // since its last heartbeat, of which are:
	Progress   bool          `json:"progress"`
	Requests   uint64        `json:"requests"`
	Accepted   uint64        `json:"accepted"` // connections
	InFlight   int           `json:"in_flight"`
	Open       int           `json:"open"`   // connections
	Queued     int           `json:"queued"` // connections not yet accepted, where it accepts
	Memory     int64         `json:"memory"` // bytes resident, 0 if not known
}

// WorkerInfo names a worker.
type WorkerInfo struct {
	Seat, Generation, PID int
}

// A Class says why a worker ended.
type Class string

const (
	ClassAsked  Class = "asked"  // it was told to stop
	ClassClean  Class = "clean"  // exit status 0, and nobody had told it to stop
	ClassCode   Class = "code"   // another exit status
	ClassSignal Class = "signal" // a signal other than SIGKILL
	ClassKilled Class = "killed" // SIGKILL, not from the master: from the kernel, out of memory, or from a person
	ClassHung   Class = "hung"   // the master killed it, because it made no progress
	ClassBoot   Class = "boot"   // it ended before it was ready, or was not ready in time
)

// A WorkerExit is the end of a worker.
type WorkerExit struct {
	WorkerInfo
	Class    Class
	Code     int           // exit status
	Signal   int           // the signal that ended it, or 0
	Output   string        // the end of what it wrote to standard error; a dump of goroutines with what came before it
	Age      time.Duration // from its start to its end
	WasReady bool          // it had been ready

	line string
}

// Error returns one line, with the last line of Output.
func (e *WorkerExit) Error() string { return e.line }

func exitOf(e fleet.WorkerExit) WorkerExit {
	return WorkerExit{
		WorkerInfo: WorkerInfo{Seat: e.Seat, Generation: e.Generation, PID: e.PID},
		Class:      Class(e.Class), Code: e.Exit.Code, Signal: e.Exit.Signal, Output: e.Exit.Output,
		Age: e.Age, WasReady: e.WasReady, line: e.String(),
	}
}

// A RestartError tells why a phased restart was taken back.
type RestartError struct {
	Generation int         // the generation that failed
	Seat       int         // the seat on which it failed, or -1 if on none
	Exit       *WorkerExit // the end of the worker that was one too many, or nil
	BackOn     int         // the generation that serves again, or 0 if none does
	TakenBack  bool        // the restart had succeeded, and the generation kept crashing
	Err        error       // the reason
}

// Error returns one line.
func (e *RestartError) Error() string { return "prefork: " + e.Err.Error() }

// Unwrap returns Err.
func (e *RestartError) Unwrap() error { return e.Err }

// A GiveUpError is returned by [Run] when the workers could not be kept alive.
// The sockets are closed by then.
type GiveUpError struct {
	Last WorkerExit // the worker that ended last
	Err  error      // the reason
}

// Error returns one line.
func (e *GiveUpError) Error() string { return "prefork: " + e.Err.Error() }

// Unwrap returns Last.
func (e *GiveUpError) Unwrap() error { return &e.Last }

// A StopError is returned by [Run] when the stop of workers was not complete: they
// had to be killed, or ended with a status other than 0. A program usually does that
// when its server had to cut requests.
type StopError struct {
	Exits []WorkerExit // of these workers
	Err   error        // the reason
}

// Error returns one line.
func (e *StopError) Error() string { return "prefork: stop fell short: " + e.Err.Error() }

// Unwrap returns Err.
func (e *StopError) Unwrap() error { return e.Err }

// wrapError makes the public form of fleet's errors.
func wrapError(err error) error {
	if err == nil {
		return nil
	}
	if e, ok := errors.AsType[*fleet.RestartError](err); ok {
		r := &RestartError{Generation: e.Generation, Seat: e.Seat, BackOn: e.BackOn, TakenBack: e.TakenBack, Err: err}
		if e.Exit != nil {
			exit := exitOf(*e.Exit)
			r.Exit = &exit
		}
		return r
	}
	if e, ok := errors.AsType[*fleet.GiveUpError](err); ok {
		return &GiveUpError{Last: exitOf(e.Last), Err: err}
	}
	if e, ok := errors.AsType[*fleet.StopError](err); ok {
		s := &StopError{Err: err}
		for _, x := range e.Exits {
			s.Exits = append(s.Exits, exitOf(x))
		}
		return s
	}
	return fmt.Errorf("prefork: %w", err)
}

func statsOf(w fleet.WorkerSnapshot) WorkerStats {
	return WorkerStats{
		Seat: w.Seat, Generation: w.Generation, PID: w.PID,
		State: w.State, StateFor: w.StateFor, Age: w.Age, BeatAge: w.BeatAge,
		Progress: w.Beat.Progress, Requests: w.Beat.Requests, Accepted: w.Beat.Accepted,
		InFlight: w.Beat.InFlight, Open: w.Beat.Connections, Queued: w.Beat.Queued, Memory: int64(w.Beat.RSS),
	}
}

// lastBytes returns the end of s, whole lines if there are any.
func lastBytes(s string, n int) string {
	if len(s) <= n {
		return s
	}
	s = s[len(s)-n:]
	for i := range len(s) - 1 {
		if s[i] == '\n' {
			return s[i+1:]
		}
	}
	return s
}
