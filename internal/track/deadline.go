package track

import (
	"errors"
	"net"
	"os"
	"sync"
	"sync/atomic"
	"time"
)

var errDeadline = os.ErrDeadlineExceeded

// A moment is a time on the clock of a Set, or one of the following.
type moment int64

const (
	never moment = 0 // no deadline
	past  moment = 1 // passed long ago
)

// deadlines are those that the users of a Conn want. The read deadline is set
// on the wrapped connection only when a Read really has to wait: net/http sets
// it about six times for each request, and most of that changes nothing.
type deadlines struct {
	read    atomic.Int64 // a moment: what is wanted
	set     atomic.Int64 // a moment: what the wrapped connection has; written under mu
	exposed atomic.Bool  // somebody may read the wrapped connection without c
	holds   atomic.Int32 // how many have the deadlines stand still; written under mu

	mu        sync.Mutex // guards the following; not held while anything waits
	write     moment
	ending    bool // a watch for the client's hang-up is to end
	heldSince moment
	heldRead  moment // what was wanted when the first hold began
	heldWrite moment
}

func (s *Set) moment(t time.Time) moment {
	if t.IsZero() {
		return never
	}
	if t.Before(s.epoch) {
		return past
	}
	d := time.Until(t)
	if d <= 0 {
		return past
	}
	return moment(s.Now() + d)
}

func (s *Set) time(m moment) time.Time {
	switch m {
	case never:
		return time.Time{}
	case past:
		return time.Unix(1, 0)
	}
	return s.epoch.Add(time.Duration(m))
}

// SetDeadline sets both deadlines.
func (c *Conn) SetDeadline(t time.Time) error {
	return errors.Join(c.SetReadDeadline(t), c.SetWriteDeadline(t))
}

// SetReadDeadline sets the read deadline.
func (c *Conn) SetReadDeadline(t time.Time) error {
	d := &c.deadlines
	d.read.Store(int64(c.set.moment(t)))
	st := c.State()
	if now := st.after(deadlineSet); now != st {
		c.change(deadlineSet)
	}
	if st.Closed() {
		return c.opError("set", net.ErrClosed)
	}
	// A Read that begins to wait says so first, and looks at what is wanted
	// then: one of the two sees the other.
	if st&waiting != 0 || c.raw == nil || d.exposed.Load() || d.holds.Load() > 0 {
		return d.apply(c)
	}
	return nil
}

// SetWriteDeadline sets the write deadline.
func (c *Conn) SetWriteDeadline(t time.Time) error {
	d := &c.deadlines
	d.mu.Lock()
	defer d.mu.Unlock()
	d.write = c.set.moment(t)
	if d.holds.Load() > 0 && d.write != past {
		return nil
	}
	return c.Conn.SetWriteDeadline(t)
}

// readWaits brings the wrapped connection's deadline up to date.
func (d *deadlines) readWaits(c *Conn) {
	if d.read.Load() != d.set.Load() || d.holds.Load() > 0 {
		d.apply(c)
	}
}

// apply gives the wrapped connection the read deadline that is wanted.
func (d *deadlines) apply(c *Conn) error {
	_, err := d.update(c)
	return err
}

// update is apply, and reports whether the deadline was another.
func (d *deadlines) update(c *Conn) (changed bool, err error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	want := moment(d.read.Load())
	switch {
	case d.ending:
		want = past
	case want != past && d.holds.Load() > 0:
		want = never
	}
	if moment(d.set.Load()) == want {
		return false, nil
	}
	d.set.Store(int64(want))
	return true, c.Conn.SetReadDeadline(c.set.time(want))
}

// passed reports whether a Read must fail before it begins.
func (d *deadlines) passed(c *Conn) bool {
	if moment(d.set.Load()) == past && moment(d.read.Load()) != past {
		d.apply(c)
	}
	switch want := moment(d.read.Load()); want {
	case never:
		return false
	case past:
		return true
	default:
		return d.holds.Load() == 0 && time.Duration(want) <= c.set.Now()
	}
}

// expose sets the read deadline at once from here on, for those who read the
// wrapped connection themselves.
func (d *deadlines) expose(c *Conn) {
	if !d.exposed.Swap(true) {
		d.apply(c)
	}
}

// end makes a Read of the wrapped connection return.
func (d *deadlines) end(c *Conn) {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.ending = true
	d.set.Store(int64(past))
	c.Conn.SetReadDeadline(c.set.time(past))
}

// HoldDeadlines has c's deadlines stand still until ReleaseDeadlines is called
// as often: a request that waits for its turn is not the client's doing. What
// is set meanwhile counts from the release on as it was set.
func (c *Conn) HoldDeadlines() {
	d := &c.deadlines
	d.mu.Lock()
	if d.holds.Add(1) == 1 {
		d.heldSince = moment(c.set.Now())
		d.heldRead, d.heldWrite = moment(d.read.Load()), d.write
		if d.write > past {
			c.Conn.SetWriteDeadline(time.Time{})
		}
	}
	d.mu.Unlock()
	if moment(d.set.Load()) != never {
		d.apply(c)
	}
}

// ReleaseDeadlines has c's deadlines run again, for as long as they had left.
func (c *Conn) ReleaseDeadlines() {
	d := &c.deadlines
	d.mu.Lock()
	if d.holds.Add(-1) > 0 {
		d.mu.Unlock()
		return
	}
	held := moment(c.set.Now()) - d.heldSince
	if d.heldRead > past {
		d.read.CompareAndSwap(int64(d.heldRead), int64(d.heldRead+held))
	}
	if d.write > past {
		if d.write == d.heldWrite {
			d.write += held
		}
		c.Conn.SetWriteDeadline(c.set.time(d.write))
	}
	d.mu.Unlock()
	if c.State()&waiting != 0 || c.raw == nil || d.exposed.Load() {
		d.apply(c)
	}
}
