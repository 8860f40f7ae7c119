//go:build unix

package deploy

import (
	"net"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"

	"github.com/seed-235859eb/usher/internal/process"
)

// TestProcfile: the command listens on $PORT, and all its processes get SIGTERM,
// twice, as Heroku does it. Nothing is lost.
func TestProcfile(t *testing.T) {
	args := strings.Fields(field(t, read(t, "Procfile"), "web: "))
	home := t.TempDir()
	if err := os.Mkdir(filepath.Join(home, "bin"), 0o777); err != nil {
		t.Fatal(err)
	}
	if err := os.Symlink(buildServer(t), filepath.Join(home, args[0])); err != nil {
		t.Fatal(err)
	}
	addr := reserve(t)
	_, port, err := net.SplitHostPort(addr)
	if err != nil {
		t.Fatal(err)
	}
	p := start(t, process.Spec{
		Path: filepath.Join(home, args[0]), Args: args[1:], Dir: home, Env: []string{"PORT=" + port}, Addr: addr, Ready: allServe,
	})
	var answered atomic.Int64
	told := make(chan struct{})
	stop := sync.OnceFunc(func() {
		for range 2 {
			syscall.Kill(-p.PID, syscall.SIGTERM) // the group: master and workers
		}
		close(told)
	})
	end := loads(t, addr, func() {
		if answered.Add(1) == 500 {
			stop()
		}
	})
	<-told
	<-p.Ended()
	if r := end(); r.Lost > 0 {
		t.Errorf("lost %d of %d: %v", r.Lost, r.Answered, r.Errors)
	}
	if err := p.Stop(); err != nil {
		t.Error(err)
	}
}
