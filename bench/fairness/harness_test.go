package fairness

import (
	"bufio"
	"context"
	"io"
	"log"
	"net"
	"net/http"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/seed-235859eb/usher"
)

// start serves h within limits, HTTP/1 and HTTP/2 without TLS on one address,
// and returns that.
func start(t testing.TB, c Contender, limits Limits, h http.HandlerFunc, setUp ...func(*http.Server)) (addr string) {
	t.Helper()
	srv := &http.Server{Handler: h, ErrorLog: log.New(io.Discard, "", 0), Protocols: new(http.Protocols)}
	srv.Protocols.SetHTTP1(true)
	srv.Protocols.SetUnencryptedHTTP2(true)
	for _, f := range setUp {
		f(srv)
	}
	l, err := usher.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	s := c.New(srv, limits)
	served := make(chan struct{})
	go func() {
		defer close(served)
		s.Serve(l)
	}()
	t.Cleanup(func() {
		s.Close()
		<-served
	})
	return l.Addr().String()
}

// newClient returns a client with connections of its own.
func newClient(t *testing.T, http2 bool) *http.Client {
	tr := &http.Transport{Protocols: new(http.Protocols)}
	tr.Protocols.SetHTTP1(!http2)
	tr.Protocols.SetUnencryptedHTTP2(http2)
	t.Cleanup(tr.CloseIdleConnections)
	return &http.Client{Transport: tr}
}

// do sends a request and returns the status and the body of its answer. It
// gives up when ctx ends.
func do(ctx context.Context, c *http.Client, method, url string, body io.Reader) (status int, text string, err error) {
	req, err := http.NewRequestWithContext(ctx, method, url, body)
	if err != nil {
		return 0, "", err
	}
	resp, err := c.Do(req)
	if err != nil {
		return 0, "", err
	}
	defer resp.Body.Close()
	b, err := io.ReadAll(resp.Body)
	return resp.StatusCode, string(b), err
}

// within returns a context for d.
func within(t *testing.T, d time.Duration) context.Context {
	ctx, cancel := context.WithTimeout(t.Context(), d)
	t.Cleanup(cancel)
	return ctx
}

// A rawConn is a client's HTTP/1 connection.
type rawConn struct {
	net.Conn
	r *bufio.Reader
}

func dial(t *testing.T, addr string) *rawConn {
	t.Helper()
	c, err := net.Dial("tcp", addr)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close() })
	return &rawConn{c, bufio.NewReader(c)}
}

func (c *rawConn) get(path string) {
	io.WriteString(c, "GET "+path+" HTTP/1.1\r\nHost: bench.test\r\n\r\n")
}

// answer reads an answer, body and all, that comes within d.
func (c *rawConn) answer(d time.Duration) (*http.Response, error) {
	c.SetReadDeadline(time.Now().Add(d))
	resp, err := http.ReadResponse(c.r, nil)
	if err != nil {
		return nil, err
	}
	_, err = io.Copy(io.Discard, resp.Body)
	return resp, err
}

// A gate is a handler for /hold that says when it has begun and waits to be let
// go; it answers anything else at once.
type gate struct {
	begun   chan struct{} // has an element for each that holds
	release chan struct{} // closed to let them go
}

func newGate() *gate {
	return &gate{make(chan struct{}, 1000), make(chan struct{})}
}

func (g *gate) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	if strings.HasPrefix(r.URL.Path, "/hold") {
		g.begun <- struct{}{}
		<-g.release
	}
	ok(w, r)
}

// hold has a connection of its own take a slot, and returns when it has it.
func (g *gate) hold(t *testing.T, addr string) *rawConn {
	t.Helper()
	c := dial(t, addr)
	io.WriteString(c, "GET /hold HTTP/1.1\r\nHost: bench.test\r\nConnection: close\r\n\r\n")
	select {
	case <-g.begun:
	case <-time.After(patience):
		t.Fatal("a request on an idle server does not begin")
	}
	return c
}

// percentile sorts all and looks one up.
func percentile(all []time.Duration, p int) time.Duration {
	if len(all) == 0 {
		return 0
	}
	slices.Sort(all)
	return all[(len(all)*p+99)/100-1]
}
