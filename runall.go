package usher

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/signal"
	"slices"
	"sync"
)

// RunAll runs several servers in one program. It stops them one after the other,
// in the order given: the stop of the next server begins when that of the one
// before has ended. Put an internal server, with metrics and readiness, last: it
// answers until the others have drained.
//
//	err := usher.RunAll(ctx, public, internal)
//
// Each server listens on its http.Server's Addr. Signals and ctx have the meaning
// that they have for [Server.Run], for all servers together: a second signal ends
// the lame duck of each, a third ends all at once. If one server fails, the others
// are stopped. RunAll returns the errors of all, joined, when every one has
// stopped. Without servers it returns nil at once.
func RunAll(ctx context.Context, servers ...*Server) error {
	for i, s := range servers {
		if s == nil {
			return fmt.Errorf("usher: RunAll: server %d is nil", i)
		}
		if first := slices.Index(servers, s); first < i {
			return fmt.Errorf("usher: RunAll: server %d is server %d too", i, first)
		}
	}
	signals := make(chan os.Signal, 3)
	notifyStop(signals)
	defer signal.Stop(signals)

	results := make([]error, len(servers))
	ended := make(chan struct{}, len(servers))
	var running sync.WaitGroup
	for i, s := range servers {
		running.Go(func() {
			// Their stops are begun below, one by one.
			results[i] = s.RunUntil(context.WithoutCancel(ctx))
			ended <- struct{}{}
		})
	}

	group := stopGroup{servers: servers, done: make(chan struct{})}
	heard := signalsHeard{stopper: &group}
	over := ctx.Done()
	for left := len(servers); left > 0; {
		select {
		case <-ended:
			left--
			group.begin(stopCause{reason: "a server ended"})
		case <-over:
			over = nil
			group.begin(stopCause{reason: context.Cause(ctx).Error()})
		case sig := <-signals:
			heard.hear(sig)
		}
	}
	running.Wait()
	group.wait()
	return errors.Join(results...)
}

// A stopGroup stops servers one after the other.
type stopGroup struct {
	servers []*Server
	begun   bool
	done    chan struct{} // closed when the last one's stop has begun
}

// begin begins the stop of all, once, and reports whether it did.
func (g *stopGroup) begin(cause stopCause) bool {
	if g.begun {
		return false
	}
	g.begun = true
	go func() {
		defer close(g.done)
		for _, s := range g.servers {
			s.beginStop(context.Background(), cause)
			<-s.done
		}
	}()
	return true
}

func (g *stopGroup) wait() {
	if g.begun {
		<-g.done
	}
}

func (g *stopGroup) endLameDuck(why string) {
	for _, s := range g.servers {
		s.endLameDuck(why)
	}
}

func (g *stopGroup) endNow(why string) {
	for _, s := range g.servers {
		s.endNow(why)
	}
}
