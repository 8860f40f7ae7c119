package fleet

import (
	"fmt"
	"strings"
	"time"
)

// An Exit is how a process ended.
type Exit struct {
	Code    int    `json:"code"`
	Signal  int    `json:"signal,omitempty"`  // 0: it exited with Code
	Output  string `json:"output,omitempty"`  // the last of what it wrote
	Unknown bool   `json:"unknown,omitempty"` // the status was lost
}

const sigKill = 9 // everywhere

func (e Exit) String() string {
	s := fmt.Sprintf("exit status %d", e.Code)
	switch {
	case e.Unknown:
		s = "exit status unknown"
	case e.Signal != 0:
		s = fmt.Sprintf("signal %d", e.Signal)
	}
	if line := e.lastLine(); line != "" {
		s += fmt.Sprintf(": %q", line)
	}
	return s
}

func (e Exit) lastLine() string {
	out := strings.TrimSpace(e.Output)
	if i := strings.LastIndexByte(out, '\n'); i >= 0 {
		out = strings.TrimSpace(out[i+1:])
	}
	return out
}

// A Class tells why a worker ended.
type Class string

const (
	Asked  Class = "asked"  // after an order to stop; or, with status 0, after Leaving
	Clean  Class = "clean"  // status 0, and nobody had asked for it
	Code   Class = "code"   // any other status
	Signal Class = "signal" // by a signal
	Killed Class = "killed" // by a SIGKILL that was not ours: the kernel was out of memory, or a person did it
	Hung   Class = "hung"   // we killed it for want of progress
	Boot   Class = "boot"   // it died, exited or was out of time before it was ready, or could not be started
)

// A WorkerExit is the end of a worker.
type WorkerExit struct {
	ID         ID            `json:"id"`
	Seat       int           `json:"seat"`
	Generation int           `json:"generation"`
	PID        int           `json:"pid"` // 0: the process could not be started
	Class      Class         `json:"class"`
	Exit       Exit          `json:"exit"`
	Age        time.Duration `json:"age_ns"`
	WasReady   bool          `json:"was_ready"`
	Forced     bool          `json:"forced"` // we sent it SIGQUIT or SIGKILL
}

func (e WorkerExit) Error() string { return e.String() }

// String returns one line, with the last line of the worker's output.
func (e WorkerExit) String() string {
	if e.PID == 0 && e.Exit.Unknown {
		return fmt.Sprintf("worker of generation %d could not be started: %s", e.Generation, e.Exit.lastLine())
	}
	how := map[Class]string{
		Asked:  "stopped",
		Clean:  "left unasked",
		Code:   "exited",
		Signal: "died",
		Killed: "was killed, not by us,",
		Hung:   "hung",
		Boot:   "ended before it was ready,",
	}[e.Class]
	switch {
	case e.Class == Boot && e.Forced:
		how = "was not ready in time and was killed"
	case e.Class == Asked && e.Forced:
		how = "did not stop in time and was killed"
	case e.Class == Hung && e.Forced:
		how = "hung and was killed"
	}
	return fmt.Sprintf("worker %d of generation %d %s after %v: %v", e.PID, e.Generation, how, e.Age.Round(time.Millisecond), e.Exit)
}

// A RestartError is why a restart was aborted.
type RestartError struct {
	Generation int
	Seat       int         // -1 if it was none's fault
	Exit       *WorkerExit // of the worker whose end was one too many, if it was that
	Reason     string      // if it was something else, or more
	BackOn     int         // the generation that serves again, or 0 if none does
	TakenBack  bool        // it had succeeded
	Err        error       // of the canary check
}

func (e *RestartError) Error() string {
	var s strings.Builder
	fmt.Fprintf(&s, "restart to generation %d aborted", e.Generation)
	if e.TakenBack {
		s.Reset()
		fmt.Fprintf(&s, "generation %d taken back after its restart had succeeded", e.Generation)
	}
	if e.Generation == 0 { // has not begun
		s.Reset()
		s.WriteString("no restart")
	}
	if e.Seat >= 0 {
		fmt.Fprintf(&s, ": seat %d", e.Seat)
	}
	if e.Exit != nil {
		fmt.Fprintf(&s, ": %v", *e.Exit)
	}
	if e.Reason != "" {
		sep := ": "
		if e.Exit != nil {
			sep = "; "
		}
		s.WriteString(sep + e.Reason)
	}
	if e.Err != nil {
		fmt.Fprintf(&s, ": %v", e.Err)
	}
	if e.BackOn != 0 {
		fmt.Fprintf(&s, "; back on generation %d", e.BackOn)
	}
	return s.String()
}

// Unwrap returns what the canary check said, or else the WorkerExit, if any.
func (e *RestartError) Unwrap() error {
	if e.Err != nil {
		return e.Err
	}
	if e.Exit != nil {
		return *e.Exit
	}
	return nil
}

// A GiveUpError is why there is no use in starting workers any more.
type GiveUpError struct {
	Reason string
	Last   WorkerExit
}

func (e *GiveUpError) Error() string {
	return fmt.Sprintf("gave up: %s; the last: seat %d: %v", e.Reason, e.Last.Seat, e.Last)
}

func (e *GiveUpError) Unwrap() error { return e.Last }

// A StopError names the workers that had to be killed when the fleet stopped, or
// say by their exit status that they could not finish.
type StopError struct {
	Exits []WorkerExit
}

func (e *StopError) Error() string {
	var s strings.Builder
	fmt.Fprintf(&s, "%d of the workers:", len(e.Exits))
	for i, w := range e.Exits {
		sep := " "
		if i > 0 {
			sep = "; "
		}
		fmt.Fprintf(&s, "%sseat %d: %v", sep, w.Seat, w)
	}
	return s.String()
}

// Unwrap returns the WorkerExits.
func (e *StopError) Unwrap() []error {
	errs := make([]error, len(e.Exits))
	for i, w := range e.Exits {
		errs[i] = w
	}
	return errs
}
