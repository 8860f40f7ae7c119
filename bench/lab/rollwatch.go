package main

import (
	"strconv"
	"sync"
	"time"

	"github.com/seed-235859eb/usher/bench/load"
)

// A rollWatch sees each request, and knows who has answered, and what was being
// done meanwhile.
type rollWatch struct {
	mu       sync.Mutex
	answered map[string]chan struct{} // by X-Pid; closed at the first answer
	from, to time.Time                // of the last roll; to is zero while it lasts

	during, between []time.Duration // that answers took
}

// each is called for each request.
func (w *rollWatch) each(x *load.Exchange, o load.Outcome) {
	if o != load.Answered {
		return
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	first := w.first(x.Header.Get("X-Pid"))
	select {
	case <-first:
	default:
		close(first)
	}
	latency := x.Ended.Sub(x.Began)
	if !w.from.IsZero() && x.Ended.After(w.from) && (w.to.IsZero() || x.Began.Before(w.to)) {
		w.during = append(w.during, latency)
	} else {
		w.between = append(w.between, latency)
	}
}

// first returns what is closed at the first answer of a process.
func (w *rollWatch) first(pid string) chan struct{} {
	if w.answered == nil {
		w.answered = make(map[string]chan struct{})
	}
	c := w.answered[pid]
	if c == nil {
		c = make(chan struct{})
		w.answered[pid] = c
	}
	return c
}

func (w *rollWatch) await(pid int) <-chan struct{} {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.first(strconv.Itoa(pid))
}

// begin is called before a backend is told to stop.
func (w *rollWatch) begin() time.Time {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.from, w.to = time.Now(), time.Time{}
	return w.from
}

// end is called when its successor has answered.
func (w *rollWatch) end() time.Time {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.to = time.Now()
	return w.to
}
