//go:build linux

package deploy

import (
	"fmt"
	"net"
	"os"
	"path/filepath"
	"strings"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/seed-235859eb/usher/internal/process"
)

// TestUnits has systemd itself read the units.
func TestUnits(t *testing.T) {
	version, err := command(t, "systemd-analyze", "--version").Output()
	if err != nil {
		t.Fatal(err)
	}
	units := t.TempDir()
	service := replace(t, read(t, "app.service"), "/srv/app/server", buildServer(t))
	var major int
	if _, err := fmt.Sscanf(string(version), "systemd %d", &major); err != nil {
		t.Fatal(err)
	}
	if major < 253 { // which has the first notify-reload
		service = replace(t, service, "Type=notify-reload", "Type=notify")
		service = replace(t, service, "ReloadSignal=SIGHUP", "ExecReload=/bin/kill -HUP $MAINPID")
	}
	for name, text := range map[string]string{"app.service": service, "app.socket": read(t, "app.socket")} {
		if err := os.WriteFile(filepath.Join(units, name), []byte(text), 0o666); err != nil {
			t.Fatal(err)
		}
	}
	cmd := command(t, "systemd-analyze", "verify", "--man=no", filepath.Join(units, "app.service"), filepath.Join(units, "app.socket"))
	out, err := cmd.CombinedOutput()
	t.Logf("systemd %d: %v\n%s", major, err, out)
	// It complains of other units of the machine, too.
	for line := range strings.Lines(string(out)) {
		if strings.Contains(line, units) || strings.HasPrefix(line, "app.") {
			t.Error(line)
		}
	}
}

// TestSystemd does what systemd does with the units: it holds the socket, reloads,
// stops and starts the service under load. No client loses a request, or is even
// refused.
func TestSystemd(t *testing.T) {
	service := read(t, "app.service")
	for name, want := range map[string]string{"Type=": "notify-reload", "ReloadSignal=": "SIGHUP", "KillMode=": "mixed"} {
		if got := field(t, service, name); got != want {
			t.Fatalf("this test does not do %s%s", name, got)
		}
	}
	args := strings.Fields(field(t, service, "ExecStart="))
	socket, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer socket.Close()
	file, err := socket.(*net.TCPListener).File()
	if err != nil {
		t.Fatal(err)
	}
	defer file.Close()
	notes := listenNotify(t)
	run := func() *process.Process {
		t.Helper()
		p := start(t, process.Spec{
			// systemd knows the process ID before it executes the program.
			Path:  "/bin/sh",
			Args:  append([]string{"-c", `LISTEN_PID=$$ exec "$@"`, "systemd", buildServer(t)}, args[1:]...),
			Env:   []string{"LISTEN_FDS=1", "NOTIFY_SOCKET=" + notes.path},
			Files: []*os.File{file}, Ready: allServe,
		})
		notes.want(t, "READY=1")
		return p
	}
	p := run()

	var answered atomic.Int64
	end := loads(t, socket.Addr().String(), func() { answered.Add(1) })
	more := func() {
		t.Helper()
		from, deadline := answered.Load(), time.Now().Add(patience)
		for answered.Load() < from+200 {
			if time.Now().After(deadline) {
				t.Fatal("no more answers")
			}
			time.Sleep(time.Millisecond)
		}
	}
	more()
	p.Signal(syscall.SIGHUP)
	notes.want(t, "RELOADING=1")
	notes.want(t, "READY=1")
	more()
	p.Signal(syscall.SIGTERM) // to the master alone
	notes.want(t, "STOPPING=1")
	if err := p.Stop(); err != nil {
		t.Error(err)
	}
	p = run()
	more()
	r := end()
	if r.Lost > 0 || r.Refused > 0 {
		t.Errorf("of %d requests %d were lost and %d refused: %v", r.Answered, r.Lost, r.Refused, r.Errors)
	}
	if err := p.Stop(); err != nil {
		t.Error(err)
	}
}

// notes are what a service manager was told.
type notes struct {
	path string
	got  chan string // a datagram each
}

func listenNotify(t *testing.T) *notes {
	t.Helper()
	n := &notes{path: filepath.Join(t.TempDir(), "notify"), got: make(chan string, 1000)}
	c, err := net.ListenUnixgram("unixgram", &net.UnixAddr{Name: n.path, Net: "unixgram"})
	if err != nil {
		t.Fatal(err)
	}
	done := make(chan struct{})
	t.Cleanup(func() { c.Close(); <-done })
	go func() {
		defer close(done)
		buf := make([]byte, 8<<10)
		for {
			k, err := c.Read(buf)
			if err != nil {
				return
			}
			n.got <- string(buf[:k])
		}
	}()
	return n
}

// want waits for a datagram with a line.
func (n *notes) want(t *testing.T, line string) {
	t.Helper()
	timer := time.NewTimer(patience)
	defer timer.Stop()
	for {
		select {
		case d := <-n.got:
			if strings.Contains("\n"+d+"\n", "\n"+line+"\n") {
				return
			}
		case <-timer.C:
			t.Fatalf("the service manager was not told %s", line)
		}
	}
}
