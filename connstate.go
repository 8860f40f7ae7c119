package usher

import (
	"crypto/tls"
	"net"
	"net/http"
)

// noteState passes what net/http says of a connection on to its Conn.
func (s *Server) noteState(nc net.Conn, state http.ConnState) {
	c := connOf(nc)
	if c == nil {
		s.noteStray(nc, state)
		return
	}
	if state == http.StateNew {
		s.adoptBelow(c.l)
		return
	}
	isHTTP2 := false
	if state == http.StateActive && c.state.Load()&phaseMask == phaseNew {
		if tc, ok := nc.(*tls.Conn); ok {
			isHTTP2 = tc.ConnectionState().NegotiatedProtocol == "h2"
		}
	}
	c.setState(state, isHTTP2)
}

// adoptBelow adopts a Listener that came under a TLS listener.
func (s *Server) adoptBelow(l *Listener) {
	l.mu.Lock()
	known := l.watch != nil
	l.mu.Unlock()
	if known {
		return
	}
	s.mu.Lock()
	s.adopt(l)
	s.mu.Unlock()
}

// noteStray follows a connection that no Listener wrapped, because a listener
// speaks TLS itself or hides the connections it wraps. Only what net/http
// says of it is known.
func (s *Server) noteStray(nc net.Conn, state http.ConnState) {
	first := false
	s.mu.Lock()
	c := s.stray[nc]
	switch state {
	case http.StateNew:
		s.strays.mu.Lock()
		c = s.strays.add(nc)
		s.strays.mu.Unlock()
		c.raw = nil
		// Whether it has begun to send its first request is not known.
		c.state.Or(flagWaiting | flagAhead)
		s.stray[nc] = c
		first = s.strays.counts.accepted == 1
	case http.StateHijacked, http.StateClosed:
		delete(s.stray, nc)
	}
	s.mu.Unlock()
	if first {
		s.log.Warn("usher: a listener speaks TLS itself or hides its connections: MaxConns does not hold for them, and a stop cannot tell a silent one from a busy one")
	}
	if c == nil {
		return
	}
	switch state {
	case http.StateNew:
	case http.StateClosed:
		s.strays.remove(c)
	case http.StateHijacked:
		// Whoever closes it will not tell.
		c.setState(state, false)
		s.strays.remove(c)
	default:
		tc, ok := nc.(*tls.Conn)
		c.setState(state, ok && state == http.StateActive && tc.ConnectionState().NegotiatedProtocol == "h2")
	}
}
