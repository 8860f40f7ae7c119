//go:build unix

package prefork

import (
	"os"
	"time"

	"golang.org/x/sys/unix"
)

// lockDir waits until no other program has locked the directory, a second at most,
// and returns what gives it back. Where it cannot be locked, it is not.
func lockDir(dir string) (unlock func()) {
	d, err := os.Open(dir)
	if err != nil {
		return func() {}
	}
	for over := time.Now().Add(time.Second); unix.Flock(int(d.Fd()), unix.LOCK_EX|unix.LOCK_NB) != nil && time.Now().Before(over); {
		time.Sleep(time.Millisecond)
	}
	return func() { d.Close() }
}
