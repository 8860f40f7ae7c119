//go:build linux

package deploy

import (
	"encoding/json"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/seed-235859eb/usher/internal/process"
)

// TestDockerfile builds the program as the Dockerfile says, and runs it as process
// 1 in a file system that has nothing else, as the user that it names.
func TestDockerfile(t *testing.T) {
	text := read(t, "Dockerfile")
	var entrypoint []string
	if err := json.Unmarshal([]byte(field(t, text, "ENTRYPOINT ")), &entrypoint); err != nil {
		t.Fatalf("ENTRYPOINT is not in the exec form: %v", err)
	}
	checkout, err := process.Checkout(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	root := t.TempDir()
	program := filepath.Join(root, entrypoint[0])
	build := exec.Command("sh", "-c", replace(t, field(t, text, "RUN "), "-o /server", "-o "+program))
	build.Dir = checkout
	if out, err := build.CombinedOutput(); err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	if os.Getuid() != 0 {
		t.Skip("only root may change the file system's root: built, not run")
	}
	if got := field(t, text, "USER "); got != "65534:65534" {
		t.Fatalf("this test does not do USER %s", got)
	}
	for d := root; d != "/" && d != os.TempDir(); d = filepath.Dir(d) {
		if err := os.Chmod(d, 0o755); err != nil {
			t.Fatal(err)
		}
	}

	addr := reserve(t)
	cmd := exec.Command(entrypoint[0], append(entrypoint[1:], "-addr", addr)...)
	cmd.Env = []string{}
	cmd.Dir = "/"
	cmd.SysProcAttr = &syscall.SysProcAttr{
		Chroot: root, Cloneflags: syscall.CLONE_NEWPID, Pdeathsig: syscall.SIGKILL,
		Credential: &syscall.Credential{Uid: 65534, Gid: 65534},
	}
	log, err := os.Create(filepath.Join(dir, "docker.log"))
	if err != nil {
		t.Fatal(err)
	}
	defer log.Close()
	cmd.Stdout, cmd.Stderr = log, log
	if err := cmd.Start(); err != nil {
		t.Skipf("not run: %v", err) // in a container without the privilege
	}
	for c, err := net.Dial("tcp", addr); ; c, err = net.Dial("tcp", addr) {
		if err == nil {
			c.Close()
			break
		}
		if syscall.Kill(cmd.Process.Pid, 0) != nil {
			t.Fatalf("it has ended\n%s", read(t, log.Name()))
		}
		time.Sleep(time.Millisecond)
	}
	var answered atomic.Int64
	end := loads(t, addr, func() {
		if answered.Add(1) == 500 {
			cmd.Process.Signal(syscall.SIGTERM)
		}
	})
	kill := time.AfterFunc(patience, func() { cmd.Process.Kill() })
	err = cmd.Wait()
	kill.Stop()
	if err != nil {
		t.Errorf("%v\n%s", err, read(t, log.Name()))
	}
	if r := end(); r.Lost > 0 || r.Answered < 500 {
		t.Errorf("%d answered, %d lost: %v", r.Answered, r.Lost, r.Errors)
	}
}
