package limit

import (
	"math/bits"
	"time"
)

// Stats is a snapshot of a Limiter.
// Arrived = Admitted + Full + TooLate + Expired + Stopped + Left + Waiting.
type Stats struct {
	Slots, Running, Waiting, Resuming, Flows int

	Keyed int // flows that are not a connection's own, and in use

	// Counts since the Limiter was made.
	Arrived, Admitted      uint64
	Immediate, Inline      uint64 // of the admitted
	Full, TooLate          uint64
	Expired, Stopped, Left uint64
	Wasted                 uint64 // of the admitted: their clients had left when they ended
	Yields                 uint64
	Waits                  [WaitBuckets]uint64 // by waitBucket
}

// WaitBuckets is how many buckets Stats.Waits has: less than 1 ms, 2 ms, 4 ms
// and so on; the last counts all above 32.768 s.
const WaitBuckets = 17

func waitBucket(d time.Duration) int {
	return min(bits.Len64(uint64(d/time.Millisecond)), WaitBuckets-1)
}

// counts only ever grow, but for passed, which a slot with nobody to serve is
// taken from again.
type counts struct {
	queued, passed         uint64
	inline, yields, wasted uint64
	full, tooLate          uint64
	expired, stopped, left uint64
	waits                  [WaitBuckets]uint64
}

// refused counts a request that was not served.
func (n *counts) refused(v Verdict) {
	switch v {
	case Full:
		n.full++
	case TooLate:
		n.tooLate++
	case Expired:
		n.expired++
	case Stopped:
		n.stopped++
	case Left:
		n.left++
	}
}

// Stats returns a snapshot.
func (l *Limiter) Stats() Stats {
	l.mu.Lock()
	defer l.mu.Unlock()
	q := l.queue.Snapshot()
	n := l.counts
	immediate := l.immediate.Load()
	return Stats{
		Slots: q.Slots, Running: q.Running, Waiting: q.Waiting, Resuming: q.Resuming, Flows: q.Flows,
		Keyed:     len(l.keyed),
		Arrived:   immediate + n.inline + n.queued,
		Admitted:  immediate + n.inline + n.passed,
		Immediate: immediate, Inline: n.inline,
		Full: n.full, TooLate: n.tooLate, Expired: n.expired, Stopped: n.stopped, Left: n.left,
		Wasted: n.wasted, Yields: n.yields, Waits: n.waits,
	}
}
