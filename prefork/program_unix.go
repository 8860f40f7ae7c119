//go:build unix

package prefork

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"syscall"

	"golang.org/x/sys/unix"
)

// A program is what the workers of a generation are started from: the file, held
// open, and the directory, as they were when the generation began.
type program struct {
	fd   int    // or -1
	path string // what to execute if there is no fd
	dir  string // without symbolic links; empty means the master's own
}

// programs are where workers come from.
type programs struct {
	path       string              // of the program's file
	dir        string              // that they start in, maybe a symbolic link
	credential *syscall.Credential // whom they run as, or nil
	held       map[int]*program    // by generation
}

func (p *programs) drop(generation int) {
	p.held[generation].close()
	delete(p.held, generation)
}

func (p *programs) close() {
	for _, held := range p.held {
		held.close()
	}
}

// openProgram takes a hold on the program at path, or on the one that runs, and
// on the directory that dir is now.
//
// A script is not held: its interpreter opens it by its name, and the names of
// other files follow from that.
func openProgram(path, dir string, own bool) (*program, error) {
	p := &program{fd: -1, path: path}
	var dirErr error
	if dir != "" {
		if p.dir, dirErr = filepath.EvalSymlinks(dir); dirErr != nil {
			p.dir, dirErr = dir, fmt.Errorf("prefork: directory of the workers: %w", dirErr)
		}
	}
	file := path
	if own {
		file = "/proc/self/exe" // whatever is at path by now
	}
	if _, err := os.Stat("/proc/self/fd"); err != nil {
		return p, dirErr
	}
	fd, err := unix.Open(file, unix.O_RDONLY|unix.O_CLOEXEC, 0)
	switch {
	case err != nil && own:
		return p, dirErr
	case err != nil:
		return p, errors.Join(dirErr, fmt.Errorf("prefork: %s: %w", path, err))
	case isScript(fd):
		unix.Close(fd)
		return p, dirErr
	}
	p.fd = fd
	return p, dirErr
}

func isScript(fd int) bool {
	start := make([]byte, 2)
	n, err := unix.Pread(fd, start, 0)
	return err == nil && string(start[:n]) == "#!"
}

// exec returns what to execute in a child for which p.fd has the number child: the
// file that was opened, that is, and not what has been put in its place since. Only
// Linux can do that.
func (p *program) exec(child int) string {
	if p.fd < 0 {
		return p.path
	}
	return "/proc/self/fd/" + strconv.Itoa(child)
}

// clone returns another hold on p.
func (p *program) clone() (*program, error) {
	if p == nil || p.fd < 0 {
		return p, nil
	}
	fd, err := dupFD(p.fd)
	if err != nil {
		return nil, fmt.Errorf("prefork: %s: %w", p.path, err)
	}
	c := *p
	c.fd = fd
	return &c, nil
}

func (p *program) close() {
	if p != nil && p.fd >= 0 {
		unix.Close(p.fd)
		p.fd = -1
	}
}
