//go:build unix

package prefork

import (
	"context"
	"os"
	"os/signal"
	"strconv"
	"syscall"

	"golang.org/x/sys/unix"
)

// signals are those that come to the master.
type signals struct {
	ch     chan os.Signal
	caught []os.Signal // that come there
	terms  burst
}

// harmless are signals whose loss, while the master is replaced, does no harm.
var harmless = []os.Signal{syscall.SIGHUP, syscall.SIGUSR1, syscall.SIGUSR2, syscall.SIGTTIN, syscall.SIGTTOU}

// catchEarly catches signals to stop for a master that another one has executed,
// as soon as there is anything of this package: until main comes to Run they would
// end the program. It is nil in others.
var catchEarly = func() chan os.Signal {
	fd, err := strconv.Atoi(os.Getenv(masterEnv))
	if err != nil {
		return nil
	}
	if _, err := unix.FcntlInt(uintptr(fd), unix.F_GETFD, 0); err != nil {
		return nil // a child of such a master
	}
	signals := make(chan os.Signal, 16)
	signal.Notify(signals, notIgnored(syscall.SIGTERM, os.Interrupt)...)
	return signals
}()

func (m *Master) catchSignals(signals []os.Signal) {
	// Without this, a line of log would kill the master when whoever reads
	// standard error is gone.
	signal.Notify(make(chan os.Signal, 1), syscall.SIGPIPE)
	signal.Notify(m.signals.ch, signals...)
}

// releaseSignals prepares for exec, after which they would do what they do to
// any program: end it, or, as SIGTTIN does, stop it for ever. Ignored ones stay
// ignored until Run catches them again; SIGTERM must not be lost, and ends the
// master. It reports whether none had come before.
func (m *Master) releaseSignals() bool {
	signal.Ignore(harmless...)
	signal.Stop(m.signals.ch) // all that came are in the channel by now
	return len(m.signals.ch) == 0
}

// signal does what a signal to the master means, and returns how many to stop
// have come.
func (m *Master) signal(s os.Signal, received int) int {
	now := m.now()
	name := signalName(s)
	switch s {
	case syscall.SIGTERM, os.Interrupt:
		if s == syscall.SIGTERM && m.signals.terms.more(now) {
			break
		}
		received++
		m.stop(nextLevel(s, received), name)
	case syscall.SIGHUP, syscall.SIGUSR1:
		m.restart(m.orders.add(nil), name)
	case syscall.SIGUSR2:
		m.upgrade(context.Background(), name, make(chan error, 1))
	case syscall.SIGTTIN, syscall.SIGTTOU:
		n := m.fleet.Snapshot(now).Want
		if s == syscall.SIGTTIN {
			n++
		} else {
			n--
		}
		if n < 1 || n > maxWorkers {
			m.log.Warn("prefork: cannot scale", "workers", n, "least", 1, "most", maxWorkers)
			break
		}
		if err := m.fleet.Scale(now, n); err != nil {
			m.log.Warn("prefork: cannot scale", "workers", n, "error", err)
			break
		}
		m.log.Info("prefork: scaling", "workers", n, "reason", name)
	}
	return received
}

// signalName returns SIGHUP and not "hangup", which says something else.
func signalName(s os.Signal) string {
	if n, ok := s.(syscall.Signal); ok {
		if name := unix.SignalName(n); name != "" {
			return name
		}
	}
	return s.String()
}
