package prefork

import (
	"bytes"
	"os"
	"slices"
	"strconv"
	"syscall"
)

// findOrphans returns the workers that a master of the same program and user has
// left behind, and that may have sockets of an endpoint.
func findOrphans(path, endpoint string) []*os.Process {
	entries, err := os.ReadDir("/proc")
	if err != nil {
		return nil
	}
	var orphans []*os.Process
	for _, e := range entries {
		pid, err := strconv.Atoi(e.Name())
		if err != nil || pid == os.Getpid() || !isOrphan(pid, path, endpoint) {
			continue
		}
		p, err := os.FindProcess(pid)
		if err != nil {
			continue
		}
		if !isOrphan(pid, path, endpoint) { // the number may be another's by now
			p.Release()
			continue
		}
		orphans = append(orphans, p)
	}
	return orphans
}

func isOrphan(pid int, path, endpoint string) bool {
	dir := "/proc/" + strconv.Itoa(pid)
	info, err := os.Stat(dir)
	if err != nil {
		return false
	}
	if st, ok := info.Sys().(*syscall.Stat_t); !ok || os.Geteuid() != 0 && int(st.Uid) != os.Geteuid() {
		return false
	}
	environ, err := os.ReadFile(dir + "/environ")
	if err != nil {
		return false
	}
	for v := range bytes.SplitSeq(environ, []byte{0}) {
		value, ok := bytes.CutPrefix(v, []byte(workerEnv+"="))
		if !ok {
			continue
		}
		setup, err := parseSetup(string(value))
		parent := parentOf(pid)
		return err == nil && setup.Path == path && setup.Master > 0 && parent > 0 && parent != setup.Master &&
			slices.ContainsFunc(setup.Sockets, func(s workerSocket) bool { return s.Name == endpoint })
	}
	return false
}

// parentOf returns the parent of a process, or 0 if it is dead.
func parentOf(pid int) int {
	stat, err := os.ReadFile("/proc/" + strconv.Itoa(pid) + "/stat")
	if err != nil {
		return 0
	}
	// "pid (name) state ppid …", and a name may have parentheses.
	fields := bytes.Fields(stat[bytes.LastIndexByte(stat, ')')+1:])
	if len(fields) < 2 || string(fields[0]) == "Z" {
		return 0
	}
	ppid, _ := strconv.Atoi(string(fields[1]))
	return ppid
}
