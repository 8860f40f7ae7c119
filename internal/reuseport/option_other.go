//go:build unix && !linux && !freebsd

package reuseport

// reuseOption is the socket option that makes the kernel balance between the
// sockets of an address, or 0 if it does not. SO_REUSEPORT exists on most of
// these systems, but gives all connections to one of the sockets.
const reuseOption = 0

const joinsLate = false
