package sdnotify

import (
	"fmt"
	"math"
	"slices"
	"strings"
	"testing"
	"time"
)

func vars(kv map[string]string) func(string) string {
	return func(name string) string { return kv[name] }
}

func TestSockets(t *testing.T) {
	const pid = 42
	for _, tt := range []struct {
		name             string
		pid, fds, fdname string
		want             []Socket
		err              string // what the error must contain
	}{
		{name: "nothing"},
		{name: "no LISTEN_PID", fds: "1", fdname: "web"},
		{name: "another process", pid: "41", fds: "1", fdname: "web"},
		{name: "another process, bad values", pid: "41", fds: "x", fdname: "a:b:c"},
		{name: "no LISTEN_FDS", pid: "42", fdname: "web"},
		{name: "zero", pid: "42", fds: "0"},
		{name: "one", pid: "42", fds: "1", fdname: "web", want: []Socket{{3, "web"}}},
		{name: "three", pid: "42", fds: "3", fdname: "web:admin:web", want: []Socket{{3, "web"}, {4, "admin"}, {5, "web"}}},
		{name: "no names", pid: "42", fds: "2", want: []Socket{{3, "unknown"}, {4, "unknown"}}},
		{name: "empty names", pid: "42", fds: "3", fdname: ":b:", want: []Socket{{3, "unknown"}, {4, "b"}, {5, "unknown"}}},
		{name: "too few names", pid: "42", fds: "2", fdname: "web", err: `LISTEN_FDNAMES="web"`},
		{name: "too many names", pid: "42", fds: "2", fdname: "a:b:c", err: `LISTEN_FDNAMES="a:b:c"`},
		{name: "names without sockets", pid: "42", fds: "0", fdname: "a"},
		{name: "bad LISTEN_PID", pid: "42x", fds: "1", err: `LISTEN_PID="42x"`},
		{name: "negative LISTEN_PID", pid: "-1", fds: "1", err: `LISTEN_PID="-1"`},
		{name: "huge LISTEN_PID", pid: "4294967338", fds: "1", err: `LISTEN_PID="4294967338"`}, // 42 in 32 bits
		{name: "bad LISTEN_FDS", pid: "42", fds: "one", err: `LISTEN_FDS="one"`},
		{name: "signed LISTEN_FDS", pid: "42", fds: "+1", err: `LISTEN_FDS="+1"`},
		{name: "negative LISTEN_FDS", pid: "42", fds: "-1", err: `LISTEN_FDS="-1"`},
		{name: "hexadecimal LISTEN_FDS", pid: "42", fds: "0x1", err: `LISTEN_FDS="0x1"`},
		{name: "space", pid: "42", fds: " 1", err: `LISTEN_FDS=" 1"`},
		{name: "absurd LISTEN_FDS", pid: "42", fds: "10001", err: `LISTEN_FDS="10001"`},
		{name: "huge LISTEN_FDS", pid: "42", fds: "9223372036854775807", err: `LISTEN_FDS="9223372036854775807"`},
		{name: "LISTEN_FDS of 65 bits", pid: "42", fds: "36893488147419103232", err: `LISTEN_FDS="36893488147419103232"`},
	} {
		t.Run(tt.name, func(t *testing.T) {
			got, err := Sockets(vars(map[string]string{"LISTEN_PID": tt.pid, "LISTEN_FDS": tt.fds, "LISTEN_FDNAMES": tt.fdname}), pid)
			check(t, err, tt.err)
			if !slices.Equal(got, tt.want) {
				t.Errorf("Sockets = %v, want %v", got, tt.want)
			}
		})
	}
	// A system without process numbers has -1.
	if got, err := Sockets(vars(map[string]string{"LISTEN_FDS": "1"}), -1); len(got) != 0 || err != nil {
		t.Errorf("Sockets without LISTEN_PID for process -1 = %v, %v", got, err)
	}
}

func TestSocketsMost(t *testing.T) {
	got, err := Sockets(vars(map[string]string{"LISTEN_PID": "1", "LISTEN_FDS": "10000"}), 1)
	if err != nil || len(got) != 10000 || got[9999] != (Socket{10002, "unknown"}) {
		t.Errorf("%d sockets, %v", len(got), err)
	}
}

// check fails the test if err is not what is wanted: nil, or with that text.
func check(t *testing.T, err error, want string) {
	t.Helper()
	if want == "" && err != nil || want != "" && (err == nil || !strings.Contains(err.Error(), want)) {
		t.Errorf("error %v, want %q in it", err, want)
	}
}

