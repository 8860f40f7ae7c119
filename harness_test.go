package usher

import (
	"bufio"
	"context"
	"crypto/tls"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"log"
	"log/slog"
	"net"
	"net/http"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/seed-235859eb/usher/internal/selfsigned"
	"github.com/seed-235859eb/usher/internal/track"
)

// A mode is a protocol that a behaviour is tested over.
type mode string

const (
	h1    mode = "h1"
	h1tls mode = "h1tls"
	h2    mode = "h2"
	h2c   mode = "h2c"
)

var (
	allModes = []mode{h1, h1tls, h2, h2c}
	h1Modes  = []mode{h1, h1tls}
	h2Modes  = []mode{h2, h2c}
)

func (m mode) tls() bool   { return m == h1tls || m == h2 }
func (m mode) http2() bool { return m == h2 || m == h2c }

// run runs f in each of the modes.
func run(t *testing.T, modes []mode, f func(*testing.T, mode)) {
	t.Helper()
	for _, m := range modes {
		t.Run(string(m), func(t *testing.T) {
			t.Parallel()
			f(t, m)
		})
	}
}

var testCert = sync.OnceValue(func() tls.Certificate {
	cert, err := selfsigned.Certificate("usher.test")
	if err != nil {
		panic(err)
	}
	return cert
})

// testServer is a Server on a real socket.
type testServer struct {
	*Server
	t      *testing.T
	mode   mode
	http   *http.Server
	net    string
	addr   string
	served chan error // what Serve returned
}

var silent = slog.New(slog.DiscardHandler)

// newHTTPServer returns a server that speaks m.
func newHTTPServer(m mode, h http.Handler) *http.Server {
	srv := &http.Server{Handler: h, ErrorLog: log.New(io.Discard, "", 0), Protocols: new(http.Protocols)}
	srv.Protocols.SetHTTP1(true)
	srv.Protocols.SetHTTP2(m == h2)
	srv.Protocols.SetUnencryptedHTTP2(m == h2c)
	if m.tls() {
		srv.TLSConfig = &tls.Config{Certificates: []tls.Certificate{testCert()}}
	}
	return srv
}

// quickly are options for tests on real sockets.
func quickly() Options {
	return Options{
		Listener: ListenerOptions{HandshakeGrace: 20 * time.Millisecond},
		Shutdown: ShutdownOptions{IdleGrace: 100 * time.Millisecond, GracePeriod: 30 * time.Second},
		Logger:   silent,
	}
}

// startServer serves h over m on a socket of its own.
func startServer(t *testing.T, m mode, opts Options, h http.HandlerFunc, setUp ...func(*testServer)) *testServer {
	t.Helper()
	ts := &testServer{t: t, mode: m, http: newHTTPServer(m, h), net: "tcp", served: make(chan error, 1)}
	ts.Server = Wrap(ts.http, opts)
	for _, f := range setUp {
		f(ts)
	}
	address := "127.0.0.1:0"
	if ts.net == "unix" {
		address = t.TempDir() + "/s"
	}
	l, err := Listen(ts.net, address)
	if err != nil {
		t.Fatal(err)
	}
	ts.addr = l.Addr().String()
	ts.serve(l)
	t.Cleanup(func() { ts.Close() })
	return ts
}

// serve calls Serve or ServeTLS.
func (ts *testServer) serve(l net.Listener) {
	go func() {
		if ts.mode.tls() {
			ts.served <- ts.ServeTLS(l, "", "")
		} else {
			ts.served <- ts.Serve(l)
		}
	}()
}

// client returns a client with connections of its own.
func (ts *testServer) client() *http.Client {
	tr := &http.Transport{
		TLSClientConfig: &tls.Config{InsecureSkipVerify: true},
		Protocols:       new(http.Protocols),
		DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
			return new(net.Dialer).DialContext(ctx, ts.net, ts.addr)
		},
	}
	switch ts.mode {
	case h2:
		tr.Protocols.SetHTTP2(true)
	case h2c:
		tr.Protocols.SetUnencryptedHTTP2(true)
	default:
		tr.Protocols.SetHTTP1(true)
	}
	ts.t.Cleanup(tr.CloseIdleConnections)
	return &http.Client{Transport: tr, Timeout: time.Minute}
}

func (ts *testServer) url(path string) string {
	if ts.mode.tls() {
		return "https://usher.test" + path
	}
	return "http://usher.test" + path
}

