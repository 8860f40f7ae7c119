package usher

import (
	"context"
	"net"
	"net/http"
	"reflect"

	"github.com/seed-235859eb/usher/internal/track"
)

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
	p := progressOf(w, r)
	if !p.sent && !begun || p.whole {
		return
	}
	if r.ProtoMajor == 1 {
		s.aborted.Add(1)
		if p.untilClose {
			reset(w)
		}
	}
	panic(http.ErrAbortHandler)
}

// progress is how far a response has come.
type progress struct {
	sent       bool // its header
	whole      bool // net/http says itself if it is not, or nothing is missing
	untilClose bool // its end is that of the connection
}

// progressOf looks into the ResponseWriter of net/http, which tells nobody. It
// must be called on the handler's goroutine. If the fields are others than those
// of Go 1.26 and 1.27, the zero progress comes back, and a response that was cut
// looks whole; TestProgressOf tells.
func progressOf(w http.ResponseWriter, r *http.Request) (p progress) {
	for {
		inner, ok := w.(interface{ Unwrap() http.ResponseWriter })
		if !ok {
			break
		}
		w = inner.Unwrap()
	}
	bodyless := r.Method == http.MethodHead
	v := structOf(reflect.ValueOf(w))
	if inner := structOf(fieldOf(v, "ResponseWriter")); inner.IsValid() { // HTTP/2 from Go 1.27 on
		v = inner
	}
	if rws := structOf(fieldOf(v, "rws")); rws.IsValid() { // HTTP/2
		p.sent = boolOf(rws, "sentHeader")
		length, ok := intOf(rws, "sentContentLen")
		written, _ := intOf(rws, "wroteBytes")
		status, _ := intOf(rws, "status")
		p.whole = !ok || bodyless || !hasBodyStatus(status) || length > 0 && written >= length || w.Header().Get("Content-Length") == "0"
		return p
	}
	cw := fieldOf(v, "cw")
	length, ok := intOf(v, "contentLength")
	status, _ := intOf(v, "status")
	p.sent = boolOf(cw, "wroteHeader")
	// If less is written than was declared, net/http breaks the connection.
	p.whole = !ok || bodyless || !hasBodyStatus(status) || length >= 0
	p.untilClose = p.sent && !p.whole && !boolOf(cw, "chunking")
	return p
}

// hasBodyStatus reports whether a response of that status has a body.
func hasBodyStatus(status int64) bool {
	return status >= 200 && status != http.StatusNoContent && status != http.StatusNotModified
}

func structOf(v reflect.Value) reflect.Value {
	if v.Kind() == reflect.Pointer {
		v = v.Elem()
	}
	if v.Kind() != reflect.Struct {
		return reflect.Value{}
	}
	return v
}

func fieldOf(v reflect.Value, name string) reflect.Value {
	if v.Kind() != reflect.Struct {
		return reflect.Value{}
	}
	return v.FieldByName(name)
}

func boolOf(v reflect.Value, name string) bool {
	f := fieldOf(v, name)
	return f.Kind() == reflect.Bool && f.Bool()
}

func intOf(v reflect.Value, name string) (n int64, ok bool) {
	if f := fieldOf(v, name); f.CanInt() {
		return f.Int(), true
	}
	return 0, false
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
