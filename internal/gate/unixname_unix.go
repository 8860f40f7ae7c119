//go:build unix

package gate

import (
	"errors"
	"fmt"
	"net"
	"os"

	"golang.org/x/sys/unix"
)

// unpublish takes the name out of the file system, if Close of l would, and
// returns a listener on the same socket, with its accept queue. It closes l.
//
// Only Close knows whether the name is l's to remove: for a socket that was
// inherited, from systemd for instance, it must stay. And a name that leads
// elsewhere by now is somebody else's.
func (n *unixName) unpublish(l net.Listener) (replacement net.Listener, removed bool, err error) {
	ul, ok := l.(*net.UnixListener)
	if !ok || n == nil {
		return l, false, nil
	}
	if replacement, err = duplicate(ul); err != nil {
		return l, false, fmt.Errorf("duplicate unix listener: %w", err)
	}
	if !n.leadsHere() {
		ul.SetUnlinkOnClose(false)
	}
	if err := ul.Close(); err != nil {
		return replacement, false, fmt.Errorf("close unix listener: %w", err)
	}
	return replacement, !n.leadsHere(), nil
}

// duplicate returns another listener on l's socket, which does not remove its
// name.
func duplicate(l *net.UnixListener) (net.Listener, error) {
	rc, err := l.SyscallConn()
	if err != nil {
		return nil, err
	}
	fd := -1
	var opErr error
	err = rc.Control(func(old uintptr) {
		// Not l.File: it would return a descriptor whose use clears
		// O_NONBLOCK for all who share the socket (golang/go#29277).
		fd, opErr = unix.FcntlInt(old, unix.F_DUPFD_CLOEXEC, 0)
	})
	if err := errors.Join(err, opErr); err != nil {
		return nil, err
	}
	f := os.NewFile(uintptr(fd), "")
	defer f.Close() // FileListener has a descriptor of its own.
	return net.FileListener(f)
}
