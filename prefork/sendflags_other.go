//go:build unix && !linux

package prefork

import "golang.org/x/sys/unix"

// sendFlags: Go ignores SIGPIPE on sockets, and darwin has no flag against it.
const sendFlags = unix.MSG_DONTWAIT
