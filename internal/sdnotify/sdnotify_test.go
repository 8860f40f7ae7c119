//go:build unix

package sdnotify

import (
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"
	"unicode/utf8"
)

// A manager stands for the service manager.
type manager struct {
	t    testing.TB
	name string
	conn *net.UnixConn
}

func newManager(t testing.TB, name string) *manager {
	t.Helper()
	conn, err := net.ListenUnixgram("unixgram", &net.UnixAddr{Name: name, Net: "unixgram"})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { conn.Close() })
	return &manager{t, name, conn}
}

func socketPath(t testing.TB) string { return filepath.Join(t.TempDir(), "notify") }

// prefix returns how the errors of a send begin.
func (m *manager) prefix() string { return fmt.Sprintf("notify service manager at %q: ", m.name) }

// next returns the next datagram.
func (m *manager) next() string {
	m.t.Helper()
	// What has been sent is here already: a send returns after the receiver's
	// queue has it. The deadline is for a send that has not been made.
	m.conn.SetReadDeadline(time.Now().Add(2 * time.Second))
	buf := make([]byte, 64<<10)
	n, err := m.conn.Read(buf)
	if err != nil {
		m.t.Fatal(err)
	}
	return string(buf[:n])
}

// empty fails the test if a datagram is left.
func (m *manager) empty() {
	m.t.Helper()
	m.conn.SetReadDeadline(time.Now().Add(20 * time.Millisecond))
	buf := make([]byte, 64<<10)
	if n, err := m.conn.Read(buf); err == nil {
		m.t.Errorf("one datagram more: %q", buf[:n])
	}
}

func environ(kv ...string) func(string) string {
	return func(name string) string {
		for i := 0; i < len(kv); i += 2 {
			if kv[i] == name {
				return kv[i+1]
			}
		}
		return ""
	}
}

func newNotifier(t testing.TB, name string) *Notifier {
	t.Helper()
	n, err := New(environ("NOTIFY_SOCKET", name))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { n.Close() })
	return n
}

// current returns the connection that the next send uses.
func current(n *Notifier) *net.UnixConn {
	conn := <-n.turn
	n.turn <- conn
	return conn
}

func TestDatagrams(t *testing.T) {
	names := map[string]string{"path": socketPath(t)}
	if runtime.GOOS == "linux" {
		names["abstract"] = fmt.Sprintf("@usher-sdnotify-test-%d", os.Getpid())
	}
	for kind, name := range names {
		t.Run(kind, func(t *testing.T) {
			m := newManager(t, name)
			n := newNotifier(t, name)
			for _, tt := range []struct {
				send func() error
				want string
			}{
				{func() error { return n.Ready("8 workers") }, "READY=1\nSTATUS=8 workers"},
				{func() error { return n.Stopping("") }, "STOPPING=1\nSTATUS="},
				{func() error { return n.Status("größer = besser") }, "STATUS=größer = besser"},
				{n.Watchdog, "WATCHDOG=1"},
			} {
				if err := tt.send(); err != nil {
					t.Fatal(err)
				}
				if got := m.next(); got != tt.want {
					t.Errorf("datagram %q, want %q", got, tt.want)
				}
			}
			m.empty()
		})
	}
}

// TestInjection: whatever the status, the lines of a datagram are those that
// the method stands for, and systemd does not ignore it.
func TestInjection(t *testing.T) {
	m := newManager(t, socketPath(t))
	n := newNotifier(t, m.name)
	for _, tt := range []struct{ name, status, want string }{
		{"newline", "a\nSTOPPING=1", "a STOPPING=1"},
		{"carriage return", "a\r\nMAINPID=1", "a  MAINPID=1"},
		{"NUL", "a\x00b", "a b"},
		{"terminal", "a\x1b[2Jb\u0085c", "a [2Jb c"},
		{"not UTF-8", "a\xffb", "ab"},
		{"long", strings.Repeat("x", 100<<10), strings.Repeat("x", maxStatus)},
		{"long, cut inside a rune", "x" + strings.Repeat("é", 100<<10), "x" + strings.Repeat("é", maxStatus/2-1)},
	} {
		t.Run(tt.name, func(t *testing.T) {
			for prefix, send := range map[string]func(string) error{
				"READY=1\n":     n.Ready,
				"RELOADING=1\n": n.Reloading,
				"STOPPING=1\n":  n.Stopping,
				"":              n.Status,
			} {
				if err := send(tt.status); err != nil {
					t.Fatal(err)
				}
				got := m.next()
				if !strings.HasPrefix(got, prefix) || !strings.HasSuffix(got, "STATUS="+tt.want) {
					t.Errorf("datagram %q, want %q … STATUS=%q", got, prefix, tt.want)
				}
				lines := strings.FieldsFunc(got, func(r rune) bool { return r == '\n' || r == '\r' })
				limit := 1 + strings.Count(prefix, "\n")
				if strings.HasPrefix(prefix, "RELOADING") && runtime.GOOS == "linux" {
					limit++
				}
				if len(lines) != limit || len(got) > 4096 || !utf8.ValidString(got) || strings.Contains(got, "\x00") {
					t.Errorf("datagram %q: %d lines, want %d", got, len(lines), limit)
				}
			}
		})
	}
}

