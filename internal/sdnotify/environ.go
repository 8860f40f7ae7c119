package sdnotify

import (
	"errors"
	"fmt"
	"math"
	"slices"
	"strconv"
	"strings"
	"time"
)

const (
	firstFD    = 3     // SD_LISTEN_FDS_START
	maxSockets = 10000 // more than a unit has, and few enough to allocate for
)

// A Socket is a descriptor that the service manager has opened.
type Socket struct {
	FD   int
	Name string // FileDescriptorName= of the socket unit; never empty
}

// Sockets returns the sockets that the service manager has handed to the
// process pid, in its order. There are none unless LISTEN_PID is pid: the
// variables may be an ancestor's, and its descriptors something else here.
// Where LISTEN_FDNAMES gives no name, it is "unknown".
//
// Sockets reads variables only. The descriptors may be of any kind, and they
// are open in every program that this process starts until the caller closes
// them or sets close-on-exec.
func Sockets(getenv func(string) string, pid int) ([]Socket, error) {
	owner, set, err := number(getenv, "LISTEN_PID", math.MaxInt32)
	if err != nil || !set || owner != int64(pid) {
		return nil, err
	}
	count, _, err := number(getenv, "LISTEN_FDS", maxSockets)
	if err != nil || count == 0 {
		return nil, err
	}
	var names []string
	if v := getenv("LISTEN_FDNAMES"); v != "" {
		// Count before the split allocates.
		if n := strings.Count(v, ":") + 1; int64(n) != count {
			return nil, fmt.Errorf("LISTEN_FDNAMES=%q: %d names, LISTEN_FDS=%d", v, n, count)
		}
		names = strings.Split(v, ":")
	}
	sockets := make([]Socket, count)
	for i := range sockets {
		sockets[i] = Socket{FD: firstFD + i, Name: "unknown"}
		if names != nil && names[i] != "" {
			sockets[i].Name = names[i]
		}
	}
	return sockets, nil
}

// WatchdogInterval returns the time after which the service manager takes the
// process pid for hung if it has not heard [Notifier.Watchdog]; half of it is
// a good period. It is 0 if there is no watchdog: WATCHDOG_USEC is unset or 0,
// or WATCHDOG_PID is set and not pid.
func WatchdogInterval(getenv func(string) string, pid int) (time.Duration, error) {
	usec, _, err := number(getenv, "WATCHDOG_USEC", math.MaxInt64/int64(time.Microsecond))
	if err != nil || usec == 0 {
		return 0, err
	}
	owner, set, err := number(getenv, "WATCHDOG_PID", math.MaxInt32)
	if err != nil || set && owner != int64(pid) {
		return 0, err
	}
	return time.Duration(usec) * time.Microsecond, nil
}

// number returns the value of a variable, which must be in 0..limit, and
// whether it is set; an empty one is not.
func number(getenv func(string) string, name string, limit int64) (n int64, set bool, err error) {
	v := getenv(name)
	if v == "" {
		return 0, false, nil
	}
	u, err := strconv.ParseUint(v, 10, 63)
	if err == nil && int64(u) > limit {
		err = strconv.ErrRange
	}
	if err != nil {
		if ne, ok := errors.AsType[*strconv.NumError](err); ok {
			err = ne.Err // the value is in the message already
		}
		return 0, true, fmt.Errorf("%s=%q: %w", name, v, err)
	}
	return int64(u), true, nil
}

// Scrub returns env, a list of "key=value", without the variables of these
// protocols, for the environment of a child: it must not speak for this
// process, nor take what was handed to it. env stays as it is.
//
// The names are listed because LISTEN_ADDR and the like are the application's.
func Scrub(env []string) []string {
	scrubbed := make([]string, 0, len(env))
	for _, kv := range env {
		if name, _, _ := strings.Cut(kv, "="); !slices.Contains(variables, name) {
			scrubbed = append(scrubbed, kv)
		}
	}
	return scrubbed
}

var variables = []string{
	"LISTEN_FDNAMES",
	"LISTEN_FDS",
	"LISTEN_PID",
	"LISTEN_PIDFDID",
	"NOTIFY_SOCKET",
	"WATCHDOG_PID",
	"WATCHDOG_USEC",
}
