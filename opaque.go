package usher

import (
	"net"
	"net/http"
	"sync"

	"github.com/seed-235859eb/usher/internal/track"
)

// opaqueConns are connections that no Listener wrapped, because a listener
// speaks TLS itself or hides the connections it wraps. Only what net/http says
// of them is known.
type opaqueConns struct {
	server *Server
	set    *track.Set

	mu    sync.Mutex
	conns map[net.Conn]*track.Conn
}

func newOpaqueConns(s *Server) *opaqueConns {
	o := &opaqueConns{server: s, conns: make(map[net.Conn]*track.Conn)}
	o.set = track.NewSet(o)
	return o
}

// Notice implements [track.Owner].
func (o *opaqueConns) Notice(*track.Conn, track.Events) { o.server.connsChanged() }

// beginStop has the fates of the connections counted.
func (o *opaqueConns) beginStop() {
	o.set.BeginStop()
	o.set.Want(track.Left | track.Quiet | track.Detached)
}

// report passes on what net/http says of a connection, and reports whether it
// is the first of its kind.
func (o *opaqueConns) report(nc net.Conn, state http.ConnState) (first bool) {
	o.mu.Lock()
	c := o.conns[nc]
	switch state {
	case http.StateNew:
		c = o.set.AddOpaque(nc)
		o.conns[nc] = c
		first = o.set.Counts().Accepted == 1
	case http.StateHijacked, http.StateClosed:
		delete(o.conns, nc)
	}
	o.mu.Unlock()
	if c == nil {
		return false
	}
	c.Report(nc, state)
	if state == http.StateHijacked || state == http.StateClosed {
		c.Forget() // whoever closes a hijacked one will not tell
	}
	return first
}
