package prefork

import (
	"bytes"
	"os"
	"os/signal"
	"strconv"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// reapStrangers collects orphans of other processes if this is process 1 of a
// container, whose children they become. It never waits for all children at
// once. The returned function ends it.
//
// A dead child that is no worker lies about for strangerAge before it is taken
// for a stranger's: one that the program itself started is waited for by whoever
// did, and its status must not be stolen.
func reapStrangers(m *Master) (stop func()) {
	if os.Getpid() != 1 {
		return func() {}
	}
	died := make(chan os.Signal, 1)
	signal.Notify(died, syscall.SIGCHLD)
	over, ended := make(chan struct{}), make(chan struct{})
	go func() {
		defer close(ended)
		since := map[int]time.Time{}
		tick := time.NewTicker(strangerAge / 5)
		defer tick.Stop()
		pending := true // some may be from before
		for {
			select {
			case <-died:
				pending = true
			case <-tick.C:
				if pending {
					pending = m.reap(since)
				}
			case <-over:
				return
			}
		}
	}()
	return func() {
		signal.Stop(died)
		close(over)
		<-ended
	}
}

// reap collects the dead that have been strangers for long enough, and reports
// whether others are left.
func (m *Master) reap(since map[int]time.Time) bool {
	dead := deadChildren()
	var workers map[int]bool
	if !m.post(func() {}) {
		return false
	}
	known := make(chan map[int]bool, 1)
	m.post(func() {
		pids := map[int]bool{}
		for _, p := range m.procs {
			pids[p.pid] = true
		}
		known <- pids
	})
	select {
	case workers = <-known:
	case <-m.done:
		return false
	}
	left := false
	for pid := range since {
		if !dead[pid] {
			delete(since, pid)
		}
	}
	for pid := range dead {
		if workers[pid] {
			continue
		}
		if since[pid].IsZero() {
			since[pid] = time.Now()
		}
		if time.Since(since[pid]) < strangerAge {
			left = true
			continue
		}
		var status unix.WaitStatus
		if _, err := unix.Wait4(pid, &status, unix.WNOHANG, nil); err == nil {
			m.log.Info("prefork: collected an orphan of another process", "pid", pid, "status", int(status))
		}
		delete(since, pid)
	}
	return left
}

// deadChildren returns the children of this process that are dead and not
// waited for.
func deadChildren() map[int]bool {
	dead := map[int]bool{}
	entries, err := os.ReadDir("/proc")
	if err != nil {
		return dead
	}
	for _, e := range entries {
		pid, err := strconv.Atoi(e.Name())
		if err != nil {
			continue
		}
		stat, err := os.ReadFile("/proc/" + e.Name() + "/stat")
		if err != nil {
			continue
		}
		// "pid (name) state ppid …", and a name may have parentheses.
		fields := bytes.Fields(stat[bytes.LastIndexByte(stat, ')')+1:])
		if len(fields) > 1 && string(fields[0]) == "Z" && string(fields[1]) == strconv.Itoa(os.Getpid()) {
			dead[pid] = true
		}
	}
	return dead
}
