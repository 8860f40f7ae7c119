package prefork

import (
	"context"
	"fmt"
	"time"

	"github.com/seed-235859eb/usher/internal/fleet"
)

// beat tells the master, as long as the worker lives, how it is doing.
func (w *Worker) beat() {
	tick := time.NewTicker(w.opts.beatInterval())
	defer tick.Stop()
	var health health
	handed := make([]uint64, len(w.listeners))
	for {
		b, newcomers := w.counters()
		b.Progress = health.ok(w) && !w.stuck(handed, newcomers)
		w.tell(frame{Type: frameBeat, Ready: w.ready.Load(), Beat: &b})
		select {
		case <-tick.C:
		case <-w.ended:
			b, _ := w.counters()
			b.Progress = true
			w.tell(frame{Type: frameBeat, Beat: &b})
			return
		}
	}
}

// counters sums up what the servers have to say.
func (w *Worker) counters() (b fleet.Beat, newcomers int) {
	w.mu.Lock()
	servers := w.servers
	w.mu.Unlock()
	for _, s := range servers {
		c := s.Counters()
		b.Requests += c.Requests
		b.Accepted += c.Accepted
		b.InFlight += c.InFlight
		b.Connections += c.Connections
		newcomers += c.Newcomers
	}
	for _, l := range w.listeners {
		if n, err := l.Queued(); err == nil {
			b.Queued += n
		}
	}
	b.RSS = residentMemory()
	return b, newcomers
}

// stuck reports whether connections have been lying about since the last beat
// with nobody to take them: a server's Accept loop hangs. handed is what each
// listener had handed over by then. Only a server that tells of its newcomers is
// judged: another may have reasons of its own not to accept, as
// netutil.LimitListener has when it is full.
func (w *Worker) stuck(handed []uint64, newcomers int) bool {
	stuck := false
	for i, l := range w.listeners {
		l.mu.Lock()
		served := l.served
		l.mu.Unlock()
		now := l.handed.Load()
		if served && now == handed[i] && l.inHand.Load() > 0 && l.waiting.Load() == 0 && newcomers == 0 {
			stuck = true
		}
		handed[i] = now
	}
	return stuck
}

// health asks Options.Health, one call at a time.
type health struct{ pending chan error }

func (h *health) ok(w *Worker) bool {
	if w.opts.Health == nil {
		return true
	}
	limit := w.opts.HeartbeatTimeout / 2
	if h.pending == nil {
		h.pending = make(chan error, 1)
		pending := h.pending
		go func() {
			ctx, cancel := context.WithTimeout(w.ctx, limit)
			defer cancel()
			var err error
			defer func() {
				if p := recover(); p != nil {
					err = fmt.Errorf("panic: %v", p)
				}
				pending <- err
			}()
			err = w.opts.Health(ctx)
		}()
	}
	t := time.NewTimer(w.opts.beatInterval())
	defer t.Stop()
	select {
	case err := <-h.pending:
		h.pending = nil
		if err != nil && w.ctx.Err() == nil {
			w.log.Warn("prefork: Health failed", "error", err)
			return false
		}
		return true
	case <-t.C:
		return false // not yet; the next beat asks again
	}
}
