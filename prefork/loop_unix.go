//go:build unix

package prefork

import (
	"context"
	"time"

	"github.com/seed-235859eb/usher/internal/fleet"
)

// slack is how late the master may be, beyond what it had planned to sleep,
// before it holds itself to have been stopped.
func (m *Master) slack() time.Duration { return max(m.opts.HeartbeatTimeout/4, 20*time.Millisecond) }

// now returns the time, for the fleet to judge by. If this goroutine was not
// there for a while, in its sleep or at work, as the whole process was stopped
// or whoever reads its log, the fleet is told first.
func (m *Master) now() time.Time {
	now := time.Now()
	late := now.Sub(m.due)
	if m.due.IsZero() || late < 0 {
		late = 0
	}
	m.due = now
	if late > m.slack() {
		m.fleet.Late(now)
		m.log.Warn("prefork: the master was not there for a while, nobody is judged for it", "late", late)
	}
	return now
}

// loop owns the state until the fleet is over.
func (m *Master) loop(ctx context.Context) error {
	defer close(m.done)
	received := 0
	stopped := ctx.Done()
	timer := time.NewTimer(0)
	defer timer.Stop()
	for {
		m.settle()
		if m.over {
			return m.result
		}
		nap := m.nap()
		m.due = time.Now().Add(nap)
		timer.Reset(nap)
		var event func()
		select {
		case event = <-m.events:
		case <-timer.C:
		case <-stopped:
			stopped = nil
			event = func() { m.stop(fleet.LevelStop, context.Cause(ctx).Error()) }
		case s := <-m.signals.ch:
			event = func() { received = m.signal(s, received) }
		}
		m.now()
		if event != nil {
			event()
		}
	}
}

// nap returns how long nothing is to be done.
func (m *Master) nap() time.Duration {
	nap := max(m.opts.HeartbeatTimeout/4, 10*time.Millisecond)
	if m.manager.watchdog > 0 {
		nap = min(nap, m.manager.watchdog/4)
	}
	if next := m.fleet.Next(); !next.IsZero() {
		nap = min(nap, time.Until(next))
	}
	return max(nap, 0)
}

// settle does all that is to be done now.
func (m *Master) settle() {
	for {
		acted := m.act()
		if m.over {
			return
		}
		if !m.sockets.closing && m.fleet.Snapshot(time.Now()).Stopping {
			m.sockets.giveUp()
			m.manager.tell(func() error { return m.manager.sd.Stopping("stopping") })
		}
		if replace := m.upgrades.replace; replace != nil && m.calm() {
			m.upgrades.replace = nil
			replace()
		}
		if !acted {
			break
		}
	}
	m.tellManager()
}

// act does what the fleet wants at this moment, and reports whether that was
// anything.
func (m *Master) act() bool {
	now := m.now()
	if next := m.fleet.Next(); !next.IsZero() && !next.After(now) {
		m.fleet.Tick(now)
	}
	actions := m.fleet.Take()
	for _, a := range actions {
		m.carryOut(a)
	}
	return len(actions) > 0
}

// calm reports whether nothing is under way that another master could not take
// over. Hooks belong to it: the next master does not know what was not told yet.
func (m *Master) calm() bool { return m.spawning == 0 && !m.fleet.Busy() && m.hooks.idle() }
