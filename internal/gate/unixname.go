package gate

import (
	"net"
	"os"
	"strings"
)

// A unixName is the name of a unix socket in the file system, as it was when
// the socket was taken over. While the socket is open, no other file can have
// its device and inode.
type unixName struct {
	path string
	file os.FileInfo
}

// nameOf returns the name of l, or nil if it has none.
func nameOf(l net.Listener) *unixName {
	ul, ok := l.(*net.UnixListener)
	if !ok {
		return nil
	}
	path := ul.Addr().String()
	if path == "" || strings.HasPrefix(path, "@") {
		return nil // unnamed, or abstract
	}
	file, err := os.Stat(path)
	if err != nil {
		return nil
	}
	return &unixName{path, file}
}

// leadsHere reports whether the name is still the socket's.
func (n *unixName) leadsHere() bool {
	if n == nil {
		return false
	}
	file, err := os.Stat(n.path)
	return err == nil && os.SameFile(n.file, file)
}
