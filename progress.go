package usher

import (
	"context"
	"net/http"
	"time"
)

// firstWord is when a stop first says what it waits for. It does so again after
// twice that time, and so on.
const firstWord = time.Second

// maxNamed is how many requests a stop names.
const maxNamed = 5

// sayWhileWaiting logs what the stop waits for, until ctx ends.
func (s *Server) sayWhileWaiting(ctx context.Context) {
	for wait := firstWord; ; wait *= 2 {
		t := time.NewTimer(wait)
		select {
		case <-t.C:
		case <-ctx.Done():
			t.Stop()
			return
		}
		s.log.Info("usher: still stopping", s.waitingFor()...)
	}
}

// waitingFor returns what the stop waits for, for the log.
func (s *Server) waitingFor() []any {
	var by [http.StateHijacked + 1]int
	for _, set := range s.sets() {
		for state, n := range set.CountReported() {
			by[state] += n
		}
	}
	return []any{
		"phase", s.Phase().String(),
		"new", by[http.StateNew], "active", by[http.StateActive], "idle", by[http.StateIdle], "hijacked", by[http.StateHijacked],
		"oldest", s.requests.Oldest(maxNamed),
	}
}
