//go:build !unix

package main

import (
	"errors"
	"fmt"
	"os"
	"runtime"
)

// Signals that this system does not have.
var hangSignal, restartSignal os.Signal = os.Kill, os.Kill

// errNoSignals is why experiments that send signals do not run here.
var errNoSignals = fmt.Errorf("%s cannot ask another process to stop: %w", runtime.GOOS, errors.ErrUnsupported)
