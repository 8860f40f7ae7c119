package limit

import (
	"context"
	"net/http"
	"time"

	"github.com/seed-235859eb/usher/internal/fairqueue"
)

// await waits for a slot.
func (l *Limiter) await(r *http.Request, e *lease, c *Conn, d deadlines) Verdict {
	began := time.Now()
	givesUp := l.givesUpAt(r)
	if v, waits := l.enqueue(e, givesUp); !waits {
		return v
	}
	patience, over := l.opts.MaxWait, Expired
	if left := givesUp.Sub(began); !givesUp.IsZero() && left < patience {
		patience, over = left, TooLate
	}
	d.hold()
	defer d.release()
	outer := l.yieldOuter(c, r)
	var hungUp <-chan struct{}
	if r.Body != http.NoBody && c.tells(r) {
		// net/http watches the connection only once the body has been read.
		var stop func()
		hungUp, stop = c.track.WatchHangUp()
		defer stop()
	}
	if e.timer == nil {
		e.timer = time.NewTimer(patience)
	} else {
		e.timer.Reset(patience)
	}
	defer e.timer.Stop()

	v := Served
	ctx := r.Context()
	select {
	case <-e.ready:
	case <-e.timer.C:
		v = over
	case <-hungUp:
		v = Left
	case <-ctx.Done():
		v = l.verdictOf(ctx)
	}
	v = l.settle(e, v, ctx, hungUp, time.Since(began))
	if v == Served && len(outer) > 0 {
		resumeOuter(outer, ctx)
		v = l.settleNested(e, ctx, hungUp)
	}
	return v
}

// settleNested refuses a request that had a slot and has lost its client since,
// while it waited to go on in the Limiters around this one.
func (l *Limiter) settleNested(e *lease, ctx context.Context, hungUp <-chan struct{}) Verdict {
	v := l.stillThere(ctx, hungUp)
	if v == Served {
		return v
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	e.state.Store(leaseNone)
	return l.refuse(e, v)
}

// verdictOf returns why a wait ends with ctx.
func (l *Limiter) verdictOf(ctx context.Context) Verdict {
	if l.opts.Stopped != nil && context.Cause(ctx) == l.opts.Stopped {
		return Stopped
	}
	return Left
}

// enqueue asks for a slot. If e has to wait, it says so; else the verdict is
// there.
func (l *Limiter) enqueue(e *lease, givesUp time.Time) (v Verdict, waits bool) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.counts.queued++
	e.waitChan()
	e.came, e.ends = l.now(), 0
	if !givesUp.IsZero() {
		e.ends = max(givesUp.Sub(l.epoch), 1)
	}
	if l.hopeless(e) {
		l.counts.refused(TooLate)
		return TooLate, false
	}
	e.queued, e.lost = true, Served
	granted, victim := l.queue.Enqueue(e.flow, &e.Waiter)
	switch {
	case granted:
		l.counts.passed++
		l.counts.waits[0]++
		e.turn = 1
		e.state.Store(leaseRunning)
		return Served, false
	case victim == &e.Waiter:
		l.counts.refused(Full)
		return Full, false
	case victim != nil:
		l.evict(victim, Full)
	}
	return 0, true
}

// evict tells the request behind w, which has lost its place, why. Its caller
// holds l.mu.
func (l *Limiter) evict(w *fairqueue.Waiter, v Verdict) {
	e := w.Value.(*lease)
	e.lost = v
	l.counts.refused(v)
	e.ready <- struct{}{}
}

// settle ends the waiting of e, which v did, or which was told if v is Served.
func (l *Limiter) settle(e *lease, v Verdict, ctx context.Context, hungUp <-chan struct{}, wait time.Duration) Verdict {
	l.mu.Lock()
	defer l.mu.Unlock()
	if v != Served && l.queue.Cancel(&e.Waiter) {
		l.counts.refused(v)
		if v != Stopped {
			l.patience.Saw(l.now(), wait, v == Left || v == TooLate)
		}
		return v
	}
	if v != Served {
		<-e.ready // both happened; sent under the lock
	}
	if e.lost != Served {
		return e.lost // counted by evict
	}
	if v != Left && v != Stopped {
		v = l.stillThere(ctx, hungUp)
	}
	if v != Served {
		return l.refuse(e, v)
	}
	e.wait.Store(int64(wait))
	e.turn = 1
	e.state.Store(leaseRunning)
	l.counts.waits[waitBucket(wait)]++
	return Served
}

// stillThere returns Served if a request that has a slot now has somebody to
// serve.
func (l *Limiter) stillThere(ctx context.Context, hungUp <-chan struct{}) Verdict {
	select {
	case <-hungUp:
		return Left
	case <-ctx.Done():
		return l.verdictOf(ctx)
	default:
		return Served
	}
}

// refuse gives back the slot of e, which has nobody to serve. Its caller holds
// l.mu.
func (l *Limiter) refuse(e *lease, v Verdict) Verdict {
	l.counts.passed--
	l.release(e, l.queue.Release)
	l.counts.refused(v)
	if v == Left {
		now := l.now()
		l.patience.Saw(now, now-e.came, true)
	}
	return v
}

// pass tells the request behind w that it has a slot. Its caller holds l.mu.
func (l *Limiter) pass(w *fairqueue.Waiter) {
	now := time.Now()
	if !l.lastPass.IsZero() {
		// Each new one counts an eighth. A pause in which nobody waited says
		// nothing about how fast slots come.
		switch d := now.Sub(l.lastPass); {
		case l.interval == 0:
			l.interval = d
		case d < l.opts.MaxWait:
			l.interval += (d - l.interval) / 8
		}
	}
	l.lastPass = now
	e := w.Value.(*lease)
	if e.state.Load() == leaseNone {
		l.counts.passed++
	}
	e.ready <- struct{}{}
}
