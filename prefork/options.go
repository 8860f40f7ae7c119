package prefork

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"time"
)

// Options are the options of [Run]. But for Workers and the addresses, the zero
// value of each is the default for production.
type Options struct {
	// Workers is the number of seats, and so of worker processes. Zero runs the
	// program in this one process: with the same listeners, the same stop, and
	// no master. A few large workers are better than many small ones. A
	// negative value is an error.
	Workers int

	// Addr is the TCP address to listen on, "host:port". With Addr and Listen
	// both empty, the sockets that systemd passed are taken.
	Addr string

	// Listen are further endpoints, or all if Addr is empty.
	Listen []Endpoint

	// Dir is the directory that workers start in. If it is a symbolic link, each
	// restart follows it anew, so that a deploy can consist in changing it; the
	// workers of one generation are all in the same directory. Empty means the
	// directory that the program was started in, by its name in $PWD, to which a
	// relative path is relative, too. Without a master it is not used.
	Dir string

	// BootTimeout is how long a worker may take until it is ready. Zero means
	// a minute.
	BootTimeout time.Duration

	// FirstBootTimeout is how long the master goes on starting workers that fail
	// before they are ready, with growing pauses, while none ever was ready: a
	// database may be late. When it is over the next failure ends the master with
	// a [*GiveUpError]. Zero means 30 s.
	FirstBootTimeout time.Duration

	// HeartbeatTimeout is how long a worker may go without progress before it
	// is replaced and, after a dump of its goroutines, killed. A worker makes
	// progress while its runtime schedules, Health returns nil, and it does not
	// leave an accepted connection lying; being busy, idle or draining is not
	// a lack of progress, and slow requests are nobody's business here. Zero
	// means 30 s.
	HeartbeatTimeout time.Duration

	// StopTimeout is how long a worker that was asked to stop may take before
	// it is killed. It should exceed the GracePeriod of its server. Zero means
	// 30 s.
	StopTimeout time.Duration

	// Probation is how long the workers of a new generation must live before a
	// restart counts as a success. Until the first one has lived so long, its
	// predecessor serves beside it, and the next seat is not touched; the last one
	// is waited for, too. So it adds once or twice its length to each restart,
	// whatever the number of workers. Zero means a second. For what comes later,
	// see MaxCrashes.
	Probation time.Duration

	// Canary, if not zero, is Probation for the first worker of a restart, at
	// the end of which CanaryCheck is asked, if there is one. It shares the
	// connections of its seat with its predecessor.
	Canary time.Duration

	// CanaryCheck says whether a restart shall go on, in the master, from what
	// the new worker reports. An error takes the restart back.
	CanaryCheck func(ctx context.Context, w WorkerStats) error

	// MaxSurge is how many workers a restart may have beyond Workers at a time:
	// those that start and those that drain. Zero means as many as Workers.
	MaxSurge int

	// MaxCrashes in CrashWindow is what the fleet may suffer before the master
	// gives up, closes the sockets and returns an error. Zero means five for
	// each worker, in a minute. A crash is an exit that nobody asked for; a
	// seat's restarts are spaced out by themselves, up to 30 s.
	//
	// For a CrashWindow after a restart has succeeded there is a better way: more
	// than half as many crashes take it back to the last generation that lived.
	// Then, and only when that crashes, too, the master gives up.
	MaxCrashes  int
	CrashWindow time.Duration

	// Recycle says when workers are replaced for no fault.
	Recycle RecycleOptions

	// Health, if not nil, is asked in each worker with each heartbeat. It
	// fails when it returns an error, or not within half of HeartbeatTimeout.
	Health func(ctx context.Context) error

	// User and Group are whom the workers run as, by name or number, if the master
	// runs as root, to bind a low port for one. The workers get the user's groups,
	// and its main one if Group is empty. Without a master they are not used.
	User, Group string

	// PIDFile, if not empty, is a file that has the master's process ID, and a line
	// end, from when all seats serve until it ends, also through upgrades. It is
	// not removed if it has become another's.
	PIDFile string

	// LogFile, if not empty, is a file to which all is appended that the master and
	// the workers write to standard output and standard error from when the
	// sockets are open on. When it has been moved, as for rotation, it is opened
	// anew within about a second, and by a restart or [Master.ReopenLog] at once.
	// A relative path, here and above, is relative to the directory that the
	// program was started in.
	LogFile string

	// Hooks are called in the master.
	Hooks Hooks

	// Logger gets a line for each change. Nil means [slog.Default]. Nobody waits
	// for it: if its output is stuck, lines are dropped and counted. The master's
	// lines have the attribute "master", its process ID; a worker's have "seat",
	// "generation" and "pid". Run gives these to [slog.Default] in a worker, too.
	Logger *slog.Logger
}

// RecycleOptions say when a worker is replaced for no fault: its successor
// serves first, and only one is replaced at a time. Each limit varies by a tenth
// between workers, so that they do not come due together. Zero means never.
type RecycleOptions struct {
	Requests int           // begun
	Age      time.Duration // since it was ready
	Memory   int64         // bytes resident; Linux only
}

// An Endpoint is an address that the workers accept from.
type Endpoint struct {
	// Name is what the worker knows it by: see [Worker.Listeners]. Empty
	// means Network:Addr. Names must differ.
	Name string

	// Network is "tcp" (also if empty), "tcp4", "tcp6", "unix" or "systemd".
	Network string

	// Addr is as for [net.Listen], or, for systemd, the FileDescriptorName of
	// the socket unit; empty then means the first socket.
	Addr string

	// Open, if not nil, makes the listener, instead of Network and Addr. It is
	// called once, by the process that holds the sockets, and never in a
	// worker, which would find the address taken. The socket is kept and the
	// listener is closed. All workers share it. Name must be set.
	Open func() (net.Listener, error)
}

