//go:build !linux

package main

import (
	"errors"
	"fmt"
	"io"
	"net"
	"runtime"
	"time"
)

var errNotHere = fmt.Errorf("cost: not known on %s: %w", runtime.GOOS, errors.ErrUnsupported)

// cpuTime is known on Linux only.
func cpuTime(pid int) (time.Duration, error) { return 0, errNotHere }

// busyTime is known on Linux only.
func busyTime() (time.Duration, error) { return 0, errNotHere }

// residentSize is known on Linux only.
func residentSize(pid int) (int64, error) { return 0, errNotHere }

// discard reads n bytes and throws them away.
func discard(c *net.TCPConn, n int64) error {
	_, err := io.CopyN(io.Discard, c, n)
	return err
}
