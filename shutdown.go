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
	// Delay is how long the server goes on as before after a stop began, only
	// with readiness failing: the lame duck phase. It is for load balancers that
	// learn late of a stop. Zero means none. A negative value is an error.
	Delay time.Duration

	// IdleGrace is how long a connection may stay silent before it is closed. It
	// counts from the beginning of the drain, or from the connection's last
	// response if that is later. Only an answer ends an HTTP/1 connection without
	// a race. A client that sends a request within IdleGrace gets that answer.
	//
	// A client that sends in the moment of the close loses its request. If it
	// sends at random moments and has a round trip time of R, the probability of
	// that is at most R/(e·IdleGrace), whatever its rate: with 5 s and 1 ms, one
	// stop in 13,000.
	//
	// Zero means 5 s, or a fifth of GracePeriod if that is less. If less than
	// twice IdleGrace is left of a stop, because of Delay or its context, half of
	// what is left is used. A negative value, or one that is not less than
	// GracePeriod, is an error.
	IdleGrace time.Duration

	// StreamGrace is how long a hijacked connection (a WebSocket) or a stream of
	// server-sent events (a GET that accepts text/event-stream and nothing else)
	// may go on, from the beginning of the drain. Their handlers
	// learn from [Draining] that it is time. Those that go on are ended one after
	// the other in the last fifth of StreamGrace: a hijacked connection is closed,
	// of a stream the request's context is cancelled with the cause
	// [ErrShuttingDown]. Zero means GracePeriod. A negative value, or one above
	// GracePeriod, is an error.
	StreamGrace time.Duration

	// GracePeriod is how long a stop may take in all, Delay included. What has not
	// ended by then is cut. Hooks get a tenth of it more. Zero means 25 s: Heroku
	// and Kubernetes kill a process after 30 s. A negative value is an error, and
	// so is one not above Delay and HandshakeGrace together.
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

// Shutdown stops the server without losing a request. It goes through the phases
// that the package documentation describes. It returns when the last connection
// has left, hijacked ones included, and the hooks have run.
//
// The context of the first call bounds the stop, beside GracePeriod: when either
// ends, what is left is cut. If the context has a deadline, that happens when nine
// tenths of the time to it are over, so that cut requests and hooks get the rest.
// Further calls wait for the same stop, until it or their own context ends.
//
// Shutdown returns by the end of ctx, whatever handlers, hooks and listeners do.
// The result is nil or a [*ShutdownError]. A handler may call Shutdown with the
// context of its request: that begins the stop and returns nil at once, because
// the stop waits for the handler.
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

// Close ends everything at once: listeners, connections with the hijacked ones,
// and a stop under way. Requests are lost and hooks do not run. Serve returns
// [http.ErrServerClosed]. Close does not wait for handlers. It returns nil.
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

// A ShutdownError says why a stop was not complete.
type ShutdownError struct {
	Phase  Phase  // the phase in which its time ended; PhaseFinish if only hooks failed
	Report Report // what was left then, and what was cut
	Err    error  // the reason
}

// Error returns one line.
func (e *ShutdownError) Error() string {
	left := ""
	if e.Report.StillOpen > 0 {
		left = fmt.Sprintf(", %d of %d connections still open", e.Report.StillOpen, e.Report.Open+e.Report.AcceptedLate)
	}
	if e.Report.Cut > 0 {
		left = fmt.Sprintf(", %d of %d connections cut", e.Report.Cut, e.Report.Open+e.Report.AcceptedLate)
	}
	return fmt.Sprintf("usher: shutdown fell short in phase %q%s: %v", e.Phase, left, e.Err)
}

// Unwrap returns Err.
func (e *ShutdownError) Unwrap() error { return e.Err }
