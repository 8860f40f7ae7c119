package prefork

import (
	"errors"
	"net"
	"os"
	"path/filepath"
	"strings"
	"syscall"
)

// A unixName is the name of a unix socket in the file system that is this
// process's to remove, as long as it leads to that socket. The zero value is none.
type unixName struct {
	path string
	file os.FileInfo
}

// nameOf returns the name of a socket of this process that has just been made.
func nameOf(a net.Addr) unixName {
	if a.Network() != "unix" || strings.HasPrefix(a.String(), "@") {
		return unixName{}
	}
	return unixNameAt(a.String())
}

func unixNameAt(path string) unixName {
	file, err := os.Lstat(path)
	if path == "" || err != nil {
		return unixName{}
	}
	return unixName{path, file}
}

// ours returns the path if it leads to the socket still.
func (n unixName) ours() string {
	if n.file == nil {
		return ""
	}
	if file, err := os.Lstat(n.path); err != nil || !os.SameFile(n.file, file) {
		return ""
	}
	return n.path
}

// remove removes the name if it is still the socket's.
func (n unixName) remove() error {
	if n.ours() == "" {
		return nil
	}
	return os.Remove(n.path)
}

// withUnixName calls listen, and once more if the name that it is for is one that
// nobody listens on, as a program that was killed leaves it behind: that is removed
// first. Of two who do so at the same time, the second finds the first one's
// socket.
func withUnixName[L any](path string, listen func() (L, error)) (L, error) {
	defer lockDir(filepath.Dir(path))()
	l, err := listen()
	if errors.Is(err, syscall.EADDRINUSE) && isStale(path) && os.Remove(path) == nil {
		return listen()
	}
	return l, err
}

func isStale(path string) bool {
	info, err := os.Lstat(path)
	if err != nil || info.Mode()&os.ModeSocket == 0 {
		return false
	}
	c, err := net.Dial("unix", path)
	if err == nil {
		c.Close()
	}
	return errors.Is(err, syscall.ECONNREFUSED)
}
