package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"time"

	"github.com/seed-235859eb/usher/internal/process"
)

// pumaHint says how to have Puma.
const pumaHint = "apt-get install puma, or gem install puma"

// errNoPuma is the error of [pumaVersion] where there is none.
var errNoPuma = errors.New("no Puma is installed")

// pumaVersion returns that of the Puma that is installed.
func pumaVersion(ctx context.Context) (string, error) {
	if _, err := exec.LookPath("puma"); err != nil {
		return "", errNoPuma
	}
	ctx, cancel := context.WithTimeout(ctx, 20*time.Second)
	defer cancel()
	out, err := exec.CommandContext(ctx, "puma", "--version").Output()
	if err != nil {
		return "", fmt.Errorf("%w: puma --version: %w", errNoPuma, err)
	}
	fields := strings.Fields(string(out)) // puma version 5.6.5
	if len(fields) < 3 {
		return "", fmt.Errorf("puma --version says %q", out)
	}
	return fields[2], nil
}

// sleepyRack is a Rack application that answers after some time.
func sleepyRack(d time.Duration) string {
	return fmt.Sprintf("run ->(env) { sleep %g; [200, {\"Content-Length\" => \"2\"}, [\"ok\"]] }\n", d.Seconds())
}

var (
	pumaListening = regexp.MustCompile(`Listening on http://(127\.0\.0\.1:\d+)`)
	pumaReady     = regexp.MustCompile(`Use Ctrl-C to stop`)
	// pumaBooted is written by a cluster for each worker.
	pumaBooted = regexp.MustCompile(`Worker \d+ \(PID: (\d+)\) booted`)
)

// startPuma starts Puma with an application, in an empty folder of its own,
// with config lines as config/puma.rb has them. Ports are of its choice.
func startPuma(ctx context.Context, app string, config ...string) (p *process.Process, cleanUp func(), err error) {
	dir, err := os.MkdirTemp("", "usher-lab-puma-*")
	if err != nil {
		return nil, nil, err
	}
	p, err = startPumaIn(ctx, dir, 0, app, config...)
	if err != nil {
		return nil, nil, errors.Join(err, os.RemoveAll(dir))
	}
	return p, func() {
		p.Stop() // how it took it is its own affair
		os.RemoveAll(dir)
	}, nil
}

// startPumaIn is startPuma in a folder, with so many workers; 0 is no cluster.
func startPumaIn(ctx context.Context, dir string, workers int, app string, config ...string) (*process.Process, error) {
	config = append([]string{`bind "tcp://127.0.0.1:0"`, `environment "production"`, fmt.Sprint("workers ", workers)}, config...)
	for name, text := range map[string]string{"config.ru": app, "puma.rb": strings.Join(config, "\n") + "\n"} {
		if err := os.WriteFile(filepath.Join(dir, name), []byte(text), 0o666); err != nil {
			return nil, err
		}
	}
	spec := process.Spec{Path: "puma", Args: []string{"-C", "puma.rb", "config.ru"}, Dir: dir, Ready: pumaReady}
	if workers > 0 {
		spec.Ready, spec.Times = pumaBooted, workers
	}
	p, err := process.Start(ctx, spec)
	if err != nil {
		return nil, fmt.Errorf("start Puma: %w", err)
	}
	m, err := p.Await(ctx, pumaListening, 1)
	if err != nil {
		p.Kill()
		return nil, fmt.Errorf("start Puma: it does not say where it listens: %w\n%s", err, p.Output())
	}
	p.Addr = m[1]
	return p, nil
}
