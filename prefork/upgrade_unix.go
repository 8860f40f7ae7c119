//go:build unix

package prefork

import (
	"bytes"
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"time"

	"github.com/seed-235859eb/usher/internal/fleet"
	"github.com/seed-235859eb/usher/internal/reuseport"
	"github.com/seed-235859eb/usher/internal/sdnotify"
	"golang.org/x/sys/unix"
)

const (
	// masterEnv holds the descriptor of a masterState: this process was a
	// master before, and has executed the program again.
	masterEnv = "USHER_PREFORK_MASTER"

	// checkEnv is set for a trial run, which Run ends, saying which state it
	// could take over.
	checkEnv = "USHER_PREFORK_TRIAL"

	stateVersion = 2
	trialSays    = "prefork trial: state version "
	trialAlone   = "prefork trial: no workers"
)

// masterState is what one master hands to the next.
type masterState struct {
	Version   int             `json:"version"`
	Path      string          `json:"path"`    // of the program
	Workers   int             `json:"workers"` // Options.Workers
	Seats     int             `json:"seats"`
	Fleet     fleet.State     `json:"fleet"`
	Endpoints []endpointState `json:"endpoints"`
	Programs  []programState  `json:"programs"`
	Procs     []procState     `json:"procs"`
	Streams   []streamState   `json:"streams,omitempty"` // of workers that are gone
	Reason    string          `json:"reason"`
	Signals   []int           `json:"signals"` // that the master catches
	PIDFile   string          `json:"pid_file,omitempty"`
}

func (s *masterState) signals() []os.Signal {
	caught := make([]os.Signal, len(s.Signals))
	for i, n := range s.Signals {
		caught[i] = syscall.Signal(n)
	}
	return caught
}

type endpointState struct {
	Name    string `json:"name"`
	Key     string `json:"key"`
	Network string `json:"network"`
	FDs     []int  `json:"fds"`
	Shared  bool   `json:"shared"`
	Foreign bool   `json:"foreign,omitempty"`
	Unlink  string `json:"unlink,omitempty"`
}

type programState struct {
	Generation int    `json:"generation"`
	FD         int    `json:"fd"`
	Path       string `json:"path"`
	Dir        string `json:"dir,omitempty"`
}

type procState struct {
	ID         fleet.ID    `json:"id"`
	Seat       int         `json:"seat"`
	Generation int         `json:"generation"`
	PID        int         `json:"pid"`
	Control    int         `json:"control"` // descriptor
	Stderr     streamState `json:"stderr"`
	Rest       []byte      `json:"rest,omitempty"` // of a frame that was read in part
	Adopted    []int       `json:"adopted,omitempty"`
	Ready      bool        `json:"ready"`
}

type streamState struct {
	FD   int    `json:"fd"`
	Rest []byte `json:"rest,omitempty"` // of a line that was read in part
}

// trial reports whether this is a trial run, which has come as far as it is to.
func trial(workers int) bool {
	if os.Getenv(checkEnv) == "" {
		return false
	}
	if workers > 0 {
		fmt.Fprintln(os.Stdout, trialSays+strconv.Itoa(stateVersion))
	} else {
		fmt.Fprintln(os.Stdout, trialAlone) // and would leave workers and sockets to nobody
	}
	return true
}

// tryProgram runs the program at path until it comes to Run.
func tryProgram(ctx context.Context, path string, timeout time.Duration) error {
	ctx, cancel := context.WithTimeoutCause(ctx, timeout, fmt.Errorf("not done after %v", timeout))
	defer cancel()
	cmd := exec.CommandContext(ctx, path)
	cmd.Args = os.Args
	if _, err := os.Stat(startedAs.dir); err == nil {
		cmd.Dir = startedAs.dir
	}
	cmd.Env = append(sdnotify.Scrub(os.Environ()), checkEnv+"=1", "PWD="+cmp.Or(cmd.Dir, os.Getenv("PWD")))
	cmd.WaitDelay = time.Second
	var out bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &out
	err := cmd.Run()
	if ctx.Err() != nil {
		err = context.Cause(ctx)
	}
	said := bytes.Contains(out.Bytes(), []byte(trialSays+strconv.Itoa(stateVersion)+"\n"))
	switch {
	case err != nil:
		return fmt.Errorf("prefork: trial run of %s: %w; output: %q", path, err, lastBytes(out.String(), 1<<10))
	case !said && bytes.Contains(out.Bytes(), []byte(trialSays)):
		return fmt.Errorf("prefork: trial run of %s: its version of prefork takes another state than version %d over", path, stateVersion)
	case !said && bytes.Contains(out.Bytes(), []byte(trialAlone)):
		return fmt.Errorf("prefork: trial run of %s: it would run without workers", path)
	case !said:
		return fmt.Errorf("prefork: trial run of %s ended without coming to Run; output: %q", path, lastBytes(out.String(), 1<<10))
	}
	return nil
}

