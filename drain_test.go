package usher

import (
	"bufio"
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"
)

// gated is a handler that tells when it has begun and waits until it may end.
type gated struct {
	begun   chan struct{}
	release chan struct{}
}

func newGated() *gated {
	return &gated{begun: make(chan struct{}, 1000), release: make(chan struct{})}
}

func (g *gated) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	g.begun <- struct{}{}
	io.Copy(io.Discard, r.Body)
	<-g.release
	fmt.Fprint(w, "ok")
}

func TestStopWithNothing(t *testing.T) {
	run(t, allModes, func(t *testing.T, m mode) {
		ts := startServer(t, m, quickly(), ok)
		ts.awaitPhase(PhaseServing)
		if r := ts.clean(ts.shutdown()); r.Open != 0 {
			t.Errorf("report %+v of a server without connections", r)
		}
		if _, err := net.Dial("tcp", ts.addr); err == nil {
			t.Error("connect succeeded after the stop")
		}
	})
}

func TestRequestInFlightIsAnswered(t *testing.T) {
	run(t, allModes, func(t *testing.T, m mode) {
		g := newGated()
		ts := startServer(t, m, quickly(), g.ServeHTTP)
		client := ts.client()
		got := make(chan error, 1)
		go func() {
			body, err := ts.get(client, "/")
			if err == nil && body != "ok" {
				err = fmt.Errorf("body %q", body)
			}
			got <- err
		}()
		<-g.begun
		stopped := ts.shutdown()
		ts.awaitPhase(PhaseDrain)
		close(g.release)
		if err := <-got; err != nil {
			t.Error(err)
		}
		if r := ts.clean(stopped); r.Served+r.Idle != 1 || r.Cut != 0 {
			t.Errorf("report %+v", r)
		}
	})
}

// TestIdleConnectionIsAnsweredOnceMore is the promise that net/http does not
// make: a client that keeps a connection may still use it after the stop began.
func TestIdleConnectionIsAnsweredOnceMore(t *testing.T) {
	run(t, h1Modes, func(t *testing.T, m mode) {
		opts := quickly()
		opts.Shutdown.IdleGrace = 20 * time.Second
		ts := startServer(t, m, opts, ok)
		c := ts.dial()
		c.send(request)
		if c.answered().Close {
			t.Error("a response before the stop says close")
		}
		stopped := ts.shutdown()
		ts.awaitPhase(PhaseDrain)
		c.send(request)
		if !c.answered().Close {
			t.Error("the response after the stop does not say close")
		}
		c.ended()
		if r := ts.clean(stopped); r.Served != 1 || r.Guarantee != best(GuaranteeAll) {
			t.Errorf("report %+v", r)
		}
	})
}

func TestSilentConnectionsAreClosedAfterIdleGrace(t *testing.T) {
	run(t, h1Modes, func(t *testing.T, m mode) {
		ts := startServer(t, m, quickly(), ok)
		fresh, idle := ts.dial(), ts.dial()
		idle.send(request)
		idle.answered()
		eventually(t, "both connections are known", func() bool { return ts.Stats().Connections.Open == 2 })
		stopped := ts.shutdown()
		fresh.ended()
		idle.ended()
		if r := ts.clean(stopped); r.Idle != 2 {
			t.Errorf("report %+v, want two idle", r)
		}
	})
}

// afterIdleClose calls f in a stop, once IdleGrace has closed a silent
// connection: whoever is judged silent has been closed by then, too.
func afterIdleClose(t *testing.T, ts *testServer, f func()) Report {
	t.Helper()
	accepted := ts.Stats().Accepted
	sentinel, err := net.Dial("tcp", ts.addr)
	if err != nil {
		t.Fatal(err)
	}
	defer sentinel.Close()
	eventually(t, "the sentinel is accepted", func() bool { return ts.Stats().Accepted > accepted })
	stopped := ts.shutdown()
	sentinel.SetDeadline(time.Now().Add(time.Minute))
	if _, err := sentinel.Read(make([]byte, 1)); err != io.EOF {
		t.Fatalf("the sentinel was not closed in order: %v", err)
	}
	f()
	return ts.clean(stopped)
}

