package fleet

import (
	"slices"
)

// endTrial lets go of the generation before the current one, which has lived for
// long enough after its restart.
func (f *Fleet) endTrial() {
	if f.fallback != 0 && f.due(f.trialAt.Add(f.cfg.CrashWindow)) {
		f.before = append(f.before, DropGeneration{f.fallback})
		f.fallback, f.changed = 0, true
	}
}

// takeBack returns from a generation whose restart has succeeded, and which keeps
// crashing, to the last one that lived.
func (f *Fleet) takeBack(w *worker, x WorkerExit, why string) {
	e := &RestartError{Generation: f.gen, Seat: w.seat.index, Exit: &x, Reason: why, TakenBack: true}
	w.blame = append(w.blame, &x)
	f.before = append(f.before, DropGeneration{f.gen})
	bad := f.gen
	f.gen, f.fallback, f.crashes, f.changed = f.fallback, 0, nil, true
	var tickets []int // of those who were not told yet that it had succeeded
	f.finishing = slices.DeleteFunc(f.finishing, func(o *finish) bool {
		if o.err != nil || o.gen <= f.gen {
			return false
		}
		tickets = append(tickets, o.tickets...)
		return true
	})
	if f.roll == nil {
		f.roll = &roll{gen: bad, tickets: tickets, back: true, err: e}
	} else { // of another one, on its way back to this
		e.BackOn = f.gen
		f.finishing = append(f.finishing, &finish{bad, tickets, e})
	}
	for _, s := range f.seats {
		s.backFails = 0
		f.setTarget(s, f.gen)
	}
}