// upgrade tries the program, and then replaces this process when nothing is
// under way.
func (m *Master) upgrade(ctx context.Context, why string, answer chan error) {
	switch {
	case m.closing:
		answer <- errors.New("prefork: upgrade: the fleet stops")
		return
	case m.upgrading:
		m.log.Info("prefork: upgrade: one is under way", "reason", why)
		answer <- errors.New("prefork: upgrade: one is under way")
		return
	}
	m.upgrading = true
	ctx, cancel := context.WithCancelCause(ctx)
	go func() { // a trial run must not outlive the master
		select {
		case <-m.done:
			cancel(errMasterGone)
		case <-ctx.Done():
		}
	}()
	m.log.Info("prefork: upgrade: trial run", "reason", why, "program", m.path)
	fail := func(err error) {
		m.log.Error("prefork: upgrade failed, nothing has changed", "error", err)
		m.upgrading = false
		cancel(nil)
		answer <- err
	}
	var try func()
	try = func() {
		tried := fileOf(m.path)
		m.trials.Go(func() {
			err := tryProgram(ctx, m.path, m.opts.BootTimeout)
			m.post(func() {
				if err != nil {
					fail(err)
					return
				}
				m.log.Info("prefork: upgrade: the trial run went well")
				var attempt func()
				attempt = func() {
					if m.closing {
						fail(errors.New("prefork: upgrade: the fleet stops"))
					} else if !tried.same(fileOf(m.path)) {
						try() // what was tried is not what would run
					} else if err := m.execute(why); errors.Is(err, errNotCalm) {
						m.replace = attempt
					} else {
						fail(err)
					}
				}
				m.replace = attempt
			})
		})
	}
	try()
}

// file tells one build of a program from another at the same path.
type file struct{ info os.FileInfo }

func fileOf(path string) file {
	info, err := os.Stat(path)
	if err != nil {
		return file{} // whoever uses it will say so
	}
	return file{info}
}

func (f file) same(g file) bool {
	return f.info != nil && g.info != nil && os.SameFile(f.info, g.info) && f.info.ModTime().Equal(g.info.ModTime()) && f.info.Size() == g.info.Size()
}

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
	if m.act() || !m.calm() || m.closing {
		resume()
		return errNotCalm
	}
	m.manage(func() error { return m.sd.Reloading("replacing the master") })
	m.manager.flush()
	m.flushLog()
	err := errNotCalm
	if m.releaseSignals() {
		err = m.replaceImage(why)
	}
	m.catchSignals(m.caught)
	resume()
	m.manage(func() error { return m.sd.Ready(m.status) })
	return err
}

