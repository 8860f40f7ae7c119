//go:build unix

package prefork

import (
	"crypto/tls"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/seed-235859eb/usher"
	"github.com/seed-235859eb/usher/internal/traffic"
)

// restartUnderLoad restarts the program twice, and stops it, under load.
func (r *running) restartUnderLoad() {
	r.t.Helper()
	load := r.load(4, traffic.PerRequest, "/")
	load.answered(20)
	for _, build := range []string{"two", "three"} {
		before := r.plan.Build
		r.deploy(func(p *plan) { p.Build = build })
		r.must("restart", 0)
		load.retire(before)
		load.answered(20)
	}
	r.kill(r.pid(), syscall.SIGTERM)
	if status := r.gone(); status != 0 {
		r.t.Errorf("status %d", status)
	}
	if res := load.finish(); res.Lost > 0 || load.stale > 0 {
		r.t.Errorf("%d lost, %d answers from old code: %q", res.Lost, load.stale, res.Errors)
	}
	r.refused()
}

// TestUnixSocket: the name is there while somebody serves, and not after.
func TestUnixSocket(t *testing.T) {
	t.Parallel()
	path := filepath.Join(t.TempDir(), "s")
	p := quick(2)
	p.Addr, p.Listen = "", []planEndpoint{{Network: "unix", Addr: path}}
	r := launch(t, p)
	r.network, r.addr = "unix", path
	r.allServe()
	r.restartUnderLoad()
	if _, err := os.Lstat(path); err == nil {
		t.Error("the name is left")
	}
}

// TestStaleName: a master that was killed leaves the name of its socket behind,
// and the next one must come up all the same; but not where somebody listens.
func TestStaleName(t *testing.T) {
	for _, workers := range []int{2, 0} {
		t.Run(fmt.Sprintf("%d workers", workers), func(t *testing.T) {
			t.Parallel()
			path := filepath.Join(t.TempDir(), "s")
			p := quick(workers)
			p.Addr, p.Listen = "", []planEndpoint{{Network: "unix", Addr: path}}
			for range 2 {
				r := launch(t, p)
				r.network, r.addr = "unix", path
				r.find("a worker that listens", max(1, workers), func(e event) bool { return e.Name == "listening" })
				r.get("/")
				second := launch(t, p)
				if status := second.gone(); status != 1 {
					t.Errorf("status %d where somebody listens", status)
				}
				r.get("/")
				r.kill(r.cmd.Process.Pid, syscall.SIGKILL)
				r.gone()
				if _, err := os.Lstat(path); err != nil {
					t.Error("the name is gone, this tests nothing")
				}
			}
		})
	}
}

// TestNameOfAnother: a name that leads to another program's socket by the time of
// the stop stays.
func TestNameOfAnother(t *testing.T) {
	for _, workers := range []int{2, 0} {
		t.Run(fmt.Sprintf("%d workers", workers), func(t *testing.T) {
			t.Parallel()
			p := quick(workers)
			name := filepath.Join(t.TempDir(), "socket")
			p.Addr, p.Listen = "", []planEndpoint{{Network: "unix", Addr: name}}
			r := launch(t, p)
			r.first("listening")
			if err := os.Remove(name); err != nil {
				t.Fatal(err)
			}
			l, err := net.Listen("unix", name)
			if err != nil {
				t.Fatal(err)
			}
			defer l.Close()
			r.kill(r.cmd.Process.Pid, syscall.SIGTERM)
			if status := r.gone(); status != 0 {
				t.Errorf("status %d", status)
			}
			if c, err := net.Dial("unix", name); err != nil {
				t.Error(err)
			} else {
				c.Close()
			}
		})
	}
}

// TestStaleNameAtTheSameTime: of those who find a name that nobody listens on in
// the same moment, one gets it.
func TestStaleNameAtTheSameTime(t *testing.T) {
	name := filepath.Join(t.TempDir(), "socket")
	for range 100 {
		stale, err := net.Listen("unix", name)
		if err != nil {
			t.Fatal(err)
		}
		stale.(*net.UnixListener).SetUnlinkOnClose(false)
		stale.Close()
		const rivals = 4
		got := make(chan net.Listener, rivals)
		for range rivals {
			go func() {
				l, err := withUnixName(name, func() (net.Listener, error) { return net.Listen("unix", name) })
				if err != nil && !errors.Is(err, syscall.EADDRINUSE) {
					t.Error(err)
				}
				got <- l
			}()
		}
		var winners []net.Listener
		for range rivals {
			if l := <-got; l != nil {
				winners = append(winners, l)
			}
		}
		for _, l := range winners {
			l.Close()
		}
		if len(winners) != 1 {
			t.Fatalf("%d of %d listen", len(winners), rivals)
		}
	}
}

