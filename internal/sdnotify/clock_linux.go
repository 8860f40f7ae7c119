package sdnotify

import (
	"fmt"

	"golang.org/x/sys/unix"
)

// monotonicLine returns the assignment of MONOTONIC_USEC, by the clock that
// systemd compares it with. Package time does not tell its readings.
func monotonicLine() (string, error) {
	var ts unix.Timespec
	if err := unix.ClockGettime(unix.CLOCK_MONOTONIC, &ts); err != nil {
		return "", fmt.Errorf("read monotonic clock: %w", err)
	}
	return fmt.Sprintf("MONOTONIC_USEC=%d\n", ts.Nano()/1000), nil
}
