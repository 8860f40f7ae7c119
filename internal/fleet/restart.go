package fleet

import (
	"fmt"
	"slices"
	"time"
)

// A roll is a restart on its way through the seats. Each seat has a target of
// its own, and a worker that comes back, for whatever reason and in whatever
// order, is of that: there is no list of who is to be done, which could be
// wrong.
type roll struct {
	gen     int
	tickets []int
	tries   int  // workers of gen that failed
	cleared bool // the first seat has shown that it works
	checked ID   // the last worker that CanaryCheck was asked about
	asked   int  // checks that are not answered
	back    bool // was aborted: the seats return to Fleet.gen
	err     *RestartError
}

// A finish is a restart that does not roll any more, while workers that must not
// be there when it is answered still drain.
type finish struct {
	gen     int
	tickets []int
	err     *RestartError
}

// Restart replaces all workers by ones of a new generation, seat by seat, each
// started before the old one stops. RestartDone with the ticket answers. Calls
// while a restart rolls share one that follows it.
func (f *Fleet) Restart(now time.Time, ticket int) {
	f.event(now)
	if !f.started || f.ending() {
		f.actions = append(f.actions, RestartDone{[]int{ticket}, 0, &RestartError{Seat: -1, Reason: "the fleet does not run"}})
		return
	}
	f.pending = append(f.pending, ticket)
	f.reconcile()
}

// Verdict answers CanaryCheck. An error aborts the restart.
func (f *Fleet) Verdict(now time.Time, generation int, err error) {
	r := f.roll
	if !f.event(now) || r == nil || r.gen != generation || r.back || r.asked == 0 {
		return
	}
	r.asked--
	if err != nil {
		f.abort(&RestartError{Generation: r.gen, Seat: 0, Reason: "canary check", Err: err})
	} else if w := f.workers[r.checked]; r.asked == 0 && w != nil && w.phase == serving && w.good() {
		r.cleared = true
	} // else it was for one that is gone, and the next one is asked about
	f.reconcile()
}

// restart moves a restart on by a step, if it can.
func (f *Fleet) restart() {
	if f.roll == nil && len(f.pending) > 0 {
		f.lastGen++
		f.roll = &roll{gen: f.lastGen, tickets: f.pending}
		f.pending = nil
		f.before = append(f.before, NewGeneration{f.lastGen})
		f.changed = true
		for _, w := range f.workers {
			if w.phase <= serving {
				w.Recycling = false // it goes anyway, in its turn
			}
		}
	}
	r := f.roll
	switch {
	case r == nil:
	case r.back:
		f.rollBack(r)
	case f.rollOn(r):
		if f.fallback == 0 && f.cfg.CrashWindow > 0 {
			f.fallback = f.gen
		} else { // is on trial itself, or there is none
			f.before = append(f.before, DropGeneration{f.gen})
		}
		f.gen, f.trialAt, f.crashes = r.gen, f.now, nil
		f.endRoll()
	}
}

// rollOn reports whether all seats have moved and are past their probation.
func (f *Fleet) rollOn(r *roll) bool {
	for _, s := range f.seats {
		if s.closing {
			continue
		}
		if s.target != r.gen {
			if f.surge() < f.maxSurge() {
				f.setTarget(s, r.gen)
			}
			return false
		}
		if b := s.best(); s.index == 0 && !r.cleared && (b == nil || !f.clear(b)) {
			return false
		}
		if !s.moved() {
			return false
		}
	}
	return !slices.ContainsFunc(f.seats, func(s *seat) bool { return !s.closing && !s.best().Passed })
}

// keeps reports whether the seat keeps the worker that it had beside the new one,
// which is its best: so long as nothing is known of a generation, all serve who
// served before, and its first worker may die without leaving the seat to nobody.
func (f *Fleet) keeps(s *seat, best *worker) bool {
	r := f.roll
	return r != nil && !r.back && !r.cleared && s.index == 0 && best.Generation == r.gen
}

// clear reports whether the first worker of a generation is not the last one.
func (f *Fleet) clear(w *worker) bool {
	r := f.roll
	switch {
	case f.cfg.Canary <= 0:
		r.cleared = w.Passed
	case r.checked != w.ID && f.due(w.probationAt.Add(f.cfg.Canary)):
		r.checked = w.ID
		r.asked++
		f.answers = append(f.answers, CanaryCheck{r.gen, w.ID})
		f.changed = true
	}
	return r.cleared
}

// moved reports whether a good worker serves, and no other does.
func (s *seat) moved() bool {
	b := s.best()
	return b != nil && !slices.ContainsFunc(s.workers, func(w *worker) bool { return w.phase == serving && w != b })
}

// setTarget changes the generation that a seat wants. What other ones did is not
// held against it.
func (f *Fleet) setTarget(s *seat, gen int) {
	if s.target != gen {
		s.target, s.Failures, s.backoff = gen, 0, time.Time{}
		f.changed = true
	}
}

func (f *Fleet) maxSurge() int {
	if f.cfg.MaxSurge < 1 {
		return len(f.seats)
	}
	return f.cfg.MaxSurge
}

// surge is how many workers there are because of the restart that rolls.
func (f *Fleet) surge() (n int) {
	for _, w := range f.workers {
		if w.phase == starting && w.seat.serves() || w.phase >= stopping && w.stopFor == f.roll.gen {
			n++
		}
	}
	return n
}

