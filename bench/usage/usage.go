// Package usage says what processes use of the machine.
package usage

import (
	"os"
	"runtime"
	"time"
)

// A Watch sees how much of the machine others used, while something was
// measured.
type Watch struct {
	began     time.Time
	busy, own time.Duration
}

// NewWatch begins to watch.
func NewWatch() Watch {
	w := Watch{began: time.Now()}
	w.busy, _ = BusyTime()
	w.own, _ = CPUTime(os.Getpid())
	return w
}

// Others returns the part of all CPUs' time that was used neither by this
// process nor, for that time, by those that it measured. It is -1 where that
// is not known.
func (w Watch) Others(measured time.Duration) float64 {
	busy, err := BusyTime()
	if err != nil {
		return -1
	}
	own, err := CPUTime(os.Getpid())
	if err != nil {
		return -1
	}
	all := time.Since(w.began) * time.Duration(runtime.NumCPU())
	return max(0, float64(busy-w.busy-(own-w.own)-measured)/float64(all))
}
