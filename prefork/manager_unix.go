//go:build unix

package prefork

import (
	"fmt"
	"log/slog"
	"os"
	"slices"
	"time"

	"github.com/seed-235859eb/usher/internal/fleet"
	"github.com/seed-235859eb/usher/internal/sdnotify"
)

// summary is one line for the service manager.
func (m *Master) summary() string {
	s := m.fleet.Snapshot(time.Now())
	line := fmt.Sprintf("generation %d, %d of %d workers serve", s.Generation, s.Serving, s.Want)
	if m.orders.takenBack != "" {
		line += "; " + m.orders.takenBack
	}
	return line
}

// tellManager keeps the service manager up to date. Its watchdog is fed only
// while a worker serves and gets on.
func (m *Master) tellManager() {
	if m.manager.sd == nil || m.sockets.closing {
		return
	}
	if s := m.summary(); s != m.manager.status {
		m.manager.status = s
		m.manager.tell(func() error { return m.manager.sd.Status(s) })
	}
	if m.manager.watchdog == 0 || time.Since(m.manager.fed) < m.manager.watchdog/3 {
		return
	}
	healthy := func(w fleet.WorkerSnapshot) bool {
		return (w.State == "serving" || w.State == "leaving") && w.Beat.Progress && w.BeatAge < m.opts.HeartbeatTimeout
	}
	for _, seat := range m.fleet.Snapshot(time.Now()).Seats {
		if slices.ContainsFunc(seat.Workers, healthy) {
			m.manager.fed = time.Now()
			m.manager.tell(m.manager.sd.Watchdog)
			return
		}
	}
}

// A serviceManager is systemd or its like, if there is one.
type serviceManager struct {
	log      *slog.Logger
	sd       *sdnotify.Notifier
	queue    *queue
	status   string        // the last that was told
	watchdog time.Duration // or 0
	fed      time.Time     // when that was
}

// tell sends something, in order, without waiting.
func (m *serviceManager) tell(send func() error) {
	if m.sd == nil {
		return
	}
	m.queue.add(func() {
		if err := send(); err != nil {
			m.log.Warn("prefork: service manager", "error", err)
		}
	})
}

// ready says that all seats serve.
func (m *serviceManager) ready(status string) {
	m.status = status
	m.tell(func() error { return m.sd.Ready(status) })
}

// connect finds the service manager.
func (m *serviceManager) connect() {
	var err error
	if m.sd, err = sdnotify.New(os.Getenv); err != nil {
		m.log.Warn("prefork: service manager", "error", err)
	}
	if m.watchdog, err = sdnotify.WatchdogInterval(os.Getenv, os.Getpid()); err != nil {
		m.log.Warn("prefork: service manager", "error", err)
	}
}

// close waits until all has been sent, or a limit is over.
func (m *serviceManager) close() {
	m.queue.close(hookTimeout)
	m.sd.Close()
}
