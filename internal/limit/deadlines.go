package limit

import (
	"context"
	"net/http"
	"sync"
	"time"

	"github.com/felixge/httpsnoop"

	"github.com/seed-235859eb/usher/internal/track"
)

// deadlines are those of a request. They stand still while it waits for a slot,
// whoever has set them: that it waits is not its client's doing.
type deadlines struct {
	conn   *track.Conn  // whose they are, over HTTP/1 if it is followed
	clock  *streamClock // else; may be nil
	shared bool         // clock is that of the Limiter around this one
}

func deadlinesOf(w http.ResponseWriter, r *http.Request, c *Conn) deadlines {
	if c != nil && c.track != nil && isHTTP1(r) {
		return deadlines{conn: c.track}
	}
	if clock, ok := r.Context().Value(clockKey{}).(*streamClock); ok {
		return deadlines{clock: clock, shared: true}
	}
	return deadlines{clock: newStreamClock(w, r)}
}

// clockKey is that of the clock in the context of a request that another
// Limiter has given to a handler, together with the ResponseWriter that tells
// the clock.
type clockKey struct{}

// context returns the context for a handler that gets the ResponseWriter of
// watch.
func (d deadlines) context(ctx context.Context) context.Context {
	if d.clock == nil || d.shared {
		return ctx
	}
	return context.WithValue(ctx, clockKey{}, d.clock)
}

// hold stops the clock until release is called as often.
func (d deadlines) hold() {
	if d.conn != nil {
		d.conn.HoldDeadlines()
	} else if d.clock != nil {
		d.clock.hold()
	}
}

// release has the clock go on.
func (d deadlines) release() {
	if d.conn != nil {
		d.conn.ReleaseDeadlines()
	} else if d.clock != nil {
		d.clock.release()
	}
}

// end is called when the handler returns: over HTTP/2 its ResponseWriter is not
// to be touched after that.
func (d deadlines) end() {
	if d.clock != nil && !d.shared {
		d.clock.end()
	}
}

// watch returns the ResponseWriter for a handler whose deadlines d are to know.
func (d deadlines) watch(w http.ResponseWriter) http.ResponseWriter {
	if d.clock == nil || d.shared {
		return w
	}
	return d.clock.watch(w)
}

// A streamClock has the deadlines of a request stand still where they are not
// those of a connection that is followed: over HTTP/2 each stream has its own.
// net/http started them when it had read the header, and does not tell what
// they are. Those that the handler sets are seen if it was given the
// ResponseWriter that watch returns.
type streamClock struct {
	mu          sync.Mutex
	over        bool // the handler has returned
	holds       int
	since       time.Time // of the first hold
	read, write streamDeadline
}

type streamDeadline struct {
	at      time.Time // zero: none
	touched bool      // set while it stood still
	set     func(time.Time) error
}

// newStreamClock returns the clock of a request that begins now, or nil if it
// waits only once and its server sets no deadline.
func newStreamClock(w http.ResponseWriter, r *http.Request) *streamClock {
	var read, write time.Duration
	if srv, ok := r.Context().Value(http.ServerContextKey).(*http.Server); ok {
		read, write = srv.ReadTimeout, srv.WriteTimeout
	}
	if write <= 0 && !hasBody(r) {
		return nil
	}
	rc := http.NewResponseController(w)
	c := &streamClock{}
	c.read.set, c.write.set = rc.SetReadDeadline, rc.SetWriteDeadline
	now := time.Now()
	if read > 0 && hasBody(r) {
		c.read.at = now.Add(read)
	}
	if write > 0 {
		c.write.at = now.Add(write)
	}
	return c
}

// watch returns a ResponseWriter that notes the deadlines that are set.
func (c *streamClock) watch(w http.ResponseWriter) http.ResponseWriter {
	return httpsnoop.Wrap(w, httpsnoop.Hooks{
		SetReadDeadline: func(f httpsnoop.SetReadDeadlineFunc) httpsnoop.SetReadDeadlineFunc {
			return func(t time.Time) error { return c.note(&c.read, t, f) }
		},
		SetWriteDeadline: func(f httpsnoop.SetWriteDeadlineFunc) httpsnoop.SetWriteDeadlineFunc {
			return func(t time.Time) error { return c.note(&c.write, t, f) }
		},
	})
}

func (c *streamClock) note(d *streamDeadline, t time.Time, set func(time.Time) error) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	d.at, d.touched = t, true
	return set(t)
}

func (c *streamClock) hold() {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.holds++; c.holds > 1 || c.over {
		return
	}
	c.since = time.Now()
	for _, d := range []*streamDeadline{&c.read, &c.write} {
		d.touched = false
		if !d.at.IsZero() && d.set(time.Time{}) != nil {
			d.at = time.Time{} // this ResponseWriter has none
		}
	}
}

func (c *streamClock) release() {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.holds--; c.holds > 0 || c.over {
		return
	}
	held := time.Since(c.since)
	for _, d := range []*streamDeadline{&c.read, &c.write} {
		if d.touched || d.at.IsZero() {
			continue
		}
		d.at = d.at.Add(held)
		d.set(d.at)
	}
}

func (c *streamClock) end() {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.over = true
}
