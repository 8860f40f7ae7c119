package usher

import (
	"fmt"
	"time"
)

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