func TestNil(t *testing.T) {
	n, err := New(environ())
	if n != nil || err != nil {
		t.Fatalf("New without NOTIFY_SOCKET = %v, %v", n, err)
	}
	for name, err := range map[string]error{
		"Ready":     n.Ready("x"),
		"Reloading": n.Reloading("x"),
		"Stopping":  n.Stopping("x"),
		"Status":    n.Status("x"),
		"Watchdog":  n.Watchdog(),
		"Close":     n.Close(),
	} {
		if err != nil {
			t.Errorf("%s: %v", name, err)
		}
	}
}

func TestNewErrors(t *testing.T) {
	t.Chdir(t.TempDir())
	newManager(t, "relative")
	stream, err := net.Listen("unix", "stream")
	if err != nil {
		t.Fatal(err)
	}
	defer stream.Close()
	dir, err := os.Getwd()
	if err != nil {
		t.Fatal(err)
	}
	for _, name := range []string{
		"relative", "vsock:2:1234", "/", "@", " /run", "\x00abstract", "/a\x00b", "@a\x00b",
		dir + "/nobody", dir + "/relative\x00", // the kernel reads up to the NUL
		dir + "/stream", "/" + strings.Repeat("x", 200), "@" + strings.Repeat("x", 200),
	} {
		n, err := New(environ("NOTIFY_SOCKET", name))
		if err == nil {
			n.Close()
			t.Errorf("New with %q: no error", name)
			continue
		}
		if want := fmt.Sprintf("NOTIFY_SOCKET=%q", name); n != nil || !strings.Contains(err.Error(), want) {
			t.Errorf("New with %q = %v, %q, want nil and an error with the value", name, n, err)
		}
	}
	if runtime.GOOS != "linux" {
		newManager(t, "@name") // a file
		if _, err := New(environ("NOTIFY_SOCKET", "@name")); !errors.Is(err, errors.ErrUnsupported) {
			t.Errorf("New with an abstract name: %v", err)
		}
	}
}

func TestReceiverGone(t *testing.T) {
	m := newManager(t, socketPath(t))
	n := newNotifier(t, m.name)
	m.conn.Close()
	for range 2 { // The first error may end the connection, and the second be another.
		if err := n.Ready(""); err == nil || !strings.HasPrefix(err.Error(), m.prefix()) {
			t.Errorf("Ready without a receiver: %v, want an error with %q", err, m.prefix())
		}
	}
	os.Remove(m.name)
	m = newManager(t, m.name)
	old := current(n)
	if err := n.Ready("again"); err != nil {
		t.Fatal(err)
	}
	if got, want := m.next(), "READY=1\nSTATUS=again"; got != want {
		t.Errorf("datagram %q, want %q", got, want)
	}
	m.empty()
	if err := old.Close(); !errors.Is(err, net.ErrClosed) {
		t.Errorf("the old connection was open: %v", err)
	}
}

// fill sends until the receiver has no room.
func fill(t *testing.T, n *Notifier) {
	t.Helper()
	for i := 0; ; i++ {
		begin := time.Now()
		err := n.Status("x")
		if took := time.Since(begin); took > 3*sendTimeout {
			t.Fatalf("send took %v", took)
		}
		if err == nil {
			if i > 1e6 {
				t.Fatal("the receiver's queue has no end")
			}
			continue
		}
		// Elsewhere a full queue is an error at once.
		if runtime.GOOS == "linux" && !errors.Is(err, os.ErrDeadlineExceeded) || !strings.Contains(err.Error(), n.addr.Name) {
			t.Fatalf("send to a full queue: %v", err)
		}
		return
	}
}

func TestReceiverFull(t *testing.T) {
	t.Parallel()
	m := newManager(t, socketPath(t))
	n := newNotifier(t, m.name)
	conn := current(n)
	fill(t, n)
	if runtime.GOOS == "linux" && current(n) != conn {
		t.Error("a new connection, though the receiver is the same")
	}

	// Who waits for others waits no longer for that.
	begin := time.Now()
	var wg sync.WaitGroup
	for range 8 {
		wg.Go(func() {
			if err := n.Watchdog(); err == nil || !strings.HasPrefix(err.Error(), m.prefix()) {
				t.Errorf("send to a full queue: %v", err)
			}
		})
	}
	wg.Wait()
	if took := time.Since(begin); took > 3*sendTimeout {
		t.Errorf("8 sends at once took %v", took)
	}

	// A send that waits goes on when there is room.
	if runtime.GOOS != "linux" {
		m.next()
	}
	sent := make(chan error)
	go func() { sent <- n.Ready("") }()
	select {
	case err := <-sent:
		if runtime.GOOS == "linux" {
			t.Errorf("send to a full queue: %v, want it to wait", err)
		}
		sent <- err
	case <-time.After(sendTimeout / 10):
	}
	m.next()
	if err := <-sent; err != nil {
		t.Errorf("send after a read: %v", err)
	}
}

