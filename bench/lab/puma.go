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
)

// pumaHint says how to have Puma.
const pumaHint = "apt-get install puma, or gem install puma"

// errNoPuma is the error of [pumaVersion] where there is none.
var errNoPuma = errors.New("Puma is not installed")

// pumaVersion returns that of the Puma that is installed.
func pumaVersion(ctx context.Context) (string, error) {
	if _, err := exec.LookPath("puma"); err != nil {
		return "", errNoPuma
	}
	ctx, cancel := context.WithTimeout(ctx, startPatience)
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

var pumaListening = regexp.MustCompile(`Listening on http://(127\.0\.0\.1:\d+)`)

// startPuma starts Puma with an application, in an empty folder of its own,
// with config lines as config/puma.rb has them. Ports are of its choice.
func startPuma(ctx context.Context, app string, config ...string) (p *process, cleanUp func(), err error) {
	dir, err := os.MkdirTemp("", "usher-lab-puma-*")
	if err != nil {
		return nil, nil, err
	}
	cleanUp = func() { os.RemoveAll(dir) }
	defer func() {
		if err != nil {
			cleanUp()
		}
	}()
	config = append([]string{`bind "tcp://127.0.0.1:0"`, `environment "production"`}, config...)
	for name, text := range map[string]string{"config.ru": app, "puma.rb": strings.Join(config, "\n") + "\n"} {
		if err := os.WriteFile(filepath.Join(dir, name), []byte(text), 0o666); err != nil {
			return nil, nil, err
		}
	}
	cmd := exec.Command("puma", "-C", "puma.rb", "config.ru")
	cmd.Dir = dir
	p, err = startProcess(ctx, "Puma", cmd, func(line string) string {
		if m := pumaListening.FindStringSubmatch(line); m != nil {
			return m[1]
		}
		return ""
	})
	if err != nil {
		return nil, nil, err
	}
	return p, func() { p.stop(); os.RemoveAll(dir) }, nil
}
