//go:build unix

package prefork

import (
	"fmt"
	"slices"
	"time"

	"github.com/seed-235859eb/usher/internal/fleet"
)

// summary is one line for the service manager.
func (m *Master) summary() string {
	s := m.fleet.Snapshot(time.Now())
	line := fmt.Sprintf("generation %d, %d of %d workers serve", s.Generation, s.Serving, s.Want)
	if m.takenBack != "" {
		line += "; " + m.takenBack
	}
	return line
}

// tellManager keeps the service manager up to date. Its watchdog is fed only
// while a worker serves and gets on.
func (m *Master) tellManager() {
	if m.sd == nil || m.closing {
		return
	}
	if s := m.summary(); s != m.status {
		m.status = s
		m.manage(func() error { return m.sd.Status(s) })
	}
	if m.watchdog == 0 || time.Since(m.fed) < m.watchdog/3 {
		return
	}
	healthy := func(w fleet.WorkerSnapshot) bool {
		return (w.State == "serving" || w.State == "leaving") && w.Beat.Progress && w.BeatAge < m.opts.HeartbeatTimeout
	}
	for _, seat := range m.fleet.Snapshot(time.Now()).Seats {
		if slices.ContainsFunc(seat.Workers, healthy) {
			m.fed = time.Now()
			m.manage(m.sd.Watchdog)
			return
		}
	}
}

// manage sends something to the service manager, in order, without waiting.
func (m *Master) manage(send func() error) {
	if m.sd == nil {
		return
	}
	m.manager.add(func() {
		if err := send(); err != nil {
			m.log.Warn("prefork: service manager", "error", err)
		}
	})
}
