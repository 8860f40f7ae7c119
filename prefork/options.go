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

// Options are the options of [Run]. Workers and an address must be set. The zero
// value of each other field is the default for production. A negative number or
// duration is an error.
type Options struct {
	// Workers is the number of seats. A seat is a place for one worker process,
	// with a socket of its own. Zero means no master: the program runs in this one
	// process, with the same listeners and the same stop. A few large workers are
	// better than many small ones. More than 1024 is an error.
	Workers int

	// Addr is the TCP address to listen on, "host:port". With Addr and Listen
	// both empty, the sockets that systemd passed are taken.
	Addr string

	// Listen are the endpoints besides Addr, or all if Addr is empty.
	Listen []Endpoint

	// Dir is the directory that workers start in. If it is a symbolic link, each
	// restart follows it anew: a deploy may only change the link. All workers of
	// one generation are in the same directory. Empty means the directory that the
	// program was started in, by its name in $PWD. A relative path is relative to
	// that one. Without a master Dir is not used.
	Dir string

	// BootTimeout is how long a worker may take from its start until it is ready.
	// Zero means one minute.
	BootTimeout time.Duration

	// FirstBootTimeout is how long the master tries again, with growing pauses,
	// when workers end before they are ready and none has ever been ready: a
	// database may be late. After that the next failure ends the master with a
	// [*GiveUpError]. Zero means 30 s.
	FirstBootTimeout time.Duration

	// HeartbeatTimeout is how long a worker may be without progress. After that it
	// is replaced: it gets SIGQUIT, which dumps its goroutines, and SIGKILL. A
	// worker makes progress as long as its runtime schedules goroutines, Health
	// returns nil, and accepted connections are taken up. A worker that is busy,
	// idle or draining makes progress, and slow requests are no lack of it. Zero
	// means 30 s. Less than 100 ms is an error.
	HeartbeatTimeout time.Duration

	// StopTimeout is how long a worker may take to stop, from the order to stop on.
	// After that it is killed. StopTimeout should exceed the GracePeriod of the
	// worker's server. Zero means 30 s.
	StopTimeout time.Duration

	// Probation is how long the workers of a new generation must live before a
	// restart counts as a success. Until the first new worker has lived that long,
	// its predecessor serves beside it, and the next seat is not touched. The last
	// new worker is waited for, too. So Probation adds once or twice its length to
	// a restart, whatever the number of workers. Zero means one second. MaxCrashes
	// is about crashes that come later.
	Probation time.Duration

	// Canary is the Probation of the first worker of a restart, the canary. At its
	// end CanaryCheck is called, if it is set. The canary shares the connections of
	// its seat with its predecessor. Zero means Probation.
	Canary time.Duration

	// CanaryCheck decides whether a restart goes on, from what the canary reports.
	// It is called in the master. An error takes the restart back: all seats get
	// workers of the old generation. Nil means that every restart goes on. If
	// CanaryCheck is set, Canary must be, too.
	CanaryCheck func(ctx context.Context, w WorkerStats) error

	// MaxSurge is how many processes a restart may have at once in addition to
	// Workers: those that start and those that drain. Zero means as many as
	// Workers.
	MaxSurge int

	// MaxCrashes is how many workers may crash within CrashWindow. After one more
	// the master gives up: it closes the sockets and returns a [*GiveUpError]. A
	// crash is an exit that nobody asked for. Zero means five for each worker, and
	// for CrashWindow one minute. A seat whose worker keeps crashing gets the next
	// one after growing pauses, of up to 30 s.
	//
	// In the CrashWindow after a successful restart, more than half as many crashes
	// take the restart back to the last generation that lived. The master gives up
	// only if that generation crashes, too.
	MaxCrashes  int
	CrashWindow time.Duration

	// Recycle says when a worker is replaced though it has no fault.
	Recycle RecycleOptions

	// Health is called in each worker with each heartbeat. The worker makes no
	// progress if Health returns an error, or does not return within half of
	// HeartbeatTimeout. Nil means that a worker's health is not asked for.
	Health func(ctx context.Context) error

	// User and Group are the user and group that workers run as, by name or number.
	// They are for a master that runs as root, to bind a low port for example. The
	// workers get all groups of the user, and its main group if Group is empty.
	// Empty means those of the master. Without a master they are not used.
	User, Group string

	// PIDFile is the path of a file for the master's process ID. It is written when
	// all seats serve, stays through upgrades, and is removed when the master ends,
	// unless another process has written it meanwhile. Empty means none.
	PIDFile string

	// LogFile is the path of a file. From when the sockets are open on, everything
	// that the master and the workers write to standard output and standard error
	// is appended to it. After the file has been moved, as for rotation, it is
	// opened anew: within about a second, or at once by a restart or
	// [Master.ReopenLog]. Empty means none. A relative path, here and for PIDFile,
	// is relative to the directory that the program was started in.
	LogFile string

	// Hooks are functions that are called in the master.
	Hooks Hooks

	// Logger gets a line for each change. Nothing waits for it: lines that it does
	// not take in time are dropped and counted. The master's lines have the
	// attribute "master", its process ID. A worker's lines have "seat",
	// "generation" and "pid"; Run gives these to [slog.Default] in a worker, too.
	// Nil means [slog.Default].
	Logger *slog.Logger
}

// RecycleOptions say when a worker is replaced though it has no fault. Its successor
// serves first, and only one worker is replaced at a time. Each limit varies by a
// tenth between workers, so that they do not reach it together. Zero means never.
type RecycleOptions struct {
	Requests int           // requests that have begun
	Age      time.Duration // time since the worker was ready
	Memory   int64         // resident memory in bytes; Linux only
}

// An Endpoint is an address that the workers accept from.
type Endpoint struct {
	// Name is the key of the listener in [Worker.Listeners]. Empty means
	// "Network:Addr". Names must differ.
	Name string

	// Network is "tcp" (also if empty), "tcp4", "tcp6", "unix" or "systemd".
	Network string

	// Addr is as for [net.Listen], or, for systemd, the FileDescriptorName of
	// the socket unit; empty then means the first socket.
	Addr string

	// Open makes the listener, instead of Network and Addr. It is called once, by
	// the process that holds the sockets, and never in a worker, which would find
	// the address taken. The socket is kept, the listener is closed, and all
	// workers share the socket. If Open is set, Name must be, too.
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