// replaceImage is the system call with what it needs. It returns only on error.
func (m *Master) replaceImage(why string) error {
	now := time.Now()
	s := masterState{Version: stateVersion, Path: m.path, Workers: m.opts.Workers, Fleet: m.fleet.State(now), Reason: why, PIDFile: string(m.pidFile)}
	s.Seats = len(s.Fleet.Seats)
	for _, caught := range m.caught {
		if n, ok := caught.(syscall.Signal); ok {
			s.Signals = append(s.Signals, int(n))
		}
	}
	var keep []int
	for _, e := range m.endpoints {
		s.Endpoints = append(s.Endpoints, endpointState{
			Name: e.name, Key: e.key, Network: e.group.Network(), FDs: e.group.FDs(), Shared: e.group.Shared(), Foreign: e.foreign, Unlink: e.unlink,
		})
		keep = append(keep, e.group.FDs()...)
	}
	for generation, p := range m.programs {
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
	for stray := range m.strays {
		ss, err := stray.state()
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
	m.log.Info("prefork: upgrade: replacing the master", "program", m.path)
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
	err = syscall.Exec(m.path, os.Args, env)
	return fmt.Errorf("prefork: upgrade: execute %s: %w", m.path, err)
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

// inheritedState returns what the master before this one left, or nil if this is
// the first.
func inheritedState() (*masterState, error) {
	value, ok := os.LookupEnv(masterEnv)
	if !ok {
		return nil, nil
	}
	os.Unsetenv(masterEnv)
	fd, err := strconv.Atoi(value)
	if err != nil || fd < 3 {
		return nil, fmt.Errorf("prefork: %s is %.80q, not a descriptor", masterEnv, value)
	}
	content, err := readScratch(fd)
	if err != nil {
		return nil, fmt.Errorf("prefork: %s is %d: %w", masterEnv, fd, err)
	}
	var s masterState
	if err := json.Unmarshal(content, &s); err != nil {
		return nil, fmt.Errorf("prefork: state of the master before: %w", err)
	}
	if s.Version != stateVersion {
		return nil, fmt.Errorf("prefork: state of the master before has version %d, want %d", s.Version, stateVersion)
	}
	for _, fd := range s.descriptors() {
		unix.CloseOnExec(fd)
	}
	return &s, nil
}

func (s *masterState) descriptors() []int {
	var fds []int
	for _, e := range s.Endpoints {
		fds = append(fds, e.FDs...)
	}
	for _, p := range s.Programs {
		if p.FD >= 0 {
			fds = append(fds, p.FD)
		}
	}
	for _, p := range s.Procs {
		fds = append(fds, p.Control, p.Stderr.FD)
	}
	for _, s := range s.Streams {
		fds = append(fds, s.FD)
	}
	return fds
}

// take gives e its sockets from the master before, if that had them.
func (s *masterState) take(e *endpoint) bool {
	if s == nil {
		return false
	}
	for i, old := range s.Endpoints {
		if old.Key != e.key && old.Name != e.name || old.FDs == nil {
			continue
		}
		g, err := reuseport.FromFDs(old.Network, old.FDs, old.Shared)
		if err != nil {
			return false
		}
		e.group, e.unlink, e.foreign, e.key = g, old.Unlink, old.Foreign, old.Key
		s.Endpoints[i].FDs = nil
		return true
	}
	return false
}

// dropRest closes the sockets that nobody asks for any more. The old workers
// have theirs until they go.
func (s *masterState) dropRest() {
	if s == nil {
		return
	}
	for _, e := range s.Endpoints {
		for _, fd := range e.FDs {
			unix.Close(fd)
		}
	}
}

// adopt goes on with the workers of the master before, and brings them to this
// one's program.
func (m *Master) adopt(s *masterState) error {
	now := time.Now()
	for _, ps := range s.Programs {
		m.programs[ps.Generation] = &program{fd: ps.FD, path: ps.Path, dir: ps.Dir}
	}
	m.log.Info("prefork: master replaced", "pid", os.Getpid(), "workers", len(s.Procs), "addr", m.addresses())
	s.Fleet.Restarts = nil // who asked for them is gone
	m.fleet.Adopt(now, s.Fleet)
	for _, ps := range s.Procs {
		p := &proc{id: ps.ID, seat: ps.Seat, generation: ps.Generation, adopted: map[int]bool{}, ready: ps.Ready}
		for _, seat := range ps.Adopted {
			p.adopted[seat] = true
		}
		process, err := os.FindProcess(ps.PID)
		if err != nil {
			return fmt.Errorf("prefork: worker %d of the master before: %w", ps.PID, err)
		}
		link, err := newLink(ps.Control)
		if err != nil {
			return err
		}
		link.split.rest = ps.Rest
		stream, err := ps.Stderr.open()
		if err != nil {
			return fmt.Errorf("prefork: standard error of worker %d: %w", ps.PID, err)
		}
		m.procs[p.id] = p
		m.attach(p, &started{process: process, link: link, stream: stream})
	}
	for _, ss := range s.Streams {
		stream, err := ss.open()
		if err != nil {
			return fmt.Errorf("prefork: standard error of a worker that is gone: %w", err)
		}
		m.strays[stream] = true
		m.readStream(stream)
	}
	if m.opts.Workers != s.Workers {
		if err := m.fleet.Scale(now, m.opts.Workers); err != nil {
			m.log.Warn("prefork: cannot scale", "workers", m.opts.Workers, "error", err)
		}
	}
	m.tickets++
	m.restart(m.tickets, "the master was replaced")
	return nil
}
