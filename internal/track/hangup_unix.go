//go:build unix && !linux

package track

import "golang.org/x/sys/unix"

// hasHungUp reports whether the client has closed its side. Behind bytes that
// nobody has read that cannot be seen here.
func hasHungUp(fd int) bool {
	var b [1]byte
	n, _, err := unix.Recvfrom(fd, b[:], unix.MSG_PEEK|unix.MSG_DONTWAIT)
	return err == nil && n == 0
}
