//go:build unix

package prefork

import (
	"fmt"
	"os"
	"syscall"

	"github.com/seed-235859eb/usher/internal/reuseport"
)

// What the master needs descriptors for, each.
const (
	fdsOfWorker = 3 // control socket, standard error, and the process itself
	fdsOfStart  = 4 // while it starts: the other ends of these, the program, and one for fork
	fdsSpare    = 8 // an upgrade's trial run and state, hooks
)

// descriptorsNeeded returns how many descriptors the master has when a restart of
// so many seats is at its height, besides those that are open before.
func (o Options) descriptorsNeeded(seats int, endpoints []Endpoint) int {
	surge := o.MaxSurge
	if surge == 0 || surge > seats {
		surge = seats
	}
	sockets, programs := 0, 2
	for _, e := range endpoints {
		if e.foreign() || e.Network == "unix" || !reuseport.Balanced {
			sockets++
		} else {
			sockets += seats
		}
	}
	start := fdsOfStart + len(endpoints)
	return sockets + programs + fdsOfWorker*seats + (fdsOfWorker+start)*surge + fdsSpare
}

// openDescriptors returns how many this process has open.
func openDescriptors() int {
	for _, dir := range []string{"/proc/self/fd", "/dev/fd"} {
		if open, err := os.ReadDir(dir); err == nil {
			return len(open) - 1 // without that of the directory
		}
	}
	return 16
}

// checkDescriptors returns an error if the master may not open so many. It raises
// the soft limit to the hard one where that is enough; Go's runtime does at the
// start, unless the program has set a limit itself.
func checkDescriptors(need int, seats int) error {
	var limit syscall.Rlimit
	if err := syscall.Getrlimit(syscall.RLIMIT_NOFILE, &limit); err != nil || uint64(need) <= uint64(limit.Cur) {
		return nil
	}
	if uint64(need) <= uint64(limit.Max) {
		limit.Cur = limit.Max
		if syscall.Setrlimit(syscall.RLIMIT_NOFILE, &limit) == nil {
			return nil
		}
	}
	return fmt.Errorf("prefork: %d workers: the master needs %d descriptors, the limit is %d: raise it (ulimit -n, LimitNOFILE=), or have fewer workers or a smaller MaxSurge", seats, need, uint64(limit.Cur))
}
