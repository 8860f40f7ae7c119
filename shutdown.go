package usher

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"time"
)

// ShutdownOptions say how long a stop waits, and for what. The zero value is
// the default for production.
type ShutdownOptions struct {
	// Delay is the lame duck: for so long after the stop began, readiness
	// fails and everything else goes on, for load balancers that learn late.
	// Zero means none. A negative value is an error.
	Delay time.Duration

	// IdleGrace is how long a connection may stay silent, from the drain's
	// beginning or from its last response on, before it is closed. Only an
	// answer retires an HTTP/1 connection without a race: who speaks within
	// IdleGrace gets one.
	//
	// Of a client that sends its requests at random moments, at a rate of its
	// own, and has a round trip of R, at most R/(e·IdleGrace) requests are
	// lost: with 5 s and 1 ms, one stop in 13,000.
	//
	// Zero means 5 s, or a fifth of GracePeriod if that is less. A stop that
	// has less than twice IdleGrace left, after Delay or by its context, makes
	// do with half of what it has. A negative value, or one not less than
	// GracePeriod, is an error.
	IdleGrace time.Duration

	// StreamGrace is how long, from the drain's beginning, a hijacked connection
	// (a WebSocket) or a stream of server-sent events may go on. Their handlers
	// learn from [Draining] that it is time; what goes on is closed, one after
	// the other, in the last fifth of StreamGrace: a hijacked connection at once,
	// a stream by the end of its request's context, whose cause is
	// [ErrShuttingDown]. Zero means GracePeriod. A negative value, or one above
	// GracePeriod, is an error.
	StreamGrace time.Duration

	// GracePeriod is how long a stop may take in all. What has not ended by
	// then is cut; hooks get a tenth more. Zero means 25 s, as Heroku and
	// Kubernetes kill after 30 s. A negative value is an error.
	GracePeriod time.Duration
}

const (
	defaultGracePeriod = 25 * time.Second
	defaultIdleGrace   = 5 * time.Second
)

func (o ShutdownOptions) validate() error {
	for _, f := range []struct {
		name  string
		value time.Duration
	}{{"Delay", o.Delay}, {"IdleGrace", o.IdleGrace}, {"StreamGrace", o.StreamGrace}, {"GracePeriod", o.GracePeriod}} {
		if f.value < 0 {
			return fmt.Errorf("usher: Options.Shutdown.%s is %v, must not be negative", f.name, f.value)
		}
	}
	d := o.withDefaults()
	if d.IdleGrace >= d.GracePeriod {
		return fmt.Errorf("usher: Options.Shutdown.IdleGrace is %v, must be less than GracePeriod, which is %v", d.IdleGrace, d.GracePeriod)
	}
	if d.StreamGrace > d.GracePeriod {
		return fmt.Errorf("usher: Options.Shutdown.StreamGrace is %v, must not be above GracePeriod, which is %v", d.StreamGrace, d.GracePeriod)
	}
	return nil
}

func (o ShutdownOptions) withDefaults() ShutdownOptions {
	if o.GracePeriod == 0 {
		o.GracePeriod = defaultGracePeriod
	}
	if o.IdleGrace == 0 {
		o.IdleGrace = min(defaultIdleGrace, o.GracePeriod/5)
	}
	return o
}

// Shutdown stops the server without losing a request: it goes through the
// phases that the package documentation describes and returns when the last
// connection has left, hijacked ones included, and the hooks have run.
//
// The first call sets the terms. Its context bounds the stop, beside
// GracePeriod: when either ends, what is left is cut. If the context has a
// deadline, that happens a tenth before it, so that cut requests and hooks
// still get a little time. Further calls wait for the same stop, as long as
// their own context lasts.
//
// Shutdown returns by the end of ctx, whatever handlers, hooks and listeners
// do, with nil or a [*ShutdownError]. Called with the context of one of
// the server's own requests, it begins the stop and returns nil at once, as
// it would wait for its caller otherwise.
func (s *Server) Shutdown(ctx context.Context) error {
	if own, ok := ctx.Value(serverKey{}).(*Server); ok && own == s {
		s.beginStop(context.WithoutCancel(ctx), stopCause{reason: "Shutdown called by a handler"})
		return nil
	}
	s.beginStop(ctx, stopCause{reason: "Shutdown called"})
	select {
	case <-s.done:
	case <-ctx.Done():
		select {
		case <-s.done:
		default:
			return &ShutdownError{Phase: s.Phase(), Report: s.countFates(), Err: context.Cause(ctx)}
		}
	}
	return s.wait()
}

// Close ends everything at once: listeners, connections, hijacked ones too,
// and a stop under way. Requests are lost and hooks do not run. Serve returns
// [http.ErrServerClosed]. Close does not wait for handlers.
func (s *Server) Close() error {
	if s.beginStop(context.Background(), stopCause{reason: "Close called", close: true}) {
		<-s.done
		return nil
	}
	s.mu.Lock()
	s.end(http.ErrServerClosed)
	s.mu.Unlock()
	<-s.done
	return nil
}

// ErrShuttingDown is the cause of a request's context that was cancelled
// because GracePeriod was over: see [context.Cause].
var ErrShuttingDown = errors.New("usher: shutting down")

var (
	errGraceOver = errors.New("GracePeriod is over")
	errEndNow    = errors.New("a third signal arrived")
)

// A ShutdownError tells how a stop fell short.
type ShutdownError struct {
	Phase  Phase  // where it was when its time ended; PhaseFinish if only hooks failed
	Report Report // of what was left then and what was cut
	Err    error  // why
}

// Error returns one line.
func (e *ShutdownError) Error() string {
	left := ""
	if e.Report.StillOpen > 0 {
		left = fmt.Sprintf(", %d of %d connections still open", e.Report.StillOpen, e.Report.Open+e.Report.Queued)
	}
	if e.Report.Cut > 0 {
		left = fmt.Sprintf(", %d of %d connections cut", e.Report.Cut, e.Report.Open+e.Report.Queued)
	}
	return fmt.Sprintf("usher: shutdown fell short in phase %q%s: %v", e.Phase, left, e.Err)
}

// Unwrap returns Err.
func (e *ShutdownError) Unwrap() error { return e.Err }
