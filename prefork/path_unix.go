//go:build unix

package prefork

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
)

// programPath returns where the program's file is, and the next build of it will
// be: the path that it was started by, since a deploy may consist in changing a
// symbolic link. If that is not known, sure is false, and path is the file that
// runs, of which [os.Executable] tells without the links.
func programPath() (path string, sure bool, err error) {
	exe, err := os.Executable()
	if err != nil {
		return "", false, fmt.Errorf("prefork: %w", err)
	}
	exe = strings.TrimSuffix(exe, " (deleted)")
	if name := startedAs.name; name != "" && !strings.HasPrefix(name, "/proc/") && !strings.HasPrefix(name, "/dev/fd/") {
		if name = atStart(name); filepath.IsAbs(name) && isFile(name) {
			return name, true, nil
		}
	}
	self, err := os.Stat("/proc/self/exe")
	if err != nil {
		if self, err = os.Stat(exe); err != nil {
			return exe, false, nil
		}
	}
	called := startedAs.arg
	if !strings.Contains(called, "/") {
		if called, err = exec.LookPath(called); err != nil {
			return exe, false, nil
		}
	}
	called = atStart(called)
	if info, err := os.Stat(called); err != nil || !os.SameFile(info, self) {
		return exe, false, nil
	}
	return called, true, nil
}

func isFile(path string) bool {
	info, err := os.Stat(path)
	return err == nil && info.Mode().IsRegular()
}

// workDir returns where workers start: in the directory that dir, of the options,
// names, or the one that the master was started in.
func workDir(dir string) string {
	if dir == "" {
		return startedAs.dir
	}
	return atStart(dir)
}
