package prefork

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"os"
	"os/signal"
	"slices"
	"sync"
	"syscall"
	"time"

	"github.com/seed-235859eb/usher"
	"github.com/seed-235859eb/usher/internal/asynclog"
	"github.com/seed-235859eb/usher/internal/fleet"
	"github.com/seed-235859eb/usher/internal/sdnotify"
)

// Run makes this process the master, which starts Options.Workers worker processes.
// Each runs the same program, whose call of Run calls f. If Workers is zero, Run
// calls f in this process.
//
// Call Run once, from main, as soon as the options are known. What main does before
// is done again by each worker. Processes that main starts before inherit a worker's
// sockets.
//
// In the master, Run returns when all workers have stopped, after ctx has ended or a
// signal has come. The result is nil if each worker stopped in time and with
// status 0, a [*StopError] if not, and a [*GiveUpError] if the workers could not be
// kept alive. In a worker, Run returns what f returns. f should return when its
// context ends, as [usher.Server.Run] does, and the program should end then.
//
// On systems where processes cannot share sockets, Windows for one, f runs in
// this process, and the log says so.
func Run(ctx context.Context, opts Options, f func(ctx context.Context, w *Worker) error) error {
	if f == nil {
		return errors.New("prefork: Run: the function is nil")
	}
	if err := opts.validate(); err != nil {
		return err
	}
	opts = opts.withDefaults()
	// Nobody who serves, stops or looks after others waits for a log.
	lines := asynclog.NewHandler(opts.Logger.Handler())
	defer lines.Flush(logPatience)
	opts.Logger = slog.New(lines)
	if trial, err := opts.trial(); trial || err != nil {
		return err
	}
	if opts.Recycle.Memory > 0 && residentMemory() == 0 {
		opts.Logger.Warn("prefork: this system does not tell how much memory a process has: Options.Recycle.Memory does nothing")
	}
	if opts.Workers > 0 {
		setup, worker, err := isWorker()
		switch {
		case err != nil:
			return err
		case worker:
			return runWorker(ctx, opts, setup, f)
		case canFork:
			return runMaster(ctx, opts)
		}
		opts.Logger.Warn("prefork: this system cannot share sockets between processes: one process does all", "workers asked for", opts.Workers)
	}
	return runSingle(ctx, opts, f)
}

// runSingle runs f in this process.
func runSingle(ctx context.Context, opts Options, f func(ctx context.Context, w *Worker) error) error {
	sd, err := sdnotify.New(os.Getenv)
	if err != nil {
		opts.Logger.Warn("prefork: service manager", "error", err)
	}
	defer sd.Close()
	watchdog, err := sdnotify.WatchdogInterval(os.Getenv, os.Getpid())
	if err != nil {
		opts.Logger.Warn("prefork: service manager", "error", err)
	}
	if watchdog > 0 {
		// Beats feed it, five in a HeartbeatTimeout.
		opts.HeartbeatTimeout = min(opts.HeartbeatTimeout, watchdog)
	}
	w := newWorker(ctx, opts, 0, 0)
	pid, err := opts.pidFile()
	if err != nil {
		return err
	}
	w.link = &standIn{sd: sd, watchdog: watchdog > 0, pid: pid, log: w.log}
	if err := w.listen(); err != nil {
		w.closeListeners()
		return err
	}
	endLog, err := opts.startLog(opts.Logger, nil)
	if err != nil {
		w.closeListeners()
		return err
	}
	defer endLog()
	defer func() {
		if err := pid.remove(); err != nil {
			w.log.Warn("prefork: cannot remove the PID file", "error", err)
		}
	}()
	signals := make(chan os.Signal, 4)
	signal.Notify(signals, notIgnored(os.Interrupt, syscall.SIGTERM)...)
	defer signal.Stop(signals)
	over := make(chan struct{})
	var watch sync.WaitGroup
	watch.Go(func() {
		for {
			select {
			case s := <-signals:
				sd.Stopping("stopping")
				if s == os.Interrupt {
					w.interrupt(s.String())
				} else {
					w.leave(s.String())
				}
			case <-over:
				return
			}
		}
	})
	defer watch.Wait()
	defer close(over)
	return w.run(f)
}

// standIn is what a worker without a master talks to: the service manager.
type standIn struct {
	sd       *sdnotify.Notifier
	watchdog bool
	pid      pidFile
	log      *slog.Logger
	ready    bool
	mu       sync.Mutex
}

func (s *standIn) send(f frame, _ ...int) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if f.Ready && !s.ready {
		s.ready = true
		if err := s.pid.write(); err != nil {
			s.log.Error("prefork: cannot write the PID file", "error", err)
		}
		return s.sd.Ready("serving")
	}
	if s.watchdog && f.Beat != nil && f.Beat.Progress {
		return s.sd.Watchdog()
	}
	return nil
}

