package usher

import (
	"cmp"
	"slices"
	"time"

	"github.com/seed-235859eb/usher/internal/track"
)

// evictAfter is how long a connection must have been idle to be closed for
// another, and evictNewAfter how long one that has never sent a byte. A client
// that sends one request after the other may just have sent the next, if the
// last response is younger than a round trip.
const (
	evictAfter    = time.Second
	evictNewAfter = 5 * time.Second
)

// admit waits until the newcomer has a place among MaxConns connections, and
// reports false if l was closed meanwhile.
func (l *Listener) admit() bool {
	if l.opts.MaxConns == 0 {
		return true
	}
	l.mu.Lock()
	if l.hasRoom(0) {
		l.mu.Unlock()
		return true
	}
	l.addNewcomer(1)
	l.mu.Unlock()
	for {
		l.mu.Lock()
		if l.hasRoom(1) {
			l.addNewcomer(-1)
			l.mu.Unlock()
			l.signalRoom() // another newcomer may have a place, too
			return true
		}
		l.mu.Unlock()
		// The end of the connection that is closed comes through room, too.
		_, wait := l.evictIdle()
		t := time.NewTimer(wait)
		select {
		case <-l.room:
		case <-t.C:
		case <-l.closed:
			t.Stop()
			l.mu.Lock()
			l.addNewcomer(-1)
			l.mu.Unlock()
			return false
		}
		t.Stop()
	}
}

// addNewcomer counts the connections that wait for a place. Its caller holds
// l.mu.
func (l *Listener) addNewcomer(by int) {
	l.newcomers += by
	if l.observer != nil {
		l.observer.newcomersChanged(by)
	}
}

// hasRoom reports whether the newcomer who asks, one of the self newcomers, has
// a place. In a stop all have: nobody else comes. Its caller holds l.mu.
func (l *Listener) hasRoom(self int) bool {
	open, _ := l.conns.Open()
	return open-l.newcomers+self <= l.opts.MaxConns || l.conns.Stopping()
}

// evictIdle closes the connection that has been idle longest, if that is long
// enough, and reports whether it did; else it returns when to try again.
//
// A look at all connections finds the next few, too: to make room for many
// newcomers costs one look for every so many.
func (l *Listener) evictIdle() (evicted bool, wait time.Duration) {
	l.mu.Lock()
	candidates := l.evictable
	l.evictable = nil
	observed := l.observer != nil
	l.mu.Unlock()
	if !observed {
		return false, time.Second // nobody tells which are idle
	}
	if evicted, candidates = l.evictOne(candidates); !evicted {
		candidates, wait = l.findIdle()
		evicted, candidates = l.evictOne(candidates)
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	l.evictable = candidates
	if evicted {
		l.evicted++
		wait = evictAfter
	}
	return evicted, wait
}

// evictOne closes the first of the candidates that is still idle, and returns
// those behind it.
func (l *Listener) evictOne(candidates []*track.Conn) (evicted bool, rest []*track.Conn) {
	now := l.conns.Now()
	for i, c := range candidates {
		if evictDue(c, c.State()) <= now && c.Retire() {
			return true, candidates[i+1:]
		}
	}
	return false, nil
}

// evictDue returns when c, which is quiet in st, may be closed for another.
func evictDue(c *track.Conn, st track.State) time.Duration {
	if st.Fresh() {
		return c.QuietSince() + evictNewAfter
	}
	return c.QuietSince() + evictAfter
}

// maxEvictable is how many candidates one look keeps.
const maxEvictable = 64

// findIdle returns the connections that may be closed for others, those idle
// longest first, and how long it takes until there are more.
func (l *Listener) findIdle() (idle []*track.Conn, wait time.Duration) {
	type candidate struct {
		c   *track.Conn
		due time.Duration
	}
	var due []candidate
	now := l.conns.Now()
	wait = evictAfter // by when one that is busy now may be due
	l.conns.Each(func(c *track.Conn, st track.State) {
		if !st.Quiet() {
			return
		}
		if at := evictDue(c, st); at <= now {
			due = append(due, candidate{c, at})
		} else {
			wait = min(wait, at-now)
		}
	})
	slices.SortFunc(due, func(a, b candidate) int { return cmp.Compare(a.due, b.due) })
	for _, d := range due[:min(len(due), maxEvictable)] {
		idle = append(idle, d.c)
	}
	return idle, wait
}

// signalRoom has a newcomer look for a place.
func (l *Listener) signalRoom() {
	select {
	case l.room <- struct{}{}:
	default:
	}
}
