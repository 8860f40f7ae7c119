//go:build !linux

package fairness

import (
	"errors"
	"fmt"
	"runtime"
	"time"
)

var errNotHere = fmt.Errorf("fairness: not known on %s: %w", runtime.GOOS, errors.ErrUnsupported)

// CPUTime is known on Linux only.
func (p *Process) CPUTime() (time.Duration, error) { return 0, errNotHere }

// PeakRSS is known on Linux only.
func (p *Process) PeakRSS() (int64, error) { return 0, errNotHere }
