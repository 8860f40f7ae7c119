// Package gate knows what a listening socket can do beyond accept: refuse new
// handshakes while it finishes those under way, and tell how many connections
// wait in its accept queue.
//
// Closing a listening socket resets every connection in its accept queue and
// every handshake whose last packet is still on the wire. No order of accept
// and close avoids that, as long as new handshakes keep starting. So the gate
// stops them first: a socket filter drops each packet that only asks for a new
// connection (SYN without ACK), in the kernel, without a privilege.
//
// Every function returns an error that wraps [errors.ErrUnsupported] where the
// system, or the kind of socket, cannot do what is asked.
package gate

import "errors"

// errUnsupported is what the functions of this package return where there is
// no mechanism.
var errUnsupported = errors.ErrUnsupported
