//go:build !linux && !darwin

package gate

import "syscall"

// Shut has no mechanism on this system that an unprivileged process could use.
func Shut(syscall.RawConn) Outcome {
	return firstOf(try{Interface, func() error { return errUnsupported }})
}

// ShutOne has no mechanism either.
func ShutOne(rc syscall.RawConn) Outcome { return Shut(rc) }
