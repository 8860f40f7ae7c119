package usher

import (
	"net/http"
	"time"

	"github.com/seed-235859eb/usher/internal/limit"
	"github.com/seed-235859eb/usher/internal/track"
)

// Stats is a snapshot of a [Server]. Taking it walks over the open connections,
// which costs some ten nanoseconds for each. Once a second is cheap.
type Stats struct {
	Phase    Phase         `json:"phase"`
	PhaseFor time.Duration `json:"phase_for_ns"` // time in this phase

	Connections ConnStats `json:"connections"`
	InFlight    int64     `json:"in_flight"`    // handlers running, or waiting for a slot
	AcceptQueue int       `json:"accept_queue"` // connections that wait in the kernel; see Listener.Queued

	// Counts since the server was made.
	Requests     uint64 `json:"requests"`      // whose handlers have begun, or wait for a slot
	Accepted     uint64 `json:"accepted"`      // connections
	AcceptedLate uint64 `json:"accepted_late"` // of those, accepted after the stop began
	// IdleEvicted counts the idle connections that were closed to make room: at
	// MaxConns, or when no descriptor was left.
	IdleEvicted uint64 `json:"idle_evicted"`

	Fairness *LimiterStats `json:"fairness,omitempty"` // of the server's limiter, if it has one
	Report   *Report       `json:"report,omitempty"`   // of the stop, once it has ended
}

// LimiterStats is a snapshot of a [Limiter].
// Arrived = Admitted + Full + TooLate + Expired + Shutdown + Left + Waiting.
type LimiterStats struct {
	Slots    int `json:"slots"`    // 0: no limit
	Running  int `json:"running"`  // requests that hold a slot
	Waiting  int `json:"waiting"`  // requests that have not begun
	Resuming int `json:"resuming"` // requests that wait to go on after a read of their body
	Flows    int `json:"flows"`    // flows with waiting requests

	// Counts since the limiter was made.
	Arrived   uint64 `json:"arrived"`
	Admitted  uint64 `json:"admitted"`  // got a slot
	Immediate uint64 `json:"immediate"` // of those, the ones that found a free slot
	Inline    uint64 `json:"inline"`    // of those, the ones that ran in the turn of the one before
	Full      uint64 `json:"full"`      // turned away because of MaxQueue
	TooLate   uint64 `json:"too_late"`  // turned away at once, because clients do not wait so long
	Expired   uint64 `json:"expired"`   // turned away because of MaxWait
	Shutdown  uint64 `json:"shutdown"`  // turned away because a stop's time was over
	Left      uint64 `json:"left"`      // their clients left while they waited
	Wasted    uint64 `json:"wasted"`    // of the admitted, those whose clients had left when their handlers returned
	Yields    uint64 `json:"yields"`    // slots given back while a read of a body waited
	Exempt    uint64 `json:"exempt"`    // requests that needed no slot, not in Arrived

	// Waits counts the admitted requests that waited, by how long: less than
	// 1 ms, 2 ms, 4 ms and so on; the last counts all above 32.768 s.
	Waits [limit.WaitBuckets]uint64 `json:"waits"`
}

