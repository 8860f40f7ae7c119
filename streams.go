package usher

import (
	"context"
	"net/http"
	"time"

	"github.com/seed-235859eb/usher/internal/track"
)

// isEventStream reports whether r asks for server-sent events and nothing else,
// as each EventSource does. A POST that only names them among what it accepts is
// a request like any other.
func isEventStream(r *http.Request) bool {
	accept := r.Header["Accept"]
	return r.Method == http.MethodGet && len(accept) == 1 && accept[0] == "text/event-stream"
}

// endStreams closes hijacked connections and ends event streams when StreamGrace
// is over, so that those do not hold a stop for all of GracePeriod whose handlers
// do not know [Draining]. It spreads that over the last fifth of StreamGrace,
// so that their clients do not all come back in the same moment. It returns when
// it is done or ctx ends.
func (s *Server) endStreams(ctx context.Context) {
	grace := s.opts.Shutdown.StreamGrace
	if grace == 0 {
		return
	}
	t := time.NewTimer(grace * 4 / 5)
	defer t.Stop()
	select {
	case <-t.C:
	case <-ctx.Done():
		return
	}
	ends := s.requests.Streams(ErrShuttingDown)
	for _, set := range s.sets() {
		set.Each(func(c *track.Conn, st track.State) {
			if st.Reported() == http.StateHijacked {
				ends = append(ends, c.CloseSoon) // its Close may hang
			}
		})
	}
	if len(ends) == 0 {
		return
	}
	turn := newPacer(grace / 5 / time.Duration(len(ends)))
	for _, end := range ends {
		t.Reset(turn.wait())
		select {
		case <-t.C:
			end()
			turn.next()
		case <-ctx.Done():
			return
		}
	}
}
