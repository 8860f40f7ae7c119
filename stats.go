package usher

import (
	"math/bits"
	"time"
)

// Stats is a snapshot of a [Server]. It costs a walk over the open connections
// under a lock, some ten nanoseconds each: cheap enough to take each second.
type Stats struct {
	Phase    Phase         `json:"phase"`
	PhaseFor time.Duration `json:"phase_for_ns"` // time in this phase

	Connections ConnStats `json:"connections"`
	InFlight    int64     `json:"in_flight"`    // handlers running, or waiting for a slot
	AcceptQueue int       `json:"accept_queue"` // connections that wait in the kernel; see Listener.Queued

	// Counts since the server was made.
	Requests uint64 `json:"requests"` // whose handlers have begun, or wait for a slot
	Accepted uint64 `json:"accepted"` // connections
	Queued   uint64 `json:"queued"`   // of those, accepted after the stop began
	Culled   uint64 `json:"culled"`   // closed for MaxConns, or for want of descriptors

	Fairness *LimiterStats `json:"fairness,omitempty"` // of the server's limiter, if it has one
	Report   *Report       `json:"report,omitempty"`   // of the stop, once it has ended
}

// LimiterStats is a snapshot of a [Limiter].
// Arrived = Admitted + Full + Expired + Shutdown + Left + Waiting.
type LimiterStats struct {
	Slots    int `json:"slots"`    // 0: no limit
	Running  int `json:"running"`  // requests that hold a slot
	Waiting  int `json:"waiting"`  // requests that have not begun
	Resuming int `json:"resuming"` // requests that wait to go on after a read of their body
	Flows    int `json:"flows"`    // flows with waiting requests

	// Counts since the limiter was made.
	Arrived   uint64 `json:"arrived"`
	Admitted  uint64 `json:"admitted"`
	Immediate uint64 `json:"immediate"` // of those, the ones that found a free slot
	Inline    uint64 `json:"inline"`    // of those, the ones that ran in the turn of the one before
	Full      uint64 `json:"full"`      // lost their place, or got none, because of MaxQueue
	Expired   uint64 `json:"expired"`   // because of MaxWait
	Shutdown  uint64 `json:"shutdown"`  // because the time of a stop was over
	Left      uint64 `json:"left"`      // whose clients left
	Yields    uint64 `json:"yields"`    // slots given back while a read of a body waited
	Exempt    uint64 `json:"exempt"`    // requests that needed no slot, not in Arrived

	// Waits counts the admitted requests that waited, by how long: less than
	// 1 ms, 2 ms, 4 ms and so on; the last counts all above 32.768 s.
	Waits [waitBuckets]uint64 `json:"waits"`
}

const waitBuckets = 17

// waitBucket returns the index of d in LimiterStats.Waits.
func waitBucket(d time.Duration) int {
	return min(bits.Len64(uint64(d/time.Millisecond)), waitBuckets-1)
}

// Stats returns a snapshot.
func (l *Limiter) Stats() LimiterStats {
	l.mu.Lock()
	defer l.mu.Unlock()
	q := l.queue.Snapshot()
	slots := q.Slots
	if slots == unlimitedSlots {
		slots = 0
	}
	n := l.counts
	immediate := l.immediate.Load()
	return LimiterStats{
		Slots: slots, Running: q.Running, Waiting: q.Waiting, Resuming: q.Resuming, Flows: q.Flows,
		Arrived:   immediate + n.inline + n.queued,
		Admitted:  immediate + n.inline + n.passed,
		Immediate: immediate, Inline: n.inline,
		Full: n.full, Expired: n.expired, Shutdown: n.shutdown, Left: n.left,
		Yields: n.yields, Exempt: l.exempt.Load(), Waits: n.waits,
	}
}

// ConnStats counts open connections by state.
type ConnStats struct {
	Open     int `json:"open"`     // the sum of the following
	New      int `json:"new"`      // no request so far, or reading the first
	Active   int `json:"active"`   // in a request
	Idle     int `json:"idle"`     // between requests
	Hijacked int `json:"hijacked"` // taken over by a handler
}