// tooMany reports whether a worker for s would be one too many. It never is if
// nobody serves there.
func (f *Fleet) tooMany(s *seat) bool {
	r := f.roll
	return r != nil && s.serves() && (r.back || s.target == r.gen) && f.surge() >= f.maxSurge()
}

// failTry counts a failure as one of the generation that a restart goes to, and
// reports whether it is.
func (f *Fleet) failTry(w *worker, x WorkerExit) bool {
	r := f.roll
	switch {
	case r == nil:
	case r.back && w.Generation == f.gen:
		w.seat.backFails++
	case !r.back && w.Generation == r.gen && (!w.Passed || w.seat.index == 0 && !r.cleared):
		if r.tries++; r.tries >= f.cfg.RestartTries {
			f.abortFor(w, x, "")
		}
		return true
	}
	return false
}

// abortFor is abort because of the end of a worker.
func (f *Fleet) abortFor(w *worker, x WorkerExit, why string) {
	w.blame = append(w.blame, &x)
	f.abort(&RestartError{Generation: w.Generation, Seat: w.seat.index, Exit: &x, Reason: why})
}

// abort turns a restart around.
func (f *Fleet) abort(e *RestartError) {
	r := f.roll
	r.back, r.err = true, e
	f.before = append(f.before, DropGeneration{r.gen})
	f.changed = true
	for _, s := range f.seats {
		s.backFails = 0
		f.setTarget(s, f.gen)
	}
}

// backTries is how many workers of the old generation may fail on a seat before
// it is said that it does not come back.
const backTries = 3

// rollBack ends an aborted restart when all seats are back. If one of them does
// not come back, as the old program does not start any more either, then that is
// the answer: the seat goes on trying, but somebody has to know, and the next
// restart may be the remedy.
func (f *Fleet) rollBack(r *roll) {
	for _, s := range f.seats {
		if s.closing || s.moved() {
			continue
		}
		if s.backFails < backTries {
			return
		}
		r.err.Reason = f.notBack(s)
		f.answer(r.gen, r.tickets, r.err)
		f.roll, f.announce, f.changed = nil, true, true
		return
	}
	r.err.BackOn = f.gen
	f.endRoll()
}

// notBack says that a seat did not return from an aborted restart.
func (f *Fleet) notBack(s *seat) string {
	why := fmt.Sprintf("generation %d does not come back on seat %d either", f.gen, s.index)
	if s.LastExit != nil && s.LastExit.Generation == f.gen {
		why += fmt.Sprintf(": %v", *s.LastExit)
	}
	return why
}

func (f *Fleet) endRoll() {
	r := f.roll
	f.finishing = append(f.finishing, &finish{r.gen, r.tickets, r.err})
	f.roll = nil
	f.announce, f.changed = true, true
}

// finish answers restarts.
func (f *Fleet) finish() {
	f.finishing = slices.DeleteFunc(f.finishing, func(e *finish) bool {
		for _, w := range f.workers {
			if e.err == nil && w.Generation < e.gen || e.err != nil && w.Generation == e.gen {
				return false
			}
		}
		f.answer(e.gen, e.tickets, e.err)
		return true
	})
}

func (f *Fleet) answer(gen int, tickets []int, e *RestartError) {
	d := RestartDone{Tickets: tickets, Generation: gen}
	if e != nil {
		c := *e // as what is handed out must not change
		if c.Exit != nil {
			x := *c.Exit
			c.Exit = &x
		}
		d.Err = &c
	}
	f.answers = append(f.answers, d)
}

// refuseAll answers all restarts that are not done.
func (f *Fleet) refuseAll(why string) {
	for _, e := range f.finishing {
		if e.err == nil {
			e.err = &RestartError{Generation: e.gen, Seat: -1, Reason: why}
		}
		f.answer(e.gen, e.tickets, e.err)
	}
	if r := f.roll; r != nil {
		if r.err == nil {
			r.err = &RestartError{Generation: r.gen, Seat: -1, Reason: why}
		} else {
			for _, s := range f.seats {
				if s.backFails > 0 {
					r.err.Reason = f.notBack(s)
				}
			}
		}
		f.answer(r.gen, r.tickets, r.err)
	}
	if len(f.pending) > 0 {
		f.answer(0, f.pending, &RestartError{Seat: -1, Reason: why})
	}
	f.finishing, f.roll, f.pending = nil, nil, nil
}

// boundDraining ends the oldest generation that drains if there are too many.
func (f *Fleet) boundDraining() {
	if f.cfg.MaxDraining <= 0 {
		return
	}
	var gens []int
	for _, w := range f.workers {
		if w.phase >= stopping && w.Generation != f.gen && (f.roll == nil || w.Generation != f.roll.gen) && !slices.Contains(gens, w.Generation) {
			gens = append(gens, w.Generation)
		}
	}
	slices.Sort(gens)
	for _, s := range f.seats {
		for _, w := range s.workers {
			if i := slices.Index(gens, w.Generation); i >= 0 && i < len(gens)-f.cfg.MaxDraining && w.phase >= stopping {
				f.tell(w, LevelNow, false, "too many generations drain")
			}
		}
	}
}
