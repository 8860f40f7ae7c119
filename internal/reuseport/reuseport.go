// Package reuseport holds the listening sockets of one address on behalf of
// processes that accept from them: one socket for each of n seats, among which
// the kernel spreads new connections, or a single one that all seats share.
//
// A socket that two processes hold lives on, accept queue and all, when one of
// them dies: a master that holds the sockets loses no connection when a worker
// crashes. But the seat of a dead worker still gets its share of the new
// connections, and they wait. [Group.Steer] keeps them from there, by a
// program that the kernel runs for each.
//
// The kernel numbers the sockets of a group in the order of listen(2), and
// when one leaves, the last one takes its number. So seats keep their numbers
// only while the group grows and shrinks at its end.
//
// Errors wrap [errors.ErrUnsupported] where the system cannot do what is asked.
package reuseport

import (
	"errors"
	"fmt"
	"net"
	"slices"

	"github.com/seed-235859eb/usher/internal/gate"
)

// A Group is the listening sockets of one address: one for each seat, or a
// single one that all seats share. Its descriptors are close-on-exec and
// non-blocking, and not registered with Go's poller.
//
// Its methods must not be called concurrently.
type Group struct {
	network string
	addr    net.Addr
	shared  bool
	fds     []int // by seat, which is also the kernel's order; nil once closed
	shrunk  bool  // a socket was removed, which other processes may still have
}

// Addr returns the address of the sockets.
func (g *Group) Addr() net.Addr { return g.addr }

// Network returns the network that the group was made with.
func (g *Group) Network() string { return g.network }

// Shared reports whether all seats share one socket.
func (g *Group) Shared() bool { return g.shared }

// FD returns the descriptor of a seat, which stays the group's, or -1 if there
// is none.
func (g *Group) FD(seat int) int {
	if g.shared && seat > 0 {
		seat = 0
	}
	if seat < 0 || seat >= len(g.fds) {
		return -1
	}
	return g.fds[seat]
}

// FDs returns the descriptors in seat order, or the one of a shared group.
func (g *Group) FDs() []int { return slices.Clone(g.fds) }

// Steer makes the kernel give new connections to the live seats only, to each
// with the same chance. If all seats are live, or live is empty, the kernel
// chooses by a hash of the addresses, as it does from the start, but not after a
// Shrink: the hash would find a socket that another process has not closed yet.
// A seat that Grow adds is live only if the kernel chooses by hash, or from the
// next Steer on.
//
// A connection belongs to a seat from its first packet on: one whose handshake
// is under way when Steer returns arrives where it began.
//
// Steer does nothing if there is just one socket.
func (g *Group) Steer(live []int) error {
	if g.shared {
		return nil
	}
	if len(live) == 0 {
		for seat := range g.fds {
			live = append(live, seat)
		}
	}
	live = slices.Compact(slices.Sorted(slices.Values(live)))
	for _, seat := range live {
		if err := g.check(seat); err != nil {
			return fmt.Errorf("steer new connections: %w", err)
		}
	}
	if len(g.fds) <= 1 {
		return nil
	}
	if err := steer(g.fds[0], live, len(live) == len(g.fds) && !g.shrunk); err != nil {
		return fmt.Errorf("steer new connections to seats %v: %w", live, err)
	}
	return nil
}

// Queued returns the number of connections in the accept queue of the seat's
// socket. Only TCP on Linux tells it; elsewhere 1 stands for one or more.
func (g *Group) Queued(seat int) (int, error) {
	if err := g.check(seat); err != nil {
		return 0, fmt.Errorf("read accept queue: %w", err)
	}
	return gate.Queued(rawFD(g.FD(seat)))
}

// Shut makes the kernel refuse requests for new connections to all sockets, for
// good, see [gate.Shut]. Nobody else may have them, or go on with them.
func (g *Group) Shut() gate.Outcome {
	var weakest gate.Outcome
	for _, fd := range g.fds {
		weakest = gate.Weaker(weakest, gate.Shut(rawFD(fd)))
	}
	return weakest
}

// ShutSeat makes the kernel drop requests for new connections to the seat's
// socket, where the kernel lets this process do so: see [gate.ShutOne]. Those
// whose handshake is under way still arrive.
func (g *Group) ShutSeat(seat int) error {
	if err := g.check(seat); err != nil {
		return fmt.Errorf("shut a seat: %w", err)
	}
	if out := gate.ShutOne(rawFD(g.FD(seat))); out.Mechanism == gate.None {
		return fmt.Errorf("shut seat %d: %w", seat, out.Refused)
	}
	return nil
}

// Shrink closes the last socket, unless the group is shared. Connections in
// its accept queue and handshakes under way are reset, so the caller steers
// away from the seat and empties it first. A socket that another process holds
// too keeps its number until that process closes it; Grow must wait for that.
func (g *Group) Shrink() error {
	if g.shared {
		return nil
	}
	last := len(g.fds) - 1
	if last < 1 {
		return fmt.Errorf("remove one socket of %d: one must stay", len(g.fds))
	}
	fd := g.fds[last]
	g.fds, g.shrunk = g.fds[:last], true
	return closeFD(fd)
}

// Close closes every descriptor. The path of a unix socket stays. Further
// calls do nothing.
func (g *Group) Close() error {
	var errs []error
	for _, fd := range g.fds {
		errs = append(errs, closeFD(fd))
	}
	g.fds = nil
	return errors.Join(errs...)
}

// check returns an error if there is no socket for the seat.
func (g *Group) check(seat int) error {
	if g.FD(seat) < 0 {
		return fmt.Errorf("no seat %d in a group of %d sockets", seat, len(g.fds))
	}
	return nil
}

// A rawFD is a descriptor in the form that package gate takes.
type rawFD int

func (fd rawFD) Control(f func(uintptr)) error { f(uintptr(fd)); return nil }
func (rawFD) Read(func(uintptr) bool) error    { return errors.ErrUnsupported }
func (rawFD) Write(func(uintptr) bool) error   { return errors.ErrUnsupported }
