package nethttp

import (
	"crypto/tls"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
)

func TestTLSInner(t *testing.T) {
	inner, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer inner.Close()
	field, ok := TLSInner(tls.NewListener(inner, &tls.Config{}))
	if !ok || field.Interface() != inner {
		t.Error("the listener below one of crypto/tls is not found")
	}
	for _, l := range []net.Listener{nil, inner, struct{ net.Listener }{inner}} {
		if _, ok := TLSInner(l); ok {
			t.Errorf("%T is taken for a listener of crypto/tls", l)
		}
	}
}

// TestProgressOf: what the fields of net/http's ResponseWriters are taken to
// mean. It fails when a release of Go has others.
func TestProgressOf(t *testing.T) {
	const long = 100_000 // more than anybody buffers
	for _, tt := range []struct {
		name   string
		method string
		handle func(w http.ResponseWriter)
		sent   bool
		whole  bool
	}{
		{"nothing", "GET", func(http.ResponseWriter) {}, false, false},
		{"a little", "GET", func(w http.ResponseWriter) { fmt.Fprint(w, "a little") }, false, false},
		{"flushed", "GET", func(w http.ResponseWriter) { fmt.Fprint(w, "a little"); w.(http.Flusher).Flush() }, true, false},
		{"much", "GET", func(w http.ResponseWriter) { fmt.Fprint(w, strings.Repeat("x", long)) }, true, false},
		{"of known length", "GET", func(w http.ResponseWriter) {
			w.Header().Set("Content-Length", fmt.Sprint(long))
			fmt.Fprint(w, strings.Repeat("x", long))
		}, true, true},
		{"empty", "GET", func(w http.ResponseWriter) {
			w.Header().Set("Content-Length", "0")
			w.(http.Flusher).Flush()
		}, true, true},
		{"no content", "GET", func(w http.ResponseWriter) { w.WriteHeader(204); w.(http.Flusher).Flush() }, true, true},
		{"HEAD", "HEAD", func(w http.ResponseWriter) { w.(http.Flusher).Flush() }, true, true},
	} {
		t.Run(tt.name, func(t *testing.T) {
			for _, http2 := range []bool{false, true} {
				got := make(chan Progress, 1)
				ts := httptest.NewUnstartedServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
					tt.handle(w)
					got <- ProgressOf(w, r)
				}))
				ts.EnableHTTP2 = http2
				ts.StartTLS()
				defer ts.Close()
				req, err := http.NewRequest(tt.method, ts.URL, nil)
				if err != nil {
					t.Fatal(err)
				}
				resp, err := ts.Client().Do(req)
				if err != nil {
					t.Fatal(err)
				}
				io.Copy(io.Discard, resp.Body)
				resp.Body.Close()
				if (resp.ProtoMajor == 2) != http2 {
					t.Errorf("the response came over %s", resp.Proto)
				}
				if p := <-got; p.Sent != tt.sent || p.Whole != tt.whole && tt.sent {
					t.Errorf("HTTP/2 %v: %+v, want sent %v, whole %v", http2, p, tt.sent, tt.whole)
				}
			}
		})
	}
}
