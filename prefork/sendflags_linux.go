package prefork

import "golang.org/x/sys/unix"

// sendFlags: a peer that is gone is an error, not a signal.
const sendFlags = unix.MSG_NOSIGNAL | unix.MSG_DONTWAIT
