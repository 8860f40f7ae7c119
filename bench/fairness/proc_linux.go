package fairness

import (
	"fmt"
	"os"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// CPUTime returns the CPU time that the process has used.
func (p *Process) CPUTime() (time.Duration, error) {
	clock := int32(^p.PID<<3 | 2) // as clock_getcpuclockid(3) makes it
	var ts unix.Timespec
	if err := unix.ClockGettime(clock, &ts); err != nil {
		return 0, fmt.Errorf("CPU clock of process %d: %w", p.PID, err)
	}
	return time.Duration(ts.Nano()), nil
}

// PeakRSS returns the most memory that the process has had resident, in bytes.
// That of getrusage(2) would count its parent's, before the exec.
func (p *Process) PeakRSS() (int64, error) {
	name := fmt.Sprintf("/proc/%d/status", p.PID)
	b, err := os.ReadFile(name)
	if err != nil {
		return 0, err
	}
	_, rest, _ := strings.Cut(string(b), "VmHWM:")
	line, _, _ := strings.Cut(rest, "\n")
	kB, err := strconv.ParseInt(strings.TrimSpace(strings.TrimSuffix(line, " kB")), 10, 64)
	if err != nil {
		return 0, fmt.Errorf("%s: VmHWM: %w", name, err)
	}
	return kB << 10, nil
}