func TestMidHeaderIsAnswered(t *testing.T) {
	run(t, h1Modes, func(t *testing.T, m mode) {
		for _, tt := range []struct {
			name    string
			before  int  // requests before the half one
			piped   bool // the half one comes together with the last of those
			firstly int  // bytes of the half one
		}{
			{"first request", 0, false, 20},
			{"first byte", 0, false, 1},
			{"second request", 1, false, 20},
			{"second request, first byte", 1, false, 1},
			{"pipelined", 1, true, 20},
			{"pipelined, first byte", 1, true, 1},
			{"pipelined twice", 2, true, 20},
		} {
			t.Run(tt.name, func(t *testing.T) {
				t.Parallel()
				ts := startServer(t, m, quickly(), ok)
				c := ts.dial()
				half := request[:tt.firstly]
				switch {
				case tt.piped && m == h1tls && tt.firstly == 1:
					t.Skip("one to three bytes of a request inside a TLS record that also ended the last one cannot be seen from below")
				case tt.piped:
					c.send(strings.Repeat(request, tt.before) + half)
				default:
					c.send(strings.Repeat(request, tt.before))
				}
				for range tt.before {
					c.answered()
				}
				if !tt.piped {
					if tt.before > 0 {
						eventually(t, "the connection is idle", func() bool { return ts.state().Quiet() })
					}
					c.send(half)
				}
				eventually(t, "the half request is read", func() bool {
					st := ts.state()
					return st.Waits() && !st.Quiet()
				})
				r := afterIdleClose(t, ts, func() {
					c.send(request[tt.firstly:])
					if !c.answered().Close {
						t.Error("the response does not say close")
					}
					c.ended()
				})
				if r.Served != 1 || r.Idle != 1 {
					t.Errorf("report %+v", r)
				}
			})
		}
	})
}

func TestMidBodyIsAnswered(t *testing.T) {
	run(t, allModes, func(t *testing.T, m mode) {
		begun := make(chan struct{})
		ts := startServer(t, m, quickly(), func(w http.ResponseWriter, r *http.Request) {
			close(begun)
			n, err := io.Copy(io.Discard, r.Body)
			fmt.Fprint(w, n, err)
		})
		body, rest := io.Pipe()
		got := make(chan string, 1)
		go func() {
			resp, err := ts.client().Post(ts.url("/"), "text/plain", body)
			if err != nil {
				got <- err.Error()
				return
			}
			defer resp.Body.Close()
			b, _ := io.ReadAll(resp.Body)
			got <- string(b)
		}()
		rest.Write([]byte("first half, "))
		<-begun
		afterIdleClose(t, ts, func() {
			rest.Write([]byte("second half"))
			rest.Close()
			if s := <-got; s != "23 <nil>" {
				t.Errorf("response %q, want 23 <nil>", s)
			}
		})
	})
}

func TestMidHandshakeIsAnswered(t *testing.T) {
	for _, version := range []uint16{tls.VersionTLS12, tls.VersionTLS13} {
		t.Run(tls.VersionName(version), func(t *testing.T) {
			t.Parallel()
			ts := startServer(t, h1tls, quickly(), ok)
			c, err := net.Dial("tcp", ts.addr)
			if err != nil {
				t.Fatal(err)
			}
			defer c.Close()
			c.SetDeadline(time.Now().Add(time.Minute))
			// The hold keeps the client's second flight back.
			held := &holdSecondWrite{Conn: c, reached: make(chan struct{}), release: make(chan struct{})}
			tc := tls.Client(held, &tls.Config{InsecureSkipVerify: true, MaxVersion: version})
			shaken := make(chan error, 1)
			go func() { shaken <- tc.Handshake() }()
			<-held.reached
			afterIdleClose(t, ts, func() {
				close(held.release)
				if err := <-shaken; err != nil {
					t.Fatal(err)
				}
				io.WriteString(tc, request)
				resp, err := http.ReadResponse(bufio.NewReader(tc), nil)
				if err != nil {
					t.Fatal(err)
				}
				io.Copy(io.Discard, resp.Body)
				tc.Close()
			})
		})
	}
}

type holdSecondWrite struct {
	net.Conn
	writes           int
	reached, release chan struct{}
}

func (h *holdSecondWrite) Write(p []byte) (int, error) {
	if h.writes++; h.writes == 2 {
		close(h.reached)
		<-h.release
	}
	return h.Conn.Write(p)
}

