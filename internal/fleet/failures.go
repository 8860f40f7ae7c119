package fleet

import (
	"fmt"
	"math"
	"slices"
	"time"
)

// forgive forgets a seat's failures when its worker is well.
func (f *Fleet) forgive(s *seat) {
	if w := s.best(); w != nil && s.Failures > 0 && f.due(w.readyAt.Add(f.cfg.HealthyAfter)) {
		s.Failures, f.changed = 0, true
	}
}

// exit returns what to say of the end of w.
func (w *worker) exit(now time.Time, e Exit) WorkerExit {
	x := WorkerExit{w.ID, w.seat.index, w.Generation, w.PID, Code, e, now.Sub(w.born), w.WasReady, w.Forced}
	clean := e.Code == 0 && e.Signal == 0 && !e.Unknown
	switch {
	case w.Judged != "":
		x.Class = w.Judged
	case w.Level > 0 || w.Leaving && clean:
		x.Class = Asked
	case !w.WasReady:
		x.Class = Boot
	case e.Signal == sigKill && !e.Unknown:
		x.Class = Killed
	case e.Signal != 0 && !e.Unknown:
		x.Class = Signal
	case clean:
		x.Class = Clean
	}
	return x
}

// gone takes a worker out of everything.
func (f *Fleet) gone(w *worker, e Exit) {
	s := w.seat
	s.workers = slices.DeleteFunc(s.workers, func(o *worker) bool { return o == w })
	delete(f.workers, w.ID)
	f.requests += w.Beat.Requests
	f.accepted += w.Beat.Accepted
	x := w.exit(f.now, e)
	s.LastExit = &x
	for _, b := range w.blame {
		*b = x // now with the output
	}
	n := len(f.before)
	if w.Level == 0 && x.Class != Asked {
		f.fail(w, x)
	}
	if f.ending() && (w.Forced || w.WasReady && w.Level > 0 && e.Signal == 0 && e.Code != 0) {
		f.short = append(f.short, x)
	}
	f.before = slices.Insert(f.before, n, Action(WorkerGone{x, f.respawnIn(s)})) // before what follows from it
	f.reconcile()
}

// respawnIn is for WorkerGone.
func (f *Fleet) respawnIn(s *seat) time.Duration {
	if f.ending() || s.closing || slices.ContainsFunc(s.workers, (*worker).good) {
		return -1
	}
	if f.waived(s) {
		return 0
	}
	return max(0, s.backoff.Sub(f.now))
}

// fail counts a failure of a worker, once. That is when it is found to hang
// rather than when it is gone, as its place is free from then on.
func (f *Fleet) fail(w *worker, x WorkerExit) {
	if w.Failed {
		return
	}
	s := w.seat
	w.Failed = true
	s.Restarts++
	f.nCrashes++
	if f.ending() {
		return
	}
	for _, o := range s.workers {
		o.LeaveLost = o.LeaveLost || o.leaveDue && o.ID < w.ID
	}
	if w.Generation == s.target {
		s.Steady = w.WasReady && f.now.Sub(w.readyAt) >= f.cfg.BackoffBase
		f.backOff(s)
	}
	switch {
	case f.failTry(w, x):
		return // has a budget of its own
	case w.Generation != f.gen && (f.roll == nil || w.Generation != f.roll.gen || f.roll.back):
		return // will not come back
	case s.serves():
		return // somebody else serves there: nothing is lost but a try to replace that one
	}
	if !w.WasReady && !f.everReady {
		if d := f.cfg.FirstBootTimeout; d > 0 && !f.now.Before(f.startedAt.Add(d)) {
			f.quit(w, x, fmt.Sprintf("no worker was ready within %v of the start, and seat %d has tried %d times", d, s.index, s.Failures))
		}
		return
	}
	if f.cfg.CrashWindow <= 0 {
		return
	}
	f.crashes = slices.DeleteFunc(f.crashes, func(t time.Time) bool { return f.now.Sub(t) >= f.cfg.CrashWindow })
	limit := f.cfg.CrashLimit
	if w.Generation == f.gen && f.fallback != 0 {
		limit /= 2 // there is a better one
	}
	if f.crashes = append(f.crashes, f.now); len(f.crashes) <= limit {
		return
	}
	why := fmt.Sprintf("%d workers failed within %v", len(f.crashes), f.cfg.CrashWindow)
	switch {
	case w.Generation != f.gen: // there is a way back
		f.crashes = nil
		f.abortFor(w, x, why)
	case f.fallback == 0:
		f.quit(w, x, why)
	case f.roll != nil && !f.roll.back: // the next one may be better
		f.crashes = nil
	default:
		f.takeBack(w, x, why)
	}
}

// backOff sets when the seat's next worker may be started.
func (f *Fleet) backOff(s *seat) {
	s.Failures++
	s.backoff = f.now
	if s.Failures == 1 {
		return
	}
	d := float64(f.cfg.BackoffBase) * math.Exp2(float64(min(s.Failures-2, 60)))
	if f.cfg.BackoffMax > 0 {
		d = min(d, float64(f.cfg.BackoffMax))
	}
	s.backoff = f.now.Add(time.Duration(min(f.jitter(d, 0.2), math.MaxInt64/4)))
	if last := f.startedAt.Add(f.cfg.FirstBootTimeout); !f.everReady && last.After(f.now) && last.Before(s.backoff) {
		s.backoff = last
	}
}

// waived reports whether a seat need not wait for its backoff, which is for code
// that fails at once, or on one seat. When most seats have nobody, clients wait,
// and what serves for a while before it is killed is better than that.
func (f *Fleet) waived(s *seat) bool {
	if !s.Steady {
		return false
	}
	seats, alive := 0, 0
	for _, o := range f.seats {
		if o.closing {
			continue
		}
		seats++
		if slices.ContainsFunc(o.workers, func(w *worker) bool { return w.phase <= serving }) {
			alive++
		}
	}
	return 2*alive < seats
}

// quit gives up.
func (f *Fleet) quit(w *worker, x WorkerExit, why string) {
	if f.giveUp == nil {
		f.giveUp, f.changed = &GiveUpError{why, x}, true
		w.blame = append(w.blame, &f.giveUp.Last)
	}
}
