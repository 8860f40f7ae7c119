package fleet

import (
	"errors"
	"fmt"
	"time"
)

var errNotRunning = errors.New("fleet: does not run")

// Scale sets the number of seats, at least 1. While a restart rolls nothing
// changes yet. Only the last seat can be closed, as the kernel knows the others
// by their number, so more than one go one after the other.
func (f *Fleet) Scale(now time.Time, n int) error {
	if !f.event(now) || f.ending() {
		return errNotRunning
	}
	if n < 1 {
		return fmt.Errorf("fleet: cannot have %d workers", n)
	}
	f.want, f.announce = n, true
	f.reconcile()
	return nil
}

func (f *Fleet) addSeat() {
	f.seats = append(f.seats, &seat{index: len(f.seats), target: f.gen})
	f.changed = true
}

func (f *Fleet) last() *seat { return f.seats[len(f.seats)-1] }

func (f *Fleet) scaling() bool {
	return f.started && len(f.seats) > 0 && (len(f.seats) != f.want || f.last().closing)
}

// rescale moves the number of seats on by a step, if it can.
func (f *Fleet) rescale() {
	if f.ending() || !f.scaling() {
		return
	}
	s := f.last()
	switch {
	case s.closing:
		f.close(s)
	case f.roll != nil:
	case len(f.seats) < f.want:
		f.addSeat()
		f.before = append(f.before, OpenSeat{f.last().index})
	default:
		// Live without it goes before this.
		s.closing, s.closedAt, f.changed = true, f.now, true
		f.after = append(f.after, ShutSeat{s.index})
	}
}

// close goes on with closing a seat. Its workers serve until no handshake for it
// is under way any more, and as long as nobody else does.
func (f *Fleet) close(s *seat) {
	if len(s.workers) == 0 && f.due(s.closedAt.Add(f.cfg.HandshakeGrace)) {
		f.seats = f.seats[:s.index]
		f.before = append(f.before, CloseSeat{s.index})
		f.changed = true
		return
	}
	others := false
	for _, o := range f.seats[:s.index] {
		others = others || o.serves()
	}
	for _, w := range s.workers {
		if w.phase == starting || w.phase == serving && others && f.due(s.closedAt.Add(f.cfg.HandshakeGrace)) {
			f.tell(w, LevelStop, false)
		}
	}
}

// Recycle replaces the worker of a seat. One that still starts is new enough.
func (f *Fleet) Recycle(now time.Time, seat int) error {
	if !f.event(now) || f.ending() {
		return errNotRunning
	}
	if seat < 0 || seat >= len(f.seats) || f.seats[seat].closing {
		return fmt.Errorf("fleet: no seat %d", seat)
	}
	if w := f.seats[seat].best(); w != nil {
		w.recycle = true
		f.reconcile()
	}
	return nil
}

// recycle begins to replace a worker that is due, if none is being replaced: the
// whole fleet at once would be a restart without its safety. The one before must
// be gone, not only stopping, so that there is never more than one too many.
func (f *Fleet) recycle() {
	if f.ending() || f.roll != nil {
		return
	}
	var next *worker
	for _, w := range f.workers {
		if w.recycling {
			return
		}
		if w.recycle && w.phase == serving && w.good() && !w.seat.closing && (next == nil || w.id < next.id) {
			next = w
		}
	}
	if next != nil {
		next.recycling, f.changed = true, true
	}
}
