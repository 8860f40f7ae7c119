package usher

import (
	"time"
)

// cullAfter is how long a connection must have been idle to be closed for
// another, and cullNewAfter how long one that has never sent a byte. A client
// that sends one request after the other may just have sent the next, if the
// last response is younger than a round trip.
const (
	cullAfter    = time.Second
	cullNewAfter = 5 * time.Second
)

// admit waits until the newcomer has a place among MaxConns connections, and
// reports false if l was closed meanwhile.
func (l *Listener) admit() bool {
	if l.opts.MaxConns == 0 {
		return true
	}
	l.mu.Lock()
	if l.seat(0) {
		l.mu.Unlock()
		return true
	}
	l.newcomers++
	l.mu.Unlock()
	l.crowd.Add(1)
	defer l.crowd.Add(-1)
	for {
		l.mu.Lock()
		seated := l.seat(1)
		if seated {
			l.newcomers--
		}
		l.mu.Unlock()
		if seated {
			l.signalRoom() // another newcomer may have a place, too
			return true
		}
		// The end of a connection that cull closed comes through room, too.
		_, wait := l.cull()
		t := time.NewTimer(wait)
		select {
		case <-l.room:
		case <-t.C:
		case <-l.closed:
			t.Stop()
			l.mu.Lock()
			l.newcomers--
			l.mu.Unlock()
			return false
		}
		t.Stop()
	}
}

// seat reports whether the newcomer who asks, one of the self newcomers, has a
// place. In a stop all have: nobody else comes. Its caller holds l.mu.
func (l *Listener) seat(self int) bool {
	return l.open-l.newcomers+self <= l.opts.MaxConns || l.stopping.Load()
}

// cull closes the connection that has been idle longest, if that is long
// enough, and reports whether it did; else it returns when to try again.
func (l *Listener) cull() (culled bool, wait time.Duration) {
	// More than one, because a request may have come in for the first.
	var candidates [8]*Conn
	n := 0
	wait = time.Minute
	l.mu.Lock()
	for c := l.head; c != nil && n < len(candidates); c = c.next {
		st := c.state.Load()
		if !quiet(st) {
			continue
		}
		after := cullAfter
		if st&phaseMask == phaseNew {
			after = cullNewAfter
		}
		if young := max(c.accepted, time.Duration(c.since.Load())) + after - l.now(); young > 0 {
			wait = min(wait, young)
			continue
		}
		candidates[n] = c
		n++
	}
	l.mu.Unlock()
	for _, c := range candidates[:n] {
		if c.retire() {
			l.mu.Lock()
			l.counts.culled++
			l.mu.Unlock()
			return true, cullAfter
		}
	}
	return false, wait
}

// signalRoom has a newcomer look for a place.
func (l *Listener) signalRoom() {
	select {
	case l.room <- struct{}{}:
	default:
	}
}
