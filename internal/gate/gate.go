// Package gate knows what a listening socket can do beyond accept: refuse new
// handshakes while it finishes those under way, and tell how many handshakes
// are under way and how many connections wait in its accept queue.
//
// Closing a listening socket resets every connection in its accept queue, and every
// handshake whose last packet is still on the wire. As long as new handshakes keep
// starting, no order of accept and close avoids that. So [Shut] stops them first.
// [Await] waits until none is under way, which [Handshakes] counts. A [Socket] is
// closed when its accept queue, which [Queued] counts, is empty.
//
// Every function returns an error that wraps [errors.ErrUnsupported] where the
// system, or the kind of socket, cannot do what is asked.
package gate

import (
	"errors"
	"fmt"
)

// errUnsupported is what the functions of this package return where there is
// no mechanism.
var errUnsupported = errors.ErrUnsupported

// A Mechanism is what stops new handshakes.
type Mechanism string

// The mechanisms, the best first.
const (
	// Interface ties the listening socket to a network interface that does not
	// exist. No request for a connection finds the socket: new connects are refused
	// at once.
	Interface Mechanism = "interface"

	// Filter drops requests for connections by a socket filter. Clients send
	// them again, after a second on most systems.
	Filter Mechanism = "filter"

	// Name takes the name of a unix socket out of the file system: new connects
	// find no socket. See [Socket.RemoveName].
	Name Mechanism = "name"

	// None: nothing stops them.
	None Mechanism = "none"
)

// Weaker returns the outcome that promises less, for several sockets. The zero
// Outcome is that of none.
func Weaker(a, b Outcome) Outcome {
	if a.Mechanism == "" || b.Mechanism == None || b.Mechanism == Filter && a.Mechanism != None {
		return b
	}
	return a
}

// A Refusal says why a mechanism does not stop handshakes on a socket.
type Refusal struct {
	Mechanism Mechanism
	Err       error
}

// Error implements error.
func (r *Refusal) Error() string { return fmt.Sprintf("%s: %v", r.Mechanism, r.Err) }

// Unwrap returns Err.
func (r *Refusal) Unwrap() error { return r.Err }

// An Outcome is what [Shut] came to.
type Outcome struct {
	Mechanism Mechanism

	// Refused joins a [*Refusal] for each mechanism that was tried in vain. It
	// is nil if the first did it.
	Refused error
}

// firstOf tries mechanisms in turn until one works.
func firstOf(tries ...try) Outcome {
	var refused []error
	for _, t := range tries {
		err := t.shut()
		if err == nil {
			return Outcome{t.mechanism, errors.Join(refused...)}
		}
		refused = append(refused, &Refusal{t.mechanism, err})
	}
	return Outcome{None, errors.Join(refused...)}
}

type try struct {
	mechanism Mechanism
	shut      func() error
}

// Pending is what keeps a gate from being over.
type Pending struct {
	// Handshakes counts those under way.
	Handshakes int

	// Open counts the sockets that listen on the same address and are not tied
	// to an interface, if the one in question is. In a group of SO_REUSEPORT
	// sockets the kernel looks whether one of them may have the packet and then
	// lets any of them have it: as long as one is open, none is shut.
	Open int
}