// tlsVariants are the ways in which a handshake can go.
var tlsVariants = []struct {
	name string
	set  func(*tls.Config)
}{
	{"1.2", func(c *tls.Config) { c.MaxVersion = tls.VersionTLS12 }},
	{"1.3", func(*tls.Config) {}},
	{"1.2 client certificate", func(c *tls.Config) {
		c.MaxVersion = tls.VersionTLS12
		c.ClientAuth = tls.RequestClientCert
	}},
	{"1.3 client certificate", func(c *tls.Config) { c.ClientAuth = tls.RequestClientCert }},
	{"1.3 second hello", func(c *tls.Config) { c.CurvePreferences = []tls.CurveID{tls.CurveP521} }},
	{"1.3 client certificate by config for client", func(c *tls.Config) {
		per := c.Clone()
		per.ClientAuth = tls.RequestClientCert
		c.GetConfigForClient = func(*tls.ClientHelloInfo) (*tls.Config, error) { return per, nil }
	}},
}

// TestSilentAfterHandshakeIsClosed: a client that connects early and says
// nothing must not be taken for one in the middle of something.
func TestSilentAfterHandshakeIsClosed(t *testing.T) {
	for _, v := range tlsVariants {
		for _, certificate := range []bool{false, true} {
			t.Run(fmt.Sprintf("%s/certificate=%v", v.name, certificate), func(t *testing.T) {
				t.Parallel()
				ts := startServer(t, h1tls, quickly(), ok, func(ts *testServer) { v.set(ts.http.TLSConfig) })
				c := ts.dialTLS(certificate)
				stopped := ts.shutdown()
				c.ended()
				if r := ts.clean(stopped); r.Idle != 1 {
					t.Errorf("report %+v, want one idle", r)
				}
			})
		}
	}
}

// TestMidHeaderAfterHandshakeIsAnswered is the other side of that.
func TestMidHeaderAfterHandshakeIsAnswered(t *testing.T) {
	for _, v := range tlsVariants {
		for _, certificate := range []bool{false, true} {
			t.Run(fmt.Sprintf("%s/certificate=%v", v.name, certificate), func(t *testing.T) {
				t.Parallel()
				ts := startServer(t, h1tls, quickly(), ok, func(ts *testServer) { v.set(ts.http.TLSConfig) })
				c := ts.dialTLS(certificate)
				c.send(request[:20])
				afterIdleClose(t, ts, func() {
					c.send(request[20:])
					c.answered()
					c.ended()
				})
			})
		}
	}
}

func (ts *testServer) dialTLS(certificate bool) *rawConn {
	ts.t.Helper()
	nc, err := net.Dial("tcp", ts.addr)
	if err != nil {
		ts.t.Fatal(err)
	}
	ts.t.Cleanup(func() { nc.Close() })
	nc.SetDeadline(time.Now().Add(time.Minute))
	cfg := &tls.Config{InsecureSkipVerify: true}
	if certificate {
		cfg.Certificates = []tls.Certificate{testCert()}
	}
	tc := tls.Client(nc, cfg)
	if err := tc.Handshake(); err != nil {
		ts.t.Fatal(err)
	}
	return &rawConn{Conn: tc, t: ts.t, r: bufio.NewReader(tc)}
}

// TestPartOfATLSRecordIsNotSilence: the next request's record began to arrive
// while the handler still ran, and crypto/tls has its beginning.
func TestPartOfATLSRecordIsNotSilence(t *testing.T) {
	g := newGated()
	ts := startServer(t, h1tls, quickly(), g.ServeHTTP)
	nc, err := net.Dial("tcp", ts.addr)
	if err != nil {
		t.Fatal(err)
	}
	defer nc.Close()
	nc.SetDeadline(time.Now().Add(time.Minute))
	tap := &cutRecords{Conn: nc}
	tc := tls.Client(tap, &tls.Config{InsecureSkipVerify: true})
	c := &rawConn{Conn: tc, t: t, r: bufio.NewReader(tc)}
	c.send(request)
	<-g.begun
	tap.cutAt = 10
	c.send(request) // ten bytes of its record
	eventually(t, "ten bytes are read", ts.allRead)
	g.release <- struct{}{}
	c.answered()
	r := afterIdleClose(t, ts, func() {
		if _, err := nc.Write(tap.rest); err != nil {
			t.Error(err)
		}
		<-g.begun
		g.release <- struct{}{}
		c.answered()
		c.ended()
	})
	if r.Served != 1 {
		t.Errorf("report %+v", r)
	}
}

