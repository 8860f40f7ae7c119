//go:build unix && !linux

package prefork

import (
	"os"

	"github.com/seed-235859eb/usher/internal/fleet"
)

// awaitExit waits until p has ended and returns its status.
func awaitExit(p *os.Process) func() fleet.Exit {
	e := exitStatus(p.Wait())
	return func() fleet.Exit { return e }
}