// A Report accounts for a stop. Each connection had one fate:
// Open + Queued = Served + HungUp + Idle + Hijacked + Cut.
type Report struct {
	Reason    string        `json:"reason"`    // what began it
	Took      time.Duration `json:"took_ns"`   //
	Guarantee Guarantee     `json:"guarantee"` // the weakest of all listeners

	Gate       Gate   `json:"gate"`                  // of that listener
	GateReason string `json:"gate_reason,omitempty"` // why it was not a better one

	Open   int `json:"open"`   // connections that were open when the drain began
	Queued int `json:"queued"` // accepted after that

	Served   int `json:"served"`   // left after a request that was running, or began, since
	HungUp   int `json:"hung_up"`  // left by their client without a further request
	Idle     int `json:"idle"`     // silent until IdleGrace was over, then closed
	Hijacked int `json:"hijacked"` // closed by the handler that had taken them over
	Cut      int `json:"cut"`      // still there when time was up
}

func (r *Report) logArgs() []any {
	return []any{
		"reason", r.Reason, "took", r.Took, "guarantee", r.Guarantee.String(), "gate", r.Gate, "gate_reason", r.GateReason, "open", r.Open, "queued", r.Queued,
		"served", r.Served, "hung_up", r.HungUp, "idle", r.Idle, "hijacked", r.Hijacked, "cut", r.Cut,
	}
}

// The fates of connections that leave after a stop began.
const (
	fateServed = iota
	fateHungUp
	fateIdle
	fateHijacked
	fateCut
	fateCount
)

// fateOf returns the fate of a connection that ends in state st.
func fateOf(st uint32) int {
	switch {
	case st&flagCut != 0:
		return fateCut
	case st&phaseMask == phaseHijacked:
		return fateHijacked
	case st&flagRetired != 0:
		return fateIdle
	case st&flagLate != 0:
		return fateServed
	default:
		return fateHungUp
	}
}

// countFates sums up what became of the connections. Those that are still open
// count as cut.
func (s *Server) countFates() Report {
	s.mu.Lock()
	defer s.mu.Unlock()
	var r Report
	for _, l := range s.listeners {
		l.mu.Lock()
		r.Open += l.atStop
		r.Queued += int(l.counts.queued)
		r.Served += int(l.counts.fates[fateServed])
		r.HungUp += int(l.counts.fates[fateHungUp])
		r.Idle += int(l.counts.fates[fateIdle])
		r.Hijacked += int(l.counts.fates[fateHijacked])
		r.Cut += int(l.counts.fates[fateCut])
		if l.stopping.Load() {
			r.Cut += l.open
		}
		l.mu.Unlock()
	}
	return r
}

// requests returns how many have begun, and how many of those have not ended.
func (s *Server) requests() (begun uint64, inFlight int64) {
	ended := s.ended.Load() // first, so that the difference is not negative
	begun = s.begun.Load()
	return begun, int64(begun - ended)
}

// Stats returns a snapshot.
func (s *Server) Stats() Stats {
	s.mu.Lock()
	defer s.mu.Unlock()
	st := Stats{
		Phase:    s.Phase(),
		PhaseFor: time.Since(s.phaseSince),
	}
	st.Requests, st.InFlight = s.requests()
	if s.limiter != nil {
		f := s.limiter.Stats()
		st.Fairness = &f
	}
	if s.report != nil {
		r := *s.report
		st.Report = &r
	}
	for _, l := range s.listeners {
		if n, err := l.Queued(); err == nil {
			st.AcceptQueue += n
		}
		l.addStats(&st)
	}
	return st
}

func (l *Listener) addStats(st *Stats) {
	l.mu.Lock()
	defer l.mu.Unlock()
	st.Accepted += l.counts.accepted
	st.Queued += l.counts.queued
	st.Culled += l.counts.culled
	st.Connections.Open += l.open
	for c := l.head; c != nil; c = c.next {
		switch c.state.Load() & phaseMask {
		case phaseNew:
			st.Connections.New++
		case phaseActive:
			st.Connections.Active++
		case phaseIdle:
			st.Connections.Idle++
		case phaseHijacked:
			st.Connections.Hijacked++
		}
	}
}
