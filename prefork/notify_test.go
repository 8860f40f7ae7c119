//go:build unix

package prefork

import (
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"
)

// manager is a service manager that takes notes.
type manager struct {
	t    *testing.T
	path string

	mu   sync.Mutex
	got  []string
	wake chan struct{}
}

func listenNotify(t *testing.T) *manager {
	t.Helper()
	m := &manager{t: t, path: filepath.Join(t.TempDir(), "notify"), wake: make(chan struct{})}
	c, err := net.ListenUnixgram("unixgram", &net.UnixAddr{Name: m.path, Net: "unixgram"})
	if err != nil {
		t.Fatal(err)
	}
	done := make(chan struct{})
	t.Cleanup(func() { c.Close(); <-done })
	go func() {
		defer close(done)
		buf := make([]byte, 8<<10)
		for {
			n, err := c.Read(buf)
			if err != nil {
				return
			}
			m.mu.Lock()
			m.got = append(m.got, string(buf[:n]))
			close(m.wake)
			m.wake = make(chan struct{})
			m.mu.Unlock()
		}
	}()
	return m
}

// all returns the datagrams so far.
func (m *manager) all() []string {
	m.mu.Lock()
	defer m.mu.Unlock()
	return slices.Clone(m.got)
}

// want waits for a datagram with the line, the first one after those that were
// waited for before, and returns it.
func (m *manager) want(line string) string {
	m.t.Helper()
	deadline := time.After(patience)
	for {
		m.mu.Lock()
		for i, d := range m.got {
			if slices.Contains(strings.Split(d, "\n"), line) {
				m.got = m.got[i+1:]
				m.mu.Unlock()
				return d
			}
		}
		wake := m.wake
		m.mu.Unlock()
		select {
		case <-wake:
		case <-deadline:
			m.t.Fatalf("the service manager was not told %s", line)
		}
	}
}

// TestServiceManager: systemd is told what happens, in its order, by the master
// alone.
func TestServiceManager(t *testing.T) {
	t.Parallel()
	m := listenNotify(t)
	p := quick(2)
	r := launch(t, p, func(c *exec.Cmd) { c.Env = append(c.Env, "NOTIFY_SOCKET="+m.path) })
	r.addr = r.first("MasterStart").Addr[0]
	if d := m.want("READY=1"); !strings.Contains(d, "2 of 2 workers") {
		t.Errorf("READY with %q", d)
	}
	reload := func(how func()) {
		t.Helper()
		how()
		d := m.want("RELOADING=1")
		usec := ""
		for _, line := range strings.Split(d, "\n") {
			if v, ok := strings.CutPrefix(line, "MONOTONIC_USEC="); ok {
				usec = v
			}
		}
		if n, err := strconv.ParseInt(usec, 10, 64); err != nil || n <= 0 {
			t.Errorf("RELOADING without the time, systemd would wait for ever: %q", d)
		}
		m.want("READY=1")
	}
	reload(func() { r.kill(r.pid(), syscall.SIGHUP) })
	r.nth("RestartFinished", 1)
	// A restart that fails has been a reload, too.
	r.deploy(func(p *plan) { p.Boot = &planExit{3, "bad"} })
	reload(func() { r.kill(r.pid(), syscall.SIGUSR1) })
	r.nth("RestartFinished", 2)
	r.deploy(func(p *plan) { p.Boot = nil })
	reload(func() { r.kill(r.pid(), syscall.SIGUSR2) })
	r.nth("MasterStart", 2)
	r.nth("RestartFinished", 3)
	r.kill(r.pid(), syscall.SIGTERM)
	m.want("STOPPING=1")
	if status := r.gone(); status != 0 {
		t.Errorf("status %d", status)
	}
	for _, d := range m.all() {
		if strings.Contains(d, "READY=1") {
			t.Errorf("after STOPPING=1: %q", d)
		}
	}
}

// TestWatchdog: it is fed while a worker makes progress, and no longer.
func TestWatchdog(t *testing.T) {
	t.Parallel()
	m := listenNotify(t)
	p := quick(1)
	p.HeartbeatTimeout = time.Second
	p.NeverReady, p.If = true, filepath.Join(t.TempDir(), "broken")
	r := launch(t, p, func(c *exec.Cmd) {
		c.Env = append(c.Env, "NOTIFY_SOCKET="+m.path, "WATCHDOG_USEC=600000")
		asMain(c)
	})
	r.addr = r.first("MasterStart").Addr[0]
	m.want("READY=1")
	for range 4 {
		m.want("WATCHDOG=1")
	}
	// Nobody serves from here on: the worker stops, and the next is not ready.
	if err := os.WriteFile(p.If, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	r.kill(r.stats().Seats[0].Workers[0].PID, syscall.SIGSTOP)
	r.first("WorkerExit")
	m.mu.Lock()
	m.got = nil
	m.mu.Unlock()
	time.Sleep(time.Second)
	for _, d := range m.all() {
		if strings.Contains(d, "WATCHDOG=1") {
			t.Error("the watchdog is fed although nobody serves")
		}
	}
}
