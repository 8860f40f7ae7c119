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

// processSpec is what a worker is started with. It owns its descriptors.
type processSpec struct {
	program    *program
	setup      workerSetup
	procs      int
	credential *syscall.Credential
	stdout     bool // goes where standard error goes
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
	if spec.stdout {
		files[1] = w.Fd()
	}
	setup.Sockets = slices.Clone(setup.Sockets)
	for i := range setup.Sockets {
		files = append(files, uintptr(setup.Sockets[i].FD))
		setup.Sockets[i].FD = len(files) - 1
	}
	if spec.program.fd >= 0 {
		files = append(files, uintptr(spec.program.fd))
		setup.Program = len(files) - 1
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
		return name == workerEnv || name == masterEnv || name == checkEnv || name == "PWD" && spec.program.dir != ""
	})
	attr := &syscall.ProcAttr{Env: append(env, workerEnv+"="+string(value)), Files: files}
	if spec.credential != nil {
		attr.Sys = &syscall.SysProcAttr{Credential: spec.credential}
	}
	if dir := spec.program.dir; dir != "" {
		attr.Dir = dir
		attr.Env = append(attr.Env, "PWD="+dir)
	}
	pid, err := syscall.ForkExec(spec.program.exec(setup.Program), os.Args, attr)
	if err != nil {
		return fail(startError(spec.program, err))
	}
	process, err := os.FindProcess(pid) // ours, and not waited for: it exists
	if err != nil {
		return fail(fmt.Errorf("prefork: process %d: %w", pid, err))
	}
	return &started{process: process, link: link, stream: newStream(r)}, nil
}

// startError says why a program could not be started.
func startError(p *program, err error) error {
	switch {
	case errors.Is(err, syscall.ENOEXEC):
		err = fmt.Errorf("%w: must be an executable for this system, or a script that begins with #! and executes one", err)
	case p.dir != "" && errors.Is(err, syscall.ENOENT):
		if _, derr := os.Stat(p.dir); derr != nil {
			err = fmt.Errorf("its directory: %w", derr)
		}
	}
	return fmt.Errorf("prefork: start %s: %w", p.path, err)
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
