package usher

import (
	"context"
	"errors"
	"fmt"
	"runtime/debug"
	"slices"
	"time"
)

// OnShutdown registers f to be called at the end of a stop, when no connection
// is left. Hooks run one after the other in the order of registration, each
// with a context for its share of what is left of GracePeriod (at least of a
// tenth of it). An error, a panic, and not returning in time are
// reported under name and do not keep the next hook from running. A hook
// that ignores the end of its context is left behind.
func (s *Server) OnShutdown(name string, f func(context.Context) error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if f == nil {
		s.err = errors.Join(s.err, fmt.Errorf("usher: OnShutdown: hook %q is nil", name))
		return
	}
	s.hooks = append(s.hooks, hook{name, f})
}

// RegisterOnShutdown registers f to be called in a goroutine of its own when
// the drain begins, for programs that tell their long-lived connections that
// way. Those that are registered with the http.Server run in the finish phase,
// when the connections that they should end have been waited for: move them
// here. As with net/http, nobody waits for f.
func (s *Server) RegisterOnShutdown(f func()) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.onDrain = append(s.onDrain, f)
}

type hook struct {
	name string
	f    func(context.Context) error
}

// runHooks calls the hooks in order, each with its share of what is left until
// deadline. A Shutdown whose context ended does not wait for them, but they
// run all the same, so that none meets the next before its time; Close and the
// third signal end that.
func (s *Server) runHooks(deadline time.Time) error {
	s.mu.Lock()
	hooks := slices.Clone(s.hooks)
	s.mu.Unlock()
	ctx, cancel := context.WithCancelCause(context.Background())
	defer cancel(nil)
	stop := make(chan struct{})
	defer close(stop)
	go func() {
		select {
		case <-s.now:
			cancel(errEndNow)
		case <-stop:
		}
	}()
	var failed error
	for i, h := range hooks {
		select {
		case <-s.now:
			return errors.Join(failed, fmt.Errorf("hook %q: not run", h.name))
		default:
		}
		if err := h.run(ctx, time.Until(deadline)/time.Duration(len(hooks)-i)); err != nil {
			failed = errors.Join(failed, fmt.Errorf("hook %q: %w", h.name, err))
		}
	}
	return failed
}

// run calls the hook and waits for it, for share at most.
func (h hook) run(ctx context.Context, share time.Duration) error {
	ctx, cancel := context.WithTimeout(ctx, share)
	defer cancel()
	returned := make(chan error, 1)
	go func() {
		defer func() {
			if v := recover(); v != nil {
				returned <- fmt.Errorf("panic: %v\n%s", v, debug.Stack())
			}
		}()
		returned <- h.f(ctx)
	}()
	select {
	case err := <-returned:
		return err
	case <-ctx.Done():
	}
	select {
	case err := <-returned:
		return err
	default:
		return fmt.Errorf("still running: %w", context.Cause(ctx))
	}
}
