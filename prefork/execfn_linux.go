package prefork

import (
	"bytes"
	"encoding/binary"
	"os"
	"strconv"
)

// execName returns the path that this program was executed by, as it was given
// to execve(2), or nothing if the system does not tell. Who starts a program is
// free to choose another os.Args[0], and [os.Executable] has no symbolic links.
func execName() string {
	const (
		atExecFn = 31
		word     = strconv.IntSize / 8
		maxPath  = 4096
	)
	auxv, err := os.ReadFile("/proc/self/auxv")
	if err != nil {
		return ""
	}
	number := func(b []byte) uint64 {
		if word == 4 {
			return uint64(binary.NativeEndian.Uint32(b))
		}
		return binary.NativeEndian.Uint64(b)
	}
	for ; len(auxv) >= 2*word; auxv = auxv[2*word:] {
		if number(auxv) != atExecFn {
			continue
		}
		memory, err := os.Open("/proc/self/mem")
		if err != nil {
			return ""
		}
		defer memory.Close()
		name := make([]byte, maxPath) // the end of the stack may come before
		n, _ := memory.ReadAt(name, int64(number(auxv[word:])))
		if name, _, ok := bytes.Cut(name[:n], []byte{0}); ok {
			return string(name)
		}
		return ""
	}
	return ""
}
