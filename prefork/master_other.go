//go:build !unix

package prefork

import (
	"context"
	"errors"
	"fmt"
)

// A Master does not exist on this system: [Run] runs the program in one process.
// Its methods return errors that wrap [errors.ErrUnsupported].
type Master struct{}

var errNoMaster = fmt.Errorf("prefork: master process: %w", errors.ErrUnsupported)

// Restart is not supported on this system.
func (*Master) Restart(context.Context) error { return errNoMaster }

// Upgrade is not supported on this system.
func (*Master) Upgrade(context.Context) error { return errNoMaster }

// ReopenLog is not supported on this system.
func (*Master) ReopenLog() error { return errNoMaster }

// Scale is not supported on this system.
func (*Master) Scale(int) error { return errNoMaster }

// Recycle is not supported on this system.
func (*Master) Recycle(int) error { return errNoMaster }

// Stats is not supported on this system.
func (*Master) Stats() (Stats, error) { return Stats{}, errNoMaster }
