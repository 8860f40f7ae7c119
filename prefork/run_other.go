//go:build !unix

package prefork

import (
	"context"
	"errors"
	"fmt"
	"net"

	"github.com/seed-235859eb/usher/internal/sdnotify"
)

const canFork = false

func isWorker() (setup workerSetup, ok bool, err error) { return workerSetup{}, false, nil }

func runWorker(context.Context, Options, workerSetup, func(context.Context, *Worker) error) error {
	return fmt.Errorf("prefork: worker processes: %w", errors.ErrUnsupported)
}

func runMaster(context.Context, Options) error {
	return fmt.Errorf("prefork: master process: %w", errors.ErrUnsupported)
}

func (Options) trial() (bool, error) { return false, nil }

func closeSockets([]sdnotify.Socket) {}

func inheritedListener(fd int) (net.Listener, error) {
	return nil, fmt.Errorf("prefork: inherited descriptor %d: %w", fd, errors.ErrUnsupported)
}
