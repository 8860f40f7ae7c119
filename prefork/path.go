package prefork

import (
	"os"
	"path/filepath"
)

// startedAs is how this program was started, before main changes anything: it may
// change its directory, and rename itself.
var startedAs = struct{ dir, arg, name string }{logicalDir(), os.Args[0], execName()}

// logicalDir returns the working directory by the name that a shell has for it,
// which may have symbolic links, or nothing if there is none.
func logicalDir() string {
	dir, err := os.Getwd() // $PWD if that is right
	if err != nil {
		return ""
	}
	return dir
}

// atStart makes a path absolute that was relative to where the program was
// started.
func atStart(path string) string {
	if filepath.IsAbs(path) || startedAs.dir == "" {
		return path
	}
	return filepath.Join(startedAs.dir, path)
}
