package usher

import (
	"fmt"
	"time"
)

// A Phase is a part of a server's life. The package documentation has a picture.
type Phase int32

// The phases, in their order.
const (
	PhaseStarting    Phase = iota // no method that serves has been called
	PhaseServing                  // no stop has begun
	PhaseLameDuck                 // readiness fails, everything else goes on
	PhaseGate                     // no new handshakes; those under way finish
	PhaseAcceptQueue              // what is in the accept queue is accepted
	PhaseDrain                    // connections leave: answered or, if silent, closed
	PhaseFinish                   // HTTP/2 connections get GOAWAY, hijacked ones end, hooks run
	PhaseHard                     // GracePeriod is over: contexts are cancelled, connections cut
	PhaseStopped                  // the stop has ended
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

// Phase returns the phase that the server is in.
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

// stopCause says why a stop begins.
type stopCause struct {
	reason   string
	quick    bool // skip Delay and IdleGrace
	bypassed bool // Shutdown or Close of the http.Server was called
	close    bool // Close
}
