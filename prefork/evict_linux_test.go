package prefork

import (
	"fmt"
	"os/exec"
	"path/filepath"
	"syscall"
	"testing"
	"time"
)

// again starts the program once more at the same path, with the address that it
// had.
func (r *running) again(addr string, stopTimeout time.Duration) *running {
	r.t.Helper()
	r.deploy(func(p *plan) { p.Build, p.Listen[0].Addr, p.Delay, p.StopTimeout = "two", addr, 0, stopTimeout })
	next := launch(r.t, r.plan, func(c *exec.Cmd) { c.Path, c.Args[0] = r.file, r.file })
	next.addr, next.network = r.addr, r.network
	return next
}

// TestMasterStartsAgain: a master that was killed and is started again serves at
// once, though its orphans would have the sockets for long. These answer what they
// have accepted, and leave.
func TestMasterStartsAgain(t *testing.T) {
	for _, how := range []string{"delay", "stopped worker", "hung worker", "unix socket"} {
		t.Run(how, func(t *testing.T) {
			t.Parallel()
			p := quick(2)
			p.Addr = ""
			p.Listen = []planEndpoint{{Name: "web", Addr: "127.0.0.1:0"}}
			p.Delay = patience / 2
			p.StopTimeout = 2 * patience
			if how == "unix socket" {
				p.Listen[0].Network, p.Listen[0].Addr = "unix", filepath.Join(t.TempDir(), "socket")
			}
			r := launch(t, p)
			if r.addr = r.first("MasterStart").Addr[0]; how == "unix socket" {
				r.network = "unix"
			}
			orphans := pidsOf(r.allServe())
			slow := r.slow(4, 500*time.Millisecond)
			spins := 0
			switch how {
			case "stopped worker":
				r.kill(orphans[0], syscall.SIGSTOP)
			case "hung worker":
				go r.try("/spin")
				spins = r.first("spin").PID
			}
			r.kill(r.pid(), syscall.SIGKILL)
			<-r.status
			stopTimeout := p.StopTimeout
			if spins > 0 {
				stopTimeout = time.Second
			}
			next := r.again(r.addr, stopTimeout)
			next.first("WorkerReady")
			r.logged("another master waits") // and no more for the delay
			next.logged("workers of a master that is gone have the sockets")
			if got := next.get("/").Header.Get("X-Build"); got != "two" {
				t.Errorf("an answer of build %s", got)
			}
			// What ran in the worker that hangs is lost with it.
			if n := slow(); n < 4 && spins == 0 {
				t.Errorf("%d of 4 requests that ran were answered", n)
			}
			r.ended(orphans)
			next.allServe()
			next.stop()
		})
	}
}

// TestOrphanKilled: an orphan that does not leave is killed after StopTimeout.
func TestOrphanKilled(t *testing.T) {
	t.Parallel()
	p := quick(1)
	p.Addr = ""
	p.Listen = []planEndpoint{{Name: "web", Addr: "127.0.0.1:0"}}
	p.StopTimeout, p.Delay = 2*patience, patience/2
	r := launch(t, p)
	r.addr = r.first("MasterStart").Addr[0]
	orphans := pidsOf(r.allServe())
	r.slow(1, patience)
	r.kill(r.pid(), syscall.SIGKILL)
	<-r.status
	next := r.again(r.addr, time.Second)
	next.logged("killing a worker of a master that is gone", fmt.Sprint(orphans[0]))
	r.ended(orphans)
	next.stop()
}

// TestStrangerHasTheAddress: what is nobody's orphan is left alone.
func TestStrangerHasTheAddress(t *testing.T) {
	t.Parallel()
	p := quick(1)
	p.Addr = ""
	p.Listen = []planEndpoint{{Name: "web", Addr: "127.0.0.1:0"}}
	r := launch(t, p)
	r.addr = r.first("MasterStart").Addr[0]
	before := pidsOf(r.allServe())
	next := r.again(r.addr, p.StopTimeout)
	if status := next.gone(); status != 1 {
		t.Errorf("status %d", status)
	}
	next.logged("program: prefork: ", "is not free")
	if after := pidsOf(r.stats()); fmt.Sprint(after) != fmt.Sprint(before) {
		t.Errorf("workers %v, then %v", before, after)
	}
	r.stop()
}

// TestStopWhileOrphansLeave: a master that waits for orphans can be stopped.
func TestStopWhileOrphansLeave(t *testing.T) {
	t.Parallel()
	p := quick(1)
	p.Addr = ""
	p.Listen = []planEndpoint{{Name: "web", Addr: "127.0.0.1:0"}}
	p.NoUsher = true
	p.StopTimeout = 2 * patience
	r := launch(t, p)
	r.addr = r.first("MasterStart").Addr[0]
	r.allServe()
	r.kill(r.pid(), syscall.SIGKILL)
	<-r.status
	next := r.again(r.addr, p.StopTimeout)
	next.logged("workers of a master that is gone have the sockets")
	next.kill(next.cmd.Process.Pid, syscall.SIGTERM)
	select {
	case err := <-next.status:
		if err != nil {
			t.Errorf("after SIGTERM: %v", err)
		}
	case <-time.After(patience):
		t.Error("does not stop")
	}
}
