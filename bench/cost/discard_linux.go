package main

import (
	"io"
	"net"
	"os"

	"golang.org/x/sys/unix"
)

// discard receives n bytes and throws them away in the kernel, uncopied.
func discard(c *net.TCPConn, n int64) error {
	rc, err := c.SyscallConn()
	if err != nil {
		return err
	}
	buf := make([]byte, 1<<20) // only its length counts
	for n > 0 {
		var got int
		var rerr error
		err := rc.Read(func(fd uintptr) bool {
			for {
				got, _, rerr = unix.Recvfrom(int(fd), buf[:min(n, int64(len(buf)))], unix.MSG_TRUNC)
				if rerr != unix.EINTR {
					return rerr != unix.EAGAIN
				}
			}
		})
		switch {
		case err != nil:
			return err
		case rerr != nil:
			return os.NewSyscallError("recvfrom", rerr)
		case got == 0:
			return io.ErrUnexpectedEOF
		}
		n -= int64(got)
	}
	return nil
}