// cutRecords keeps back what follows the first cutAt bytes of a write.
type cutRecords struct {
	net.Conn
	cutAt int
	rest  []byte
}

func (c *cutRecords) Write(p []byte) (int, error) {
	if c.cutAt == 0 || len(p) <= c.cutAt {
		return c.Conn.Write(p)
	}
	c.rest = append(c.rest, p[c.cutAt:]...)
	_, err := c.Conn.Write(p[:c.cutAt])
	return len(p), err
}

// TestHTTP2PrefaceInPieces: however it arrives, the connection is HTTP/2 and
// gets its GOAWAY; one that never completes it does not hold the stop up.
func TestHTTP2PrefaceInPieces(t *testing.T) {
	const preface = "PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
	ts := startServer(t, h2c, quickly(), ok)
	stalled, err := net.Dial("tcp", ts.addr)
	if err != nil {
		t.Fatal(err)
	}
	defer stalled.Close()
	io.WriteString(stalled, preface[:16])
	nc, err := net.Dial("tcp", ts.addr)
	if err != nil {
		t.Fatal(err)
	}
	defer nc.Close()
	nc.SetDeadline(time.Now().Add(time.Minute))
	c := &rawConn{Conn: nc, t: t, r: bufio.NewReader(nc)}
	for i, b := range preface {
		eventually(t, "the last byte is read", func() bool { return i == 0 || ts.allRead() })
		c.send(string(b))
	}
	c.sendFrame(frameSettings, 0, 0, "")
	c.getStream(1)
	c.readUntil("response", endOf(1))
	c.sendFrame(framePing, 0, 0, "12345678")
	c.readUntil("pong", func(f frame) bool { return f.typ == framePing })
	stopped := ts.shutdown()
	c.readUntil("GOAWAY", isGoAway)
	c.Close()
	ts.clean(stopped)
}

// allRead reports whether every connection has read what came.
func (ts *testServer) allRead() bool {
	for _, c := range ts.conns() {
		if !c.State().Waits() || c.Unread() {
			return false
		}
	}
	return true
}

// TestFullAcceptQueue stops a server that has not accepted for a while.
func TestFullAcceptQueue(t *testing.T) {
	const queued = 220
	for _, tt := range []struct {
		name string
		mode mode
		net  string
	}{{"tcp", h1, "tcp"}, {"tls", h1tls, "tcp"}, {"unix", h1, "unix"}} {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			paused, resume := make(chan struct{}), make(chan struct{})
			opts := quickly()
			opts.Shutdown.IdleGrace = 20 * time.Second
			ts := startServer(t, tt.mode, opts, ok, func(ts *testServer) {
				ts.net = tt.net
				var once sync.Once
				// ConnContext runs between two calls of Accept.
				ts.http.ConnContext = func(ctx context.Context, c net.Conn) context.Context {
					once.Do(func() {
						close(paused)
						<-resume
					})
					return ctx
				}
			})
			first, err := net.Dial(ts.net, ts.addr)
			if err != nil {
				t.Fatal(err)
			}
			defer first.Close()
			<-paused

			conns := make([]net.Conn, queued)
			for i := range conns {
				c, err := net.Dial(ts.net, ts.addr)
				if err != nil {
					t.Fatal(err)
				}
				defer c.Close()
				c.SetDeadline(time.Now().Add(time.Minute))
				conns[i] = c
			}
			var wg sync.WaitGroup
			var answered atomic.Int32
			for i, c := range conns {
				wg.Go(func() {
					if tt.mode.tls() {
						c = tls.Client(c, &tls.Config{InsecureSkipVerify: true})
					}
					if _, err := io.WriteString(c, request); err != nil {
						t.Errorf("connection %d: %v", i, err)
						return
					}
					resp, err := http.ReadResponse(bufio.NewReader(c), nil)
					if err != nil {
						t.Errorf("connection %d: %v", i, err)
						return
					}
					io.Copy(io.Discard, resp.Body)
					c.Close()
					answered.Add(1)
				})
			}
			stopped := ts.shutdown()
			ts.awaitPhase(PhaseGate)
			first.Close()
			close(resume)
			wg.Wait()
			if n := answered.Load(); n != queued {
				t.Errorf("%d of %d queued connections were answered", n, queued)
			}
			if r := ts.clean(stopped); r.Guarantee != best(GuaranteeAll) || ts.Stats().Accepted != queued+1 {
				t.Errorf("%d accepted, report %+v", ts.Stats().Accepted, r)
			}
		})
	}
}

