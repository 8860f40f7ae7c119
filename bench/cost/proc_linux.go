package main

import (
	"bufio"
	"fmt"
	"io"
	"net"
	"os"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// cpuTime returns the CPU time, user and system, that a process has used in
// all its threads. It is utime+stime of /proc/PID/stat, before that is rounded
// to 10 ms.
func cpuTime(pid int) (time.Duration, error) {
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

// busyTime returns the time that all CPUs together have not been idle, in
// whole ticks. Time that a hypervisor took away is in it.
func busyTime() (time.Duration, error) {
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

// residentSize returns VmRSS of a process, in bytes.
func residentSize(pid int) (int64, error) {
	f, err := os.Open(fmt.Sprintf("/proc/%d/status", pid))
	if err != nil {
		return 0, err
	}
	defer f.Close()
	sc := bufio.NewScanner(f)
	for sc.Scan() {
		if rest, ok := strings.CutPrefix(sc.Text(), "VmRSS:"); ok {
			kB, err := strconv.ParseInt(strings.TrimSuffix(strings.TrimSpace(rest), " kB"), 10, 64)
			if err != nil {
				return 0, fmt.Errorf("%s: VmRSS: %w", f.Name(), err)
			}
			return kB << 10, nil
		}
	}
	return 0, fmt.Errorf("%s has no VmRSS: %w", f.Name(), sc.Err())
}

// discard receives n bytes and throws them away in the kernel, uncopied.
func discard(c *net.TCPConn, n int64) error {
	rc, err := c.SyscallConn()
	if err != nil {
		return err
	}
	buf := make([]byte, 1<<20) // only its length counts
	for n > 0 {
		var got int
		var rerr error
		err := rc.Read(func(fd uintptr) bool {
			for {
				got, _, rerr = unix.Recvfrom(int(fd), buf[:min(n, int64(len(buf)))], unix.MSG_TRUNC)
				if rerr != unix.EINTR {
					return rerr != unix.EAGAIN
				}
			}
		})
		switch {
		case err != nil:
			return err
		case rerr != nil:
			return os.NewSyscallError("recvfrom", rerr)
		case got == 0:
			return io.ErrUnexpectedEOF
		}
		n -= int64(got)
	}
	return nil
}