// foreign reports whether the socket may be somebody else's, too.
func (e Endpoint) foreign() bool { return e.Open != nil || e.Network == "systemd" }

func (e Endpoint) name() string {
	if e.Name != "" {
		return e.Name
	}
	return cmp.Or(e.Network, "tcp") + ":" + e.Addr
}

const (
	defaultBootTimeout      = time.Minute
	defaultFirstBootTimeout = 30 * time.Second
	defaultHeartbeatTimeout = 30 * time.Second
	defaultStopTimeout      = 30 * time.Second
	defaultProbation        = time.Second
	defaultCrashWindow      = time.Minute
	crashesPerWorker        = 5

	backoffBase    = 250 * time.Millisecond
	backoffMax     = 30 * time.Second
	healthyAfter   = 10 * time.Second
	handshakeGrace = 250 * time.Millisecond
	leaveGrace     = 100 * time.Millisecond
	leaveTimeout   = 10 * time.Second
	restartTries   = 3
	maxDraining    = 3
	maxWorkers     = 1024
	outPatience    = time.Second            // for a standard error that takes nothing
	logPatience    = 250 * time.Millisecond // at the end, for a log that nobody takes
)

// Variables, as tests do not wait so long.
var (
	dumpGrace   = 5 * time.Second  // from SIGQUIT to SIGKILL
	hookTimeout = 10 * time.Second // of a hook
	strangerAge = 5 * time.Second  // see reapStrangers
)

func (o Options) validate() error {
	var errs []error
	number := func(name string, v, least int64) {
		if v < least {
			errs = append(errs, fmt.Errorf("prefork: Options.%s is %d, must not be less than %d", name, v, least))
		}
	}
	number("Workers", int64(o.Workers), 0)
	number("MaxSurge", int64(o.MaxSurge), 0)
	number("MaxCrashes", int64(o.MaxCrashes), 0)
	number("Recycle.Requests", int64(o.Recycle.Requests), 0)
	number("Recycle.Memory", o.Recycle.Memory, 0)
	if o.Workers > maxWorkers {
		errs = append(errs, fmt.Errorf("prefork: Options.Workers is %d, must not be more than %d", o.Workers, maxWorkers))
	}
	for _, f := range []struct {
		name  string
		value time.Duration
	}{
		{"BootTimeout", o.BootTimeout}, {"FirstBootTimeout", o.FirstBootTimeout},
		{"HeartbeatTimeout", o.HeartbeatTimeout}, {"StopTimeout", o.StopTimeout},
		{"Probation", o.Probation}, {"Canary", o.Canary}, {"CrashWindow", o.CrashWindow}, {"Recycle.Age", o.Recycle.Age},
	} {
		if f.value < 0 {
			errs = append(errs, fmt.Errorf("prefork: Options.%s is %v, must not be negative", f.name, f.value))
		}
	}
	if o.HeartbeatTimeout > 0 && o.HeartbeatTimeout < 100*time.Millisecond {
		errs = append(errs, fmt.Errorf("prefork: Options.HeartbeatTimeout is %v, must not be less than 100ms", o.HeartbeatTimeout))
	}
	if o.CanaryCheck != nil && o.Canary == 0 {
		errs = append(errs, errors.New("prefork: Options.CanaryCheck is set, but Options.Canary is zero"))
	}
	names := map[string]bool{}
	for i, e := range o.endpoints() {
		field := fmt.Sprintf("Options.Listen[%d]", i)
		if o.Addr != "" {
			field = fmt.Sprintf("Options.Listen[%d]", i-1)
		}
		switch e.Network {
		case "", "tcp", "tcp4", "tcp6", "unix", "systemd":
		default:
			errs = append(errs, fmt.Errorf("prefork: %s.Network is %q, must be tcp, tcp4, tcp6, unix or systemd", field, e.Network))
			continue
		}
		if e.Open != nil && e.Name == "" {
			errs = append(errs, fmt.Errorf("prefork: %s.Name is empty, and must be set with Open", field))
			continue
		}
		if e.Addr == "" && e.Open == nil && e.Network != "systemd" {
			errs = append(errs, fmt.Errorf("prefork: %s.Addr is empty", field))
			continue
		}
		if names[e.name()] {
			errs = append(errs, fmt.Errorf("prefork: %s.Name is %q, as another's", field, e.name()))
		}
		names[e.name()] = true
	}
	return errors.Join(errs...)
}

// endpoints returns what Addr and Listen ask for.
func (o Options) endpoints() []Endpoint {
	if o.Addr == "" {
		return o.Listen
	}
	return append([]Endpoint{{Network: "tcp", Addr: o.Addr}}, o.Listen...)
}

func (o Options) withDefaults() Options {
	o.BootTimeout = cmp.Or(o.BootTimeout, defaultBootTimeout)
	o.FirstBootTimeout = cmp.Or(o.FirstBootTimeout, defaultFirstBootTimeout)
	o.HeartbeatTimeout = cmp.Or(o.HeartbeatTimeout, defaultHeartbeatTimeout)
	o.StopTimeout = cmp.Or(o.StopTimeout, defaultStopTimeout)
	o.Probation = cmp.Or(o.Probation, defaultProbation)
	o.CrashWindow = cmp.Or(o.CrashWindow, defaultCrashWindow)
	o.MaxCrashes = cmp.Or(o.MaxCrashes, crashesPerWorker*o.Workers)
	o.Logger = cmp.Or(o.Logger, slog.Default())
	return o
}

// beatInterval is how often a worker reports.
func (o Options) beatInterval() time.Duration { return min(o.HeartbeatTimeout/5, time.Second) }
