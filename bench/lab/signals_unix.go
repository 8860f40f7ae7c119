//go:build unix

package main

import (
	"os"
	"syscall"
)

// Signals that not every system has.
var (
	hangSignal    os.Signal = syscall.SIGSTOP // a process does nothing any more
	restartSignal os.Signal = syscall.SIGUSR1 // Puma and usher/prefork replace their workers
)

// errNoSignals is why experiments that send signals do not run here.
var errNoSignals error
