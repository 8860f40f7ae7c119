package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"

	"github.com/seed-235859eb/usher/internal/process"
)

// A workshop is where servers are made: a folder for what they need, and
// examples/server.
type workshop struct {
	dir      string
	checkout string // of this project
	server   string // of examples/server
	self     string // this program, which is also some servers
	prefork  error  // why examples/server has no workers
	puma     string // version, or empty
	caddy    string
	noPuma   string // why it is not there, and what to do
	noCaddy  string
	versions []string // of peers
}

// openWorkshop builds the server and looks for peers. It is to be closed.
func openWorkshop(ctx context.Context) (*workshop, error) {
	self, err := os.Executable()
	if err != nil {
		return nil, err
	}
	dir, err := os.MkdirTemp("", "usher-lab-*")
	if err != nil {
		return nil, err
	}
	w := &workshop{dir: dir, self: self}
	if w.checkout, err = process.Checkout(ctx); err != nil {
		return nil, errors.Join(err, w.close())
	}
	if w.server, err = process.BuildServer(ctx, dir, ""); err != nil {
		return nil, errors.Join(err, w.close())
	}
	if w.puma, err = pumaVersion(ctx); err != nil {
		w.noPuma = fmt.Sprintf("%v; to have it: %s", err, pumaHint)
	} else {
		w.versions = append(w.versions, "Puma "+w.puma)
	}
	if w.caddy, err = caddyVersion(ctx); err != nil {
		w.noCaddy = "no Caddy is installed; to have it: apt-get install caddy"
	} else {
		w.versions = append(w.versions, "Caddy "+w.caddy)
	}
	w.prefork = w.tryPrefork(ctx)
	return w, nil
}

func (w *workshop) close() error { return os.RemoveAll(w.dir) }

// folder makes an empty folder.
func (w *workshop) folder() (string, error) { return os.MkdirTemp(w.dir, "") }

// tryPrefork says why there are no workers.
func (w *workshop) tryPrefork(ctx context.Context) error {
	p, err := w.startWorkers(ctx, w.server, 2)
	if err != nil {
		if se, ok := errors.AsType[*process.StartError](err); ok && se.State != nil && se.State.ExitCode() == 2 {
			return errors.New("examples/server of this checkout has no workers yet")
		}
		return err
	}
	return p.Stop()
}

// startUsher starts examples/server.
func (w *workshop) startUsher(ctx context.Context, args ...string) (*process.Process, error) {
	return process.Start(ctx, process.Spec{
		Path: w.server,
		Args: append([]string{"-addr", "127.0.0.1:0"}, args...),
		Env:  []string{"TMPDIR=" + w.dir},
	})
}

var (
	// allServe is written by the master of usher/prefork.
	allServe = regexp.MustCompile(`prefork: all seats serve`)
	// workerListens is written by each worker of Go.
	workerListens = regexp.MustCompile(`msg=listening .*\baddr=(\S+) pid=(\d+)`)
)

// startWorkers starts a program, examples/server, with so many workers.
func (w *workshop) startWorkers(ctx context.Context, program string, n int, args ...string) (*process.Process, error) {
	p, err := process.Start(ctx, process.Spec{
		Path:  program,
		Args:  append([]string{"-addr", "127.0.0.1:0", "-workers", strconv.Itoa(n)}, args...),
		Env:   []string{"TMPDIR=" + w.dir},
		Ready: allServe,
	})
	if err != nil {
		return nil, err
	}
	ctx, cancel := context.WithTimeoutCause(ctx, process.StartPatience, errors.New("they do not say it"))
	defer cancel()
	m, err := p.Await(ctx, workerListens, n)
	if err != nil {
		p.Kill()
		return nil, fmt.Errorf("not all workers say where they listen: %w\n%s", err, p.Output())
	}
	p.Addr = m[1]
	return p, nil
}

// startChild starts this program as a server.
func (w *workshop) startChild(ctx context.Context, spec childSpec) (*process.Process, error) {
	var env []string
	if spec.Workers > 0 {
		env = append(env, fmt.Sprint("GOMAXPROCS=", spec.Workers)) // which is how it is told
	}
	if spec.Kind == fastHTTPPrefork { // its workers each open a socket
		var err error
		if spec.Addr, err = freeAddr(); err != nil {
			return nil, err
		}
	}
	return process.Start(ctx, process.Spec{
		Path: w.self, Env: append(env, childEnv+"="+spec.text()), Times: max(spec.Workers, 1),
	})
}

// A pumaSpec is a Puma with rackApp.
type pumaSpec struct {
	workers     int // 0 is no cluster
	drain, term bool
	build       string   // what it sends as X-Build
	config      []string // further lines of it
}

// rackApp reads the body and answers ok. Its first request, if it is told so,
// sends SIGTERM to the master, if there is one, and to its own process.
const rackApp = `
build = File.read("build")
termed = false
run ->(env) {
  if ENV["LAB_TERM"] == "1" && !termed
    termed = true
    master = ENV["LAB_MASTER"].to_i
    Process.kill("TERM", master) if master != Process.pid
    Process.kill("TERM", Process.pid)
  end
  env["rack.input"].read
  [200, {"Content-Length" => "2", "X-Pid" => Process.pid.to_s, "X-Build" => build}, ["ok"]]
}
`

// startPuma starts it, and returns the folder that it lives in.
func (w *workshop) startPuma(ctx context.Context, spec pumaSpec) (p *process.Process, dir string, err error) {
	if dir, err = w.folder(); err != nil {
		return nil, "", err
	}
	if err := os.WriteFile(filepath.Join(dir, "build"), []byte(spec.build), 0o666); err != nil {
		return nil, "", err
	}
	config := []string{
		`threads 5, 5`,
		`ENV["LAB_MASTER"] = Process.pid.to_s`, // where the configuration is read
	}
	if spec.drain {
		config = append(config, "drain_on_shutdown true")
	}
	if spec.term {
		config = append(config, `ENV["LAB_TERM"] = "1"`)
	}
	p, err = startPumaIn(ctx, dir, spec.workers, rackApp, append(config, spec.config...)...)
	return p, dir, err
}

func caddyVersion(ctx context.Context) (string, error) {
	out, err := exec.CommandContext(ctx, "caddy", "version").Output()
	version, _, _ := strings.Cut(strings.TrimSpace(string(out)), " ")
	return version, err
}

// startCaddy starts Caddy, which answers by itself. It wants a port: one that
// was free a moment ago.
func (w *workshop) startCaddy(ctx context.Context) (*process.Process, error) {
	dir, err := w.folder()
	if err != nil {
		return nil, err
	}
	addr, err := freeAddr()
	if err != nil {
		return nil, err
	}
	_, port, _ := strings.Cut(addr, ":")
	file := filepath.Join(dir, "Caddyfile")
	text := fmt.Sprintf("{\n\tadmin off\n\tauto_https off\n\tgrace_period 25s\n}\n:%s {\n\tbind 127.0.0.1\n\trespond \"ok\"\n}\n", port)
	if err := os.WriteFile(file, []byte(text), 0o666); err != nil {
		return nil, err
	}
	p, err := process.Start(ctx, process.Spec{
		Path: "caddy", Args: []string{"run", "--config", file, "--adapter", "caddyfile"}, Dir: dir,
		Env:   []string{"HOME=" + dir, "XDG_DATA_HOME=" + dir, "XDG_CONFIG_HOME=" + dir},
		Ready: caddyReady, Addr: addr,
	})
	if err != nil {
		return nil, fmt.Errorf("start Caddy: %w", err)
	}
	return p, nil
}
