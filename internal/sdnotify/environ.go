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
	maxSockets = 10000 // more than any unit has, and few enough to allocate for
)

// A Socket is a descriptor that the service manager has opened.
type Socket struct {
	FD   int
	Name string // FileDescriptorName= of the socket unit; never empty
}

// Sockets returns the sockets that the service manager has handed to the
// process pid, in its order; none unless LISTEN_PID is pid, as the variables
// may be an ancestor's. Where LISTEN_FDNAMES gives no name, it is "unknown".
//
// Only variables are read. The descriptors may be of any kind, and every
// program that this process starts inherits them until the caller closes them
// or sets close-on-exec.
func Sockets(getenv func(string) string, pid int) ([]Socket, error) {
	owner, err := number(getenv, "LISTEN_PID", math.MaxInt32)
	if err != nil || owner == unset || owner != int64(pid) {
		return nil, err
	}
	count, err := number(getenv, "LISTEN_FDS", maxSockets)
	if err != nil || count <= 0 {
		return nil, err
	}
	names := make([]string, count)
	if v := getenv("LISTEN_FDNAMES"); v != "" {
		names = strings.Split(v, ":")
		if len(names) != int(count) {
			return nil, fmt.Errorf("LISTEN_FDNAMES=%q: %d names for LISTEN_FDS=%d", v, len(names), count)
		}
	}
	sockets := make([]Socket, count)
	for i, name := range names {
		if name == "" {
			name = "unknown"
		}
		sockets[i] = Socket{FD: firstFD + i, Name: name}
	}
	return sockets, nil
}

// WatchdogInterval returns the time after which the service manager takes the
// process pid for hung if it has not heard [Notifier.Watchdog]; half of it is
// a good period. It is 0 if there is no watchdog: WATCHDOG_USEC is unset or 0,
// or WATCHDOG_PID is set and not pid.
func WatchdogInterval(getenv func(string) string, pid int) (time.Duration, error) {
	usec, err := number(getenv, "WATCHDOG_USEC", math.MaxInt64/int64(time.Microsecond))
	if err != nil || usec <= 0 {
		return 0, err
	}
	owner, err := number(getenv, "WATCHDOG_PID", math.MaxInt32)
	if err != nil || owner != unset && owner != int64(pid) {
		return 0, err
	}
	return time.Duration(usec) * time.Microsecond, nil
}

const unset = -1

// number returns the value of a variable, which must be in 0..limit, or unset
// if it is empty.
func number(getenv func(string) string, name string, limit int64) (int64, error) {
	v := getenv(name)
	if v == "" {
		return unset, nil
	}
	n, err := strconv.ParseUint(v, 10, 64)
	if ne, ok := errors.AsType[*strconv.NumError](err); ok {
		err = ne.Err // without the value, which follows
	} else if n > uint64(limit) {
		err = strconv.ErrRange
	}
	if err != nil {
		return unset, fmt.Errorf("%s=%q: %w", name, v, err)
	}
	return int64(n), nil
}

// Scrub returns env, a list of "key=value", without the variables of these
// protocols, for a child: it must neither speak for this process nor take the
// sockets for its own. env stays as it is.
func Scrub(env []string) []string {
	// By name, not by prefix: LISTEN_ADDR and the like are the application's.
	ours := []string{
		"LISTEN_FDNAMES", "LISTEN_FDS", "LISTEN_PID", "LISTEN_PIDFDID",
		"NOTIFY_SOCKET",
		"WATCHDOG_PID", "WATCHDOG_USEC",
	}
	scrubbed := make([]string, 0, len(env))
	for _, kv := range env {
		if name, _, _ := strings.Cut(kv, "="); !slices.Contains(ours, name) {
			scrubbed = append(scrubbed, kv)
		}
	}
	return scrubbed
}
