//go:build unix

package prefork

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"slices"
	"strconv"
	"strings"
	"syscall"

	"github.com/seed-235859eb/usher/internal/fleet"
	"github.com/seed-235859eb/usher/internal/sdnotify"
	"golang.org/x/sys/unix"
)

const (
	dumpSignal = syscall.SIGQUIT // Go programs dump all goroutines and exit
	stopSignal = syscall.SIGTERM
)

// A program is the file of a generation, held open.
type program struct {
	fd   int // or -1
	path string
}

// exec returns what to execute in a child that gets files, and how to let go of
// it: the file that was opened, that is, and not what has been put in its place
// since; only Linux can do that. The child has its own table of descriptors, in
// which [syscall.ForkExec] first moves some of files out of the way, to the
// numbers that follow the highest of them. The program's must be beyond those.
func (p *program) exec(files []uintptr) (path string, release func(), err error) {
	if p.fd < 0 {
		return p.path, func() {}, nil
	}
	fd, err := unix.FcntlInt(uintptr(p.fd), unix.F_DUPFD_CLOEXEC, int(slices.Max(files))+len(files)+3)
	if err != nil {
		return "", nil, os.NewSyscallError("fcntl", err)
	}
	return "/proc/self/fd/" + strconv.Itoa(fd), func() { unix.Close(fd) }, nil
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
	return &program{fd: fd, path: p.path}, nil
}

func (p *program) close() {
	if p != nil && p.fd >= 0 {
		unix.Close(p.fd)
		p.fd = -1
	}
}

// openProgram takes a hold on the program at path, or on the one that runs.
func openProgram(path string, own bool) (*program, error) {
	p := &program{fd: -1, path: path}
	file := path
	if own {
		file = "/proc/self/exe" // whatever is at path by now
	}
	if _, err := os.Stat("/proc/self/fd"); err != nil {
		return p, nil
	}
	fd, err := unix.Open(file, unix.O_RDONLY|unix.O_CLOEXEC, 0)
	if err != nil {
		if own {
			return p, nil
		}
		return p, fmt.Errorf("prefork: %s: %w", path, err)
	}
	p.fd = fd
	return p, nil
}

// processSpec is what a worker is started with. It owns its descriptors.
type processSpec struct {
	program *program
	setup   workerSetup
	procs   int
}

func (s processSpec) close() {
	for _, fd := range fdsOf(s.setup.Sockets) {
		unix.Close(fd)
	}
	s.program.close()
}

// abandon lets a process go that nobody wants any more: to it, its master has
// died.
func (s *started) abandon() {
	s.link.Close()
	s.stream.file.Close()
	go s.process.Wait()
}

// startProcess starts a worker. The descriptors go to it by syscall.ForkExec:
// os.File.Fd, which os/exec uses, would clear O_NONBLOCK of sockets that other
// processes share, and their Close would hang (golang/go#29277).
func startProcess(spec processSpec) (*started, error) {
	if spec.program == nil {
		return nil, errors.New("prefork: the program could not be opened")
	}
	ours, theirs, err := socketPair()
	if err != nil {
		return nil, fmt.Errorf("prefork: control socket: %w", err)
	}
	defer unix.Close(theirs)
	link, err := newLink(ours)
	if err != nil {
		return nil, err
	}
	r, w, err := os.Pipe()
	if err != nil {
		link.Close()
		return nil, fmt.Errorf("prefork: pipe for standard error: %w", err)
	}
	defer w.Close()
	fail := func(err error) (*started, error) {
		link.Close()
		r.Close()
		return nil, err
	}

	setup := spec.setup
	files := []uintptr{0, 1, w.Fd(), uintptr(theirs), 2}
	setup.Control, setup.Stderr = 3, 4
	setup.Sockets = slices.Clone(setup.Sockets)
	for i := range setup.Sockets {
		files = append(files, uintptr(setup.Sockets[i].FD))
		setup.Sockets[i].FD = len(files) - 1
	}
	env := sdnotify.Scrub(os.Environ())
	if spec.procs > 0 {
		env = append(env, "GOMAXPROCS="+strconv.Itoa(spec.procs))
		setup.MaxProcs = true
	}
	value, err := json.Marshal(setup)
	if err != nil {
		return fail(fmt.Errorf("prefork: encode %s: %w", workerEnv, err))
	}
	env = slices.DeleteFunc(env, func(e string) bool {
		name, _, _ := strings.Cut(e, "=")
		return name == workerEnv || name == masterEnv || name == checkEnv
	})
	path, release, err := spec.program.exec(files)
	if err != nil {
		return fail(fmt.Errorf("prefork: start %s: %w", spec.program.path, err))
	}
	defer release()
	pid, err := syscall.ForkExec(path, os.Args, &syscall.ProcAttr{
		Env:   append(env, workerEnv+"="+string(value)),
		Files: files,
	})
	if err != nil {
		return fail(fmt.Errorf("prefork: start %s: %w", spec.program.path, err))
	}
	process, err := os.FindProcess(pid) // ours, and not waited for: it exists
	if err != nil {
		return fail(fmt.Errorf("prefork: process %d: %w", pid, err))
	}
	return &started{process: process, link: link, stream: newStream(r)}, nil
}

// socketPair makes a pair that no child inherits by accident.
func socketPair() (a, b int, err error) {
	syscall.ForkLock.RLock()
	defer syscall.ForkLock.RUnlock()
	fds, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_STREAM, 0)
	if err != nil {
		return -1, -1, err
	}
	unix.CloseOnExec(fds[0])
	unix.CloseOnExec(fds[1])
	return fds[0], fds[1], nil
}

func dupFD(fd int) (int, error) {
	return unix.FcntlInt(uintptr(fd), unix.F_DUPFD_CLOEXEC, 3)
}

// exitStatus translates what Wait returned.
func exitStatus(state *os.ProcessState, err error) fleet.Exit {
	if err != nil {
		return fleet.Exit{Unknown: true}
	}
	status, ok := state.Sys().(syscall.WaitStatus)
	switch {
	case !ok:
		return fleet.Exit{Unknown: true}
	case status.Signaled():
		return fleet.Exit{Signal: int(status.Signal())}
	default:
		return fleet.Exit{Code: status.ExitStatus()}
	}
}

// isEnd reports whether err is how a link ends.
func isEnd(err error) bool {
	return errors.Is(err, io.EOF) || errors.Is(err, net.ErrClosed) || errors.Is(err, unix.ECONNRESET) || errors.Is(err, os.ErrDeadlineExceeded)
}
