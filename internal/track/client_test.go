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
	t     *testing.T
	v     visit
	addr  string
	conns chan *Conn
	at    chan *visitor // the visitor that comes next
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

const theBody = "0123456789"

// whens are when a request may come, or what is none.
var whens = []struct {
	name  string
	send  func(vis *visitor, text string)
	noise []string // what begins no request then
	// Over TLS, where lengths alone are seen:
	noiseTLS []string
	blind    func(n int) bool // whether the first n bytes of a request could be something else
}{
	{"first", func(vis *visitor, text string) {
		vis.send(text)
	}, []string{""}, []string{""}, func(int) bool { return false }},
	{"idle", func(vis *visitor, text string) {
		vis.ask(aGet)
		vis.answered()
		vis.consumed()
		vis.send(text)
	}, []string{""}, []string{""}, func(n int) bool { return n == 2 }},
	{"idle, behind a body", func(vis *visitor, text string) {
		vis.ask(aPost + theBody)
		vis.answered()
		vis.consumed()
		vis.send(text)
	}, []string{"\r\n", "\n", "\r", "\r\n\r", "\r\n\r\n"}, []string{"\r\n"}, func(n int) bool { return n == 2 }},
	{"idle, behind a body, byte by byte", func(vis *visitor, text string) {
		vis.ask(aPost + theBody)
		vis.answered()
		for i := range text {
			vis.consumed()
			vis.send(text[i : i+1])
		}
	}, []string{"\r\n", "\r\n\r\n"}, nil, func(int) bool { return false }},
	{"with a body", func(vis *visitor, text string) {
		vis.ask(aPost + theBody + text)
		vis.answered()
	}, []string{"", "\r\n", "\n", "\r\n\r", "\r\n\r\n"}, []string{"", "\r\n"}, func(n int) bool { return n < 4 }},
	{"with a body, on a used connection", func(vis *visitor, text string) {
		vis.ask(aGet)
		vis.answered()
		vis.ask(aPost + theBody + text)
		vis.answered()
	}, []string{"", "\r\n"}, []string{"", "\r\n"}, func(n int) bool { return n < 4 }},
	{"during the handler", func(vis *visitor, text string) {
		vis.ask(aPost + theBody)
		vis.send(text)
		eventually(vis.t, "the background read", func() bool { return vis.read.Load() > vis.sent.n.Load()-int64(len(text)) })
		vis.answered()
	}, []string{"\r\n", "\n", "\r\n\r", "\r\n\r\n"}, []string{"\r\n"}, func(n int) bool { return n < 4 }},
}

// TestHalfARequest: of whatever length it is, and however it came, its
// connection is not quiet.
func TestHalfARequest(t *testing.T) {
	for _, v := range visits(t) {
		t.Run(v.name, func(t *testing.T) {
			t.Parallel()
			h := v.host(t)
			for _, when := range whens {
				for n := 1; n < len(aGet); n++ {
					if v.tls && when.blind(n) || v.few && n > 4 && n%9 != 0 {
						continue
					}
					vis := h.visit()
					when.send(vis, aGet[:n])
					if st := vis.consumed(); st.Quiet() {
						t.Errorf("%s: quiet after %q: %s", when.name, aGet[:n], describe(st))
					}
					if vis.server.Retire() {
						t.Errorf("%s: retired after %q", when.name, aGet[:n])
					}
					vis.ask(aGet[n:])
					vis.answered()
					vis.leave()
				}
			}
		})
	}
}

