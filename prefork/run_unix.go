//go:build unix

package prefork

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"os"
	"os/signal"
	"syscall"
	"time"

	"github.com/seed-235859eb/usher/internal/asynclog"
	"github.com/seed-235859eb/usher/internal/fleet"
	"github.com/seed-235859eb/usher/internal/reuseport"
	"github.com/seed-235859eb/usher/internal/sdnotify"
	"golang.org/x/sys/unix"
)

// canFork says whether this system can share sockets between processes.
const canFork = true

func runWorker(ctx context.Context, opts Options, setup workerSetup, f func(ctx context.Context, w *Worker) error) error {
	p, err := startWorker(ctx, opts, setup)
	if err != nil {
		return err
	}
	defer p.end()
	return p.w.run(f)
}

func runMaster(ctx context.Context, opts Options) error {
	m := newMaster(opts)
	defer m.end()
	if catchEarly != nil {
		m.signals.ch = catchEarly
	}
	m.catchSignals(notIgnored(syscall.SIGTERM, os.Interrupt))
	defer signal.Stop(m.signals.ch)
	old, err := inheritedState()
	if err != nil {
		return err
	}
	m.signals.caught = notIgnored(append([]os.Signal{syscall.SIGTERM, os.Interrupt}, harmless...)...)
	if old != nil {
		m.signals.caught = old.signals() // the master before has ignored some for this one's sake
	}
	m.catchSignals(m.signals.caught)
	if err := m.open(ctx, old); errors.Is(err, errStopAtBoot) {
		m.log.Info("prefork: told to stop before it began")
		return nil
	} else if err != nil {
		return err
	}
	endLog, err := opts.startLog(m.log, m.reopenLog)
	switch {
	case err == nil:
		defer endLog()
	case old == nil:
		return err
	default: // there are workers
		m.log.Error("prefork: goes on with the log that there is", "error", err)
	}
	m.manager.connect()
	stopReaping := reapStrangers(m)
	defer stopReaping()

	m.fleet = fleet.New(m.fleetConfig())
	if old == nil {
		m.log.Info("prefork: master starts", "pid", os.Getpid(), "workers", opts.Workers, "addr", m.sockets.addresses(),
			"GOMAXPROCS of a worker", m.shareForLog())
		m.fleet.Start(time.Now())
	} else if err := m.adopt(old); err != nil {
		return err
	}
	if f := opts.Hooks.MasterStart; f != nil {
		m.hook("MasterStart", func(ctx context.Context) { f(ctx, m) })
	}
	return m.loop(ctx)
}

func (m *Master) shareForLog() string {
	if n := cpuShare(m.opts.Workers); n > 0 {
		return fmt.Sprint(n)
	}
	return os.Getenv("GOMAXPROCS") + ", as set"
}

// end gives back what the master holds.
func (m *Master) end() {
	m.sockets.unpublish()
	close(m.gone)
	m.upgrades.trials.Wait()
	m.evictions.Wait()
	m.closeStreams()
	for _, e := range m.sockets.endpoints {
		e.group.Close()
	}
	m.programs.close()
	m.hooks.close(hookTimeout)
	if err := m.pidFile.remove(); err != nil {
		m.log.Warn("prefork: cannot remove the PID file", "error", err)
	}
	m.manager.close()
	m.flushLog()
}

// flushLog sees to it that what was logged is written, unless nobody takes it.
func (m *Master) flushLog() {
	flush(m.log)
	m.output.to.Flush(logPatience)
}

func flush(log *slog.Logger) {
	if h, ok := log.Handler().(*asynclog.Handler); ok {
		h.Flush(logPatience)
	}
}

// findProgram finds where new workers come from.
func (m *Master) findProgram(old *masterState) error {
	path, sure, err := programPath()
	if err != nil {
		return err
	}
	m.programs.path = path
	if old != nil && old.Path != "" {
		m.programs.path, sure = old.Path, true
	}
	if !sure {
		m.log.Warn("prefork: cannot find the program by the path that it was started by: restarts will use the file that runs", "path", m.programs.path)
	}
	m.programs.dir = workDir(m.opts.Dir)
	return m.opts.checkDir()
}

