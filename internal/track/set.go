package track

import (
	"net"
	"net/http"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/seed-235859eb/usher/internal/goaway"
)

// Events are what the Owner of a Set may want to hear of.
type Events uint32

const (
	// Left: a connection has been closed and is counted out.
	Left Events = 1 << iota
	// Quiet: a connection has become quiet; see [State.Quiet].
	Quiet
	// Detached: a connection turned out to be HTTP/2 or was hijacked; see
	// [State.Detached].
	Detached

	// What a Set notes for itself.
	frames   // of HTTP/2, see FollowFrames
	timed    // when connections become quiet
	stopping // fates
)

// An Owner decides over all connections of a Set.
type Owner interface {
	// Notice is told of an event that the Owner wants. It is called without a
	// lock, on the goroutine that made the event happen, and must not block.
	Notice(c *Conn, e Events)
}

// A Set holds the open connections of one listener. All methods may be called
// from many goroutines at once.
type Set struct {
	owner Owner
	epoch time.Time     // zero of the Set's clock
	wants atomic.Uint32 // Events
	from  atomic.Int64  // since when it is timed; a time.Duration on the Set's clock

	leaving atomic.Pointer[goaway.Group] // nil until HTTP/2 is to leave

	mu       sync.Mutex // guards the following
	conns    []*Conn    // open, in no order
	detached int        // of those
	counts   Counts
}

// Counts only ever grow, but for Open.
type Counts struct {
	Open         int    // connections now
	Accepted     uint64 // added, in all
	AcceptedLate uint64 // of those, added after the stop began
	AtStop       int    // open when the stop began
	Fates        [Fates]uint64

	// Of those that have a fate:
	HTTP2   uint64 // spoke HTTP/2
	OneStep uint64 // of these, with frames that are not followed
}

// NewSet returns an empty Set. It wants no events.
func NewSet(owner Owner) *Set { return &Set{owner: owner, epoch: time.Now()} }

// Now returns the time on the Set's clock, which does not jump.
func (s *Set) Now() time.Duration { return time.Since(s.epoch) }

// Want has the owner told of the events of e and no others.
func (s *Set) Want(e Events) {
	const own = frames | timed | stopping
	for {
		old := s.wants.Load()
		if s.wants.CompareAndSwap(old, old&uint32(own)|uint32(e&^own)) {
			return
		}
	}
}

func (s *Set) wanted(e Events) bool { return s.wants.Load()&uint32(e) != 0 }

func (s *Set) notice(c *Conn, e Events) {
	if s.wanted(e) {
		s.owner.Notice(c, e)
	}
}

// KeepTime notes from now on when connections become quiet, which costs a look
// at the clock for each request.
func (s *Set) KeepTime() {
	if !s.wanted(timed) {
		s.from.Store(int64(s.Now()))
		s.wants.Or(uint32(timed))
	}
}

// BeginStop notes that a stop has begun: from here on the fates of connections
// are counted, the quiet are so since now at the earliest, and a connection
// lingers in its Close. Calls after the first do nothing.
func (s *Set) BeginStop() {
	s.mu.Lock()
	if s.wanted(stopping) {
		s.mu.Unlock()
		return
	}
	s.from.Store(int64(s.Now()))
	s.wants.Or(uint32(timed | stopping))
	s.counts.AtStop = len(s.conns)
	conns := slices.Clone(s.conns)
	s.mu.Unlock()
	// Those that become active from here on see that a stop has begun.
	for _, c := range conns {
		c.change(stopFound)
	}
}

// Stopping reports whether a stop has begun.
func (s *Set) Stopping() bool { return s.wanted(stopping) }

// Add follows nc until it is closed. A TCP or unix connection tells when its
// Reads wait; of another it is only known when they begin and end.
func (s *Set) Add(nc net.Conn) *Conn {
	c := &Conn{Conn: nc, set: s, accepted: s.Now()}
	c.initRaw()
	s.insert(c)
	return c
}

// addOpaque follows a connection that somebody else reads, so that only what
// net/http reports of it is known. Until then it is never quiet.
func (s *Set) addOpaque(nc net.Conn) *Conn {
	c := &Conn{Conn: nc, set: s, accepted: s.Now()}
	c.state.Store(uint32(waiting | ahead))
	s.insert(c)
	return c
}

func (s *Set) insert(c *Conn) {
	s.mu.Lock()
	defer s.mu.Unlock()
	c.index = int32(len(s.conns))
	s.conns = append(s.conns, c)
	s.counts.Accepted++
	if s.wanted(stopping) {
		s.counts.AcceptedLate++
	}
}

// remove counts c out, once its descriptor is closed.
func (s *Set) remove(c *Conn) {
	s.mu.Lock()
	if c.index < 0 {
		s.mu.Unlock()
		return
	}
	last := s.conns[len(s.conns)-1]
	s.conns[c.index], last.index = last, c.index
	s.conns[len(s.conns)-1] = nil
	s.conns = s.conns[:len(s.conns)-1]
	c.index = -1
	if c.detached {
		s.detached--
	}
	if s.wanted(stopping) {
		s.countFate(c)
	}
	s.mu.Unlock()
	if h := c.http2.Load(); h != nil {
		h.Close()
	}
	s.notice(c, Left)
}

// countFate counts how c has left. Its caller holds s.mu.
func (s *Set) countFate(c *Conn) {
	st := c.State()
	s.counts.Fates[st.fate()]++
	if st.HTTP2() {
		s.counts.HTTP2++
		if c.http2.Load() == nil {
			s.counts.OneStep++
		}
	}
}

// FollowFrames has the frames of HTTP/2 connections without TLS followed from
// now on, so that they can leave in two steps. Those over TLS are followed if
// net/http reports a [goaway.TLSConn].
func (s *Set) FollowFrames() { s.wants.Or(uint32(frames)) }

// LeaveHTTP2 begins the first step for the HTTP/2 connections that there are,
// and for those to come. They are counted in g.
func (s *Set) LeaveHTTP2(g *goaway.Group) {
	s.leaving.Store(g)
	s.Each(func(c *Conn, _ State) {
		if h := c.http2.Load(); h != nil {
			h.Leave(g)
		}
	})
}

// detach counts c as one that does not leave by an answer.
func (s *Set) detach(c *Conn) {
	s.mu.Lock()
	if c.index >= 0 && !c.detached {
		c.detached = true
		s.detached++
	}
	s.mu.Unlock()
	s.notice(c, Detached)
}

// Open returns the number of open connections, and how many of those are not
// detached: see [State.Detached].
func (s *Set) Open() (all, attached int) {
	s.mu.Lock()
	defer s.mu.Unlock()
	return len(s.conns), len(s.conns) - s.detached
}

// Counts returns the counts.
func (s *Set) Counts() Counts {
	s.mu.Lock()
	defer s.mu.Unlock()
	n := s.counts
	n.Open = len(s.conns)
	return n
}

// Each calls f for each open connection, without a lock: f may close it. It
// costs a copy of the list.
func (s *Set) Each(f func(*Conn, State)) {
	s.mu.Lock()
	conns := slices.Clone(s.conns)
	s.mu.Unlock()
	for _, c := range conns {
		f(c, c.State())
	}
}

// CountReported counts the open connections by the state that net/http
// reported last.
func (s *Set) CountReported() (n [http.StateHijacked + 1]int) {
	s.Each(func(_ *Conn, st State) { n[st.Reported()]++ })
	return n
}