// TestEndpoints: several addresses, known by their names.
func TestEndpoints(t *testing.T) {
	t.Parallel()
	path := filepath.Join(t.TempDir(), "s")
	p := quick(2)
	p.Listen = []planEndpoint{{Name: "admin", Addr: "127.0.0.1:0"}, {Name: "local", Network: "unix", Addr: path}}
	r := start(t, p)
	addrs := r.first("MasterStart").Addr
	var names []string
	if err := json.NewDecoder(r.get("/names").Body).Decode(&names); err != nil {
		t.Fatal(err)
	}
	if want := []string{"admin " + addrs[1], "local " + path, "tcp:127.0.0.1:0 " + addrs[0]}; !slices.Equal(names, want) {
		t.Errorf("listeners %q, want %q", names, want)
	}
	var loads []*load
	for i, network := range []string{"tcp", "tcp", "unix"} {
		r.network, r.addr = network, addrs[i]
		l := r.load(2, traffic.PerRequest, "/")
		l.answered(10)
		loads = append(loads, l)
	}
	r.deploy(func(p *plan) { p.Build = "two" })
	r.must("restart", 0)
	for _, l := range loads {
		l.retire("one")
		l.answered(10)
		l.lossless()
	}
	r.stop()
}

// TestOwnListener: a listener that the program makes itself, once, as each worker
// would find the address taken.
func TestOwnListener(t *testing.T) {
	t.Parallel()
	path := filepath.Join(t.TempDir(), "s")
	p := quick(2)
	p.Addr, p.Listen = "", []planEndpoint{{Name: "web", Network: "unix", Addr: path, Own: true}}
	r := launch(t, p)
	r.network, r.addr = "unix", path
	r.allServe()
	r.must("recycle", 1)
	r.first("WorkerExit")
	r.kill(r.pid(), syscall.SIGUSR2)
	r.nth("MasterStart", 2)
	r.first("RestartFinished")
	r.restartUnderLoad()
	if _, err := os.Lstat(path); err == nil {
		t.Error("the name is left")
	}
}

// socketUnit has a program find l as systemd would pass it.
func socketUnit(t *testing.T, l net.Listener, env ...string) func(*exec.Cmd) {
	t.Helper()
	f, err := l.(interface{ File() (*os.File, error) }).File()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { f.Close() })
	return func(c *exec.Cmd) {
		c.ExtraFiles = []*os.File{f}
		c.Env = append(c.Env, "LISTEN_FDS=1", "LISTEN_FDNAMES=web")
		c.Env = append(c.Env, env...)
		asMain(c)
	}
}

// asMain sets what systemd sets for the process that it starts.
func asMain(c *exec.Cmd) {
	c.Args = []string{"sh", "-c", `LISTEN_PID=$$ WATCHDOG_PID=$$ exec "$0"`, c.Path}
	c.Path = "/bin/sh"
}

// TestSystemdSocket: the socket is systemd's. It is served, and after the stop it
// is as it was before: what comes meanwhile waits for the next start.
func TestSystemdSocket(t *testing.T) {
	for _, workers := range []int{2, 0} {
		t.Run(fmt.Sprintf("%d workers", workers), func(t *testing.T) {
			t.Parallel()
			l, err := usher.Listen("tcp", "127.0.0.1:0") // plain TCP, as systemd does
			if err != nil {
				t.Fatal(err)
			}
			defer l.Close()
			p := quick(workers)
			p.Addr = ""
			var load *load
			for range 2 {
				r := launch(t, p, socketUnit(t, l))
				r.addr = l.Addr().String()
				if load == nil {
					load = r.load(4, traffic.PerRequest, "/")
				}
				load.answered(50)
				if workers > 0 {
					r.allServe()
					r.must("restart", 0)
					load.answered(50)
				}
				r.kill(r.cmd.Process.Pid, syscall.SIGTERM)
				if status := r.gone(); status != 0 {
					t.Errorf("status %d", status)
				}
			}
			go http.Serve(l, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {}))
			load.lossless()
		})
	}
}

