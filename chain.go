package usher

import (
	"context"
	"net"
	"net/http"

	"github.com/seed-235859eb/usher/internal/goaway"
	"github.com/seed-235859eb/usher/internal/track"
)

// chain puts usher's hooks behind those of the user, once.
func (s *Server) chain() {
	s.install.Do(func() {
		h := s.http.Handler
		if h == nil {
			h = http.DefaultServeMux
		}
		s.http.Handler = s.handler(h)
		if s.limiter != nil || s.http.ConnContext != nil {
			s.http.ConnContext = s.connContext(s.http.ConnContext)
		}
		s.http.ConnState = s.connState(s.http.ConnState)
		// Wrap has set it already, but the user may have since.
		s.http.BaseContext = s.baseContext(s.http.BaseContext)
	})
}

func (s *Server) connContext(user func(context.Context, net.Conn) context.Context) func(context.Context, net.Conn) context.Context {
	return func(ctx context.Context, c net.Conn) context.Context {
		c, _ = goaway.Plain(c)
		if user != nil {
			if ctx = user(ctx, c); ctx == nil {
				return nil // net/http says what is wrong
			}
		}
		if s.limiter == nil {
			return ctx
		}
		return ConnContext(ctx, c)
	}
}

func (s *Server) connState(user func(net.Conn, http.ConnState)) func(net.Conn, http.ConnState) {
	return func(c net.Conn, state http.ConnState) {
		if user != nil {
			plain, _ := goaway.Plain(c)
			user(plain, state)
		}
		s.noteState(c, state)
	}
}

func (s *Server) baseContext(user func(net.Listener) context.Context) func(net.Listener) context.Context {
	return func(l net.Listener) context.Context {
		s.baseAsked.Store(true)
		ctx := context.Background()
		l, real := s.enterDoor(l)
		if !real {
			return ctx
		}
		if user != nil {
			if ctx = user(l); ctx == nil {
				return nil // net/http says what is wrong
			}
		}
		if ctx.Value(serverKey{}) == s {
			return ctx // user was this hook already
		}
		if !s.noteServe(l) {
			return ctx
		}
		// One cancel context for all connections: each registers with it once,
		// and requests register with their connection.
		ctx, cancel := context.WithCancelCause(context.WithValue(ctx, serverKey{}, s))
		s.mu.Lock()
		s.cancels = append(s.cancels, cancel)
		s.mu.Unlock()
		return ctx
	}
}

// noteServe is called when net/http begins to serve l, before the first
// connection, and reports whether that is s's concern. A listener that did not
// come through Serve came past usher, as when a framework calls Serve of the
// http.Server that it was given.
func (s *Server) noteServe(l net.Listener) bool {
	ours := listenerBelow(l)
	if ours != nil {
		if o := ours.observedBy(); o != nil && o != observer(s) {
			return false // another Server wraps the same http.Server, and serves
		}
	}
	s.servesDirectly(ours, l.Addr())
	return true
}

// firstConn is the ConnState from Wrap on. It sees what came past usher if
// somebody has replaced BaseContext since.
func (s *Server) firstConn(user func(net.Conn, http.ConnState)) func(net.Conn, http.ConnState) {
	return func(c net.Conn, state http.ConnState) {
		if user != nil {
			user(c, state)
		}
		if state != http.StateNew || s.baseAsked.Load() || s.Phase() != PhaseStarting {
			return
		}
		s.servesDirectly(listenerOf(track.Of(c)), c.LocalAddr())
		s.noteState(c, state)
	}
}

// servesDirectly notes that net/http has begun to serve ours, if that is not
// nil, or a listener that only net/http has.
func (s *Server) servesDirectly(ours *Listener, addr net.Addr) {
	s.chain()
	s.mu.Lock()
	if ours != nil {
		s.adopt(ours)
	} else {
		s.unseen = true
	}
	s.startServing()
	s.mu.Unlock()
	if ours == nil {
		s.log.Warn("usher: the http.Server was told to serve directly: a stop loses requests; call Serve, ListenAndServe or Run of usher.Server instead", "addr", addr.String())
	}
}

// startServing enters PhaseServing, once. Its caller holds s.mu.
func (s *Server) startServing() {
	if s.Phase() == PhaseStarting {
		s.setPhase(PhaseServing)
	}
}

// opaqueOwner is the Server as the owner of connections that no Listener wrapped.
type opaqueOwner struct{ s *Server }

// Notice implements [track.Owner].
func (o opaqueOwner) Notice(*track.Conn, track.Events) { o.s.connsChanged() }

// noteState passes what net/http says of a connection on to what follows it.
func (s *Server) noteState(nc net.Conn, state http.ConnState) {
	c := track.Of(nc)
	if c == nil {
		if s.opaque.Report(nc, state) {
			s.log.Warn("usher: a listener speaks TLS itself or hides its connections: MaxConns does not hold for them, and a stop cannot tell a silent one from a busy one")
		}
		return
	}
	if state == http.StateNew {
		if l := listenerOf(c); l != nil && l.observedBy() == nil {
			// It came under a TLS listener.
			s.mu.Lock()
			s.adopt(l)
			s.mu.Unlock()
		}
	}
	c.Report(nc, state)
}