// TestLastResponseIsWhole sends bytes that nobody reads: closing with them in
// the receive buffer would reset the connection under the response.
func TestLastResponseIsWhole(t *testing.T) {
	run(t, h1Modes, func(t *testing.T, m mode) {
		g := newGated()
		const size = 1 << 20
		ts := startServer(t, m, quickly(), func(w http.ResponseWriter, r *http.Request) {
			g.begun <- struct{}{}
			<-g.release
			w.Write(make([]byte, size))
		})
		c := ts.dial()
		c.send(request)
		<-g.begun
		stopped := ts.shutdown()
		ts.awaitPhase(PhaseDrain)
		c.send(request) // so that the next response is the last
		c.send(strings.Repeat("x", 64<<10))
		close(g.release)
		for range 2 {
			if _, body, err := c.response(); err != nil || len(body) != size {
				t.Fatalf("response of %d bytes, %v; want %d", len(body), err, size)
			}
		}
		c.ended()
		ts.clean(stopped)
	})
}

// TestHTTP2IdleStop: a stop with idle HTTP/2 connections only takes as long as
// net/http's GOAWAY timer, which is a second, and no IdleGrace.
func TestHTTP2IdleStop(t *testing.T) {
	run(t, h2Modes, func(t *testing.T, m mode) {
		opts := quickly()
		opts.Shutdown.IdleGrace = 20 * time.Second
		ts := startServer(t, m, opts, ok)
		var conns []*rawConn
		for range 3 {
			c := ts.dial()
			c.getStream(1)
			c.readUntil("response", endOf(1))
			conns = append(conns, c)
		}
		stopped := ts.shutdown()
		for _, c := range conns {
			c.readUntil("GOAWAY", isGoAway)
		}
		r := ts.clean(stopped)
		// Not IdleGrace; how much less is the machine's affair.
		if r.Took >= opts.Shutdown.IdleGrace {
			t.Errorf("the stop took %v", r.Took)
		}
	})
}

// TestHTTP2LateHandshake is golang/go#81154: a connection that becomes HTTP/2
// only after the stop began must get both GOAWAYs, too.
func TestHTTP2LateHandshake(t *testing.T) {
	run(t, h2Modes, func(t *testing.T, m mode) {
		for _, speaks := range []bool{true, false} {
			t.Run(fmt.Sprint("speaks=", speaks), func(t *testing.T) {
				opts := quickly()
				opts.Shutdown.IdleGrace = 20 * time.Second
				ts := startServer(t, m, opts, ok)
				nc, err := net.Dial("tcp", ts.addr)
				if err != nil {
					t.Fatal(err)
				}
				defer nc.Close()
				nc.SetDeadline(time.Now().Add(time.Minute))
				eventually(t, "the connection is accepted", func() bool { return ts.Stats().Accepted == 1 })
				stopped := ts.shutdown()
				ts.awaitPhase(PhaseDrain)

				if m == h2 {
					nc = tls.Client(nc, &tls.Config{InsecureSkipVerify: true, NextProtos: []string{"h2"}})
				}
				c := &rawConn{Conn: nc, t: t, r: bufio.NewReader(nc)}
				c.send("PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n")
				c.sendFrame(frameSettings, 0, 0, "")
				if speaks {
					c.getStream(1)
				}
				answered, first, second := !speaks, false, false
				for !answered || !second {
					f, err := c.readFrame()
					switch {
					case err != nil:
						t.Fatalf("answered %v, first GOAWAY %v, second GOAWAY %v: %v", answered, first, second, err)
					case isPing(f):
						c.sendFrame(framePing, flagAck, 0, f.payload)
					case isFirstStep(f):
						first = true
					case isGoAway(f):
						second = true
					}
					answered = answered || endOf(1)(f)
				}
				if !first {
					t.Error("the first GOAWAY did not come")
				}
				ts.clean(stopped)
			})
		}
	})
}

