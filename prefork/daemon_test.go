//go:build unix

package prefork

import (
	"fmt"
	"io"
	"os"
	"os/exec"
	"os/user"
	"path/filepath"
	"regexp"
	"strings"
	"syscall"
	"testing"
	"time"
)

// TestPIDFile: the file is there while the seats serve, through an upgrade, and is
// removed only if it is the program's.
func TestPIDFile(t *testing.T) {
	for _, workers := range []int{2, 0} {
		t.Run(fmt.Sprintf("%d workers", workers), func(t *testing.T) {
			t.Parallel()
			p := quick(workers)
			p.PIDFile = filepath.Join(t.TempDir(), "pid")
			p.NeverReady, p.If = true, filepath.Join(t.TempDir(), "late")
			if err := os.WriteFile(p.If, nil, 0o600); err != nil {
				t.Fatal(err)
			}
			r := launch(t, p)
			r.logged("not ready, ever")
			if exists(p.PIDFile) {
				t.Error("there before anybody serves")
			}
			r.kill(r.cmd.Process.Pid, syscall.SIGTERM)
			if status := r.gone(); status != 0 {
				t.Errorf("status %d", status)
			}

			p.NeverReady = false
			r = launch(t, p)
			pid := r.cmd.Process.Pid
			has := func() {
				t.Helper()
				waitForFile(t, p.PIDFile, regexp.MustCompile(fmt.Sprintf(`^%d\n$`, pid)))
			}
			has()
			if workers > 0 {
				r.kill(pid, syscall.SIGUSR2)
				r.nth("MasterStart", 2)
				r.nth("RestartFinished", 1)
				has()
			}
			r.kill(pid, syscall.SIGTERM)
			if status := r.gone(); status != 0 {
				t.Errorf("status %d", status)
			}
			if exists(p.PIDFile) {
				t.Error("still there after the end")
			}

			r = launch(t, p)
			pid = r.cmd.Process.Pid
			has()
			if err := os.WriteFile(p.PIDFile, []byte("1\n"), 0o600); err != nil {
				t.Fatal(err)
			}
			r.kill(pid, syscall.SIGTERM)
			r.gone()
			if !exists(p.PIDFile) {
				t.Error("somebody else's file was removed")
			}
		})
	}
}

// waitForFile waits until the file at path fits, and returns what was found.
func waitForFile(t *testing.T, path string, pattern *regexp.Regexp) []string {
	t.Helper()
	var content []byte
	for deadline := time.Now().Add(patience); time.Now().Before(deadline); time.Sleep(5 * time.Millisecond) {
		var err error
		if content, err = os.ReadFile(path); err != nil {
			continue // not yet
		}
		if found := pattern.FindStringSubmatch(string(content)); found != nil {
			return found
		}
	}
	t.Fatalf("%s: no %v in %.2000q", path, pattern, content)
	return nil
}

// TestLogFile: all that master and workers write is appended to the file, which is
// opened anew when it has been moved: by itself, when asked to, and in a restart.
func TestLogFile(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	p := quick(1)
	p.LogFile = "log" // relative to where the program was started
	log := filepath.Join(dir, p.LogFile)
	if err := os.WriteFile(log, []byte("from before\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	r := launch(t, p, func(c *exec.Cmd) {
		c.Dir = dir
		c.Env = append(c.Env, "PWD="+dir)
	})
	in := func(pattern string) []string { t.Helper(); return waitForFile(t, log, regexp.MustCompile(pattern)) }
	r.addr = in(`"MasterStart".*"Addr":\["([^"]+)"`)[1] // events are on standard output
	in("^from before\n(?s:.*)all seats serve")
	r.get("/lines?who=one&n=1")
	in("line one 0 3000 ")
	moved := 0
	move := func() {
		t.Helper()
		if moved++; os.Rename(log, fmt.Sprint(log, moved)) != nil {
			t.Fatal("cannot be moved")
		}
	}
	fresh := func(who string) {
		t.Helper()
		r.get("/lines?n=1&who=" + who)
		in("line " + who + " 0 3000 ")
		if content, err := os.ReadFile(fmt.Sprint(log, moved)); err != nil || strings.Contains(string(content), "line "+who) {
			t.Errorf("the file that was moved has lines that came later, %v", err)
		}
	}
	move()
	in("^")
	fresh("two")
	move()
	r.send("reopen", 0)
	in(`"Name":"answer"`)
	fresh("three")
	move()
	r.kill(r.cmd.Process.Pid, syscall.SIGHUP)
	in("prefork: restarted")
	fresh("four")
	r.kill(r.cmd.Process.Pid, syscall.SIGUSR2)
	in("master replaced(?s:.*)prefork: restarted")
	fresh("five")
	r.kill(r.cmd.Process.Pid, syscall.SIGTERM)
	if status := r.gone(); status != 0 {
		t.Errorf("status %d", status)
	}
	in("prefork: stopping(?s:.*)usher: stopped")
	if len(r.log) > 0 {
		t.Errorf("on standard error: %q", r.log)
	}
}

// TestUser: the workers of a master that runs as root, and binds what others may
// not, are somebody else.
func TestUser(t *testing.T) {
	t.Parallel()
	nobody, err := user.Lookup("nobody")
	if err != nil {
		t.Skip(err)
	}
	p := quick(2)
	p.User, p.Dir = "nobody", "/"
	if os.Geteuid() != 0 {
		p.User = "root" // nobody is whom this may be run as
		r := launch(t, p)
		if status := r.gone(); status != 1 {
			t.Errorf("status %d", status)
		}
		r.logged("program: prefork: Options.User is", "root", "must be root")
		return
	}
	r := start(t, p, func(c *exec.Cmd) {
		if err := os.Chmod(c.Path, 0o755); err != nil {
			t.Fatal(err)
		}
	})
	check := func() {
		t.Helper()
		body, err := io.ReadAll(r.get("/ids").Body)
		if want := fmt.Sprintf("%[1]s %[1]s %[2]s %[2]s [%[2]s]", nobody.Uid, nobody.Gid); err != nil || !strings.HasPrefix(string(body), want) {
			t.Errorf("a worker runs as %q, want %q", body, want)
		}
	}
	check()
	r.must("restart", 0) // signals and the rest work, too
	check()
	r.kill(r.pid(), syscall.SIGUSR2)
	r.nth("MasterStart", 2)
	r.nth("RestartFinished", 2)
	check()
	r.stop()
}

// TestBadIdentity: who does not exist, and where nothing can be written, is said at
// the start.
func TestBadIdentity(t *testing.T) {
	for _, tt := range []struct {
		change func(p *plan)
		want   string
	}{
		{func(p *plan) { p.User = "nobody-of-this-name" }, `Options.User is "nobody-of-this-name"`},
		{func(p *plan) { p.Group = "no-such-group" }, `Options.Group is "no-such-group"`},
		{func(p *plan) { p.PIDFile = "/no/such/pid" }, `Options.PIDFile is "/no/such/pid"`},
		{func(p *plan) { p.LogFile = "/no/such/log" }, `Options.LogFile`},
	} {
		t.Run(tt.want, func(t *testing.T) {
			t.Parallel()
			p := quick(1)
			tt.change(&p)
			r := launch(t, p)
			if status := r.gone(); status != 1 {
				t.Errorf("status %d", status)
			}
			r.logged("program: prefork: ", tt.want)
		})
	}
}
