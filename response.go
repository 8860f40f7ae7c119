package usher

import (
	"bufio"
	"context"
	"io"
	"net"
	"net/http"
	"strings"

	"github.com/felixge/httpsnoop"

	"github.com/seed-235859eb/usher/internal/goaway"
	"github.com/seed-235859eb/usher/internal/nethttp"
	"github.com/seed-235859eb/usher/internal/track"
)

// handler wraps the user's handler. As long as the server serves it adds two
// atomic counts and three loads; the ResponseWriter stays net/http's own.
//
// What stands outside the limiter counts requests that wait for a slot, too.
// Inside it, a response is its connection's last if the drain has begun by the
// time its request has a slot.
func (s *Server) handler(next http.Handler) http.Handler {
	inner := http.Handler(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if s.Phase() <= PhaseServing && s.newcomers.Load() == 0 {
			next.ServeHTTP(plainHijack(w, r), r)
		} else {
			s.serveLast(w, r, next)
		}
		if s.Phase() == PhaseHard {
			s.abortUnfinished(w, r, false)
		}
	}))
	if s.limiter != nil {
		inner = s.limiter.Handler(inner)
	}
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		s.begun.Add(1)
		defer s.ended.Add(1)
		e, own := s.requests.Begin(r, isEventStream(r))
		defer s.requests.End(e)
		if own != r { // a copy; net/http removes the files of its own
			defer func() { r.MultipartForm = own.MultipartForm }()
		}
		inner.ServeHTTP(w, own)
	})
}

// serveLast serves a request that began after the stop did, or while a newcomer
// waited for the place of another connection. Its response says that it is the
// connection's last, if the drain has begun by the time its header is written,
// or a newcomer still waits: for HTTP/1 the client reads that, and for HTTP/2
// net/http makes a GOAWAY of it.
func (s *Server) serveLast(w http.ResponseWriter, r *http.Request, next http.Handler) {
	wrote, inTime := false, false
	beforeHeader := func(code int) {
		if wrote || code < 200 && code != http.StatusSwitchingProtocols {
			return // sent already, or only an informational header comes
		}
		wrote, inTime = true, s.Phase() < PhaseHard
		if code != http.StatusSwitchingProtocols && (s.Phase() > PhaseLameDuck || s.newcomers.Load() > 0) && s.mayClose(r) {
			sayClose(w.Header(), r)
		}
	}
	hooked := httpsnoop.Wrap(w, httpsnoop.Hooks{
		WriteHeader: func(f httpsnoop.WriteHeaderFunc) httpsnoop.WriteHeaderFunc {
			return func(code int) { beforeHeader(code); f(code) }
		},
		Write: func(f httpsnoop.WriteFunc) httpsnoop.WriteFunc {
			return func(p []byte) (int, error) { beforeHeader(http.StatusOK); return f(p) }
		},
		ReadFrom: func(f httpsnoop.ReadFromFunc) httpsnoop.ReadFromFunc {
			return func(src io.Reader) (int64, error) { beforeHeader(http.StatusOK); return f(src) }
		},
		Flush: func(f httpsnoop.FlushFunc) httpsnoop.FlushFunc {
			return func() { beforeHeader(http.StatusOK); f() }
		},
		Hijack: func(f httpsnoop.HijackFunc) httpsnoop.HijackFunc {
			return func() (net.Conn, *bufio.ReadWriter, error) {
				c, rw, err := f()
				wrote = wrote || err == nil
				c, _ = goaway.Plain(c)
				return c, rw, err
			}
		},
	})
	next.ServeHTTP(hooked, r)
	if inTime && s.Phase() == PhaseHard {
		s.abortUnfinished(w, r, true)
	}
	// A handler that wrote nothing gets its header written when it returns.
	beforeHeader(http.StatusOK)
}

// sayClose adds the close option to a response's Connection header. net/http
// asks for it as the first value and alone, and sends all of them.
func sayClose(h http.Header, r *http.Request) {
	if r.ProtoMajor == 1 && r.ProtoMinor == 0 && !wantsKeepAlive(r) {
		return // closes anyway, and need not learn the word
	}
	values := []string{"close"}
	for _, line := range h["Connection"] {
		for option := range strings.SplitSeq(line, ",") {
			switch option = strings.TrimSpace(option); strings.ToLower(option) {
			case "", "close", "keep-alive":
			default:
				values = append(values, option)
			}
		}
	}
	h["Connection"] = values
	h.Del("Keep-Alive")
}

// wantsKeepAlive reports whether an HTTP/1.0 client asked to keep the
// connection.
func wantsKeepAlive(r *http.Request) bool {
	for _, line := range r.Header["Connection"] {
		for option := range strings.SplitSeq(line, ",") {
			if strings.EqualFold(strings.TrimSpace(option), "keep-alive") {
				return true
			}
		}
	}
	return false
}

// abortUnfinished is called when a handler has returned and the time of the stop
// is over. If the handler returned because its context was cancelled, net/http
// would end its response, of which only it knows how long it should have been,
// as if it were whole. The client must see that it was cut.
//
// A response that did not begin before its request was cancelled is the
// handler's answer to that. Whether it did is known of those that begun says,
// and of others if the header has been sent: who writes it after the
// cancellation, and then more than net/http buffers, without a length, is taken
// for one that was cut.
func (s *Server) abortUnfinished(w http.ResponseWriter, r *http.Request, begun bool) {
	if context.Cause(r.Context()) != ErrShuttingDown {
		return
	}
	p := nethttp.ProgressOf(w, r)
	if !p.Sent && !begun || p.Whole {
		return
	}
	if r.ProtoMajor == 1 {
		s.aborted.Add(1)
		if p.UntilClose {
			reset(w)
		}
	}
	panic(http.ErrAbortHandler)
}

// reset has the client read an error, and not the end of the connection: only
// that would tell that a response is not whole whose end is the connection's.
func reset(w http.ResponseWriter) {
	c, _, err := http.NewResponseController(w).Hijack()
	if err != nil {
		return
	}
	if tracked := track.Of(c); tracked != nil {
		if tc, ok := tracked.NetConn().(*net.TCPConn); ok {
			tc.SetLinger(0)
		}
		tracked.Cut()
	}
	c.Close()
}
