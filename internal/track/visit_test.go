package track

import (
	"bufio"
	"crypto/tls"
	"io"
	"net"
	"net/http"
	"sync"
	"sync/atomic"
	"testing"
	"time"
)

// A visitor is a client of a real http.Server, and knows when the server has
// read all that it sent.
type visitor struct {
	t      *testing.T
	conn   net.Conn // what requests are written to
	reader *bufio.Reader
	sent   *sentBytes
	server *Conn
	read   atomic.Int64  // bytes, by the server
	asked  chan struct{} // a handler has begun
	answer chan struct{} // has it end
}

// sentBytes counts what is written to a connection, and keeps what is read.
type sentBytes struct {
	net.Conn
	n   atomic.Int64
	got []byte
}

func (s *sentBytes) Read(p []byte) (int, error) {
	n, err := s.Conn.Read(p)
	s.got = append(s.got, p[:n]...)
	return n, err
}

func (s *sentBytes) Write(p []byte) (int, error) {
	n, err := s.Conn.Write(p)
	s.n.Add(int64(n))
	return n, err
}

// A visit is a kind of client, and what its server is like.
type visit struct {
	mode
	name   string
	client *tls.Config
	server func(*tls.Config)
	few    bool // a few lengths are enough
}

func visits(t *testing.T) []visit {
	cert := testCert(t)
	long := cert
	for size := 0; size < 40<<10; size += len(cert.Certificate[0]) {
		long.Certificate = append(long.Certificate[:len(long.Certificate):len(long.Certificate)], cert.Certificate[0])
	}
	askFor := func(c *tls.Config) { c.ClientAuth = tls.RequestClientCert }
	all := []visit{
		{mode: http1Modes[0], name: "plain"},
		{mode: http1Modes[1], name: "plain, HTTP2 enabled"},
		{mode: http1Modes[2], name: "TLS 1.3", client: &tls.Config{}},
		{mode: http1Modes[3], name: "TLS 1.3, HTTP2 enabled", client: &tls.Config{}},
		{mode: http1Modes[2], name: "TLS 1.3, asked for a certificate", client: &tls.Config{}, server: askFor},
		{mode: http1Modes[2], name: "TLS 1.3, with a certificate", client: &tls.Config{Certificates: []tls.Certificate{cert}}, server: askFor},
		{mode: http1Modes[2], name: "TLS 1.3, with a long chain", client: &tls.Config{Certificates: []tls.Certificate{long}}, server: askFor},
		{mode: http1Modes[2], name: "TLS 1.3, retried", client: &tls.Config{CurvePreferences: []tls.CurveID{tls.X25519, tls.CurveP256}},
			server: func(c *tls.Config) { c.CurvePreferences = []tls.CurveID{tls.CurveP256} }},
		{mode: http1Modes[2], name: "TLS 1.3, without tickets", client: &tls.Config{}, server: func(c *tls.Config) { c.SessionTicketsDisabled = true }},
		{mode: http1Modes[2], name: "TLS 1.2", client: &tls.Config{MaxVersion: tls.VersionTLS12}},
		{mode: http1Modes[2], name: "TLS 1.2, with a long chain", client: &tls.Config{MaxVersion: tls.VersionTLS12, Certificates: []tls.Certificate{long}}, server: askFor},
	}
	for i, v := range all {
		if v.client != nil {
			v.client.InsecureSkipVerify = true
			all[i].few = i > 2
		}
	}
	return all
}

// host is a server that visitors go to.
type host struct {
	t    *testing.T
	v    visit
	addr string
	at   chan *visitor // the visitor that comes next
}

func (v visit) host(t *testing.T) *host {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	h := &host{t: t, v: v, addr: l.Addr().String(), at: make(chan *visitor, 1)}
	set := NewSet(nobody{})
	set.KeepTime()
	var visitors sync.Map // from *Conn to *visitor
	find := func(r *http.Request) *visitor {
		vis, _ := visitors.Load(Of(r.Context().Value(connKey{}).(net.Conn)))
		return vis.(*visitor)
	}
	srv := v.mode.server(t, func(_ http.ResponseWriter, r *http.Request) {
		io.Copy(io.Discard, r.Body)
		vis := find(r)
		vis.asked <- struct{}{}
		<-vis.answer
	})
	if v.server != nil {
		v.server(srv.TLSConfig)
	}
	srv.ConnContext = withConn
	srv.ConnState = func(c net.Conn, state http.ConnState) { Of(c).Report(c, state) }
	v.mode.serve(t, srv, listenerFunc{l, func(nc net.Conn) net.Conn {
		vis := <-h.at
		c := set.Add(nc)
		raw := c.readFn
		c.readFn = func(fd uintptr) bool {
			done := raw(fd)
			vis.read.Add(int64(c.n))
			return done
		}
		visitors.Store(c, vis)
		vis.server = c
		vis.asked <- struct{}{}
		return c
	}})
	return h
}

// visit has a client come, and do its TLS handshake.
func (h *host) visit() *visitor {
	h.t.Helper()
	vis := &visitor{t: h.t, asked: make(chan struct{}, 1), answer: make(chan struct{})}
	h.at <- vis
	c, err := net.Dial("tcp", h.addr)
	if err != nil {
		h.t.Fatal(err)
	}
	<-vis.asked
	c.SetDeadline(time.Now().Add(time.Minute))
	vis.sent = &sentBytes{Conn: c}
	vis.conn = vis.sent
	if h.v.client != nil {
		tc := tls.Client(vis.sent, h.v.client)
		if err := tc.Handshake(); err != nil {
			h.t.Fatal(err)
		}
		vis.conn = tc
	}
	vis.reader = bufio.NewReader(vis.conn)
	return vis
}

func (vis *visitor) leave() { vis.sent.Close() }

func (vis *visitor) send(text string) {
	vis.t.Helper()
	send(vis.t, vis.conn, text)
}

// ask sends text, which ends with a request, and returns when its handler runs.
func (vis *visitor) ask(text string) {
	vis.t.Helper()
	vis.send(text)
	<-vis.asked
}

// answered has the handler end.
func (vis *visitor) answered() {
	vis.t.Helper()
	vis.answer <- struct{}{}
	resp, err := http.ReadResponse(vis.reader, nil)
	if err != nil {
		vis.t.Fatal(err)
	}
	io.Copy(io.Discard, resp.Body)
}

// consumed waits until the server has read all that was sent, and waits for
// more between two requests.
func (vis *visitor) consumed() State {
	vis.t.Helper()
	eventually(vis.t, "the server has read all", func() bool {
		st := vis.server.State()
		return vis.read.Load() == vis.sent.n.Load() && st.Waits() && between(st)
	})
	return vis.server.State()
}
