package track

import (
	"cmp"
	"math"
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
	unknown moment = iota // as the listener left it
	never                 // no deadline
	past                  // passed long ago
)

// after returns the moment that is d after m.
func (m moment) after(d time.Duration) moment {
	if m > math.MaxInt64-moment(d) {
		return math.MaxInt64
	}
	return m + moment(d)
}

// moment returns t on the Set's clock.
func (s *Set) moment(t time.Time) moment {
	switch {
	case t.IsZero():
		return never
	case t.Before(s.epoch):
		return past // a look at the clock less
	}
	d := time.Until(t)
	if d <= 0 {
		return past
	}
	return max(past+1, moment(s.Now()).after(d))
}

// time is the opposite of moment.
func (s *Set) time(m moment) time.Time {
	switch m {
	case never:
		return time.Time{}
	case past:
		return time.Unix(1, 0)
	}
	return s.epoch.Add(time.Duration(m))
}

// deadlines are those that the users of a Conn want. The read deadline is set
// on the wrapped connection only when a Read really has to wait: net/http sets
// it about six times for each request, and most of that changes nothing.
type deadlines struct {
	read    atomic.Int64 // a moment: what is wanted
	set     atomic.Int64 // a moment: what the wrapped connection has; written under mu
	exposed atomic.Bool  // others may use the wrapped connection; written under mu
	holds   atomic.Int32 // how many have the deadlines stand still; written under mu

	mu        sync.Mutex // guards the following; not held while anything waits
	write     moment     // what is wanted
	writeSet  moment     // what the wrapped connection has
	ending    bool       // a watch for the client's hang-up is to end
	heldSince time.Duration
	heldRead  moment // what was wanted when the first hold began
	heldWrite moment
}

// SetDeadline sets both deadlines.
func (c *Conn) SetDeadline(t time.Time) error {
	return cmp.Or(c.SetReadDeadline(t), c.SetWriteDeadline(t))
}

// SetReadDeadline sets the read deadline.
func (c *Conn) SetReadDeadline(t time.Time) error {
	if c.State().Closed() {
		return c.opError("set", net.ErrClosed)
	}
	d := &c.deadlines
	d.read.Store(int64(c.set.moment(t)))
	st := c.State()
	if st.after(deadlineSet) != st {
		c.change(deadlineSet)
	}
	// A Read that begins to wait says so first, and looks at what is wanted
	// then: one of the two sees the other.
	if d.mustFollow(c, st) {
		return d.apply(c)
	}
	return nil
}

// SetWriteDeadline sets the write deadline.
func (c *Conn) SetWriteDeadline(t time.Time) error {
	if c.State().Closed() {
		return c.opError("set", net.ErrClosed)
	}
	d := &c.deadlines
	want := c.set.moment(t)
	d.mu.Lock()
	defer d.mu.Unlock()
	d.write = want
	return d.updateWrite(c)
}

// mustFollow reports whether the wrapped connection must have the read deadline
// that is wanted at any time.
func (d *deadlines) mustFollow(c *Conn, st State) bool {
	return st.Waits() || c.raw == nil || d.exposed.Load() || d.holds.Load() > 0
}

// readWaits brings the wrapped connection's deadline up to date.
func (d *deadlines) readWaits(c *Conn) {
	if d.read.Load() != d.set.Load() || d.holds.Load() > 0 {
		d.apply(c)
	}
}

// apply gives the wrapped connection the read deadline that is wanted.
func (d *deadlines) apply(c *Conn) error {
	d.mu.Lock()
	defer d.mu.Unlock()
	_, err := d.updateRead(c)
	return err
}

// updateRead gives the wrapped connection the read deadline that is wanted, and
// reports whether it had another. Its caller holds d.mu.
func (d *deadlines) updateRead(c *Conn) (changed bool, err error) {
	if c.State().Closed() {
		return false, nil // what it has bounds how long it lingers
	}
	want, has := moment(d.read.Load()), moment(d.set.Load())
	switch {
	case d.ending:
		want = past
	case want == unknown && has != unknown, want > past && d.holds.Load() > 0:
		want = never
	}
	if want == unknown || want == has && !d.exposed.Load() {
		return false, nil
	}
	d.set.Store(int64(want))
	return want != has, c.Conn.SetReadDeadline(c.set.time(want))
}

// updateWrite gives the wrapped connection the write deadline that is wanted.
// Its caller holds d.mu.
func (d *deadlines) updateWrite(c *Conn) error {
	want := d.write
	if want > past && d.holds.Load() > 0 {
		want = never
	}
	if want == unknown || want == d.writeSet && !d.exposed.Load() {
		return nil
	}
	d.writeSet = want
	return c.Conn.SetWriteDeadline(c.set.time(want))
}

// passed reports whether a Read must fail before it begins.
func (d *deadlines) passed(c *Conn) bool {
	if d.exposed.Load() {
		return false // the wrapped connection knows better
	}
	want := moment(d.read.Load())
	if want <= past {
		if want != past && moment(d.set.Load()) == past {
			d.apply(c)
		}
		return want == past
	}
	return d.holds.Load() == 0 && time.Duration(want) <= c.set.Now()
}

// retry reports whether a Read failed because of a deadline that is wanted no
// longer.
func (d *deadlines) retry(c *Conn) bool {
	d.mu.Lock()
	defer d.mu.Unlock()
	changed, err := d.updateRead(c)
	return changed && err == nil
}

// expose sets the deadlines at once from here on, for those who use the wrapped
// connection themselves.
func (d *deadlines) expose(c *Conn) {
	d.mu.Lock()
	defer d.mu.Unlock()
	if !d.exposed.Load() {
		d.exposed.Store(true)
		d.updateRead(c)
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

// ended has Reads wait again after end.
func (d *deadlines) ended(c *Conn) {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.ending = false
	d.updateRead(c)
}

// HoldDeadlines has c's deadlines stand still until ReleaseDeadlines is called
// as often: that a request waits for its turn is not the client's doing. What
// is set meanwhile begins to count with the release, and holds as it was set.
// A deadline in the past stops reads and writes at any time.
func (c *Conn) HoldDeadlines() {
	d := &c.deadlines
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.holds.Add(1) > 1 {
		return
	}
	d.heldSince = c.set.Now()
	d.heldRead, d.heldWrite = moment(d.read.Load()), d.write
	d.updateRead(c)
	d.updateWrite(c)
}

// ReleaseDeadlines has c's deadlines run again, for as long as they had left.
func (c *Conn) ReleaseDeadlines() {
	d := &c.deadlines
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.holds.Add(-1) > 0 {
		return
	}
	held := c.set.Now() - d.heldSince
	if d.heldRead > past {
		d.read.CompareAndSwap(int64(d.heldRead), int64(d.heldRead.after(held)))
	}
	if d.write > past && d.write == d.heldWrite {
		d.write = d.write.after(held)
	}
	d.updateWrite(c)
	if d.mustFollow(c, c.State()) {
		d.updateRead(c)
	}
}
