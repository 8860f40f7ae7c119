//go:build unix

package prefork

import (
	"context"
	"errors"
	"os"
	"syscall"
	"time"

	"github.com/seed-235859eb/usher/internal/reuseport"
	"github.com/seed-235859eb/usher/internal/sdnotify"
)

// hurrySignal tells a worker without a master that another one waits for its
// sockets: a delay before its stop ends. It may come more than once.
const hurrySignal = syscall.SIGUSR1

const (
	retryOpen  = 5 * time.Millisecond
	evictEvery = 50 * time.Millisecond
)

// errStopAtBoot ends a master that was told to stop before it began.
var errStopAtBoot = errors.New("prefork: told to stop")

// openEndpoint opens the sockets of an endpoint. After the death of a master its
// workers have them until they are done with those who wait in their queues. A
// service manager starts the next master at once: it tells them to leave, and opens
// the sockets as soon as they have been given up.
func (m *Master) openEndpoint(ctx context.Context, e Endpoint, inherited []sdnotify.Socket, seats int) (*reuseport.Group, error) {
	g, err := openGroup(e, inherited, seats)
	if !errors.Is(err, syscall.EADDRINUSE) {
		return g, err
	}
	orphans := findOrphans(m.programs.path, e.name())
	if len(orphans) > 0 {
		m.evict(orphans)
		m.log.Warn("prefork: workers of a master that is gone have the sockets, telling them to leave", "endpoint", e.name(), "workers", len(orphans))
	}
	over := time.NewTimer(m.opts.StopTimeout + time.Second) // until they have been killed
	defer over.Stop()
	for {
		g, err = openGroup(e, inherited, seats)
		if !errors.Is(err, syscall.EADDRINUSE) || len(orphans) == 0 {
			return g, err
		}
		select {
		case <-time.After(retryOpen):
		case <-over.C:
			return nil, err
		case s := <-m.signals.ch:
			if s == syscall.SIGTERM || s == os.Interrupt {
				return nil, errStopAtBoot
			}
		case <-ctx.Done():
			return nil, errStopAtBoot
		}
	}
}

// evict tells orphans to leave, and kills those that have not after StopTimeout.
func (m *Master) evict(orphans []*os.Process) {
	deadline := time.Now().Add(m.opts.StopTimeout)
	for _, p := range orphans {
		m.evictions.Go(func() {
			defer p.Release()
			p.Signal(syscall.SIGCONT) // it may have been stopped, and not have seen its master's end
			killed := false
			for p.Signal(hurrySignal) == nil {
				if !killed && time.Now().After(deadline) {
					killed = true
					p.Kill()
					m.log.Warn("prefork: killing a worker of a master that is gone", "pid", p.Pid, "reason", "still there after StopTimeout")
				}
				select {
				case <-time.After(evictEvery):
				case <-m.gone:
					return
				}
			}
		})
	}
}
