package usage

import (
	"fmt"
	"os"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// CPUTime returns the CPU time, user and system, that a process has used in
// all its threads. It is utime+stime of /proc/PID/stat, before that is rounded
// to 10 ms.
func CPUTime(pid int) (time.Duration, error) {
	// As clock_getcpuclockid(3) makes it: CPUCLOCK_SCHED of the process.
	clock := int32(^pid<<3 | 2)
	var ts unix.Timespec
	if err := unix.ClockGettime(clock, &ts); err != nil {
		return 0, fmt.Errorf("CPU clock of process %d: %w", pid, err)
	}
	return time.Duration(ts.Nano()), nil
}

// tick is the unit of /proc/stat, the same on every Linux that Go runs on.
const tick = 10 * time.Millisecond

// BusyTime returns the time that all CPUs together have not been idle, in
// whole ticks. Time that a hypervisor took away is in it.
func BusyTime() (time.Duration, error) {
	const name = "/proc/stat"
	b, err := os.ReadFile(name)
	if err != nil {
		return 0, err
	}
	line, _, _ := strings.Cut(string(b), "\n")
	// cpu user nice system idle iowait irq softirq steal guest guest_nice,
	// where guest times are also in those of the user.
	fields := strings.Fields(line)
	if len(fields) < 9 || fields[0] != "cpu" {
		return 0, fmt.Errorf("%s begins with %q", name, line)
	}
	var busy int64
	for i, f := range fields[1:9] {
		n, err := strconv.ParseInt(f, 10, 64)
		if err != nil {
			return 0, fmt.Errorf("%s: %w", name, err)
		}
		if i != 3 && i != 4 {
			busy += n
		}
	}
	return time.Duration(busy) * tick, nil
}

// ResidentSize returns the memory that a process has resident, in bytes.
func ResidentSize(pid int) (int64, error) { return memory(pid, "VmRSS:") }

// PeakRSS returns the most memory that a process has had resident, in bytes.
// That of getrusage(2) would count its parent's, before the exec.
func PeakRSS(pid int) (int64, error) { return memory(pid, "VmHWM:") }

// memory looks up a line of /proc/PID/status.
func memory(pid int, field string) (int64, error) {
	name := fmt.Sprintf("/proc/%d/status", pid)
	b, err := os.ReadFile(name)
	if err != nil {
		return 0, err
	}
	_, rest, _ := strings.Cut(string(b), "\n"+field)
	line, _, _ := strings.Cut(rest, "\n")
	kB, err := strconv.ParseInt(strings.TrimSpace(strings.TrimSuffix(line, " kB")), 10, 64)
	if err != nil {
		return 0, fmt.Errorf("%s: %s %w", name, field, err)
	}
	return kB << 10, nil
}

// Kernel returns the kernel's release.
func Kernel() string {
	var u unix.Utsname
	if unix.Uname(&u) != nil {
		return "unknown"
	}
	return unix.ByteSliceToString(u.Release[:])
}