// TestHTTP2OverlappingStreams: a client that always has a stream open cannot
// keep the stop from ending.
func TestHTTP2OverlappingStreams(t *testing.T) {
	run(t, h2Modes, func(t *testing.T, m mode) {
		g := newGated()
		opts := quickly()
		opts.Shutdown.IdleGrace = 20 * time.Second
		ts := startServer(t, m, opts, g.ServeHTTP)
		// A silent connection keeps the stop in its drain, where net/http has
		// not said GOAWAY to everybody yet.
		silent, err := net.Dial("tcp", ts.addr)
		if err != nil {
			t.Fatal(err)
		}
		defer silent.Close()
		c := ts.dial()
		c.getStream(1)
		<-g.begun
		stopped := ts.shutdown()
		ts.awaitPhase(PhaseDrain)
		c.getStream(3)
		<-g.begun
		close(g.release)
		// The answer to a stream that began late brings the GOAWAY; streams
		// opened after it count for nothing.
		open := map[uint32]bool{1: true, 3: true}
		goneAway := false
		for len(open) > 0 || !goneAway {
			f, err := c.readFrame()
			if err != nil {
				t.Fatalf("with streams %v unanswered, GOAWAY %v: %v", open, goneAway, err)
			}
			if isGoAway(f) {
				goneAway = true
				c.getStream(5)
			}
			if endOf(f.stream)(f) {
				delete(open, f.stream)
			}
		}
		c.Close()
		silent.Close()
		ts.clean(stopped)
	})
}

func TestStreamLearnsOfDrain(t *testing.T) {
	run(t, allModes, func(t *testing.T, m mode) {
		begun := make(chan struct{})
		ended := make(chan error, 1)
		opts := quickly()
		opts.Shutdown.IdleGrace = 20 * time.Second
		ts := startServer(t, m, opts, func(w http.ResponseWriter, r *http.Request) {
			w.(http.Flusher).Flush()
			close(begun)
			select {
			case <-Draining(r.Context()):
			case <-r.Context().Done():
			}
			ended <- r.Context().Err()
			fmt.Fprint(w, "bye")
		})
		got := make(chan string, 1)
		client := ts.client()
		go func() {
			body, err := ts.get(client, "/")
			client.CloseIdleConnections()
			got <- fmt.Sprint(body, err)
		}()
		<-begun
		stopped := ts.shutdown()
		if err := <-ended; err != nil {
			t.Errorf("the context was cancelled: %v", err)
		}
		if s := <-got; s != "bye<nil>" {
			t.Errorf("got %q", s)
		}
		ts.clean(stopped)
	})
	if Draining(context.Background()) != nil {
		t.Error("Draining of a foreign context is not nil")
	}
}

func TestHijackedIsWaitedFor(t *testing.T) {
	run(t, h1Modes, func(t *testing.T, m mode) {
		hijacked := make(chan net.Conn, 1)
		ts := startServer(t, m, quickly(), func(w http.ResponseWriter, r *http.Request) {
			c, _, err := http.NewResponseController(w).Hijack()
			if err != nil {
				t.Error(err)
			}
			hijacked <- c
		})
		c := ts.dial()
		c.send(request)
		server := <-hijacked
		if n := ts.Stats().Connections.Hijacked; n != 1 {
			t.Errorf("%d hijacked connections in Stats", n)
		}
		stopped := ts.shutdown()
		ts.awaitPhase(PhaseFinish)
		select {
		case err := <-stopped:
			t.Fatalf("the stop did not wait: %v", err)
		case err := <-ts.served:
			t.Fatalf("Serve did not wait: %v", err)
		default:
		}
		io.WriteString(server, "bye")
		server.Close()
		if b, err := io.ReadAll(c.r); string(b) != "bye" || err != nil {
			t.Errorf("client read %q, %v", b, err)
		}
		if r := ts.clean(stopped); r.Hijacked != 1 {
			t.Errorf("report %+v", r)
		}
	})
}

