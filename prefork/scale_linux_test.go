package prefork

import (
	"testing"

	"github.com/seed-235859eb/usher/internal/traffic"
	"golang.org/x/sys/unix"
)

// TestScaleWithoutDescriptors: a seat for which there is no socket to be had
// comes when there is, and does no harm before.
func TestScaleWithoutDescriptors(t *testing.T) {
	t.Parallel()
	r := start(t, quick(2))
	load := r.load(2, traffic.PerRequest, "/")
	load.answered(20)
	var limit unix.Rlimit
	if err := unix.Prlimit(r.pid(), unix.RLIMIT_NOFILE, nil, &limit); err != nil {
		t.Fatal(err)
	}
	low := limit
	low.Cur = 8 // fewer than it has
	if err := unix.Prlimit(r.pid(), unix.RLIMIT_NOFILE, &low, nil); err != nil {
		t.Fatal(err)
	}
	r.must("scale", 3)
	r.logged("cannot open a socket for another seat")
	r.nth("WorkerExit", 2) // that could not be started
	load.answered(20)
	if s := r.stats(); s.Serving != 2 {
		t.Errorf("%d workers serve", s.Serving)
	}
	if err := unix.Prlimit(r.pid(), unix.RLIMIT_NOFILE, &limit, nil); err != nil {
		t.Fatal(err)
	}
	r.scaled(3)
	load.answered(20)
	load.lossless()
	r.stop()
}