// Stats returns a snapshot.
func (l *Limiter) Stats() LimiterStats {
	n := l.core.Stats()
	slots := n.Slots
	if slots == limit.Unlimited {
		slots = 0
	}
	return LimiterStats{
		Slots: slots, Running: n.Running, Waiting: n.Waiting, Resuming: n.Resuming, Flows: n.Flows,
		Arrived: n.Arrived, Admitted: n.Admitted, Immediate: n.Immediate, Inline: n.Inline,
		Full: n.Full, TooLate: n.TooLate, Expired: n.Expired, Shutdown: n.Stopped, Left: n.Left,
		Wasted: n.Wasted, Yields: n.Yields, Exempt: l.exempt.Load(), Waits: n.Waits,
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

// A Report accounts for a stop. Each connection is counted once:
// Open + AcceptedLate = Served + HungUp + Idle + Hijacked + Cut + StillOpen.
type Report struct {
	Reason    string        `json:"reason"`    // what began the stop
	Took      time.Duration `json:"took_ns"`   // from its beginning to its end
	Guarantee Guarantee     `json:"guarantee"` // the weakest of all listeners

	Gate       Gate   `json:"gate"`                  // of the listener with that guarantee
	GateReason string `json:"gate_reason,omitempty"` // why no better gate was possible

	Open         int `json:"open"`          // connections that were open when the drain began
	AcceptedLate int `json:"accepted_late"` // accepted after that

	Served   int `json:"served"`   // left after a request that was running when the drain began, or began later
	HungUp   int `json:"hung_up"`  // closed by their client, without a further request
	Idle     int `json:"idle"`     // silent until IdleGrace was over, then closed
	Hijacked int `json:"hijacked"` // taken over by a handler, and closed by it
	Cut      int `json:"cut"`      // still open when GracePeriod was over, then closed

	HTTP2        int `json:"http2"`          // of these, spoke HTTP/2
	HTTP2OneStep int `json:"http2_one_step"` // of those, left with net/http's one GOAWAY; see the package documentation

	// CutRequests names the requests that were in flight when GracePeriod was
	// over: method, path and age of each, the oldest first, 20 at most.
	CutRequests []string `json:"cut_requests,omitempty"`

	// StillOpen counts the connections that are open while the stop goes on. It is
	// zero once the stop has ended.
	StillOpen int `json:"still_open"`
}

func (r *Report) logArgs() []any {
	return []any{
		"reason", r.Reason, "took", r.Took, "guarantee", r.Guarantee.String(), "gate", r.Gate, "gate_reason", r.GateReason, "open", r.Open, "accepted_late", r.AcceptedLate,
		"served", r.Served, "hung_up", r.HungUp, "idle", r.Idle, "hijacked", r.Hijacked, "cut", r.Cut,
		"http2", r.HTTP2, "http2_one_step", r.HTTP2OneStep,
	}
}

// countFates sums up what became of the connections so far.
func (s *Server) countFates() Report {
	var r Report
	for _, set := range s.sets() {
		n := set.Counts()
		r.Open += n.AtStop
		r.AcceptedLate += int(n.AcceptedLate)
		r.Served += int(n.Fates[track.Served])
		r.HungUp += int(n.Fates[track.HungUp])
		r.Idle += int(n.Fates[track.Idle])
		r.Hijacked += int(n.Fates[track.Hijacked])
		r.Cut += int(n.Fates[track.Cut])
		r.HTTP2 += int(n.HTTP2)
		r.HTTP2OneStep += int(n.OneStep)
		if set.Stopping() {
			r.StillOpen += n.Open
		}
	}
	// Their connections were closed as those of answered requests are.
	aborted := min(int(s.aborted.Load()), r.Served)
	r.Served, r.Cut = r.Served-aborted, r.Cut+aborted
	return r
}

// requestCounts returns how many requests have begun, and how many of those have not ended.
func (s *Server) requestCounts() (begun uint64, inFlight int64) {
	ended := s.ended.Load() // first, so that the difference is not negative
	begun = s.begun.Load()
	return begun, int64(begun - ended)
}

// Stats returns a snapshot.
func (s *Server) Stats() Stats {
	s.mu.Lock()
	st := Stats{
		Phase:    s.Phase(),
		PhaseFor: time.Since(s.phaseSince),
	}
	if s.report != nil {
		r := *s.report
		st.Report = &r
	}
	s.mu.Unlock()
	listeners, former := s.known()
	st.Accepted, st.IdleEvicted = former.accepted, former.evicted
	st.Requests, st.InFlight = s.requestCounts()
	if s.limiter != nil {
		f := s.limiter.Stats()
		st.Fairness = &f
	}
	for _, l := range listeners {
		if n, err := l.Queued(); err == nil && l.under() == nil {
			st.AcceptQueue += n
		}
		st.IdleEvicted += l.limit.Evicted()
	}
	for _, set := range s.setsOf(listeners) {
		n := set.Counts()
		st.Accepted += n.Accepted
		st.AcceptedLate += n.AcceptedLate
		by := set.CountReported()
		st.Connections.New += by[http.StateNew]
		st.Connections.Active += by[http.StateActive]
		st.Connections.Idle += by[http.StateIdle]
		st.Connections.Hijacked += by[http.StateHijacked]
	}
	c := &st.Connections
	c.Open = c.New + c.Active + c.Idle + c.Hijacked
	return st
}