// TestSilence: a client that says nothing is quiet, and so is one that sends a
// CR LF behind a body.
func TestSilence(t *testing.T) {
	for _, v := range visits(t) {
		t.Run(v.name, func(t *testing.T) {
			t.Parallel()
			h := v.host(t)
			for _, when := range whens {
				noise := when.noise
				if v.tls {
					noise = when.noiseTLS
				}
				for _, text := range noise {
					vis := h.visit()
					when.send(vis, text)
					if st := vis.consumed(); !st.Quiet() {
						t.Errorf("%s: not quiet after %q: %s", when.name, text, describe(st))
					}
					vis.ask(aGet)
					vis.answered()
					if st := vis.consumed(); !st.Quiet() {
						t.Errorf("%s: not quiet after the request behind %q: %s", when.name, text, describe(st))
					}
					vis.leave()
				}
			}
		})
	}
}

// TestQuietSince: what comes between two requests and is none, as far as can be
// seen, may be the beginning of one. So it counts as a sign of life.
func TestQuietSince(t *testing.T) {
	for _, v := range visits(t)[:3] {
		h := v.host(t)
		vis := h.visit()
		vis.ask(aPost + theBody)
		vis.answered()
		vis.consumed()
		before := vis.server.set.Now()
		vis.send("\r\n")
		vis.consumed()
		if since := vis.server.QuietSince(); since < before {
			t.Errorf("%s: quiet since %v before the CR LF", v.name, before-since)
		}
		vis.leave()
	}
}

// TestQuietSinceOfHTTP2: frames that come while no stream is open are none of a
// request's.
func TestQuietSinceOfHTTP2(t *testing.T) {
	_, c := pair(t, "tcp")
	c.set.KeepTime()
	c.change(http2Found)
	c.Report(c, http.StateActive)
	c.Report(c, http.StateIdle)
	since := c.QuietSince()
	for range 2 {
		c.noteRead(make([]byte, 17), 17) // a PING
		c.wait(wholeBuffer)
	}
	if !c.State().Quiet() || c.QuietSince() != since {
		t.Errorf("quiet=%v since %v, became idle at %v", c.State().Quiet(), c.QuietSince(), since)
	}
}

// FuzzClient: whatever comes and whoever reads it, nothing panics, and once a
// byte of a request has come over plain text, the connection is not quiet until
// that request begins.
func FuzzClient(f *testing.F) {
	f.Add([]byte("\x00\x05GET /\x01\xff\x02\x03\x04\x01\xff\x00\x02\r\n\x01\xfd\x05G\x03\x04\x01\xfe"))
	f.Add([]byte("\x00\x0ePRI * HTTP/2.0\x01\x00\x02\x03\x01\xff"))
	f.Add([]byte("\x00\x06\x16\x03\x01\x00\x01\x01\x01\xff\x00\x05\x17\x03\x03\x00\x35\x01\xff"))
	f.Fuzz(func(t *testing.T, script []byte) {
		var st State
		var cl client
		var request bool // a byte of one has come
		next := func() byte {
			if len(script) == 0 {
				return 0
			}
			b := script[0]
			script = script[1:]
			return b
		}
		come := func(p []byte, background bool) {
			st = st.after(readGoesOn)
			for _, b := range p {
				request = request || (between(st) || background) && b != '\r' && b != '\n'
			}
			if e, ok := cl.came(st, p, background); ok {
				st = st.after(e)
			}
		}
		for len(script) > 0 {
			switch next() % 6 {
			case 0:
				if n := min(int(next()), len(script)); n > 0 {
					come(script[:n], false)
					script = script[n:]
				}
			case 1:
				e := readWaits
				if cl.isAhead(st, wholeBuffer-255+int(next())) {
					e = readWaitsAhead
				}
				st = st.after(e)
				if st.Quiet() && request && st&(overTLS|isHTTP2) == 0 {
					t.Fatalf("quiet, with a request begun: %s, %+v", describe(st), cl)
				}
			case 2:
				cl.requestBegan()
				request = false
				st = st.after(nowActive)
			case 3:
				cl.requestEnded()
				st = st.after(nowIdle)
			case 4:
				st = st.after(deadlineSet)
			case 5:
				if st.Reported() == http.StateActive {
					come([]byte{next()}, true)
				}
			}
		}
	})
}
