package fleet

import (
	"fmt"
	"slices"
	"time"
)

// reconcile compares what there is with what should be, and orders what is
// missing. It runs after each event, and nothing else decides anything. So it
// does not matter which events led to a state, in what order, or whether one of
// them came at a bad time: what is wrong is seen as long as it is wrong. All
// that waits for a time asks due for it, each time.
func (f *Fleet) reconcile() {
	for {
		f.changed, f.next = false, time.Time{}
		f.pass()
		if !f.changed {
			break
		}
	}
	if !f.ending() {
		f.emitLive()
	}
	f.actions = slices.Concat(f.actions, f.before, f.after, f.answers)
	f.before, f.after, f.answers = nil, nil, nil
}

func (f *Fleet) pass() {
	if f.over {
		return
	}
	if f.ending() {
		f.stopAll()
	}
	for _, s := range f.seats {
		for _, w := range s.workers {
			f.judge(w)
		}
		f.forgive(s)
	}
	if !f.ending() {
		// These change what is wanted, in that order, before anybody is
		// started for it.
		f.restart()
		f.endTrial()
		for f.rescale() {
		}
		f.recycle()
		for _, s := range f.seats {
			f.fill(s)
		}
		f.boundDraining()
		f.finish()
		f.allReady()
	}
	if f.told > 0 && len(f.workers) == 0 {
		f.over, f.next = true, time.Time{}
		f.answers = append(f.answers, Over{f.verdict()})
	}
}

// due reports whether t has come. If it has not, Next is no later than t.
func (f *Fleet) due(t time.Time) bool {
	if !t.After(f.now) {
		return true
	}
	if f.next.IsZero() || t.Before(f.next) {
		f.next = t
	}
	return false
}

// dueAfter is due for something that has a limit of d. Zero means none.
func (f *Fleet) dueAfter(t time.Time, d time.Duration) bool {
	return d > 0 && f.due(t.Add(d))
}

// jitter returns x, more or less by up to part of it.
func (f *Fleet) jitter(x, part float64) float64 {
	if f.cfg.Rand == nil {
		return x
	}
	return x * (1 - part + 2*part*f.cfg.Rand())
}

func (w *worker) enter(p phase, now time.Time) { w.phase, w.phaseAt = p, now }

// good reports whether w is what its seat wants, or may become so.
func (w *worker) good() bool {
	return w.phase <= serving && w.Generation == w.seat.target && !w.leaveDue && !w.Recycling
}

// best returns the worker that the seat wants if it serves.
func (s *seat) best() *worker {
	for _, w := range slices.Backward(s.workers) {
		if w.phase == serving && w.good() {
			return w
		}
	}
	return nil
}

func (s *seat) serves() bool {
	return slices.ContainsFunc(s.workers, func(w *worker) bool { return w.phase == serving })
}

// fill sees to it that the seat has one good worker, and no others for longer
// than needed. One that serves is told to stop only when a good one serves.
func (f *Fleet) fill(s *seat) {
	if s.closing {
		return
	}
	for _, w := range s.workers {
		if w.Leaving && !w.leaveDue && w.phase <= serving && f.due(w.leftAt.Add(f.cfg.LeaveGrace)) {
			w.leaveDue, f.changed = true, true
		}
	}
	best, good := s.best(), false
	for _, w := range s.workers {
		switch {
		case w == best || best == nil && w.good():
			good = true
		case w.phase == starting, best != nil && w.phase == serving && !f.keeps(s, best):
			f.tell(w, LevelStop, false, f.whyNot(w))
		case w.phase == serving && w.leaveDue && (w.LeaveLost || f.dueAfter(w.leftAt, f.cfg.LeaveTimeout)):
			f.tell(w, LevelStop, false, f.whyNot(w))
		}
	}
	if !good && (f.due(s.backoff) || f.waived(s)) && !f.tooMany(s) {
		f.spawn(s)
	}
}

func (f *Fleet) spawn(s *seat) {
	f.lastID++
	w := &worker{
		WorkerState: WorkerState{ID: f.lastID, Generation: s.target},
		seat:        s, born: f.now, phaseAt: f.now, bootAt: f.now, beatAt: f.now,
	}
	s.workers = append(s.workers, w)
	f.workers[w.ID] = w
	f.after = append(f.after, Spawn{w.ID, s.index, w.Generation})
	f.changed = true
}

// tell gives a worker an order to stop, unless it has got it before.
func (f *Fleet) tell(w *worker, level Level, final bool, why string) {
	if level == LevelNow && w.nowAt.IsZero() {
		w.nowAt, f.changed = f.now, true
	}
	if w.phase > stopping || level <= w.Level && (w.Final || !final) {
		return
	}
	if w.Level == 0 {
		w.enter(stopping, f.now)
		w.ladderAt = f.now
		if f.roll != nil && w.Generation != w.seat.target {
			w.stopFor = f.roll.gen
		}
	}
	w.Level, w.Final = max(w.Level, level), w.Final || final
	f.after = append(f.after, StopWorker{w.ID, w.Level, w.Final, why})
	f.changed = true
}

