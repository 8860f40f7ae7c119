// Package supervised has the interfaces between a server and the supervisor of its
// process. The listeners of a supervisor implement [Listener]. Other processes may
// have their sockets, too. So a server asks the Listener, and not the socket, to stop
// new handshakes and to close.
package supervised

import (
	"errors"
	"net"

	"github.com/seed-235859eb/usher/internal/gate"
)

// ErrShared is returned by [Listener.Shut] when other processes go on accepting
// from the sockets: what this one leaves in the accept queue is safe with them.
var ErrShared = errors.New("supervised: the socket goes on in another process")

// ErrForeign is returned by [Listener.Shut] when the sockets are not this
// program's alone. Whoever it is that has them too, systemd for instance, may
// start another program on them; what stops handshakes would stay with the
// socket, and keep everybody out of that.
var ErrForeign = errors.New("supervised: the socket is somebody else's, too")

// A Listener is a listener whose sockets are not this process's alone.
type Listener interface {
	net.Listener

	// Served says that s serves what Accept returns from now on. It may call
	// the methods of s before it returns.
	Served(s Server)

	// Shut stops new handshakes, before Finish, and returns how. It returns
	// [ErrShared] or [ErrForeign] when that must not be, and another error when
	// it is not known how it went.
	Shut() (gate.Outcome, error)

	// Handshakes returns what is still under way after Shut, as
	// [gate.Handshakes] does.
	Handshakes() (gate.Pending, error)

	// Finish has Accept return what the kernel has queued, then close the
	// sockets, and return errors that wrap [net.ErrClosed] from then on. It does
	// not block.
	Finish()

	// Queued returns the number of connections in the accept queues.
	Queued() (int, error)
}

// A Server is what a supervisor needs of a server.
type Server interface {
	// Stop begins the graceful stop. A quick one has no delay, and does not wait
	// for silent connections.
	Stop(reason string, quick bool)
	// EndDelay ends the delay of a stop that has begun: the lame duck.
	EndDelay(why string)
	// EndNow cuts what is left.
	EndNow(why string)
	// Done is closed when the stop has ended.
	Done() <-chan struct{}
	// Counters returns how the server is doing. It is called about once a second.
	Counters() Counters
}

// Counters tell how a server is doing.
type Counters struct {
	Requests    uint64 // begun since the start
	Accepted    uint64 // connections since the start
	InFlight    int    // handlers running
	Connections int    // open
	Newcomers   int    // accepted connections that wait for a place
}
