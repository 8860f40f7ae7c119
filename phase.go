package usher

import (
	"errors"
	"fmt"
	"time"
)

// ShutdownOptions say how long a stop waits, and for what. The zero value is
// the default for production.
type ShutdownOptions struct {
	// Delay is the lame duck: for so long after the stop began, readiness
	// fails and everything else goes on, for load balancers that learn late.
	// Zero means none. A negative value is an error.
	Delay time.Duration

	// IdleGrace is how long a connection may stay silent, from the drain's
	// beginning or from its last response on, before it is closed. Only an
	// answer retires an HTTP/1 connection without a race: who speaks within
	// IdleGrace gets one.
	//
	// Of a client that sends its requests at random moments, at a rate of its
	// own, and has a round trip of R, at most R/(e·IdleGrace) requests are
	// lost: with 5 s and 1 ms, one stop in 13,000.
	//
	// Zero means 5 s, or a fifth of GracePeriod if that is less. A stop that
	// has less than twice IdleGrace left, after Delay or by its context, makes
	// do with half of what it has. A negative value, or one not less than
	// GracePeriod, is an error.
	IdleGrace time.Duration

	// GracePeriod is how long a stop may take in all. What has not ended by
	// then is cut; hooks get a tenth more. Zero means 25 s, as Heroku and
	// Kubernetes kill after 30 s. A negative value is an error.
	GracePeriod time.Duration
}

const (
	defaultGracePeriod = 25 * time.Second
	defaultIdleGrace   = 5 * time.Second
)

func (o ShutdownOptions) validate() error {
	for _, f := range []struct {
		name  string
		value time.Duration
	}{{"Delay", o.Delay}, {"IdleGrace", o.IdleGrace}, {"GracePeriod", o.GracePeriod}} {
		if f.value < 0 {
			return fmt.Errorf("usher: Options.Shutdown.%s is %v, must not be negative", f.name, f.value)
		}
	}
	if d := o.withDefaults(); d.IdleGrace >= d.GracePeriod {
		return fmt.Errorf("usher: Options.Shutdown.IdleGrace is %v, must be less than GracePeriod, which is %v", d.IdleGrace, d.GracePeriod)
	}
	return nil
}

func (o ShutdownOptions) withDefaults() ShutdownOptions {
	if o.GracePeriod == 0 {
		o.GracePeriod = defaultGracePeriod
	}
	if o.IdleGrace == 0 {
		o.IdleGrace = min(defaultIdleGrace, o.GracePeriod/5)
	}
	return o
}

// A Phase is a stretch of a server's life.
type Phase int32

// The phases, in their order.
const (
	PhaseStarting    Phase = iota // no method that serves has been called
	PhaseServing                  // business as usual
	PhaseLameDuck                 // readiness fails, all else goes on
	PhaseGate                     // no new handshakes; those under way end
	PhaseAcceptQueue              // what the kernel has established is accepted
	PhaseDrain                    // connections leave, answered or, when silent, closed
	PhaseFinish                   // HTTP/2 gets its GOAWAY, hijacked connections end, hooks run
	PhaseHard                     // time is up: contexts are cancelled, connections cut
	PhaseStopped
)

var phaseNames = [...]string{"starting", "serving", "lame duck", "gate", "accept queue", "drain", "finish", "hard", "stopped"}

// String returns the phase's name in lower case.
func (p Phase) String() string {
	if p < 0 || int(p) >= len(phaseNames) {
		return fmt.Sprintf("Phase(%d)", int(p))
	}
	return phaseNames[p]
}

// MarshalText implements [encoding.TextMarshaler].
func (p Phase) MarshalText() ([]byte, error) { return []byte(p.String()), nil }

// Phase returns where the server is in its life.
func (s *Server) Phase() Phase { return Phase(s.phase.Load()) }

// setPhase moves on to p. Its caller holds s.mu.
func (s *Server) setPhase(p Phase) {
	s.phase.Store(int32(p))
	s.phaseSince = time.Now()
}

func (s *Server) enterPhase(p Phase) {
	s.mu.Lock()
	s.setPhase(p)
	s.mu.Unlock()
}

// ErrShuttingDown is the cause of a request's context that was cancelled
// because GracePeriod was over: see [context.Cause].
var ErrShuttingDown = errors.New("usher: shutting down")

var (
	errGraceOver = errors.New("GracePeriod is over")
	errEndNow    = errors.New("a third signal arrived")
)

// A ShutdownError tells how a stop fell short.
type ShutdownError struct {
	Phase  Phase  // where it was when its time ended; PhaseFinish if only hooks failed
	Report Report // of what was left then and what was cut
	Err    error  // why
}

// Error returns one line.
func (e *ShutdownError) Error() string {
	left := ""
	if e.Report.StillOpen > 0 {
		left = fmt.Sprintf(", %d of %d connections still open", e.Report.StillOpen, e.Report.Open+e.Report.Queued)
	}
	if e.Report.Cut > 0 {
		left = fmt.Sprintf(", %d of %d connections cut", e.Report.Cut, e.Report.Open+e.Report.Queued)
	}
	return fmt.Sprintf("usher: shutdown fell short in phase %q%s: %v", e.Phase, left, e.Err)
}

// Unwrap returns Err.
func (e *ShutdownError) Unwrap() error { return e.Err }
