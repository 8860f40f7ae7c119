package usher

import (
	"context"
	"slices"
	"time"
)

// open returns the number of open connections, and how many of those leave in
// the drain: all but HTTP/2, which net/http ends with a GOAWAY, and the
// hijacked ones.
func (s *Server) open() (all, leaving int) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, l := range s.listeners {
		l.mu.Lock()
		all += l.open
		leaving += l.open - l.aside
		l.mu.Unlock()
	}
	return all, leaving
}

// eachConn calls f for each open connection, without a lock.
func (s *Server) eachConn(f func(*Conn)) {
	s.mu.Lock()
	listeners := slices.Clone(s.listeners)
	s.mu.Unlock()
	for _, l := range listeners {
		for _, c := range l.conns() {
			f(c)
		}
	}
}

// empty reports whether all connections have left that a stop waits for. One
// that came about behind usher's back does not wait for hijacked ones, as
// net/http does not.
func (s *Server) empty(cause stopCause) bool {
	if !cause.bypassed {
		all, _ := s.open()
		return all == 0
	}
	empty := true
	s.eachConn(func(c *Conn) { empty = empty && c.state.Load()&phaseMask == phaseHijacked })
	return empty
}

// http2Settle is how long an HTTP/2 connection without a stream is left alone
// in the drain: a request may follow its preface or its last response. The
// GOAWAY that net/http sends says that a later one was not processed.
const http2Settle = 100 * time.Millisecond

// drain waits until the listeners are closed and all HTTP/1 connections have
// left, and closes those that are silent for too long. It returns what comes
// from closed.
func (s *Server) drain(ctx context.Context, cause stopCause, closed <-chan gateResult) (g gateResult) {
	grace, settle := s.opts.Shutdown.IdleGrace, http2Settle
	if deadline, ok := ctx.Deadline(); ok {
		// What is closed for its silence must not be cut for it.
		grace = min(grace, time.Until(deadline)/2)
	}
	if cause.quick {
		grace, settle = 0, 0
	}
	idle, http2 := time.NewTimer(0), time.NewTimer(time.Hour)
	defer idle.Stop()
	defer http2.Stop()
	for {
		if closed == nil {
			if _, leaving := s.open(); leaving == 0 {
				wait := s.unsettled(settle, grace)
				if wait <= 0 {
					return g
				}
				http2.Reset(wait)
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
		case <-s.nudge:
			if grace == 0 {
				s.retireDue(ctx, 0)
			}
		case <-ctx.Done():
			if closed != nil {
				g = <-closed // ctx ends it, too
			}
			return g
		}
	}
}

// unsettled returns how long HTTP/2 connections are still to be left alone:
// settle after the last stream, and grace for those that stop in their preface.
func (s *Server) unsettled(settle, grace time.Duration) time.Duration {
	var longest time.Duration
	s.eachConn(func(c *Conn) {
		st := c.state.Load()
		if st&flagHTTP2 == 0 || st&flagClosed != 0 {
			return
		}
		switch st & phaseMask {
		case phaseNew:
			// Its preface has begun, and net/http would not find it yet for
			// its GOAWAY (golang/go#81154).
			if c.silentSince()+grace > c.l.now() {
				longest = max(longest, http2Settle)
			}
		case phaseIdle:
			wait := c.silentSince() + settle - c.l.now()
			if wait <= 0 && settle > 0 && (!quiet(st) || c.unread()) {
				wait = settle // something has come in just now
			}
			longest = max(longest, wait)
		}
	})
	return longest
}

// spread bounds how far apart the closes of silent connections are, so that
// their clients do not all come back in the same moment.
const spread = time.Millisecond

// retireDue closes the connections that have been silent for grace, and
// returns when to look again.
func (s *Server) retireDue(ctx context.Context, grace time.Duration) time.Duration {
	next := grace
	if grace == 0 {
		next = time.Second // for the rare one that could not be closed just then
	}
	var due []*Conn
	s.eachConn(func(c *Conn) {
		st := c.state.Load()
		if !quiet(st) || st&flagHTTP2 != 0 {
			return
		}
		if wait := c.silentSince() + grace - c.l.now(); wait <= 0 {
			due = append(due, c)
		} else {
			next = min(next, wait)
		}
	})
	if len(due) == 0 {
		return next
	}
	pace := min(spread, grace/10/time.Duration(len(due)))
	began := time.Now()
	for i, c := range due {
		if wait := time.Duration(i)*pace - time.Since(began); wait > 0 {
			t := time.NewTimer(wait)
			select {
			case <-t.C:
			case <-ctx.Done():
				t.Stop()
				return next
			}
		}
		c.retire()
	}
	return min(next, spread)
}