// listen opens the endpoints of a worker without a master.
func (w *Worker) listen() error {
	inherited, err := w.opts.systemdSockets()
	if err != nil {
		return err
	}
	defer closeSockets(inherited)
	endpoints := w.opts.endpoints()
	if len(endpoints) == 0 {
		if endpoints, err = endpointsOf(inherited); err != nil {
			return err
		}
	}
	for _, e := range endpoints {
		s, err := listen(e, inherited)
		if err != nil {
			return fmt.Errorf("prefork: endpoint %s: %w", e.name(), err)
		}
		w.addListener(e.name(), s)
	}
	return nil
}

func listen(e Endpoint, inherited []sdnotify.Socket) (*socket, error) {
	switch {
	case e.Open != nil:
		l, err := e.Open()
		return &socket{Listener: l, foreign: true}, err
	case e.Network == "systemd":
		s, err := pick(e.Addr, inherited)
		if err != nil {
			return nil, err
		}
		l, err := inheritedListener(s.FD)
		return &socket{Listener: l, foreign: true}, err
	case e.Network == "unix":
		l, err := withUnixName(e.Addr, func() (net.Listener, error) { return net.Listen("unix", e.Addr) })
		if err != nil {
			return nil, err
		}
		l.(*net.UnixListener).SetUnlinkOnClose(false) // the stop removes the name first
		return &socket{Listener: l, name: nameOf(l.Addr())}, nil
	default:
		network := e.Network
		if network == "" {
			network = "tcp"
		}
		l, err := usher.Listen(network, e.Addr)
		return &socket{Listener: l}, err
	}
}

var errNoEndpoint = errors.New("prefork: Options.Addr and Options.Listen are empty, and systemd passed no socket")

// systemdSockets returns the sockets that systemd passed to this process, and
// has nobody else find them. What is wrong with them is an error if the options ask
// for one.
func (o Options) systemdSockets() ([]sdnotify.Socket, error) {
	sockets, err := sdnotify.Sockets(os.Getenv, os.Getpid())
	for _, name := range []string{"LISTEN_PID", "LISTEN_FDS", "LISTEN_FDNAMES"} {
		os.Unsetenv(name)
	}
	wanted := o.endpoints()
	asks := len(wanted) == 0 || slices.ContainsFunc(wanted, func(e Endpoint) bool { return e.Network == "systemd" })
	switch {
	case err != nil && asks:
		return nil, fmt.Errorf("prefork: %w", err)
	case err != nil:
		o.Logger.Warn("prefork: sockets of systemd, which the options do not ask for", "error", err)
	}
	return sockets, nil
}

// endpointsOf returns an endpoint for each of the sockets.
func endpointsOf(sockets []sdnotify.Socket) ([]Endpoint, error) {
	if len(sockets) == 0 {
		return nil, errNoEndpoint
	}
	var endpoints []Endpoint
	taken := map[string]int{}
	for i, s := range sockets {
		name := s.Name
		if taken[s.Name]++; taken[s.Name] > 1 {
			name = fmt.Sprintf("%s-%d", s.Name, taken[s.Name]) // one unit with several addresses
		}
		endpoints = append(endpoints, Endpoint{Name: name, Network: "systemd", Addr: s.Name})
		sockets[i].Name = name
		endpoints[i].Addr = name
	}
	return endpoints, nil
}

// pick returns the socket of a name, or the first.
func pick(name string, sockets []sdnotify.Socket) (sdnotify.Socket, error) {
	i := slices.IndexFunc(sockets, func(s sdnotify.Socket) bool { return name == "" || s.Name == name })
	if i < 0 {
		return sdnotify.Socket{}, fmt.Errorf("systemd passed no socket of the name %q", name)
	}
	return sockets[i], nil
}

// notIgnored returns the signals that are to be caught, or were caught before: one
// that was ignored when the program was started, as nohup does with SIGHUP and a
// shell with SIGINT for what runs in the background, stays so. SIGTERM does not.
func notIgnored(all ...os.Signal) []os.Signal {
	return slices.DeleteFunc(all, func(s os.Signal) bool { return s != syscall.SIGTERM && signal.Ignored(s) })
}

// A burst of SIGTERM counts as one: to a process group, to all processes of a
// container (Heroku, more than once), or from several that saw the same. A person
// who means it again and again is slower, and SIGINT always counts.
type burst struct{ began time.Time }

const burstTime = time.Second

// more reports whether a signal belongs to the burst.
func (b *burst) more(now time.Time) bool {
	if !b.began.IsZero() && now.Sub(b.began) < burstTime {
		return true
	}
	b.began = now
	return false
}

// nextSignal says what a master does about a signal to stop, as the received-th.
func nextLevel(s os.Signal, received int) fleet.Level {
	level := min(fleet.Level(received), fleet.LevelNow)
	if s == os.Interrupt {
		level = max(level, fleet.LevelQuick)
	}
	return level
}
