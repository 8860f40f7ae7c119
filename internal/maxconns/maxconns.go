// Package maxconns bounds how many connections are open at once. A newcomer is a
// connection that is open already and waits for a place. To make room for it, the
// connection that has been idle longest is closed.
package maxconns

import (
	"cmp"
	"slices"
	"sync"
	"time"

	"github.com/seed-235859eb/usher/internal/track"
)

// EvictAfter is how long a connection must have been idle to be closed for
// another, and EvictNewAfter how long one that has never sent a byte. A client
// that sends one request after the other may just have sent the next, if the
// last response is younger than a round trip.
const (
	EvictAfter    = time.Second
	EvictNewAfter = 5 * time.Second
)

// A Limit bounds how many connections of a Set are open at once. All methods may
// be called from many goroutines at once.
type Limit struct {
	set  *track.Set
	max  int           // zero: no limit
	room chan struct{} // has an element when a newcomer should look for a place

	mu        sync.Mutex    // guards the following
	told      bool          // what the connections do is known, see Observe
	changed   func(by int)  // told of newcomers, or nil
	newcomers int           // connections that wait for a place
	evictable []*track.Conn // those found idle when last looked, longest first
	evicted   uint64        // connections closed for others
}

// New returns a Limit of max connections, which are those of set. Zero means
// none; Evict works all the same.
func New(set *track.Set, max int) *Limit {
	if max > 0 {
		set.KeepTime()
		set.Want(track.Left)
	}
	return &Limit{set: set, max: max, room: make(chan struct{}, 1)}
}

// Observe says that net/http reports what the connections do, so that an idle
// one may be closed for another, and has changed called when there are more or
// fewer newcomers. It must not block.
func (l *Limit) Observe(changed func(by int)) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.told, l.changed = true, changed
	changed(l.newcomers)
}

// Evicted returns how many connections were closed for others.
func (l *Limit) Evicted() uint64 {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.evicted
}

// Admit waits until the newcomer, which is in the Set already, has a place, and
// reports false if closed was closed meanwhile.
func (l *Limit) Admit(closed <-chan struct{}) bool {
	if l.max == 0 {
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
			l.Recheck() // another newcomer may have a place, too
			return true
		}
		l.mu.Unlock()
		// The end of the connection that is closed comes through room, too.
		_, wait := l.Evict()
		t := time.NewTimer(wait)
		select {
		case <-l.room:
		case <-t.C:
		case <-closed:
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
func (l *Limit) addNewcomer(by int) {
	l.newcomers += by
	if l.changed != nil {
		l.changed(by)
	}
}

// hasRoom reports whether the newcomer who asks, one of the self newcomers, has
// a place. In a stop all have: nobody else comes. Its caller holds l.mu.
func (l *Limit) hasRoom(self int) bool {
	open, _ := l.set.Open()
	return open-l.newcomers+self <= l.max || l.set.Stopping()
}

// Evict closes the connection that has been idle longest, if that is long
// enough, and reports whether it did; else it returns when to try again.
//
// A look at all connections finds the next few, too: to make room for many
// newcomers costs one look for every so many.
func (l *Limit) Evict() (evicted bool, wait time.Duration) {
	l.mu.Lock()
	candidates := l.evictable
	l.evictable = nil
	told := l.told
	l.mu.Unlock()
	if !told {
		return false, time.Second // nobody tells which are idle
	}
	if evicted, candidates = l.evictOne(candidates); !evicted {
		candidates, wait = l.findIdle()
		evicted, candidates = l.evictOne(candidates)
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	l.evictable = slices.Clone(candidates[:min(len(candidates), maxEvictable)]) // the rest is not kept
	if evicted {
		l.evicted++
		wait = EvictAfter
	}
	return evicted, wait
}

// evictOne closes the first of the candidates that is still idle, and returns
// those behind it.
func (l *Limit) evictOne(candidates []*track.Conn) (evicted bool, rest []*track.Conn) {
	now := l.set.Now()
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
		return c.QuietSince() + EvictNewAfter
	}
	return c.QuietSince() + EvictAfter
}

// maxEvictable is how many candidates one look keeps, besides the one that it
// was for. It tries all that it finds: that those idle longest cannot be closed,
// because they are in the middle of a header of HTTP/2, is up to their clients.
const maxEvictable = 64

// findIdle returns the connections that may be closed for others, those idle
// longest first, and how long it takes until there are more.
func (l *Limit) findIdle() (idle []*track.Conn, wait time.Duration) {
	type candidate struct {
		c   *track.Conn
		due time.Duration
	}
	var due []candidate
	now := l.set.Now()
	wait = EvictAfter // by when one that is busy now may be due
	l.set.Each(func(c *track.Conn, st track.State) {
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
	idle = make([]*track.Conn, 0, len(due))
	for _, d := range due {
		idle = append(idle, d.c)
	}
	return idle, wait
}

// Recheck has a newcomer check again whether there is a place: a connection has
// left, or a stop has begun.
func (l *Limit) Recheck() {
	select {
	case l.room <- struct{}{}:
	default:
	}
}
