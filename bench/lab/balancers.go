package main

import (
	"cmp"
	"context"
	"debug/buildinfo"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"

	"github.com/seed-235859eb/usher/internal/process"
)

// A balancer is a load balancer in front of backends, with the configuration
// in deploy/.
type balancer struct {
	name    string
	missing string // why it is left out
	version string

	config string // its file in deploy
	listen change // of where it listens, to ADDR or PORT
	// command returns the command line, and writes what it needs besides.
	command func(dir, config string) (args []string, err error)
	env     func(dir string) []string
	ready   *regexp.Regexp
	path    string
}

// Names of balancers.
const (
	nginx   = "nginx"
	haproxy = "HAProxy"
	caddy   = "Caddy"
)

// balancersHint is a line that installs them where services do not start by
// themselves, as in containers.
const balancersHint = "apt-get install -y --no-install-recommends nginx-light haproxy caddy"

// deployed are the backends' addresses in deploy/.
var deployed = []string{"10.0.0.1:8080", "10.0.0.2:8080", "10.0.0.3:8080"}

// A change is made to a configuration before it is used.
type change struct{ from, to string }

// balancers are all of them, in the order of the results.
func balancers(ctx context.Context) []*balancer {
	all := []*balancer{
		{
			name: nginx, config: "nginx.conf", listen: change{"listen 80;", "listen ADDR;"}, command: nginxCommand,
			ready: regexp.MustCompile(`start worker processes`),
		},
		{
			name: haproxy, config: "haproxy.cfg", listen: change{"bind :80", "bind ADDR"},
			command: func(_, config string) ([]string, error) { return []string{"-W", "-db", "-f", config}, nil },
			ready:   regexp.MustCompile(`Loading success`),
		},
		{
			name: caddy, config: "Caddyfile", listen: change{":80 {", "{\n\tadmin off\n}\nhttp://:PORT {\n\tbind 127.0.0.1"},
			command: func(_, config string) ([]string, error) {
				return []string{"run", "--config", config, "--adapter", "caddyfile"}, nil
			},
			env: func(dir string) []string {
				return []string{"HOME=" + dir, "XDG_DATA_HOME=" + dir, "XDG_CONFIG_HOME=" + dir}
			},
			ready: caddyReady,
		},
	}
	for _, b := range all {
		program := strings.ToLower(b.name)
		var err error
		if b.path, err = findProgram(program); err == nil {
			b.version, err = balancerVersion(ctx, b.path)
		}
		if err != nil {
			b.missing = fmt.Sprintf("no %s is installed; to have it: %s", b.name, balancersHint)
		}
	}
	return all
}

// findProgram looks where distributions put daemons, too: not everybody's PATH
// has it.
func findProgram(name string) (string, error) {
	path, err := exec.LookPath(name)
	if errors.Is(err, exec.ErrNotFound) {
		path, err = exec.LookPath(filepath.Join("/usr/sbin", name))
	}
	return path, err
}

var versionNumber = regexp.MustCompile(`\d+\.\d+\.\d+`)

func balancerVersion(ctx context.Context, path string) (string, error) {
	how := "-v"
	if filepath.Base(path) == "caddy" {
		how = "version"
	}
	out, err := exec.CommandContext(ctx, path, how).CombinedOutput()
	if err != nil {
		return "", fmt.Errorf("%s %s: %w", path, how, err)
	}
	version := versionNumber.FindString(string(out))
	if info, err := buildinfo.ReadFile(path); version == "" && err == nil {
		version = info.Main.Version // Caddy as go install makes it
	}
	return cmp.Or(version, "of unknown version"), nil
}

// start starts the balancer in front of backends. It must be killed.
func (b *balancer) start(ctx context.Context, w *workshop, backends []string, changes []change) (p *process.Process, err error) {
	dir, err := w.folder()
	if err != nil {
		return nil, err
	}
	text, err := os.ReadFile(filepath.Join(w.checkout, "deploy", b.config))
	if err != nil {
		return nil, err
	}
	addr, release, err := process.Reserve()
	if err != nil {
		return nil, err
	}
	// It listens on the address when it is ready, or it does not start.
	defer release()
	_, port, _ := strings.Cut(addr, ":")
	listen := change{b.listen.from, strings.NewReplacer("ADDR", addr, "PORT", port).Replace(b.listen.to)}
	changes = append(slices.Clip(changes), listen)
	for i, addr := range backends {
		changes = append(changes, change{deployed[i], addr})
	}
	config, err := edit(string(text), changes)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", b.config, err)
	}
	file := filepath.Join(dir, b.config)
	if err := os.WriteFile(file, []byte(config), 0o666); err != nil {
		return nil, err
	}
	args, err := b.command(dir, file)
	if err != nil {
		return nil, err
	}
	spec := process.Spec{Path: b.path, Args: args, Dir: dir, Ready: b.ready, Addr: addr}
	if b.env != nil {
		spec.Env = b.env(dir)
	}
	if p, err = process.Start(ctx, spec); err != nil {
		return nil, fmt.Errorf("start %s: %w", b.name, err)
	}
	return p, nil
}

// edit makes changes to a configuration, and wants each to have something to
// change.
func edit(text string, changes []change) (string, error) {
	for _, c := range changes {
		if !strings.Contains(text, c.from) {
			return "", fmt.Errorf("there is no %q to change", c.from)
		}
		text = strings.ReplaceAll(text, c.from, c.to)
	}
	return text, nil
}

// nginxMain is what includes deploy/nginx.conf. Whatever nginx writes is in
// the folder that it runs in.
const nginxMain = `daemon off;
pid nginx.pid;
error_log stderr notice;
worker_processes auto;
events { worker_connections 1024; }
http {
    access_log off;
    client_body_temp_path body;
    proxy_temp_path proxy;
    fastcgi_temp_path fastcgi;
    scgi_temp_path scgi;
    uwsgi_temp_path uwsgi;
    include %s;
}
`

func nginxCommand(dir, config string) ([]string, error) {
	file := filepath.Join(dir, "main.conf")
	if err := os.WriteFile(file, fmt.Appendf(nil, nginxMain, config), 0o666); err != nil {
		return nil, err
	}
	return []string{"-p", dir, "-c", file, "-e", "stderr"}, nil
}
