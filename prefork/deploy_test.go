//go:build unix

package prefork

import (
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"syscall"
	"testing"

	"github.com/seed-235859eb/usher/internal/traffic"
)

// A site is releases in directories of their own, and a symbolic link to the
// current one.
type site struct {
	t    *testing.T
	root string
}

// release makes a release with a build of the program, which is at path.
func (s site) release(name, program string) string {
	s.t.Helper()
	dir := filepath.Join(s.root, name)
	err := os.MkdirAll(filepath.Join(dir, "sub"), 0o755)
	if err == nil {
		err = os.Rename(program, filepath.Join(dir, "program"))
	}
	if err == nil {
		err = os.WriteFile(filepath.Join(dir, "template"), []byte(name), 0o600)
	}
	if err != nil {
		s.t.Fatal(err)
	}
	return dir
}

func (s site) current() string { return filepath.Join(s.root, "current") }

// point makes a release the current one.
func (s site) point(name string) {
	s.t.Helper()
	next := filepath.Join(s.root, "next")
	if err := os.Symlink(name, next); err != nil {
		s.t.Fatal(err)
	}
	if err := os.Rename(next, s.current()); err != nil {
		s.t.Fatal(err)
	}
}

// TestSymlinkDeploy: whatever way the program was started, a restart runs the new
// release's program in the new release's directory, also when the old one has
// been removed.
func TestSymlinkDeploy(t *testing.T) {
	for _, tt := range []struct {
		name     string
		template string // from where the workers are
		start    func(c *exec.Cmd, current string)
		plan     func(p *plan, current string)
		linux    bool
	}{
		{name: "cd current && ./program", start: func(c *exec.Cmd, current string) {
			c.Path, c.Dir = "./program", current
			c.Args[0] = c.Path
		}},
		{name: "argv[0] renamed", linux: true, start: func(c *exec.Cmd, current string) {
			c.Path, c.Dir = "./program", current
			c.Args[0] = "app: master"
		}},
		{name: "chdir in main", template: "../template", start: func(c *exec.Cmd, current string) {
			c.Path, c.Dir = "./program", current
			c.Args[0] = c.Path
		}, plan: func(p *plan, _ string) { p.Chdir = "sub" }},
		{name: "Options.Dir", start: func(c *exec.Cmd, current string) {
			c.Path, c.Dir = filepath.Join(current, "program"), "/"
			c.Args[0] = c.Path
		}, plan: func(p *plan, current string) { p.Dir = current }},
		{name: "relative to both", start: func(c *exec.Cmd, current string) {
			c.Path, c.Dir = "current/program", filepath.Dir(current)
			c.Args[0] = c.Path
		}, plan: func(p *plan, current string) { p.Dir = "current" }},
	} {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			if tt.linux && runtime.GOOS != "linux" {
				t.Skip("this system does not tell what was executed")
			}
			s := site{t, t.TempDir()}
			p := quick(1)
			if tt.plan != nil {
				tt.plan(&p, s.current())
			}
			r := start(t, p, func(c *exec.Cmd) {
				s.release("one", c.Path)
				s.point("one")
				tt.start(c, s.current())
				c.Env = append(c.Env, "PWD="+c.Dir)
			})
			template := tt.template
			if template == "" {
				template = "template"
			}
			check := func(want string) {
				t.Helper()
				resp := r.get("/file?name=" + template)
				body, _ := io.ReadAll(resp.Body)
				if build := resp.Header.Get("X-Build"); build != want || string(body) != want {
					t.Fatalf("build %s with template %q, want %s", build, body, want)
				}
			}
			crash := func() {
				t.Helper()
				pid := r.stats().Seats[0].Workers[0].PID
				r.kill(pid, syscall.SIGKILL)
				r.exitOfPID(pid)
				r.allServe()
			}
			check("one")
			r.deploy(func(p *plan) { p.Build = "two" })
			s.release("two", r.file)
			s.point("two")
			crash() // comes back as what it was
			check("one")
			r.kill(r.pid(), syscall.SIGHUP)
			if e := r.first("RestartFinished"); e.Err != "" {
				t.Fatal(e.Err)
			}
			r.logged("the directory of the workers has moved", "one", "two")
			if err := os.RemoveAll(filepath.Join(s.root, "one")); err != nil {
				t.Fatal(err)
			}
			check("two")
			crash()
			check("two")
			// The master, too, and the one after it.
			r.deploy(func(p *plan) { p.Build = "three" })
			s.release("three", r.file)
			s.point("three")
			r.kill(r.pid(), syscall.SIGUSR2)
			r.nth("RestartFinished", 2)
			if err := os.RemoveAll(filepath.Join(s.root, "two")); err != nil {
				t.Fatal(err)
			}
			check("three")
			r.deploy(func(p *plan) { p.Build = "four" })
			s.release("four", r.file)
			s.point("four")
			r.must("restart", 0)
			check("four")
			r.stop()
			r.mu.Lock()
			defer r.mu.Unlock()
			for _, line := range r.log {
				if strings.Contains(line, "cannot find the program") {
					t.Error(line)
				}
			}
		})
	}
}

// TestUnknownPath: a program that cannot find out what it was started by says
// what a restart will use.
func TestUnknownPath(t *testing.T) {
	t.Parallel()
	var held string
	r := start(t, quick(1), func(c *exec.Cmd) {
		f, err := os.Open(c.Path)
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { f.Close() })
		held = c.Path
		c.ExtraFiles = []*os.File{f}
		c.Path, c.Args[0] = "/proc/self/fd/3", "renamed"
		if _, err := os.Stat("/proc/self/fd"); err != nil {
			t.Skip("no /proc")
		}
	})
	r.logged("cannot find the program by the path that it was started by", held)
	r.stop()
}

// TestDirMissing: a directory that is not there is an error that names it.
func TestDirMissing(t *testing.T) {
	t.Parallel()
	p := quick(1)
	p.Dir = filepath.Join(t.TempDir(), "nowhere")
	r := launch(t, p)
	if status := r.gone(); status != 1 {
		t.Errorf("status %d", status)
	}
	r.logged("program: prefork: Options.Dir is", "nowhere", "no such file")
}

// TestScript: a script in the program's place works, and what is not a program
// is said to be none.
func TestScript(t *testing.T) {
	t.Parallel()
	r := start(t, quick(2))
	load := r.load(2, traffic.PerRequest, "/")
	r.deploy(func(p *plan) { p.Build = "two" })
	if err := os.Rename(r.file, filepath.Join(filepath.Dir(r.file), "behind")); err != nil {
		t.Fatal(err)
	}
	r.replace(strings.NewReader("#!/bin/sh\nexec \"$(dirname \"$0\")/behind\" \"$@\"\n"))
	r.must("restart", 0)
	load.retire("one")
	load.answered(20)
	pid := r.stats().Seats[0].Workers[0].PID
	r.must("recycle", 0)
	r.exitOfPID(pid)
	r.allServe()
	r.kill(r.pid(), syscall.SIGUSR2) // the master, too
	r.nth("RestartFinished", 2)
	r.replace(strings.NewReader("not a program\n"))
	e := r.do("restart", 0)
	if !strings.Contains(e.Err, "must be an executable") || e.RestartError == nil {
		t.Errorf("a text file: %q", e.Err)
	}
	load.lossless()
	r.stop()
}
