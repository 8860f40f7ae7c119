package prefork

import (
	"os"

	"github.com/seed-235859eb/usher/internal/fleet"
	"golang.org/x/sys/unix"
)

// awaitExit waits until p has ended, and returns how to collect its status. It
// is not collected here: as long as it is not, a master that replaces itself by
// exec finds it again.
func awaitExit(p *os.Process) func() fleet.Exit {
	for {
		err := unix.Waitid(unix.P_PID, p.Pid, nil, unix.WEXITED|unix.WNOWAIT, nil)
		if err != unix.EINTR {
			break
		}
	}
	return func() fleet.Exit { return exitStatus(p.Wait()) }
}