// TestBadSystemdSocket: what is wrong with systemd's variables ends a program only
// if it asks systemd for a socket.
func TestBadSystemdSocket(t *testing.T) {
	for _, bad := range []string{"LISTEN_FDS=x", "LISTEN_FDNAMES=a:b:c"} {
		for _, workers := range []int{1, 0} {
			t.Run(fmt.Sprintf("%s, %d workers", bad, workers), func(t *testing.T) {
				t.Parallel()
				env := func(c *exec.Cmd) {
					c.Env = append(c.Env, "LISTEN_FDS=1", bad)
					asMain(c)
				}
				p := quick(workers)
				r := launch(t, p, env)
				r.first("listening")
				r.logged("level=WARN", "LISTEN_FD")
				r.kill(r.cmd.Process.Pid, syscall.SIGTERM)
				if status := r.gone(); status != 0 {
					t.Errorf("status %d", status)
				}
				p.Listen = []planEndpoint{{Name: "web", Network: "systemd"}}
				r = launch(t, p, env)
				if status := r.gone(); status != 1 {
					t.Errorf("status %d of one that asks for a socket", status)
				}
				r.logged("program: prefork: ", "LISTEN_FD")
			})
		}
	}
}

// TestEnvironment: what is said to the master, and what it says to its workers,
// is for nobody else's eyes.
func TestEnvironment(t *testing.T) {
	t.Parallel()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	p := quick(2)
	p.Addr = ""
	manager := listenNotify(t)
	r := launch(t, p, func(c *exec.Cmd) {
		c.Env = slices.DeleteFunc(c.Env, func(e string) bool { return strings.HasPrefix(e, "GOMAXPROCS=") })
		socketUnit(t, l, "WATCHDOG_USEC=60000000", "NOTIFY_SOCKET="+manager.path)(c)
	})
	r.addr = l.Addr().String()
	r.allServe()
	r.must("recycle", 0)
	r.first("WorkerExit")
	r.allServe()
	for range 4 {
		var env struct {
			Own, Child []string
			Procs      int
			Open       string
		}
		if err := json.NewDecoder(r.get("/env").Body).Decode(&env); err != nil {
			t.Fatal(err)
		}
		// 3 is the directory that it lists, and the test itself may have been
		// started with some.
		if !strings.Contains(env.Open, " 3 -> /proc/") || strings.Contains(env.Open, " 4 -> ") || strings.Contains(env.Open, "socket:") {
			t.Errorf("a worker's child has\n%s", env.Open)
		}
		if len(env.Own) == 0 || len(env.Child) == 0 {
			t.Fatal("no environment")
		}
		for _, e := range append(env.Own, env.Child...) {
			for _, name := range []string{"LISTEN_", "NOTIFY_SOCKET", "WATCHDOG_", "USHER_PREFORK_", "GOMAXPROCS="} {
				if strings.HasPrefix(e, name) {
					t.Errorf("%s is in the environment of a worker or its child", e)
				}
			}
		}
		if want := max(1, (r.first("MasterStart").GOMAXPROCS+1)/2); env.Procs != want {
			t.Errorf("GOMAXPROCS is %d, want half of the master's, %d", env.Procs, want)
		}
	}
	r.stop()
}

// TestUsersGOMAXPROCS is left alone.
func TestUsersGOMAXPROCS(t *testing.T) {
	t.Parallel()
	r := start(t, quick(2), func(c *exec.Cmd) { c.Env = append(c.Env, "GOMAXPROCS=3") })
	var env struct {
		Own, Child []string
		Procs      int
	}
	if err := json.NewDecoder(r.get("/env").Body).Decode(&env); err != nil {
		t.Fatal(err)
	}
	if env.Procs != 3 || !slices.Contains(env.Own, "GOMAXPROCS=3") || !slices.Contains(env.Child, "GOMAXPROCS=3") {
		t.Errorf("GOMAXPROCS is %d, environment %q", env.Procs, env.Own)
	}
	r.stop()
}

