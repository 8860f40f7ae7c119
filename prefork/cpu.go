package prefork

import (
	"os"
	"runtime"
)

// cpuShare returns the GOMAXPROCS of one of n workers: its share of what this
// process has, which follows the quota of its control group, rounded up so that
// none of it lies idle. It is 0, which leaves things as they are, if the user
// has set the variable.
func cpuShare(n int) int {
	if os.Getenv("GOMAXPROCS") != "" {
		return 0
	}
	return (runtime.GOMAXPROCS(0) + n - 1) / n
}
