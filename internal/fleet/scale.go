package fleet

import (
	"errors"
	"fmt"
	"slices"
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

// rescale moves the number of seats on by a step. It reports whether it could.
func (f *Fleet) rescale() bool {
	if !f.scaling() {
		return false
	}
	s := f.last()
	switch {
	case s.closing:
		return f.close(s)
	case f.roll != nil:
		return false
	case len(f.seats) < f.want:
		f.addSeat()
		f.before = append(f.before, OpenSeat{f.last().index})
	default:
		s.closing, s.closedAt, f.changed = true, f.now, true
		f.emitLive() // without it, before the next
		f.before = append(f.before, ShutSeat{s.index})
	}
	return true
}

// close goes on with closing a seat, and reports whether that is done. Its
// workers serve until no handshake for it is under way any more, and as long as
// nobody else does.
func (f *Fleet) close(s *seat) bool {
	graceOver := f.due(s.closedAt.Add(f.cfg.HandshakeGrace))
	if graceOver && len(s.workers) == 0 {
		f.seats = f.seats[:s.index]
		f.before = append(f.before, CloseSeat{s.index})
		f.changed = true
		return true
	}
	others := slices.ContainsFunc(f.seats[:s.index], (*seat).serves)
	for _, w := range s.workers {
		if w.phase == starting || w.phase == serving && others && graceOver {
			f.tell(w, LevelStop, false, "scale")
		}
	}
	return false
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
		w.Recycle = true
		f.reconcile()
	}
	return nil
}

// recycle begins to replace a worker that is due, if none is being replaced: the
// whole fleet at once would be a restart without its safety. The one before must
// be gone, not only stopping, so that there is never more than one too many.
func (f *Fleet) recycle() {
	if f.roll != nil {
		return
	}
	var next *worker
	for _, w := range f.workers {
		if w.Recycling {
			return
		}
		if w.Recycle && w.phase == serving && w.good() && !w.seat.closing && (next == nil || w.ID < next.ID) {
			next = w
		}
	}
	if next != nil {
		next.Recycling, f.changed = true, true
	}
}
