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
	if v, waits := l.enqueue(e); !waits {
		return v
	}
	d.hold()
	defer d.release()
	var hungUp <-chan struct{}
	if r.Body != http.NoBody && c.tells(r) {
		// net/http watches the connection only once the body has been read.
		var stop func()
		hungUp, stop = c.track.WatchHangUp()
		defer stop()
	}
	if e.timer == nil {
		e.timer = time.NewTimer(l.opts.MaxWait)
	} else {
		e.timer.Reset(l.opts.MaxWait)
	}
	defer e.timer.Stop()

	v := Served
	ctx := r.Context()
	select {
	case <-e.ready:
		if ctx.Err() != nil {
			// Both happened. Nobody is left to serve.
			return l.giveUp(e, l.verdictOf(ctx))
		}
	case <-e.timer.C:
		v = Expired
	case <-hungUp:
		v = Left
	case <-ctx.Done():
		v = l.verdictOf(ctx)
	}
	return l.settle(e, v, time.Since(began))
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
func (l *Limiter) enqueue(e *lease) (v Verdict, waits bool) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.counts.queued++
	e.evicted = false
	e.waitChan()
	granted, victim := l.queue.Enqueue(e.flow, &e.Waiter)
	switch {
	case granted:
		l.counts.passed++
		l.counts.waits[0]++
		e.turn = 1
		e.state.Store(leaseRunning)
		return Served, false
	case victim == &e.Waiter:
		l.counts.full++
		return Full, false
	case victim != nil:
		other := victim.Value.(*lease)
		other.evicted = true
		l.counts.full++
		other.ready <- struct{}{}
	}
	return 0, true
}

// settle ends the waiting of e, which v did if nothing else has just then.
func (l *Limiter) settle(e *lease, v Verdict, wait time.Duration) Verdict {
	l.mu.Lock()
	defer l.mu.Unlock()
	if v != Served && !l.queue.Cancel(&e.Waiter) {
		<-e.ready // both happened; sent under the lock
		if e.evicted || v == Expired {
			v = Served
		} else {
			return l.refuse(e, v)
		}
	}
	switch {
	case v != Served:
		l.counts.refused(v)
	case e.evicted:
		return Full // counted by whoever evicted it
	default:
		e.wait.Store(int64(wait))
		e.turn = 1
		e.state.Store(leaseRunning)
		l.counts.waits[waitBucket(wait)]++
	}
	return v
}

// giveUp ends the waiting of e, which has been told that it has a slot or lost
// its place.
func (l *Limiter) giveUp(e *lease, v Verdict) Verdict {
	l.mu.Lock()
	defer l.mu.Unlock()
	if e.evicted {
		return Full
	}
	return l.refuse(e, v)
}

// refuse gives back the slot of e, which has nobody to serve. Its caller holds
// l.mu.
func (l *Limiter) refuse(e *lease, v Verdict) Verdict {
	l.counts.passed--
	l.release(e, l.queue.Release)
	l.counts.refused(v)
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