func TestWatchdogInterval(t *testing.T) {
	const pid = 42
	for _, tt := range []struct {
		name, usec, pid string
		want            time.Duration
		err             string
	}{
		{name: "nothing"},
		{name: "no WATCHDOG_USEC", pid: "42"},
		{name: "no WATCHDOG_PID", usec: "30000000", want: 30 * time.Second},
		{name: "ours", usec: "1", pid: "42", want: time.Microsecond},
		{name: "another process", usec: "30000000", pid: "41"},
		{name: "zero", usec: "0", pid: "42"},
		{name: "most", usec: "9223372036854775", want: math.MaxInt64 / 1000 * 1000},
		{name: "beyond time.Duration", usec: "9223372036854776", err: `WATCHDOG_USEC="9223372036854776"`},
		{name: "infinity", usec: "18446744073709551615", err: `WATCHDOG_USEC="18446744073709551615"`},
		{name: "bad WATCHDOG_USEC", usec: "30s", err: `WATCHDOG_USEC="30s"`},
		{name: "negative WATCHDOG_USEC", usec: "-1", err: `WATCHDOG_USEC="-1"`},
		{name: "bad WATCHDOG_PID", usec: "1", pid: "me", err: `WATCHDOG_PID="me"`},
	} {
		t.Run(tt.name, func(t *testing.T) {
			got, err := WatchdogInterval(vars(map[string]string{"WATCHDOG_USEC": tt.usec, "WATCHDOG_PID": tt.pid}), pid)
			check(t, err, tt.err)
			if got != tt.want {
				t.Errorf("WatchdogInterval = %v, want %v", got, tt.want)
			}
		})
	}
}

func TestScrub(t *testing.T) {
	for _, tt := range []struct {
		name      string
		env, want []string
	}{
		{"nil", nil, nil},
		{"nothing of ours", []string{"A=1", "B"}, []string{"A=1", "B"}},
		{"all", []string{
			"LISTEN_PID=1", "LISTEN_PIDFDID=1", "LISTEN_FDS=1", "LISTEN_FDNAMES=a",
			"NOTIFY_SOCKET=/n", "WATCHDOG_USEC=1", "WATCHDOG_PID=1",
		}, nil},
		{"order, duplicates, the rest", []string{
			"B=1", "LISTEN_FDS=1", "A=NOTIFY_SOCKET=/n", "NOTIFY_SOCKET", "LISTEN_FDS=", "B=2", "",
		}, []string{"B=1", "A=NOTIFY_SOCKET=/n", "B=2", ""}},
		{"the application's", []string{"LISTEN_ADDR=:80", "WATCHDOG_URL=x", "NOTIFY_SOCKETS=1", "notify_socket=1"},
			[]string{"LISTEN_ADDR=:80", "WATCHDOG_URL=x", "NOTIFY_SOCKETS=1", "notify_socket=1"}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			before := slices.Clone(tt.env)
			if got := Scrub(tt.env); !slices.Equal(got, tt.want) {
				t.Errorf("Scrub = %q, want %q", got, tt.want)
			}
			if !slices.Equal(tt.env, before) {
				t.Errorf("the argument has become %q", tt.env)
			}
		})
	}
}

func FuzzSockets(f *testing.F) {
	f.Add("42", "2", "a:b", 42)
	f.Add("42", "3", "", 42)
	f.Add("42", "99999999999999999999", "", 42)
	f.Add("-1", "-1", ":", -1)
	f.Fuzz(func(t *testing.T, owner, fds, names string, pid int) {
		env := vars(map[string]string{
			"LISTEN_PID": owner, "LISTEN_FDS": fds, "LISTEN_FDNAMES": names,
			"WATCHDOG_PID": owner, "WATCHDOG_USEC": fds,
		})
		sockets, err := Sockets(env, pid)
		if err != nil && !strings.Contains(err.Error(), fmt.Sprintf("%q", owner)) &&
			!strings.Contains(err.Error(), fmt.Sprintf("%q", fds)) && !strings.Contains(err.Error(), fmt.Sprintf("%q", names)) {
			t.Errorf("error %v has no value", err)
		}
		if len(sockets) > maxSockets || err != nil && sockets != nil {
			t.Errorf("%d sockets, %v", len(sockets), err)
		}
		for i, s := range sockets {
			if s.FD != 3+i || s.Name == "" {
				t.Errorf("socket %d: %v", i, s)
			}
		}
		if d, err := WatchdogInterval(env, pid); d < 0 || err != nil && d != 0 {
			t.Errorf("WatchdogInterval = %v, %v", d, err)
		}
	})
}