// whyNot says why a seat does not want one of its workers any more.
func (f *Fleet) whyNot(w *worker) string {
	switch {
	case f.roll != nil && f.roll.back && w.Generation == f.roll.gen:
		return "restart taken back"
	case w.Generation != w.seat.target:
		return "restart"
	case w.Leaving:
		return w.LeaveWhy
	case w.Recycling:
		return "recycle"
	default:
		return "another serves"
	}
}

// endsAtOnce is how long a worker may take for LevelNow.
const endsAtOnce = time.Second

// judge finds what is wrong with a worker, and takes the next step of the ladder
// against one that does not go: a dump of its goroutines, as the reason is known
// to nobody else, and SIGKILL.
func (f *Fleet) judge(w *worker) {
	if w.phase == serving {
		if !w.Passed && f.due(w.probationAt.Add(f.cfg.Probation)) {
			w.Passed, f.changed = true, true
		}
		if !w.Recycle && f.dueAfter(w.readyAt, w.MaxAge) {
			w.Recycle, f.changed = true, true
		}
	}
	switch {
	case w.phase == starting:
		if f.dueAfter(w.bootAt, f.cfg.BootTimeout) {
			f.dump(w, fmt.Sprintf("not ready within %v", f.cfg.BootTimeout), Boot)
		}
	case w.phase == dumped:
		if f.due(w.ladderAt.Add(f.cfg.DumpGrace)) {
			f.kill(w, fmt.Sprintf("still there %v after the dump", f.cfg.DumpGrace))
		}
	case w.phase == killed: // nothing else helps
		return
	case !w.nowAt.IsZero(): // see below
	case w.WasReady && f.dueAfter(w.progressAt, f.cfg.HeartbeatTimeout):
		f.dump(w, fmt.Sprintf("no progress for %v", f.cfg.HeartbeatTimeout), Hung)
	case w.phase == stopping && f.dueAfter(w.ladderAt, f.cfg.StopTimeout):
		f.dump(w, fmt.Sprintf("still there %v after the order to stop", f.cfg.StopTimeout), "")
	}
	if w.phase != killed && !w.nowAt.IsZero() && f.due(w.nowAt.Add(endsAtOnce)) {
		f.kill(w, "still there after the order to end at once")
	}
}

func (f *Fleet) dump(w *worker, why string, judged Class) {
	w.enter(dumped, f.now)
	w.ladderAt, w.Forced, w.Judged = f.now, true, judged
	f.after = append(f.after, Dump{w.ID, why})
	f.changed = true
	if w.Level == 0 {
		f.fail(w, w.exit(f.now, Exit{Unknown: true}))
	}
}

func (f *Fleet) kill(w *worker, why string) {
	w.enter(killed, f.now)
	w.Forced = true
	f.after = append(f.after, Kill{w.ID, why})
	f.changed = true
}

// ending reports whether nobody is to be started any more.
func (f *Fleet) ending() bool { return f.level > 0 || f.giveUp != nil }

// stopAll tells all workers to stop, with each higher level again.
func (f *Fleet) stopAll() {
	f.level = max(f.level, LevelStop)
	if f.giveUp != nil && f.stopWhy == "" {
		f.stopWhy = "gave up"
	}
	if f.told == f.level {
		return
	}
	if f.told == 0 {
		f.isLive = false
		f.emitLive() // one last time, while those are to be seen that serve
		f.refuseAll("the fleet stops")
	}
	f.told = f.level
	for _, s := range f.seats {
		for _, w := range s.workers {
			f.tell(w, f.level, true, f.stopWhy)
		}
	}
}

// verdict is what Over says.
func (f *Fleet) verdict() error {
	switch {
	case f.giveUp != nil:
		e := *f.giveUp
		return &e
	case len(f.short) > 0:
		return &StopError{f.short}
	}
	return nil
}

// emitLive says who gets new connections, if that has changed.
func (f *Fleet) emitLive() {
	var l Live
	for _, s := range f.seats {
		switch {
		case s.serves() && !s.closing:
			l.Seats = append(l.Seats, s.index)
		default:
			l.Orphans = append(l.Orphans, s.index)
		}
		for _, w := range s.workers {
			if w.phase == serving {
				l.To = append(l.To, w.ID)
			}
		}
	}
	if len(l.Seats) == 0 { // to be found by whoever comes first
		for _, s := range f.seats {
			if !s.closing {
				l.Seats = append(l.Seats, s.index)
			}
		}
	}
	if len(f.seats) == 0 || f.isLive && slices.Equal(l.Seats, f.live.Seats) && slices.Equal(l.Orphans, f.live.Orphans) && slices.Equal(l.To, f.live.To) {
		return
	}
	f.live, f.isLive = l, true
	f.before = append(f.before, Live{slices.Clone(l.Seats), slices.Clone(l.Orphans), slices.Clone(l.To)})
}

// allReady emits AllReady if it is due.
func (f *Fleet) allReady() {
	if !f.announce || f.Busy() {
		return
	}
	for _, s := range f.seats {
		if !slices.ContainsFunc(s.workers, func(w *worker) bool { return w.phase == serving && w.Generation == s.target }) {
			return
		}
	}
	f.announce, f.changed = false, true
	f.answers = append(f.answers, AllReady{})
}
