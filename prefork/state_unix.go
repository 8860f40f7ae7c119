//go:build unix

package prefork

import (
	"encoding/json"
	"fmt"
	"os"
	"strconv"
	"syscall"
	"time"

	"github.com/seed-235859eb/usher/internal/fleet"
	"github.com/seed-235859eb/usher/internal/reuseport"
	"golang.org/x/sys/unix"
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

// nextState returns what the next master has to know, and the descriptors that it
// needs.
func (m *Master) nextState(why string) (s masterState, keep []int, err error) {
	s = masterState{
		Version: stateVersion, Reason: why,
		Path: m.programs.path, PIDFile: string(m.pidFile), Workers: m.opts.Workers,
		Fleet: m.fleet.State(time.Now()),
	}
	s.Seats = len(s.Fleet.Seats)
	for _, caught := range m.signals.caught {
		if n, ok := caught.(syscall.Signal); ok {
			s.Signals = append(s.Signals, int(n))
		}
	}
	for _, e := range m.sockets.endpoints {
		s.Endpoints = append(s.Endpoints, endpointState{
			Name: e.name, Key: e.key, Network: e.group.Network(), FDs: e.group.FDs(), Shared: e.group.Shared(), Foreign: e.foreign, Unlink: e.unixName.ours(),
		})
	}
	for generation, p := range m.programs.held {
		s.Programs = append(s.Programs, programState{Generation: generation, FD: p.fd, Path: p.path, Dir: p.dir})
	}
	for _, p := range m.procs {
		ps := procState{ID: p.id, Seat: p.seat, Generation: p.generation, PID: p.pid, Rest: p.link.split.rest, Ready: p.ready}
		for seat := range p.adopted {
			ps.Adopted = append(ps.Adopted, seat)
		}
		if ps.Control, err = rawFD(p.link.conn); err != nil {
			return s, nil, fmt.Errorf("control socket of worker %d: %w", p.pid, err)
		}
		if ps.Stderr, err = p.stream.state(); err != nil {
			return s, nil, fmt.Errorf("standard error of worker %d: %w", p.pid, err)
		}
		s.Procs = append(s.Procs, ps)
	}
	for stream := range m.output.gone {
		ss, err := stream.state()
		if err != nil {
			return s, nil, fmt.Errorf("standard error of a worker that is gone: %w", err)
		}
		s.Streams = append(s.Streams, ss)
	}
	return s, s.descriptors(), nil
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
		e.group, e.unixName, e.foreign, e.key = g, unixNameAt(old.Unlink), old.Foreign, old.Key
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
		m.programs.held[ps.Generation] = &program{fd: ps.FD, path: ps.Path, dir: ps.Dir}
	}
	m.log.Info("prefork: master replaced", "pid", os.Getpid(), "workers", len(s.Procs), "addr", m.sockets.addresses())
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
		m.output.gone[stream] = true
		m.readStream(stream)
	}
	if m.opts.Workers != s.Workers {
		if err := m.fleet.Scale(now, m.opts.Workers); err != nil {
			m.log.Warn("prefork: cannot scale", "workers", m.opts.Workers, "error", err)
		}
	}
	m.restart(m.orders.add(nil), "the master was replaced")
	return nil
}
