package prefork

import (
	"os/exec"
	"syscall"
	"testing"
)

// TestPID1: as process 1 of a container the master collects other processes'
// orphans, and leaves to user code what user code waits for.
func TestPID1(t *testing.T) {
	t.Parallel()
	args := []string{"unshare", "--pid", "--fork", "--kill-child", "--mount-proc"}
	if exec.Command(args[0], append(args[1:], "true")...).Run() != nil {
		args = append(args, "--user", "--map-root-user")
		if out, err := exec.Command(args[0], append(args[1:], "true")...).CombinedOutput(); err != nil {
			t.Skipf("no process namespace: %v %s", err, out)
		}
	}
	path, err := exec.LookPath("unshare")
	if err != nil {
		t.Skip(err)
	}
	r := start(t, quick(2), func(c *exec.Cmd) {
		c.Args = append(args, c.Path)
		c.Path = path
	})
	if pid := r.pid(); pid != 1 {
		t.Fatalf("the master is process %d", pid)
	}
	outside := 0
	for pid := range children(t, r.cmd.Process.Pid) {
		outside = pid
	}
	if e := r.do("child", 0); e.Err != "exit status 7" {
		t.Errorf("a command's status: %q, want exit status 7", e.Err)
	}
	late := r.begin("late child", 0)
	r.must("orphan", 0)
	r.try("/exit?n=3")
	if e := r.first("WorkerExit"); e.Class != ClassCode || e.Code != 3 {
		t.Errorf("a worker's status: %+v", e)
	}
	r.logged("collected an orphan", "status=2304") // 9 << 8
	if e := late(); e.Err != "exit status 7" {
		t.Errorf("the status of a command that was waited for late: %q, want exit status 7", e.Err)
	}
	for pid, state := range children(t, outside) {
		if state == "Z" {
			t.Errorf("process %d is a zombie", pid)
		}
	}
	// All go with process 1, so it must not go first.
	slow := r.slow(4, 1e9/2)
	r.kill(outside, syscall.SIGTERM)
	if n := slow(); n < 4 {
		t.Errorf("%d of 4 requests that ran were answered", n)
	}
	if status := r.gone(); status != 0 {
		t.Errorf("status %d", status)
	}
}
