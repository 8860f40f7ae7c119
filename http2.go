package usher

import (
	"bufio"
	"net"
	"net/http"

	"github.com/felixge/httpsnoop"

	"github.com/seed-235859eb/usher/internal/goaway"
)

// followHTTP2 has the HTTP/2 connections of l ready to leave in two steps,
// unless the user brings an HTTP/2 of his own. Its caller holds s.mu.
func (s *Server) followHTTP2(l *Listener) {
	if s.door == nil {
		s.door = goaway.NewDoor(s.http)
	}
	if s.door.Own() {
		l.conns.FollowFrames()
	}
}

// enterDoor returns the listener that l stands for, and false if it stands for
// none.
func (s *Server) enterDoor(l net.Listener) (plain net.Listener, real bool) {
	s.mu.Lock()
	door := s.door
	s.mu.Unlock()
	if door == nil {
		return l, true // net/http's Serve was called directly
	}
	return door.Enter(l)
}

// plainHijack returns w, if need be with a Hijack that returns the connection
// which net/http would return by itself. The need is only there where HTTP/1
// over TLS goes through goaway, too, and only guessed: who takes a connection
// over was asked to.
func plainHijack(w http.ResponseWriter, r *http.Request) http.ResponseWriter {
	if !goaway.WrapsHTTP1 || r.TLS == nil || r.ProtoMajor > 1 || len(r.Header["Upgrade"]) == 0 && r.Method != http.MethodConnect {
		return w
	}
	return httpsnoop.Wrap(w, httpsnoop.Hooks{
		Hijack: func(f httpsnoop.HijackFunc) httpsnoop.HijackFunc {
			return func() (net.Conn, *bufio.ReadWriter, error) {
				c, rw, err := f()
				c, _ = goaway.Plain(c)
				return c, rw, err
			}
		},
	})
}

// mayClose reports whether the response to r may say Connection: close. Over
// HTTP/2 net/http makes its GOAWAY of it, which in a stop comes after the first
// step.
func (s *Server) mayClose(r *http.Request) bool {
	return r.ProtoMajor < 2 || s.Phase() <= PhaseLameDuck || s.goodbyes.Through()
}
