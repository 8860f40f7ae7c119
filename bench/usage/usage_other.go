//go:build !linux

package usage

import (
	"errors"
	"fmt"
	"runtime"
	"time"
)

var errNotHere = fmt.Errorf("usage: not known on %s: %w", runtime.GOOS, errors.ErrUnsupported)

// CPUTime is known on Linux only.
func CPUTime(pid int) (time.Duration, error) { return 0, errNotHere }

// BusyTime is known on Linux only.
func BusyTime() (time.Duration, error) { return 0, errNotHere }

// ResidentSize is known on Linux only.
func ResidentSize(pid int) (int64, error) { return 0, errNotHere }

// PeakRSS is known on Linux only.
func PeakRSS(pid int) (int64, error) { return 0, errNotHere }

// Kernel is known on Linux only.
func Kernel() string { return "unknown" }
