//go:build unix

package prefork

import (
	"errors"
	"fmt"
	"os"

	"github.com/seed-235859eb/usher/internal/fleet"
	"github.com/seed-235859eb/usher/internal/reuseport"
)

// endpoint is an [Endpoint] with its sockets.
type endpoint struct {
	name   string
	key    string // what was asked for: the same in the next master
	group  *reuseport.Group
	unlink string // path of a unix socket that is ours to remove

	foreign bool // the socket is not ours alone
}

// closeSockets gives up the master's share of the sockets once the fleet stops:
// the workers have theirs, and when they are done new connects must be refused.
// Those of a group it keeps until a worker asks to have them shut.
func (m *Master) closeSockets() {
	m.closing = true
	m.manage(func() error { return m.sd.Stopping("stopping") })
	m.unpublish()
	for _, e := range m.endpoints {
		if e.foreign || e.group.Shared() {
			m.closeEndpoint(e)
		}
	}
}

// shutEndpoint stops new handshakes on all sockets of a group at once, in the
// final stop. If each worker did that when it gets there, the kernel would give
// connections to sockets that are tied away already, and find no way for its
// answers: a client would wait a second.
func (m *Master) shutEndpoint(name string) {
	if !m.closing {
		return
	}
	for _, e := range m.endpoints {
		if e.name == name && !e.foreign {
			e.group.Shut()
			m.closeEndpoint(e)
		}
	}
}

// closeEndpoints gives up what is left.
func (m *Master) closeEndpoints() {
	for _, e := range m.endpoints {
		m.closeEndpoint(e)
	}
}

func (m *Master) closeEndpoint(e *endpoint) {
	if err := e.group.Close(); err != nil {
		m.log.Warn("prefork: close of a socket failed", "endpoint", e.name, "error", err)
	}
}

// unpublish takes away the names of unix sockets, so that nobody new comes.
func (m *Master) unpublish() {
	for _, e := range m.endpoints {
		if e.unlink == "" {
			continue
		}
		if err := os.Remove(e.unlink); err != nil {
			m.log.Warn("prefork: cannot remove a unix socket", "endpoint", e.name, "error", err)
		}
		e.unlink = ""
	}
}

// openSeat opens the sockets of a seat that do not exist yet.
func (m *Master) openSeat(seat int) error {
	for _, e := range m.endpoints {
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
func (m *Master) shutSeat(seat int) {
	for _, e := range m.endpoints {
		if e.group.Shared() {
			continue
		}
		if err := e.group.ShutSeat(seat); err != nil {
			m.log.Debug("prefork: new handshakes are kept from a seat that closes by steering alone", "seat", seat, "endpoint", e.name, "error", err)
		}
	}
}

// closeSeat closes the sockets of the last seat.
func (m *Master) closeSeat(seat int) {
	for _, e := range m.endpoints {
		if e.group.FD(seat) < 0 {
			continue // could not be opened
		}
		if err := e.group.Shrink(); err != nil {
			m.log.Warn("prefork: close of a seat failed", "seat", seat, "endpoint", e.name, "error", err)
		}
	}
}

// setLive steers new connections to the seats that are served, and has those
// who serve accept what has come to the others.
func (m *Master) setLive(a fleet.Live) {
	for _, e := range m.endpoints {
		if err := e.group.Steer(a.Seats); err != nil {
			if !errors.Is(err, errors.ErrUnsupported) {
				m.log.Warn("prefork: cannot steer new connections", "endpoint", e.name, "error", err)
			}
		}
	}
	for _, id := range a.To {
		m.order(id, func(p *proc) { m.setOrphans(p, a.Orphans) })
	}
}

func (m *Master) setOrphans(p *proc, seats []int) {
	f := frame{Type: frameOrphans, Seats: seats}
	var fds []int
	now := map[int]bool{}
	for _, seat := range seats {
		if seat == p.seat || !p.adopted[seat] && len(fds)+len(m.endpoints) > maxRights {
			continue // its siblings will do
		}
		now[seat] = true
		for _, e := range m.endpoints {
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
func (m *Master) queued(seat int) int {
	sum := 0
	for _, e := range m.endpoints {
		if m.closing || e.group.Shared() && seat > 0 {
			continue
		}
		if n, err := e.group.Queued(seat); err == nil {
			sum += n
		}
	}
	return sum
}
