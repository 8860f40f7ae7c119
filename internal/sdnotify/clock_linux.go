package sdnotify

import (
	"fmt"

	"golang.org/x/sys/unix"
)

// monotonicLine returns the assignment of MONOTONIC_USEC by the clock that
// systemd compares it with, whose readings package time does not tell.
func monotonicLine() string {
	var ts unix.Timespec
	if unix.ClockGettime(unix.CLOCK_MONOTONIC, &ts) != nil {
		return "" // Only a filter on system calls does that; a zero would not help.
	}
	return fmt.Sprintf("MONOTONIC_USEC=%d\n", ts.Nano()/1000)
}