// TestNonblock: O_NONBLOCK belongs to the socket and not to a descriptor. If a
// process cleared it, Close of a listener would hang in all (golang/go#29277).
func TestNonblock(t *testing.T) {
	t.Parallel()
	p := quick(2)
	p.Listen = []planEndpoint{{Name: "local", Network: "unix", Addr: filepath.Join(t.TempDir(), "s")}}
	r := start(t, p)
	r.must("recycle", 0)
	r.must("restart", 0)
	r.must("scale", 3)
	sockets := 0
	for _, pid := range append(pidsOf(r.allServe()), r.pid()) {
		for fd, link := range links(t, pid) {
			if !strings.HasPrefix(link, "socket:") {
				continue
			}
			info, err := os.ReadFile(fmt.Sprintf("/proc/%d/fdinfo/%d", pid, fd))
			if err != nil {
				continue // closed meanwhile
			}
			sockets++
			var flags int64
			for _, line := range strings.Split(string(info), "\n") {
				if v, ok := strings.CutPrefix(line, "flags:"); ok {
					flags, _ = strconv.ParseInt(strings.TrimSpace(v), 8, 64)
				}
			}
			if flags&syscall.O_NONBLOCK == 0 {
				t.Errorf("process %d, descriptor %d, %s: O_NONBLOCK is off", pid, fd, link)
			}
		}
	}
	if sockets < 10 {
		t.Errorf("%d sockets found", sockets)
	}
	r.stop()
}

// links returns what a process's descriptors are.
func links(t *testing.T, pid int) map[int]string {
	t.Helper()
	dir := fmt.Sprintf("/proc/%d/fd", pid)
	entries, err := os.ReadDir(dir)
	if err != nil {
		t.Skip("no /proc")
	}
	all := map[int]string{}
	for _, e := range entries {
		fd, err := strconv.Atoi(e.Name())
		if err != nil {
			continue
		}
		if link, err := os.Readlink(filepath.Join(dir, e.Name())); err == nil {
			all[fd] = link
		}
	}
	return all
}

// TestTLS: certificates are the workers' business.
func TestTLS(t *testing.T) {
	t.Parallel()
	p := quick(2)
	p.TLS = true
	r := start(t, p)
	c, err := tls.Dial("tcp", r.addr, &tls.Config{InsecureSkipVerify: true})
	if err != nil {
		t.Fatal(err)
	}
	c.Close()
	r.restartUnderLoad()
}

// TestOneProcess: with no workers the same program does the same, but for what
// needs a master.
func TestOneProcess(t *testing.T) {
	for _, network := range []string{"tcp", "unix"} {
		t.Run(network, func(t *testing.T) {
			t.Parallel()
			p := quick(0)
			path := filepath.Join(t.TempDir(), "s")
			if network == "unix" {
				p.Addr, p.Listen = "", []planEndpoint{{Network: "unix", Addr: path}}
			}
			manager := listenNotify(t)
			r := launch(t, p, func(c *exec.Cmd) { c.Env = append(c.Env, "NOTIFY_SOCKET="+manager.path) })
			r.network, r.addr = network, r.first("listening").Addr[0]
			manager.want("READY=1")
			load := r.load(4, traffic.PerRequest, "/")
			load.answered(50)
			if resp := r.get("/fleet"); resp.StatusCode != http.StatusServiceUnavailable {
				t.Errorf("Fleet without a master: status %d", resp.StatusCode)
			}
			if g := r.get("/").Header.Get("X-Generation"); g != "0" {
				t.Errorf("generation %s", g)
			}
			slow := r.slow(4, 300*time.Millisecond)
			r.kill(r.cmd.Process.Pid, syscall.SIGTERM)
			if n := slow(); n < 4 {
				t.Errorf("%d of 4 requests that ran were answered", n)
			}
			if status := r.gone(); status != 0 {
				t.Errorf("status %d", status)
			}
			manager.want("STOPPING=1")
			r.refused()
			if res := load.finish(); res.Lost > 0 {
				t.Errorf("%d lost: %q", res.Lost, res.Errors)
			}
			if _, err := os.Lstat(path); err == nil {
				t.Error("the name is left")
			}
		})
	}
}

// TestAddressTaken: who finds the address taken says so, and does not share it
// with whoever has it.
func TestAddressTaken(t *testing.T) {
	t.Parallel()
	r := start(t, quick(1))
	p := quick(2)
	p.Addr = r.addr
	second := launch(t, p)
	if status := second.gone(); status != 1 {
		t.Errorf("status %d", status)
	}
	second.logged("program: prefork: endpoint", "is not free")
	r.get("/")
	r.stop()
}