// TestReceiverFullMany: those who come later do not prolong the wait of those
// who were there before.
func TestReceiverFullMany(t *testing.T) {
	t.Parallel()
	m := newManager(t, socketPath(t))
	longest := stalls(t)
	n := newNotifier(t, m.name)
	fill(t, n)
	var wg sync.WaitGroup
	for range 20 {
		wg.Go(func() {
			begin := time.Now()
			n.Watchdog()
			if took := time.Since(begin); took > 2*sendTimeout+longest() {
				t.Errorf("send took %v", took)
			}
		})
		time.Sleep(sendTimeout / 10)
	}
	begin := time.Now()
	if err := n.Close(); err != nil {
		t.Error(err)
	}
	if took := time.Since(begin); took > 2*sendTimeout+longest() {
		t.Errorf("Close took %v", took)
	}
	wg.Wait()
}

func TestConcurrent(t *testing.T) {
	m := newManager(t, socketPath(t))
	n := newNotifier(t, m.name)
	const senders, each = 8, 50
	var wg sync.WaitGroup
	for i := range senders {
		wg.Go(func() {
			for j := range each {
				if err := n.Status(fmt.Sprintf("%d.%d", i, j)); err != nil {
					t.Error(err)
				}
			}
		})
	}
	seen := map[string]bool{}
	for range senders * each {
		seen[m.next()] = true
	}
	wg.Wait()
	m.empty()
	for i := range senders {
		for j := range each {
			if want := fmt.Sprintf("STATUS=%d.%d", i, j); !seen[want] {
				t.Errorf("no datagram %q", want)
			}
		}
	}
}

func TestClose(t *testing.T) {
	m := newManager(t, socketPath(t))
	n := newNotifier(t, m.name)
	conn := current(n)
	var wg sync.WaitGroup
	for range 4 {
		wg.Go(func() {
			for range 5 {
				if err := n.Watchdog(); err != nil && !errors.Is(err, net.ErrClosed) {
					t.Error(err)
				}
			}
		})
		wg.Go(func() {
			if err := n.Close(); err != nil {
				t.Error(err)
			}
		})
		wg.Go(func() {
			for range 5 {
				m.conn.SetReadDeadline(time.Now().Add(10 * time.Millisecond))
				m.conn.Read(make([]byte, 100))
			}
		})
	}
	wg.Wait()
	if err := n.Close(); err != nil {
		t.Errorf("Close again: %v", err)
	}
	if err := n.Ready(""); !errors.Is(err, net.ErrClosed) || !strings.HasPrefix(err.Error(), m.prefix()) {
		t.Errorf("Ready after Close: %v", err)
	}
	if err := conn.Close(); !errors.Is(err, net.ErrClosed) {
		t.Errorf("the connection was open: %v", err)
	}
}

func FuzzNew(f *testing.F) {
	for _, seed := range []string{"", "/", "@", "/run/systemd/notify", "@a", "vsock:2:3", "a", "/a\x00b", "\x00a"} {
		f.Add(seed, "status\nREADY=1")
	}
	f.Fuzz(func(t *testing.T, name, status string) {
		if line := statusLine(status); len(line) > len("STATUS=")+maxStatus || !utf8.ValidString(line) || strings.ContainsAny(line, "\n\r\x00") {
			t.Errorf("status %q: %q", status, line)
		}
		n, err := New(environ("NOTIFY_SOCKET", name))
		switch {
		case name == "":
			if n != nil || err != nil {
				t.Errorf("New = %v, %v", n, err)
			}
		case err != nil:
			if n != nil || !strings.Contains(err.Error(), fmt.Sprintf("%q", name)) {
				t.Errorf("New(%q) = %v, %v", name, n, err)
			}
		case name[0] != '/' && name[0] != '@':
			t.Errorf("New(%q) succeeded", name)
		}
		if err := n.Close(); err != nil {
			t.Error(err)
		}
	})
}

// stalls returns how to learn the longest time for which the machine has had no
// CPU for this test so far: no send can be blamed for that.
func stalls(t *testing.T) (longest func() time.Duration) {
	var most atomic.Int64
	over, ended := make(chan struct{}), make(chan struct{})
	go func() {
		defer close(ended)
		tick := time.NewTicker(10 * time.Millisecond)
		defer tick.Stop()
		for last := time.Now(); ; last = time.Now() {
			select {
			case <-tick.C:
				most.Store(max(most.Load(), int64(time.Since(last)-10*time.Millisecond)))
			case <-over:
				return
			}
		}
	}()
	t.Cleanup(func() { close(over); <-ended })
	return func() time.Duration { return time.Duration(most.Load()) }
}