// get sends a request and returns the response's body.
func (ts *testServer) get(c *http.Client, path string) (string, error) {
	resp, err := c.Get(ts.url(path))
	if err != nil {
		return "", err
	}
	defer resp.Body.Close()
	b, err := io.ReadAll(resp.Body)
	if err == nil && resp.StatusCode != http.StatusOK {
		err = errors.New(resp.Status)
	}
	return string(b), err
}

// dial returns a connection as a client of HTTP/1 or, with its preface sent,
// of HTTP/2 uses it.
func (ts *testServer) dial() *rawConn {
	ts.t.Helper()
	c, err := net.Dial(ts.net, ts.addr)
	if err != nil {
		ts.t.Fatal(err)
	}
	ts.t.Cleanup(func() { c.Close() })
	c.SetDeadline(time.Now().Add(time.Minute))
	if ts.mode.tls() {
		cfg := &tls.Config{InsecureSkipVerify: true}
		if ts.mode == h2 {
			cfg.NextProtos = []string{"h2"}
		}
		tc := tls.Client(c, cfg)
		if err := tc.Handshake(); err != nil {
			ts.t.Fatal(err)
		}
		c = tc
	}
	rc := newRawConn(ts.t, c)
	if ts.mode.http2() {
		rc.send("PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n")
		rc.sendFrame(frameSettings, 0, 0, "")
	}
	return rc
}

// rawConn is a client's connection, without anything that would retry.
type rawConn struct {
	net.Conn
	t *testing.T
	r *bufio.Reader
}

func newRawConn(t *testing.T, c net.Conn) *rawConn {
	return &rawConn{Conn: c, t: t, r: bufio.NewReader(c)}
}

func (c *rawConn) send(s string) {
	c.t.Helper()
	if _, err := io.WriteString(c.Conn, s); err != nil {
		c.t.Errorf("send %.20q: %v", s, err)
	}
}

const request = "GET / HTTP/1.1\r\nHost: usher.test\r\n\r\n"

// response reads an HTTP/1 response and its body.
func (c *rawConn) response() (*http.Response, string, error) {
	resp, err := http.ReadResponse(c.r, nil)
	if err != nil {
		return nil, "", err
	}
	body, err := io.ReadAll(resp.Body)
	return resp, string(body), err
}

// answered reads a response and fails the test if it is not whole.
func (c *rawConn) answered() *http.Response {
	c.t.Helper()
	resp, _, err := c.response()
	if err != nil {
		c.t.Fatalf("no response: %v", err)
	}
	return resp
}

// ended waits for the server to close and fails the test if it does not do so
// in order.
func (c *rawConn) ended() {
	c.t.Helper()
	if b, err := c.r.ReadByte(); err != io.EOF {
		c.t.Errorf("read %q, %v, want EOF", b, err)
	}
	c.Close()
}

// HTTP/2 frame types (RFC 9113, section 6).
const (
	frameData     = 0
	frameHeaders  = 1
	frameReset    = 3
	frameSettings = 4
	framePing     = 6
	frameGoAway   = 7

	frameWindowUpdate = 8

	flagAck        = 1
	flagEndStream  = 1
	flagEndHeaders = 4
)

func (c *rawConn) sendFrame(typ, flags byte, stream uint32, payload string) {
	c.t.Helper()
	h := make([]byte, 9, 9+len(payload))
	binary.BigEndian.PutUint32(h, uint32(len(payload))<<8|uint32(typ))
	h[4] = flags
	binary.BigEndian.PutUint32(h[5:], stream)
	c.send(string(h) + payload)
}

// getStream opens a stream with GET /.
func (c *rawConn) getStream(stream uint32) {
	c.t.Helper()
	const authority = "usher.test"
	c.sendFrame(frameHeaders, flagEndStream|flagEndHeaders, stream,
		"\x82\x86\x84\x41"+string(rune(len(authority)))+authority)
}

type frame struct {
	typ, flags byte
	stream     uint32
	payload    string
}

func (c *rawConn) readFrame() (frame, error) {
	var h [9]byte
	if _, err := io.ReadFull(c.r, h[:]); err != nil {
		return frame{}, err
	}
	payload := make([]byte, binary.BigEndian.Uint32(h[:])>>8)
	if _, err := io.ReadFull(c.r, payload); err != nil {
		return frame{}, err
	}
	return frame{h[3], h[4], binary.BigEndian.Uint32(h[5:]), string(payload)}, nil
}

