package limit

import (
	"context"
	"time"

	"github.com/seed-235859eb/usher/internal/fairqueue"
)

// now returns the time on the Limiter's clock.
func (l *Limiter) now() time.Duration { return time.Since(l.epoch) }

// service returns how long a request takes, as far as the past tells: all
// slots are taken while anybody waits. Its caller holds l.mu.
func (l *Limiter) service() time.Duration {
	return time.Duration(l.queue.Snapshot().Slots) * l.interval
}

// late reports whether a slot may well be lost on the request behind w, whose
// turn it is. The queue asks, under l.mu.
func (l *Limiter) late(w *fairqueue.Waiter) bool {
	e := w.Value.(*lease)
	if e.ends == 0 && !l.patience.Known() {
		return false
	}
	now, service := l.now(), l.service()
	return e.ends != 0 && now+service > e.ends || l.patience.Late(now, now-e.came, service)
}

// hopeless reports whether the request of e, which has come just now, had better
// be told at once that its turn will come too late. Its caller holds l.mu.
func (l *Limiter) hopeless(e *lease) bool {
	wait := time.Duration(l.queue.Ahead(e.flow)) * l.interval
	return e.ends != 0 && e.came+wait > e.ends ||
		wait > 0 && l.patience.Known() && l.patience.Hopeless(e.came, wait, l.service())
}

// noteEnd notes whether the client of e's request, which has ended, was there to
// the end. Its context is ctx. It need not be called for a request that has not
// waited and whose client was.
func (l *Limiter) noteEnd(e *lease, ctx context.Context) {
	left := ctx.Err() != nil && l.verdictOf(ctx) == Left
	l.mu.Lock()
	defer l.mu.Unlock()
	if left {
		l.counts.wasted++
	}
	if e.queued {
		now := l.now()
		l.patience.Saw(now, now-e.came, left)
	}
}
