package usher

import (
	"slices"

	"github.com/seed-235859eb/usher/internal/track"
)

// formerCounts are those of listeners that a Server has forgotten.
type formerCounts struct{ accepted, evicted uint64 }

// known returns the listeners that can still matter, and what is left of the
// others.
func (s *Server) known() ([]*Listener, formerCounts) {
	s.mu.Lock()
	defer s.mu.Unlock()
	return slices.Clone(s.listeners), s.former
}

// end notes that Serve of l has ended while the server goes on. A stop has no
// promise to keep for its socket then, but for the connections that came from
// it. The same goes for the Listener below, which closed with l.
func (l *Listener) end() {
	l.ended.Store(true)
	l.conns.Want(track.Left) // to be forgotten when the last one has left
	if below := l.under(); below != nil {
		below.end()
	}
}

// isSpent reports whether nothing can come from l any more: Serve has ended,
// and all connections have left.
func (l *Listener) isSpent() bool {
	if !l.ended.Load() {
		return false
	}
	select {
	case <-l.drained():
	default:
		return false // an Accept may be under way
	}
	open, _ := l.conns.Open()
	return open == 0
}

// forgetSpent drops listeners from which nothing can come any more, but for
// their counts. In a stop all stay: the report is about them, too. Its caller
// holds s.mu.
func (s *Server) forgetSpent() {
	if s.stopping {
		return
	}
	s.listeners = slices.DeleteFunc(s.listeners, func(l *Listener) bool {
		if !l.isSpent() {
			return false
		}
		s.former.accepted += l.conns.Counts().Accepted
		l.mu.Lock()
		s.former.evicted += l.limit.Evicted()
		l.mu.Unlock()
		return true
	})
}

// listenerEmptied implements [observer].
func (s *Server) listenerEmptied() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.forgetSpent()
}