// findIdentity finds out whom the workers run as, and where the master's process ID
// goes.
func (m *Master) findIdentity(old *masterState) (err error) {
	if m.programs.credential, err = m.opts.credential(); err != nil {
		return err
	}
	if m.pidFile, err = m.opts.pidFile(); err != nil {
		return err
	}
	if old != nil && old.PIDFile != string(m.pidFile) {
		if err := pidFile(old.PIDFile).remove(); err != nil {
			m.log.Warn("prefork: cannot remove the PID file of the master before", "error", err)
		}
	}
	return nil
}

func (m *Master) writePIDFile() {
	if err := m.pidFile.write(); err != nil {
		m.log.Error("prefork: cannot write the PID file", "error", err)
	}
}

// open opens the endpoints, or takes them over from the master before.
func (m *Master) open(ctx context.Context, old *masterState) error {
	if err := m.findProgram(old); err != nil {
		return err
	}
	if err := m.findIdentity(old); err != nil {
		return err
	}
	inherited, err := m.opts.systemdSockets()
	if err != nil {
		return err
	}
	defer closeSockets(inherited)
	wanted := m.opts.endpoints()
	if len(wanted) == 0 && old == nil {
		if wanted, err = endpointsOf(inherited); err != nil {
			return err
		}
	}
	if len(wanted) == 0 {
		for _, e := range old.Endpoints {
			wanted = append(wanted, Endpoint{Name: e.Name, Network: "systemd", Addr: e.Name})
		}
	}
	seats := m.opts.Workers
	if old != nil {
		seats = old.Seats
	}
	if old == nil {
		if err := checkDescriptors(openDescriptors()+m.opts.descriptorsNeeded(seats, wanted), seats); err != nil {
			return err
		}
	}
	for _, want := range wanted {
		e := &endpoint{name: want.name(), key: want.key()}
		if !old.take(e) {
			if e.group, err = m.openEndpoint(ctx, want, inherited, seats); err != nil {
				return fmt.Errorf("prefork: endpoint %s: %w", e.name, err)
			}
			if want.Network == "unix" || want.Open != nil {
				e.unixName = nameOf(e.group.Addr())
			}
			e.foreign = want.foreign()
		}
		m.sockets.endpoints = append(m.sockets.endpoints, e)
	}
	old.dropRest()
	return nil
}

// key tells whether an endpoint of one master is that of the next.
func (e Endpoint) key() string {
	if e.Open != nil {
		return "open " + e.name()
	}
	return e.Network + " " + e.Addr + " " + e.name()
}

func openGroup(e Endpoint, inherited []sdnotify.Socket, seats int) (*reuseport.Group, error) {
	switch {
	case e.Open != nil:
		l, err := e.Open()
		if err != nil {
			return nil, err
		}
		g, err := reuseport.FromListener(l)
		if err != nil {
			l.Close()
		}
		return g, err
	case e.Network == "systemd":
		s, err := pick(e.Addr, inherited)
		if err != nil {
			return nil, err
		}
		fd, err := dupFD(s.FD)
		if err != nil {
			return nil, fmt.Errorf("descriptor %d from systemd: %w", s.FD, err)
		}
		network := "tcp"
		if sa, err := unix.Getsockname(fd); err == nil {
			if _, ok := sa.(*unix.SockaddrUnix); ok {
				network = "unix"
			}
		}
		g, err := reuseport.FromFDs(network, []int{fd}, true)
		if err != nil {
			unix.Close(fd)
		}
		return g, err
	case e.Network == "unix":
		return withUnixName(e.Addr, func() (*reuseport.Group, error) { return reuseport.Open("unix", e.Addr, seats) })
	case e.Network == "":
		return reuseport.Open("tcp", e.Addr, seats)
	default:
		return reuseport.Open(e.Network, e.Addr, seats)
	}
}

// closeSockets closes what came from systemd; what is used has been duplicated.
func closeSockets(sockets []sdnotify.Socket) {
	for _, s := range sockets {
		unix.Close(s.FD)
	}
}

// inheritedListener returns a listener on a duplicate of fd.
func inheritedListener(fd int) (net.Listener, error) {
	if err := unix.SetNonblock(fd, true); err != nil {
		return nil, fmt.Errorf("descriptor %d from systemd: %w", fd, err)
	}
	return reuseport.Listener(fd)
}
