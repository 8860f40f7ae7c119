//go:build unix

package prefork

import (
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

var errNotCalm = errors.New("prefork: something is under way")

// execute replaces this process by the program as it is now. It returns if that
// failed, or has to wait, and then all is as before.
func (m *Master) execute(why string) error {
	streams := m.streams()
	for _, s := range streams {
		s.pause()
	}
	for _, p := range m.procs {
		p.link.conn.SetReadDeadline(time.Now())
	}
	quiet := make(chan struct{})
	go func() {
		defer close(quiet)
		for _, s := range streams {
			s.reading.Wait()
		}
		for _, p := range m.procs {
			p.hearing.Wait()
		}
	}()
	// Events change m.procs, which is read just now.
	var events []func()
	for waiting := true; waiting; {
		select {
		case e := <-m.events:
			events = append(events, e)
		case <-quiet:
			waiting = false
		}
	}
	for more := true; more; {
		select {
		case e := <-m.events:
			events = append(events, e)
		default:
			more = false
		}
	}
	resume := func() {
		for _, p := range m.procs {
			p.link.conn.SetReadDeadline(time.Time{})
			m.listenTo(p)
		}
		for _, s := range m.streams() {
			s.file.SetReadDeadline(time.Time{})
			m.readStream(s)
		}
	}
	for _, e := range events {
		e()
	}
	if m.act() || !m.calm() || m.sockets.closing {
		resume()
		return errNotCalm
	}
	m.manager.tell(func() error { return m.manager.sd.Reloading("replacing the master") })
	m.manager.queue.flush()
	m.flushLog()
	err := errNotCalm
	if m.releaseSignals() {
		err = m.replaceImage(why)
	}
	m.catchSignals(m.signals.caught)
	resume()
	m.manager.ready(m.manager.status)
	return err
}

// replaceImage is the system call with what it needs. It returns only on error.
func (m *Master) replaceImage(why string) error {
	now := time.Now()
	s := masterState{Version: stateVersion, Path: m.programs.path, Workers: m.opts.Workers, Fleet: m.fleet.State(now), Reason: why, PIDFile: string(m.pidFile)}
	s.Seats = len(s.Fleet.Seats)
	for _, caught := range m.signals.caught {
		if n, ok := caught.(syscall.Signal); ok {
			s.Signals = append(s.Signals, int(n))
		}
	}
	var keep []int
	for _, e := range m.sockets.endpoints {
		s.Endpoints = append(s.Endpoints, endpointState{
			Name: e.name, Key: e.key, Network: e.group.Network(), FDs: e.group.FDs(), Shared: e.group.Shared(), Foreign: e.foreign, Unlink: e.unixName.ours(),
		})
		keep = append(keep, e.group.FDs()...)
	}
	for generation, p := range m.programs.held {
		s.Programs = append(s.Programs, programState{Generation: generation, FD: p.fd, Path: p.path, Dir: p.dir})
		if p.fd >= 0 {
			keep = append(keep, p.fd)
		}
	}
	for _, p := range m.procs {
		ps := procState{ID: p.id, Seat: p.seat, Generation: p.generation, PID: p.pid, Rest: p.link.split.rest, Ready: p.ready}
		for seat := range p.adopted {
			ps.Adopted = append(ps.Adopted, seat)
		}
		var err error
		if ps.Control, err = rawFD(p.link.conn); err != nil {
			return fmt.Errorf("prefork: upgrade: control socket of worker %d: %w", p.pid, err)
		}
		if ps.Stderr, err = p.stream.state(); err != nil {
			return fmt.Errorf("prefork: upgrade: standard error of worker %d: %w", p.pid, err)
		}
		keep = append(keep, ps.Control, ps.Stderr.FD)
		s.Procs = append(s.Procs, ps)
	}
	for stream := range m.output.gone {
		ss, err := stream.state()
		if err != nil {
			return fmt.Errorf("prefork: upgrade: standard error of a worker that is gone: %w", err)
		}
		keep = append(keep, ss.FD)
		s.Streams = append(s.Streams, ss)
	}
	state, err := json.Marshal(s)
	if err != nil {
		return fmt.Errorf("prefork: upgrade: encode state: %w", err)
	}
	f, err := scratch(state)
	if err != nil {
		return fmt.Errorf("prefork: upgrade: state: %w", err)
	}
	defer f.Close()
	keep = append(keep, int(f.Fd()))
	m.log.Info("prefork: upgrade: replacing the master", "program", m.programs.path)
	// No child may be born with these descriptors.
	syscall.ForkLock.Lock()
	defer syscall.ForkLock.Unlock()
	for _, fd := range keep {
		if err := setCloseOnExec(fd, false); err != nil {
			return fmt.Errorf("prefork: upgrade: descriptor %d: %w", fd, err)
		}
		defer setCloseOnExec(fd, true)
	}
	env := append(os.Environ(), masterEnv+"="+strconv.Itoa(int(f.Fd())))
	if dir := startedAs.dir; dir != "" {
		// As this one was started. Where there is no such directory any more, the
		// next master can do without it as well as this one.
		before, err := os.Getwd()
		if os.Chdir(dir) == nil {
			env = append(slices.DeleteFunc(env, func(e string) bool { return strings.HasPrefix(e, "PWD=") }), "PWD="+dir)
		}
		if err == nil {
			defer os.Chdir(before)
		}
	}
	err = syscall.Exec(m.programs.path, os.Args, env)
	return fmt.Errorf("prefork: upgrade: execute %s: %w", m.programs.path, err)
}

func rawFD(c syscall.Conn) (int, error) {
	rc, err := c.SyscallConn()
	if err != nil {
		return -1, err
	}
	n := -1
	err = rc.Control(func(fd uintptr) { n = int(fd) })
	return n, err
}

func setCloseOnExec(fd int, on bool) error {
	flags := 0
	if on {
		flags = unix.FD_CLOEXEC
	}
	_, err := unix.FcntlInt(uintptr(fd), unix.F_SETFD, flags)
	return err
}
