package prefork

import (
	"fmt"
	"os/exec"
	"regexp"
	"strings"
	"testing"

	"github.com/seed-235859eb/usher/internal/traffic"
	"golang.org/x/sys/unix"
)

// limited starts the program by a shell that sets a limit of descriptors first.
func limited(ulimit string) func(c *exec.Cmd) {
	return func(c *exec.Cmd) {
		c.Args = []string{"sh", "-c", "ulimit " + ulimit + ` && exec "$0"`, c.Path}
		c.Path = "/bin/sh"
	}
}

// TestDescriptorsCounted: a master that would run out of descriptors says so
// before it starts, and what it says it needs is enough.
func TestDescriptorsCounted(t *testing.T) {
	for _, workers := range []int{8, 16} {
		t.Run(fmt.Sprint(workers), func(t *testing.T) {
			t.Parallel()
			p := quick(workers)
			r := launch(t, p, limited("-n 64"))
			if status := r.gone(); status != 1 {
				t.Errorf("status %d, want 1", status)
			}
			line := r.logged("program: prefork: ", fmt.Sprintf("%d workers", workers), "the limit is 64")
			need := regexp.MustCompile(`needs (\d+) descriptors`).FindStringSubmatch(line)
			if need == nil {
				t.Fatalf("does not say how many it needs: %s", line)
			}
			r = start(t, p, limited("-n "+need[1]))
			load := r.load(2, traffic.PerRequest, "/")
			r.must("restart", 0)
			load.answered(20)
			load.lossless()
			r.stop()
		})
	}
}

// TestSoftLimit: a soft limit that is too low is raised.
func TestSoftLimit(t *testing.T) {
	t.Parallel()
	r := start(t, quick(8), limited("-S -n 40"))
	r.must("restart", 0)
	r.stop()
}

// TestRestartWithoutDescriptors: a restart for which there are no descriptors ends,
// and says why.
func TestRestartWithoutDescriptors(t *testing.T) {
	t.Parallel()
	r := start(t, quick(3))
	load := r.load(2, traffic.PerRequest, "/")
	load.answered(20)
	var limit unix.Rlimit
	if err := unix.Prlimit(r.pid(), unix.RLIMIT_NOFILE, nil, &limit); err != nil {
		t.Fatal(err)
	}
	low := limit
	low.Cur = uint64(fds(t, r.pid())) + 2
	if err := unix.Prlimit(r.pid(), unix.RLIMIT_NOFILE, &low, nil); err != nil {
		t.Fatal(err)
	}
	if e := r.do("restart", 0); e.RestartError == nil || !strings.Contains(e.Err, "too many open files") {
		t.Errorf("the restart says %q", e.Err)
	}
	if err := unix.Prlimit(r.pid(), unix.RLIMIT_NOFILE, &limit, nil); err != nil {
		t.Fatal(err)
	}
	r.must("restart", 0)
	load.answered(20)
	load.lossless()
	r.stop()
}
