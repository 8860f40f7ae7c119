package usher

import (
	"context"
	"net"

	"github.com/seed-235859eb/usher/internal/supervised"
)

// control is the Server as the supervisor of its process sees it, who learns
// of it through the listener that it serves.
type control struct{ s *Server }

var _ supervised.Server = control{}

func isSupervised(l net.Listener) bool {
	if ours, ok := l.(*Listener); ok {
		l = ours.inner
	}
	_, ok := l.(supervised.Listener)
	return ok
}

func (c control) Stop(reason string, quick bool) {
	c.s.beginStop(context.Background(), stopCause{reason: reason, quick: quick})
}

func (c control) EndDelay(why string) { c.s.endLameDuck(why) }

func (c control) EndNow(why string) { c.s.endNow(why) }

func (c control) Done() <-chan struct{} { return c.s.done }

func (c control) Counters() supervised.Counters {
	s := c.s
	begun, inFlight := s.requestCounts()
	n := supervised.Counters{Requests: begun, InFlight: int(inFlight), Newcomers: int(s.newcomers.Load())}
	listeners, former := s.known()
	n.Accepted = former.accepted
	for _, set := range s.setsOf(listeners) {
		c := set.Counts()
		n.Accepted += c.Accepted
		n.Connections += c.Open
	}
	return n
}
