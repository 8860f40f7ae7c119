package usher

import (
	"context"
	"net/http"
	"slices"
	"time"

	"github.com/seed-235859eb/usher/internal/track"
)

// cutAll ends what is left. It says goodbye to HTTP/2 connections, cancels the
// requests, gives their handlers a moment to say so, and closes all
// connections.
func (s *Server) cutAll(parent context.Context, grace time.Duration, cause stopCause) {
	s.mu.Lock()
	cancels := s.cancels
	cutNow := s.cutting
	listeners := slices.Clone(s.listeners)
	s.mu.Unlock()
	ended := make(chan struct{})
	over, cancel := context.WithCancel(context.Background())
	cancel() // nobody waits for idle connections any more
	go func() {
		defer close(ended)
		for _, l := range listeners {
			l.Close()
		}
		if !cause.close {
			s.cutBetween()
			s.endHTTP(over)
		}
	}()
	// The Close of a listener that is not ours may hang.
	bounded(ended, time.Second)
	for _, cancel := range cancels {
		cancel(ErrShuttingDown)
	}
	moment := min(grace/50, 500*time.Millisecond)
	if cutNow {
		moment = min(moment, goAwayTime)
	}
	if !cause.close {
		s.waitEmpty(parent, moment, cause)
	}
	closed := make(chan struct{})
	go func() {
		defer close(closed)
		for _, set := range s.sets() {
			set.Each(func(c *track.Conn, _ track.State) { c.Cut() })
		}
		s.endsHTTP.Store(true)
		s.http.Close()
	}()
	// A connection that is not the kernel's may hang in its Close.
	if !bounded(closed, time.Second) {
		s.log.Warn("usher: close of a connection or listener hangs")
	}
	s.waitEmpty(parent, time.Second, cause)
}

// cutBetween closes the connections that are between two requests, or before the
// first: net/http's Shutdown would close them, and they would count as left by
// their clients.
func (s *Server) cutBetween() {
	for _, set := range s.sets() {
		set.Each(func(c *track.Conn, st track.State) {
			if between := st.Fresh() || st.Reported() == http.StateIdle; between && !st.HTTP2() {
				c.Cut()
			}
		})
	}
}

// goAwayTime is what is left for the GOAWAY of HTTP/2 connections to go out when
// a stop must end now.
const goAwayTime = 20 * time.Millisecond

// waitEmpty waits until no connection is open, for d at most.
func (s *Server) waitEmpty(ctx context.Context, d time.Duration, cause stopCause) {
	t := time.NewTimer(d)
	defer t.Stop()
	for !s.empty(cause) {
		select {
		case <-s.wake:
		case <-t.C:
			return
		case <-ctx.Done():
			return
		}
	}
}
