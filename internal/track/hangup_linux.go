package track

import "golang.org/x/sys/unix"

// hasHungUp reports whether the client has closed its side, also behind bytes
// that nobody has read.
func hasHungUp(fd int) bool {
	fds := []unix.PollFd{{Fd: int32(fd), Events: unix.POLLRDHUP}}
	n, err := unix.Poll(fds, 0)
	return err == nil && n > 0
}
