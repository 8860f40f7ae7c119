//go:build !linux

package reuseport

import (
	"errors"
	"fmt"
)

// steer is not supported on this system: no unprivileged process could attach
// a program to a group of sockets.
func steer(_ int, _ []int, all bool) error {
	if all {
		return nil
	}
	return fmt.Errorf("attach program: %w", errors.ErrUnsupported)
}
