package usher

import (
	"context"
	"errors"
	"fmt"
	"runtime/debug"
	"time"
)

// OnShutdown registers f, a hook, to be called at the end of a stop, when no
// connection is left. Hooks run one after the other, in the order of registration.
//
// The context of a hook ends after its share of the time left: what is left of
// GracePeriod, a tenth of it at least, divided by the number of hooks to come. A
// hook that has not returned by then is left behind. Its error, its panic, or that
// it was late is reported under name. The next hook runs all the same.
//
// A hook that is registered while others run comes after those. Once all have run,
// OnShutdown only logs that f will not run. It panics if f is nil.
func (s *Server) OnShutdown(name string, f func(context.Context) error) {
	if f == nil {
		panic(fmt.Sprintf("usher: OnShutdown: hook %q is nil", name))
	}
	s.mu.Lock()
	late := s.hooksRun
	if !late {
		s.hooks = append(s.hooks, hook{name, f})
	}
	s.mu.Unlock()
	if late {
		s.log.Warn("usher: hook registered after the hooks have run: it will not", "hook", name)
	}
}

// RegisterOnShutdown registers f to be called in a goroutine of its own when the
// drain begins. It is for programs that tell their long-lived connections that way
// to end. Functions that are registered with the http.Server run in the finish
// phase, which is too late for that: move them here. As with net/http, nobody waits
// for f. If the drain has begun, f is called at once. RegisterOnShutdown panics if
// f is nil.
func (s *Server) RegisterOnShutdown(f func()) {
	if f == nil {
		panic("usher: RegisterOnShutdown: nil function")
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	select {
	case <-s.draining:
		go f()
	default:
		s.onDrain = append(s.onDrain, f)
	}
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
	ctx, cancel := context.WithCancelCause(context.Background())
	defer cancel(nil)
	stop := make(chan struct{})
	defer close(stop)
	go func() {
		select {
		case <-s.now:
			s.mu.Lock()
			defer s.mu.Unlock()
			cancel(s.endCause)
		case <-stop:
		}
	}()
	var failed error
	for i := 0; ; i++ {
		h, left := s.nextHook(i)
		if left == 0 {
			return failed
		}
		select {
		case <-s.now:
			failed = errors.Join(failed, fmt.Errorf("hook %q: not run", h.name))
			continue
		default:
		}
		if err := h.run(ctx, time.Until(deadline)/time.Duration(left)); err != nil {
			failed = errors.Join(failed, fmt.Errorf("hook %q: %w", h.name, err))
		}
	}
}

// nextHook returns hook i, and how many are left with it. After the last one
// nobody can register any more.
func (s *Server) nextHook(i int) (h hook, left int) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if i >= len(s.hooks) {
		s.hooksRun = true
		return hook{}, 0
	}
	return s.hooks[i], len(s.hooks) - i
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