// readUntil reads frames up to one that matches.
func (c *rawConn) readUntil(what string, match func(frame) bool) {
	c.t.Helper()
	for {
		f, err := c.readFrame()
		if err != nil {
			c.t.Fatalf("no %s: %v", what, err)
		}
		if match(f) {
			return
		}
	}
}

func isGoAway(f frame) bool { return f.typ == frameGoAway }

// isFirstStep is for the GOAWAY that refuses nothing.
func isFirstStep(f frame) bool { return isGoAway(f) && f.lastStream() == 1<<31-1 }

// isSecondStep is for net/http's GOAWAY.
func isSecondStep(f frame) bool { return isGoAway(f) && f.lastStream() != 1<<31-1 }

func (f frame) lastStream() uint32 { return binary.BigEndian.Uint32([]byte(f.payload)) }

func isPing(f frame) bool { return f.typ == framePing && f.flags&flagAck == 0 }

// answerPing reads up to a PING, and acknowledges it.
func (c *rawConn) answerPing() {
	c.t.Helper()
	var data string
	c.readUntil("PING", func(f frame) bool {
		data = f.payload
		return isPing(f)
	})
	c.sendFrame(framePing, flagAck, 0, data)
}

func endOf(stream uint32) func(frame) bool {
	return func(f frame) bool {
		return f.stream == stream && f.flags&flagEndStream != 0 && (f.typ == frameData || f.typ == frameHeaders)
	}
}

// eventually waits until cond holds. Where nothing announces a change, to look
// again and again is all that is left.
func eventually(t *testing.T, what string, cond func() bool) {
	t.Helper()
	deadline := time.Now().Add(30 * time.Second)
	for !cond() {
		if time.Now().After(deadline) {
			t.Fatalf("never happened: %s", what)
		}
		time.Sleep(time.Millisecond)
	}
}

func (ts *testServer) awaitPhase(p Phase) {
	ts.t.Helper()
	eventually(ts.t, "phase "+p.String(), func() bool { return ts.Phase() >= p })
}

// conns returns the connections that the server's listeners have accepted.
func (s *Server) conns() (all []*track.Conn) {
	for _, set := range s.sets() {
		set.Each(func(c *track.Conn, _ track.State) { all = append(all, c) })
	}
	return all
}

// state returns the state of the server's one connection.
func (ts *testServer) state() (st track.State) {
	for _, c := range ts.conns() {
		st = c.State()
	}
	return st
}

// shutdown starts a stop and returns its result later.
func (ts *testServer) shutdown() <-chan error {
	result := make(chan error, 1)
	go func() { result <- ts.Shutdown(context.Background()) }()
	return result
}

// clean fails the test if the stop was not clean, or Serve says otherwise.
func (ts *testServer) clean(result <-chan error) Report {
	ts.t.Helper()
	if err := <-result; err != nil {
		ts.t.Errorf("Shutdown: %v", err)
	}
	if err := <-ts.served; err != http.ErrServerClosed {
		ts.t.Errorf("Serve: %v, want http.ErrServerClosed", err)
	}
	return ts.balanced()
}

// balanced returns the report and fails the test if it does not add up.
func (ts *testServer) balanced() Report {
	ts.t.Helper()
	r := ts.Stats().Report
	if r == nil {
		ts.t.Fatal("no report")
	}
	if in, out := r.Open+r.AcceptedLate, r.Served+r.HungUp+r.Idle+r.Hijacked+r.Cut; in != out {
		ts.t.Errorf("%d connections came and %d left: %+v", in, out, *r)
	}
	return *r
}

// recorder is a log handler that keeps lines.
type recorder struct {
	mu    sync.Mutex
	lines []string
}

func (r *recorder) Write(p []byte) (int, error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.lines = append(r.lines, string(p))
	return len(p), nil
}

func (r *recorder) logger() *slog.Logger { return slog.New(slog.NewTextHandler(r, nil)) }

func (r *recorder) contains(s string) bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	for _, l := range r.lines {
		if strings.Contains(l, s) {
			return true
		}
	}
	return false
}

func ok(w http.ResponseWriter, r *http.Request) { fmt.Fprint(w, "ok") }

// noListener stands where only a listener's type matters.
type noListener struct{}

func (noListener) Accept() (net.Conn, error) { return nil, net.ErrClosed }

func (noListener) Close() error { return nil }

func (noListener) Addr() net.Addr { return &net.TCPAddr{} }
