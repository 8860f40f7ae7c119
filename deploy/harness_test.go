//go:build unix

package deploy

import (
	"context"
	"io"
	"net/http"
	"os"
	"os/exec"
	"regexp"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/seed-235859eb/usher/internal/process"
	"github.com/seed-235859eb/usher/internal/traffic"
)

// patience is far above what anything here takes.
const patience = time.Minute

var (
	// allServe is written by a master.
	allServe = regexp.MustCompile(`prefork: all seats serve`)
	// stopping is written when a stop has begun.
	stopping = regexp.MustCompile(`usher: stopping`)
)

// server builds examples/server once.
var server = sync.OnceValues(func() (string, error) {
	return process.BuildServer(context.Background(), dir, "")
})

// dir is a folder for what the tests make.
var dir string

func TestMain(m *testing.M) {
	var err error
	if dir, err = os.MkdirTemp("", "usher-deploy-*"); err != nil {
		panic(err)
	}
	code := m.Run()
	os.RemoveAll(dir)
	os.Exit(code)
}

func buildServer(t *testing.T) string {
	t.Helper()
	path, err := server()
	if err != nil {
		t.Fatal(err)
	}
	return path
}

func start(t *testing.T, spec process.Spec) *process.Process {
	t.Helper()
	p, err := process.Start(t.Context(), spec)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		p.Kill()
		if t.Failed() {
			t.Logf("%s says:\n%s", spec.Path, p.Output())
		}
	})
	return p
}

func reserve(t *testing.T) string {
	t.Helper()
	addr, release, err := process.Reserve()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(release)
	return addr
}

func read(t *testing.T, name string) string {
	t.Helper()
	text, err := os.ReadFile(name)
	if err != nil {
		t.Fatal(err)
	}
	return string(text)
}

// replace replaces what has to be there.
func replace(t *testing.T, text, old, new string) string {
	t.Helper()
	if !strings.Contains(text, old) {
		t.Fatalf("there is no %q in\n%s", old, text)
	}
	return strings.Replace(text, old, new, 1)
}

// field returns the rest of the only line that begins so.
func field(t *testing.T, text, prefix string) string {
	t.Helper()
	var found []string
	for line := range strings.Lines(text) {
		if v, ok := strings.CutPrefix(line, prefix); ok {
			found = append(found, strings.TrimSpace(v))
		}
	}
	if len(found) != 1 {
		t.Fatalf("%d lines begin with %s", len(found), prefix)
	}
	return found[0]
}

// get returns the status of a page.
func get(t *testing.T, url string) int {
	t.Helper()
	client := http.Client{Transport: &http.Transport{DisableKeepAlives: true}, Timeout: patience}
	resp, err := client.Get(url)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	io.Copy(io.Discard, resp.Body)
	return resp.StatusCode
}

// loads puts load of two kinds on a server. What it returns ends the load, and
// returns what became of it; each is called for each answer.
func loads(t *testing.T, addr string, each func()) (end func() traffic.Result) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 5*patience)
	var (
		wg    sync.WaitGroup
		mu    sync.Mutex
		total traffic.Result
	)
	for _, m := range []traffic.Mode{traffic.KeepAlive, traffic.PerRequest} {
		wg.Go(func() {
			r, err := traffic.Run(ctx, traffic.Config{Network: "tcp", Addr: addr, Clients: 16, Mode: m, Body: "body"}, each)
			mu.Lock()
			defer mu.Unlock()
			if err != nil {
				t.Error(err)
			}
			total.Answered += r.Answered
			total.Lost += r.Lost
			total.Refused += r.Refused
			total.Errors = append(total.Errors, r.Errors...)
		})
	}
	return func() traffic.Result {
		cancel()
		wg.Wait()
		return total
	}
}

// command returns a command of a package that may not be there.
func command(t *testing.T, name string, args ...string) *exec.Cmd {
	t.Helper()
	if _, err := exec.LookPath(name); err != nil {
		t.Skipf("%v: not tried", err)
	}
	return exec.Command(name, args...)
}
