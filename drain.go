package usher

import (
	"context"
	"net/http"
	"time"

	"github.com/seed-235859eb/usher/internal/track"
)

// sets returns the sets of open connections.
func (s *Server) sets() []*track.Set {
	listeners, _ := s.known()
	return s.setsOf(listeners)
}

func (s *Server) setsOf(listeners []*Listener) []*track.Set {
	sets := []*track.Set{s.opaque.Set}
	for _, l := range listeners {
		sets = append(sets, l.conns)
	}
	return sets
}

// open returns the number of open connections, and how many of those leave in
// the drain: all but HTTP/2, which net/http ends with a GOAWAY, and the
// hijacked ones.
func (s *Server) open() (all, leaving int) {
	for _, set := range s.sets() {
		n, attached := set.Open()
		all += n
		leaving += attached
	}
	return all, leaving
}

// empty reports whether all connections have left that a stop waits for. One
// that came about behind usher's back does not wait for hijacked ones, as
// net/http does not.
func (s *Server) empty(cause stopCause) bool {
	if !cause.bypassed {
		all, _ := s.open()
		return all == 0
	}
	for _, set := range s.sets() {
		n := set.CountReported()
		if n[http.StateNew]+n[http.StateActive]+n[http.StateIdle] > 0 {
			return false
		}
	}
	return true
}

// http2Settle is how long an HTTP/2 connection without a stream is left alone
// in the drain: a request may follow its preface or its last response. Where
// there is only the GOAWAY that net/http sends, that refuses a later one.
const http2Settle = 100 * time.Millisecond

// drain waits until the listeners are closed and all HTTP/1 connections have
// left, and closes those that are silent for too long. It returns what comes
// from closed.
func (s *Server) drain(ctx context.Context, cause stopCause, closed <-chan drainResult) (g drainResult) {
	grace, settle := s.opts.Shutdown.IdleGrace, http2Settle
	if deadline, ok := ctx.Deadline(); ok {
		// What is closed for its silence must not be cut for it.
		grace = min(grace, time.Until(deadline)/2)
	}
	if cause.quick {
		grace, settle = 0, 0
	}
	idle, http2, unseen := time.NewTimer(0), time.NewTimer(time.Hour), time.NewTimer(grace)
	defer idle.Stop()
	defer http2.Stop()
	defer unseen.Stop()
	for {
		if closed == nil {
			if _, leaving := s.open(); leaving == 0 {
				wait := s.unsettled(settle, grace)
				if wait <= 0 && s.goodbyes.Through() {
					return g
				}
				if wait > 0 {
					http2.Reset(wait)
				} // else an answer to the first GOAWAY wakes it, or the lack of one
			}
		}
		select {
		case g = <-closed:
			closed = nil
			if ctx.Err() == nil {
				s.enterPhase(PhaseDrain)
			}
		case <-idle.C:
			// A connection that is busy now is due in grace at the earliest.
			idle.Reset(s.retireDue(ctx, grace))
		case <-http2.C:
		case <-unseen.C:
			// Nobody but net/http can close a listener that was served past
			// usher, and until then newcomers do not end.
			s.closeUnseen()
		case <-s.wake:
			if grace == 0 {
				idle.Reset(s.retireDue(ctx, 0))
			}
		case <-ctx.Done():
			if closed != nil {
				g = <-closed // ctx ends it, too
			}
			return g
		}
	}
}

// closeUnseen closes the listeners that only net/http has, if there are any.
func (s *Server) closeUnseen() {
	s.mu.Lock()
	unseen := s.unseen
	s.mu.Unlock()
	if !unseen {
		return
	}
	ended := make(chan struct{})
	over, cancel := context.WithCancel(context.Background())
	cancel() // the drain waits for the connections itself
	go func() {
		defer close(ended)
		s.endHTTP(over)
	}()
	bounded(ended, time.Second) // the Close of a listener may hang
}

// unsettled returns how long HTTP/2 connections are still to be left alone:
// settle after the last stream, and grace for those that stop in their preface.
func (s *Server) unsettled(settle, grace time.Duration) time.Duration {
	var longest time.Duration
	for _, set := range s.sets() {
		now := set.Now()
		set.Each(func(c *track.Conn, st track.State) {
			if !st.HTTP2() || st.Closed() {
				return
			}
			switch st.Reported() {
			case http.StateNew:
				// Its preface has begun, and net/http would not find it yet for
				// its GOAWAY (golang/go#81154).
				if c.QuietSince()+grace > now {
					longest = max(longest, http2Settle)
				}
			case http.StateIdle:
				wait := c.QuietSince() + settle - now
				if wait <= 0 && settle > 0 && (!st.Quiet() || c.Unread()) {
					wait = settle // something has come in just now
				}
				longest = max(longest, wait)
			}
		})
	}
	return longest
}

// spread bounds how far apart the closes of silent connections are, so that
// their clients do not all come back in the same moment.
const spread = time.Millisecond

// A pacer says when each of many things is due, one after the other. It goes by
// the clock: a machine that is late with one is not late with all behind it. With
// a timer for each, set when the one before had been closed, 19,000 idle
// connections took a busy machine longer than GracePeriod.
type pacer struct {
	at   time.Time // when the next one is due
	pace time.Duration
}

// newPacer returns a pacer whose first one is due now.
func newPacer(pace time.Duration) *pacer { return &pacer{time.Now(), pace} }

// wait returns how long it is until the next one is due.
func (p *pacer) wait() time.Duration { return time.Until(p.at) }

// next says that one has been done.
func (p *pacer) next() { p.at = p.at.Add(p.pace) }

// retireDue closes the connections that have been silent for grace, and
// returns when to look again.
func (s *Server) retireDue(ctx context.Context, grace time.Duration) time.Duration {
	next := grace
	if grace == 0 {
		next = time.Second // for the rare one that could not be closed just then
	}
	var due []*track.Conn
	for _, set := range s.sets() {
		now := set.Now()
		set.Each(func(c *track.Conn, st track.State) {
			if !st.Quiet() || st.HTTP2() {
				return
			}
			if wait := c.QuietSince() + grace - now; wait <= 0 {
				due = append(due, c)
			} else {
				next = min(next, wait)
			}
		})
	}
	if len(due) == 0 {
		return next
	}
	pace := min(spread, grace/10/time.Duration(len(due)))
	t := time.NewTimer(0)
	defer t.Stop()
	turn := newPacer(pace)
	for _, c := range due {
		// Who has left meanwhile delays nobody.
		for !c.State().Closed() {
			if ctx.Err() != nil {
				return next
			}
			wait := turn.wait()
			if wait <= 0 {
				c.Retire()
				turn.next()
				break
			}
			t.Reset(wait)
			select {
			case <-t.C:
			case <-s.wake:
			case <-ctx.Done():
			}
		}
	}
	return min(next, spread)
}

// endHTTP calls net/http's Shutdown, unless this stop or somebody else has
// before: that runs the functions of RegisterOnShutdown, and would do so again.
// Its error is a listener's, which Listener logs, or ctx's.
func (s *Server) endHTTP(ctx context.Context) {
	s.mu.Lock()
	again := s.endsHTTP.Swap(true) || s.bypassed
	s.mu.Unlock()
	if !again {
		s.http.Shutdown(ctx)
	}
}

// bounded waits until done is closed, for d at most, and reports whether it was.
func bounded(done <-chan struct{}, d time.Duration) bool {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-done:
		return true
	case <-t.C:
		return false
	}
}