// TestHardEnd: what ignores everything is cut when GracePeriod is over, its
// context tells why, and the error says where and what.
func TestHardEnd(t *testing.T) {
	run(t, allModes, func(t *testing.T, m mode) {
		causes := make(chan error, 1)
		begun := make(chan struct{})
		opts := quickly()
		opts.Shutdown.GracePeriod = 500 * time.Millisecond
		hooked := make(chan struct{})
		ts := startServer(t, m, opts, func(w http.ResponseWriter, r *http.Request) {
			close(begun)
			<-r.Context().Done()
			causes <- context.Cause(r.Context())
			<-hooked // still running when everything is over
		})
		ts.OnShutdown("last", func(context.Context) error { close(hooked); return nil })
		client := ts.client()
		got := make(chan error, 1)
		go func() {
			_, err := ts.get(client, "/")
			got <- err
		}()
		<-begun
		err := ts.Shutdown(context.Background())
		var se *ShutdownError
		if !errors.As(err, &se) || se.Phase != PhaseDrain && !m.http2() || se.Report.Cut != 1 {
			t.Errorf("Shutdown: %#v", err)
		}
		if err := <-ts.served; err != http.ErrServerClosed {
			t.Errorf("Serve: %v, want http.ErrServerClosed", err)
		}
		if cause := <-causes; cause != ErrShuttingDown {
			t.Errorf("cause %v", cause)
		}
		if err := <-got; err == nil {
			t.Error("the client got an answer")
		}
		<-hooked
		if r := ts.balanced(); r.Cut != 1 {
			t.Errorf("report %+v", r)
		}
	})
}

// TestHardEndLetsHandlersAnswer: a handler that heeds its context has a moment
// to say so.
func TestHardEndLetsHandlersAnswer(t *testing.T) {
	run(t, allModes, func(t *testing.T, m mode) {
		begun := make(chan struct{})
		opts := quickly()
		opts.Shutdown.GracePeriod = 2 * time.Second
		ts := startServer(t, m, opts, func(w http.ResponseWriter, r *http.Request) {
			close(begun)
			<-r.Context().Done()
			w.Header().Set("Connection", "close")
			fmt.Fprint(w, context.Cause(r.Context()))
		})
		client := ts.client()
		got := make(chan string, 1)
		go func() {
			body, err := ts.get(client, "/")
			client.CloseIdleConnections()
			got <- fmt.Sprint(body, err)
		}()
		<-begun
		if err := ts.Shutdown(context.Background()); err == nil {
			t.Error("Shutdown returned nil past GracePeriod")
		}
		if s, want := <-got, ErrShuttingDown.Error()+"<nil>"; s != want {
			t.Errorf("got %q, want %q", s, want)
		}
	})
}

// best is what this system can guarantee at most.
func best(g Guarantee) Guarantee { return min(g, bestGuarantee) }

// TestRunListeners: one server on several listeners, of which net/http changes
// TLSConfig when it serves the first.
func TestRunListeners(t *testing.T) {
	for _, m := range []mode{h1, h1tls} {
		t.Run(string(m), func(t *testing.T) {
			t.Parallel()
			var ls []net.Listener
			for range 20 {
				l, err := Listen("tcp", "127.0.0.1:0")
				if err != nil {
					t.Fatal(err)
				}
				ls = append(ls, l)
			}
			ctx, cancel := context.WithCancel(t.Context())
			srv := newHTTPServer(m, http.NotFoundHandler())
			srv.Protocols = nil // the default, for which net/http sets TLSConfig up
			s := Wrap(srv, quickly())
			done := make(chan error, 1)
			go func() { done <- s.Run(ctx, ls...) }()
			for _, l := range ls {
				c, err := net.Dial("tcp", l.Addr().String())
				if err != nil {
					t.Fatal(err)
				}
				if m.tls() {
					c = tls.Client(c, &tls.Config{InsecureSkipVerify: true})
				}
				if _, err := io.WriteString(c, "GET / HTTP/1.0\r\n\r\n"); err != nil {
					t.Error(err)
				}
				if b, err := io.ReadAll(c); err != nil || len(b) == 0 {
					t.Errorf("%d bytes, %v", len(b), err)
				}
				c.Close()
			}
			cancel()
			if err := <-done; err != nil {
				t.Error(err)
			}
		})
	}
}
