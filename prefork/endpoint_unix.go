//go:build unix

package prefork

import (
	"errors"
	"fmt"
	"log/slog"
	"strings"

	"github.com/seed-235859eb/usher/internal/fleet"
	"github.com/seed-235859eb/usher/internal/reuseport"
)

// endpoint is an [Endpoint] with its sockets.
type endpoint struct {
	name     string
	key      string // what was asked for: the same in the next master
	group    *reuseport.Group
	unixName unixName // if it is ours to remove

	foreign bool // the socket is not ours alone
}

// heldSockets are those of all endpoints, of which the master has a share.
type heldSockets struct {
	log       *slog.Logger
	endpoints []*endpoint
	closing   bool // the fleet stops
}

// giveUp closes the master's share of the sockets once the fleet stops: the workers
// have theirs, and when they are done new connects must be refused. Those of a
// group it keeps until a worker asks to have them shut.
func (s *heldSockets) giveUp() {
	s.closing = true
	s.unpublish()
	for _, e := range s.endpoints {
		if e.foreign || e.group.Shared() {
			s.closeEndpoint(e)
		}
	}
}

// shutEndpoint stops new handshakes on all sockets of a group at once, in the
// final stop. If each worker did that when it gets there, the kernel would give
// connections to sockets that are tied away already, and find no way for its
// answers: a client would wait a second.
func (s *heldSockets) shutEndpoint(name string) {
	if !s.closing {
		return
	}
	for _, e := range s.endpoints {
		if e.name == name && !e.foreign {
			e.group.Shut()
			s.closeEndpoint(e)
		}
	}
}

// closeEndpoints gives up what is left.
func (s *heldSockets) closeEndpoints() {
	for _, e := range s.endpoints {
		s.closeEndpoint(e)
	}
}

func (s *heldSockets) closeEndpoint(e *endpoint) {
	if err := e.group.Close(); err != nil {
		s.log.Warn("prefork: close of a socket failed", "endpoint", e.name, "error", err)
	}
}

// unpublish takes away the names of unix sockets, so that nobody new comes.
func (s *heldSockets) unpublish() {
	for _, e := range s.endpoints {
		if err := e.unixName.remove(); err != nil {
			s.log.Warn("prefork: cannot remove a unix socket", "endpoint", e.name, "error", err)
		}
		e.unixName = unixName{}
	}
}

// openSeat opens the sockets of a seat that do not exist yet.
func (s *heldSockets) openSeat(seat int) error {
	for _, e := range s.endpoints {
		if e.group.FD(seat) >= 0 {
			continue
		}
		if err := e.group.Grow(); err != nil {
			return fmt.Errorf("prefork: socket of %s for seat %d: %w", e.name, seat, err)
		}
	}
	return nil
}

// shutSeat stops new handshakes on a seat that will be closed, where the kernel
// lets this process do so. It is for a system that does not steer: where it does,
// nobody new comes to the seat.
func (s *heldSockets) shutSeat(seat int) {
	for _, e := range s.endpoints {
		if e.group.Shared() {
			continue
		}
		if err := e.group.ShutSeat(seat); err != nil {
			s.log.Debug("prefork: new handshakes are kept from a seat that closes by steering alone", "seat", seat, "endpoint", e.name, "error", err)
		}
	}
}

// closeSeat closes the sockets of the last seat.
func (s *heldSockets) closeSeat(seat int) {
	for _, e := range s.endpoints {
		if e.group.FD(seat) < 0 {
			continue // could not be opened
		}
		if err := e.group.Shrink(); err != nil {
			s.log.Warn("prefork: close of a seat failed", "seat", seat, "endpoint", e.name, "error", err)
		}
	}
}

// steer has the kernel give new connections to the seats that are live.
func (s *heldSockets) steer(live []int) {
	for _, e := range s.endpoints {
		if err := e.group.Steer(live); err != nil && !errors.Is(err, errors.ErrUnsupported) {
			s.log.Warn("prefork: cannot steer new connections", "endpoint", e.name, "error", err)
		}
	}
}

// addresses returns all, for the log.
func (s *heldSockets) addresses() string {
	var all []string
	for _, e := range s.endpoints {
		all = append(all, e.group.Addr().String())
	}
	return strings.Join(all, " ")
}

// setLive steers new connections to the seats that are served, and has those
// who serve accept what has come to the others.
func (m *Master) setLive(a fleet.Live) {
	m.sockets.steer(a.Seats)
	for _, id := range a.To {
		m.order(id, func(p *proc) { m.setOrphans(p, a.Orphans) })
	}
}

func (m *Master) setOrphans(p *proc, seats []int) {
	f := frame{Type: frameOrphans, Seats: seats}
	var fds []int
	now := map[int]bool{}
	for _, seat := range seats {
		if seat == p.seat || !p.adopted[seat] && len(fds)+len(m.sockets.endpoints) > maxRights {
			continue // its siblings will do
		}
		now[seat] = true
		for _, e := range m.sockets.endpoints {
			fd := e.group.FD(seat)
			if p.adopted[seat] || e.group.Shared() || fd < 0 {
				continue
			}
			f.Fresh = append(f.Fresh, fmt.Sprintf("%d %s", seat, e.name))
			fds = append(fds, fd)
		}
	}
	if len(now) == 0 && len(p.adopted) == 0 {
		return
	}
	p.adopted = now
	p.say(m, f, fds...)
}

// queued returns how many connections wait in the accept queues of a seat.
func (s *heldSockets) queued(seat int) int {
	sum := 0
	for _, e := range s.endpoints {
		if s.closing || e.group.Shared() && seat > 0 {
			continue
		}
		if n, err := e.group.Queued(seat); err == nil {
			sum += n
		}
	}
	return sum
}
