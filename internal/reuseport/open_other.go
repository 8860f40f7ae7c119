//go:build !unix

package reuseport

import (
	"errors"
	"fmt"
	"net"
)

var errUnsupported = fmt.Errorf("hold sockets for other processes: %w", errors.ErrUnsupported)

// Open is not supported on this system.
func Open(string, string, int) (*Group, error) { return nil, errUnsupported }

// FromListener is not supported on this system.
func FromListener(net.Listener) (*Group, error) { return nil, errUnsupported }

// FromFDs is not supported on this system.
func FromFDs(string, []int, bool) (*Group, error) { return nil, errUnsupported }

// Listener is not supported on this system.
func Listener(int) (net.Listener, error) { return nil, errUnsupported }

// Grow is not supported on this system.
func (g *Group) Grow() error { return errUnsupported }

func closeFD(int) error { return errUnsupported }
