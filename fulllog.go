package usher

import (
	"log/slog"
	"sync"
	"time"
)

// fullPause is how long a queue must have turned nobody away for that to have
// ended.
const fullPause = 5 * time.Second

// A fullLog says when a queue begins to turn requests away, and when that has
// ended: never for each of them.
type fullLog struct {
	log *slog.Logger

	mu    sync.Mutex
	since time.Time // when it began; zero: it does not
	last  time.Time
	count int
	timer *time.Timer
}

// note is called for each request that is turned away.
func (f *fullLog) note() {
	f.mu.Lock()
	f.last = time.Now()
	f.count++
	began := f.since.IsZero()
	if began {
		f.since, f.count = f.last, 1
		f.timer = time.AfterFunc(fullPause, f.check)
	}
	f.mu.Unlock()
	if began {
		f.log.Warn("usher: requests are turned away: the queue is full, or its wait too long")
	}
}

// check says that it has ended, or checks again later.
func (f *fullLog) check() {
	f.mu.Lock()
	if quiet := time.Since(f.last); quiet < fullPause {
		f.timer.Reset(fullPause - quiet)
		f.mu.Unlock()
		return
	}
	count, took := f.count, f.last.Sub(f.since)
	f.since = time.Time{}
	f.mu.Unlock()
	f.log.Info("usher: requests are turned away no more", "turned_away", count, "over", took)
}

// end says what there is to say when the server stops.
func (f *fullLog) end() {
	f.mu.Lock()
	pending := !f.since.IsZero() && f.timer.Stop()
	count, took := f.count, f.last.Sub(f.since)
	f.mu.Unlock()
	if pending {
		f.log.Info("usher: requests were turned away until the stop", "turned_away", count, "over", took)
	}
}
