package usher

import (
	"bytes"
	"context"
	"crypto/tls"
	"encoding/binary"
	"flag"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptrace"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"
)

var http2Stops = flag.Int("http2stops", 3, "how many stops the tests with HTTP/2 under load make")

// http2Client is a client's HTTP/2 connection that always has so many streams
// open, until it is told to open no more.
type http2Client struct {
	*rawConn
	rude    bool // does not answer, and minds no GOAWAY but the last
	next    uint32
	open    map[uint32]bool
	served  int
	refused int
	lost    int
	last    []uint32 // last streams of the GOAWAYs that came
}

func (c *http2Client) post() {
	const authority = "usher.test"
	var b bytes.Buffer
	for _, f := range []struct {
		typ, flags byte
		payload    string
	}{
		{frameHeaders, flagEndHeaders, "\x83\x86\x84\x41" + string(rune(len(authority))) + authority},
		{frameData, flagEndStream, "a body"},
	} {
		var h [9]byte
		binary.BigEndian.PutUint32(h[:], uint32(len(f.payload))<<8|uint32(f.typ))
		h[4] = f.flags
		binary.BigEndian.PutUint32(h[5:], c.next)
		b.Write(h[:])
		b.WriteString(f.payload)
	}
	c.Conn.Write(b.Bytes()) // an error is seen by the reads
	c.open[c.next] = true
	c.next += 2
}

// run has so many streams open until a GOAWAY comes, and then waits for the
// answers and for the last GOAWAY.
func (c *http2Client) run(streams int, sign func()) {
	defer c.Close()
	for range streams {
		c.post()
	}
	for len(c.open) > 0 || len(c.last) == 0 || c.last[len(c.last)-1] == 1<<31-1 {
		f, err := c.readFrame()
		switch {
		case err != nil:
			c.lost += len(c.open)
			return
		case isPing(f):
			if !c.rude {
				c.sendFrame(framePing, flagAck, 0, f.payload)
			}
		case isGoAway(f):
			c.last = append(c.last, f.lastStream())
			for id := range c.open {
				if id > f.lastStream() {
					delete(c.open, id)
					c.refused++
				}
			}
		case f.typ == frameReset && c.open[f.stream]:
			delete(c.open, f.stream)
			c.lost++
		case c.open[f.stream] && endOf(f.stream)(f):
			delete(c.open, f.stream)
			c.served++
			sign()
			if len(c.last) == 0 || c.rude && len(c.last) == 1 {
				c.post()
			}
		}
	}
}

// stopUnderHTTP2 has so many clients keep so many streams open each, and stops
// the server meanwhile.
func stopUnderHTTP2(ts *testServer, clients, streams int, rude bool, stop func()) (all []*http2Client) {
	var answers atomic.Int64
	busy := make(chan struct{})
	sign := func() {
		if answers.Add(1) == int64(clients*streams*2) {
			close(busy)
		}
	}
	var wg sync.WaitGroup
	for range clients {
		c := &http2Client{rawConn: ts.dial(), rude: rude, next: 1, open: make(map[uint32]bool)}
		all = append(all, c)
		wg.Go(func() { c.run(streams, sign) })
	}
	<-busy
	stop()
	wg.Wait()
	return all
}

func empty(w http.ResponseWriter, r *http.Request) { io.Copy(io.Discard, r.Body) }

// TestHTTP2LeavesWithoutARefusedStream: clients that open streams without a
// pause, and never again what was refused, have each of them answered.
func TestHTTP2LeavesWithoutARefusedStream(t *testing.T) {
	const clients, streams = 16, 20
	run(t, h2Modes, func(t *testing.T, m mode) {
		served := 0
		for range *http2Stops {
			ts := startServer(t, m, quickly(), empty)
			var stopped <-chan error
			all := stopUnderHTTP2(ts, clients, streams, false, func() { stopped = ts.shutdown() })
			for i, c := range all {
				served += c.served
				if c.refused+c.lost > 0 {
					t.Errorf("connection %d: of %d streams %d were refused and %d lost", i, c.served+c.refused+c.lost, c.refused, c.lost)
				}
				if len(c.last) != 2 || c.last[0] != 1<<31-1 || c.last[1] != c.next-2 {
					t.Errorf("connection %d got GOAWAYs for streams up to %v, want [%d %d]", i, c.last, 1<<31-1, c.next-2)
				}
			}
			if r := ts.clean(stopped); r.HTTP2 != clients || r.HTTP2OneStep != 0 {
				t.Errorf("the report counts %d HTTP/2 connections, %d of them in one step, want %d and none", r.HTTP2, r.HTTP2OneStep, clients)
			}
		}
		t.Logf("%d streams served in %d stops", served, *http2Stops)
	})
}

// startBare serves h over m with net/http alone. The result of stop comes when
// Shutdown and Serve have returned.
func startBare(t *testing.T, m mode, h http.HandlerFunc) (ts *testServer, stop func() <-chan error) {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	srv := newHTTPServer(m, h)
	served := make(chan error, 1)
	go func() {
		if m.tls() {
			served <- srv.ServeTLS(l, "", "")
		} else {
			served <- srv.Serve(l)
		}
	}()
	return &testServer{t: t, mode: m, net: "tcp", addr: l.Addr().String()}, func() <-chan error {
		result := make(chan error, 1)
		go func() {
			err := srv.Shutdown(context.Background())
			<-served
			result <- err
		}()
		return result
	}
}

// loses fails the test if net/http, stopped again and again, loses nothing:
// then a test that says the same of usher sees nothing.
func loses(t *testing.T, m mode, f func(ts *testServer, stop func() <-chan error) (lost int)) {
	t.Helper()
	const most = 100
	for n := range most {
		ts, stop := startBare(t, m, empty)
		if lost := f(ts, stop); lost > 0 {
			t.Logf("net/http lost %d in stop %d", lost, n+1)
			return
		}
	}
	t.Errorf("net/http lost nothing in %d stops", most)
}

// TestHTTP2LeavesWithARefusedStream: that is what net/http does.
func TestHTTP2LeavesWithARefusedStream(t *testing.T) {
	run(t, h2Modes, func(t *testing.T, m mode) {
		loses(t, m, func(ts *testServer, stop func() <-chan error) (lost int) {
			var stopped <-chan error
			for _, c := range stopUnderHTTP2(ts, 16, 20, false, func() { stopped = stop() }) {
				lost += c.refused + c.lost
			}
			<-stopped
			return lost
		})
	})
}

// postOnce sends requests with a body that cannot be sent twice, until one is
// not answered, and reports whether that one was sent. Go's client does not try
// such a request again.
func postOnce(ts *testServer, client *http.Client, answered func()) (sent bool, err error) {
	for {
		sent = false
		ctx := httptrace.WithClientTrace(context.Background(), &httptrace.ClientTrace{
			WroteHeaders: func() { sent = true },
		})
		body := struct{ io.Reader }{strings.NewReader("a body")}
		req, err := http.NewRequestWithContext(ctx, "POST", ts.url("/"), body)
		if err != nil {
			return false, err
		}
		resp, err := client.Do(req)
		if err != nil {
			return sent, err
		}
		io.Copy(io.Discard, resp.Body)
		resp.Body.Close()
		answered()
	}
}

// postUntilStopped has many send such requests, stops the server meanwhile, and
// returns the errors of those that were sent and not answered.
func postUntilStopped(ts *testServer, stop func() <-chan error) (lost []error, stopped <-chan error) {
	const clients = 40
	var answers atomic.Int64
	busy := make(chan struct{})
	client := ts.client()
	var wg sync.WaitGroup
	var mu sync.Mutex
	for range clients {
		wg.Go(func() {
			sent, err := postOnce(ts, client, func() {
				if answers.Add(1) == 10*clients {
					close(busy)
				}
			})
			if sent {
				mu.Lock()
				defer mu.Unlock()
				lost = append(lost, err)
			}
		})
	}
	<-busy
	stopped = stop()
	wg.Wait()
	client.CloseIdleConnections()
	return lost, stopped
}

// TestHTTP2BodiesThatCannotBeSentTwice: they need not be.
func TestHTTP2BodiesThatCannotBeSentTwice(t *testing.T) {
	run(t, h2Modes, func(t *testing.T, m mode) {
		for range *http2Stops {
			ts := startServer(t, m, quickly(), empty)
			lost, stopped := postUntilStopped(ts, ts.shutdown)
			for _, err := range lost {
				t.Error(err)
			}
			ts.clean(stopped)
		}
	})
}

// TestHTTP2BodiesThatAreLost is what net/http does with them.
func TestHTTP2BodiesThatAreLost(t *testing.T) {
	run(t, h2Modes, func(t *testing.T, m mode) {
		loses(t, m, func(ts *testServer, stop func() <-chan error) int {
			lost, stopped := postUntilStopped(ts, stop)
			<-stopped
			return len(lost)
		})
	})
}

// TestHTTP2OverlapCannotKeepTheDrain: clients that mind nothing, and always
// have streams open, even while a silent connection keeps the stop in its
// drain, get net/http's GOAWAY.
func TestHTTP2OverlapCannotKeepTheDrain(t *testing.T) {
	run(t, h2Modes, func(t *testing.T, m mode) {
		opts := quickly()
		opts.Shutdown.IdleGrace = 20 * time.Second
		ts := startServer(t, m, opts, empty)
		silent, err := net.Dial("tcp", ts.addr)
		if err != nil {
			t.Fatal(err)
		}
		defer silent.Close()
		var stopped <-chan error
		for _, c := range stopUnderHTTP2(ts, 4, 20, true, func() { stopped = ts.shutdown() }) {
			if len(c.last) != 2 || c.last[0] != 1<<31-1 {
				t.Errorf("got GOAWAYs for streams up to %v", c.last)
			}
		}
		if p := ts.Phase(); p != PhaseDrain {
			t.Errorf("all have left in phase %v, want %v", p, PhaseDrain)
		}
		silent.Close()
		ts.clean(stopped)
	})
}

// TestHTTP2SecondStep: as long as a connection has not answered, responses do
// not make net/http say its GOAWAY; then they do.
func TestHTTP2SecondStep(t *testing.T) {
	for _, answers := range []bool{true, false} {
		synctest.Test(t, func(t *testing.T) {
			v := startVirtualMode(t, h2c, Options{}, ok)
			silent, c := v.dial(), v.dial()
			c.send("PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n")
			c.sendFrame(frameSettings, 0, 0, "")
			get := func(stream uint32) (goneAway bool) {
				c.getStream(stream)
				c.readUntil("response", func(f frame) bool {
					goneAway = goneAway || isSecondStep(f)
					return endOf(stream)(f)
				})
				return goneAway
			}
			get(1)
			took := v.shutdown()
			c.readUntil("first GOAWAY", isFirstStep)
			if get(3) {
				t.Error("the second GOAWAY came before the answer")
			}
			time.Sleep(time.Second - 1)
			if get(5) {
				t.Error("the second GOAWAY came before the answer, or its time was over")
			}
			if answers {
				c.sendFrame(framePing, flagAck, 0, "usherbye")
			} else {
				time.Sleep(time.Nanosecond)
			}
			synctest.Wait()
			if !get(7) {
				c.readUntil("second GOAWAY", isSecondStep)
			}
			if p := v.Phase(); p != PhaseDrain {
				t.Errorf("it came in phase %v, want %v", p, PhaseDrain)
			}
			c.Close()
			silent.Close()
			<-took
		})
	}
}

// TestHTTP2ClientThatDoesNotRead: it delays nobody, and what it reads in the end
// is whole.
func TestHTTP2ClientThatDoesNotRead(t *testing.T) {
	run(t, h2Modes, func(t *testing.T, m mode) {
		content := bytes.Repeat([]byte("as much as no buffer holds "), 1<<20)
		written := make(chan struct{})
		ts := startServer(t, m, quickly(), func(w http.ResponseWriter, r *http.Request) {
			if r.Method == "POST" {
				w.Write(content)
				close(written)
			}
		})
		lazy := &http2Client{rawConn: ts.dial(), next: 1, open: make(map[uint32]bool)}
		lazy.sendFrame(frameSettings, 0, 0, "\x00\x04\x7f\xff\xff\xff")
		lazy.sendFrame(frameWindowUpdate, 0, 0, "\x7f\xff\x00\x00")
		lazy.post()
		lazy.readUntil("response", func(f frame) bool { return f.typ == frameHeaders })
		other := ts.dial()
		other.getStream(1)
		other.readUntil("response", endOf(1))
		stopped := ts.shutdown()
		other.readUntil("first GOAWAY", isFirstStep)
		other.answerPing()
		other.readUntil("second GOAWAY", isSecondStep)
		other.Close()
		select {
		case <-written:
			t.Error("the buffers hold too much for this test to see anything")
		default:
		}
		var got bytes.Buffer
		lazy.readUntil("end of the response", func(f frame) bool {
			if f.typ == frameData {
				got.WriteString(f.payload)
			}
			return endOf(1)(f)
		})
		if !bytes.Equal(got.Bytes(), content) {
			t.Errorf("%d of %d bytes, or others", got.Len(), len(content))
		}
		lazy.Close()
		ts.clean(stopped)
	})
}

// TestHTTP2BodyAcrossBothSteps: whatever is sent while the GOAWAYs come is
// whole, in both directions.
func TestHTTP2BodyAcrossBothSteps(t *testing.T) {
	run(t, h2Modes, func(t *testing.T, m mode) {
		ts := startServer(t, m, quickly(), func(w http.ResponseWriter, r *http.Request) {
			http.NewResponseController(w).EnableFullDuplex()
			io.Copy(w, r.Body)
		})
		client := ts.client()
		content := bytes.Repeat([]byte("there and back again "), 1<<17)
		var wg sync.WaitGroup
		var stopped <-chan error
		half := make(chan struct{}, 8)
		for range cap(half) {
			wg.Go(func() {
				body, w := io.Pipe()
				go func() {
					w.Write(content[:len(content)/2])
					half <- struct{}{}
					<-Draining(context.WithValue(context.Background(), serverKey{}, ts.Server))
					w.Write(content[len(content)/2:])
					w.Close()
				}()
				resp, err := client.Post(ts.url("/"), "text/plain", body)
				if err != nil {
					t.Error(err)
					return
				}
				defer resp.Body.Close()
				if got, err := io.ReadAll(resp.Body); err != nil || !bytes.Equal(got, content) {
					t.Errorf("%d of %d bytes came back, or others: %v", len(got), len(content), err)
				}
			})
		}
		for range cap(half) {
			<-half
		}
		stopped = ts.shutdown()
		wg.Wait()
		client.CloseIdleConnections()
		ts.clean(stopped)
	})
}

// TestHTTP2OfTheUser: one that sets TLSNextProto keeps what he has set, and the
// report says that his connections leave in one step.
func TestHTTP2OfTheUser(t *testing.T) {
	run(t, h2Modes, func(t *testing.T, m mode) {
		ts := startServer(t, m, quickly(), ok, func(ts *testServer) {
			ts.http.TLSNextProto = make(map[string]func(*http.Server, *tls.Conn, http.Handler))
		})
		c := ts.dial()
		c.getStream(1)
		c.readUntil("response", endOf(1))
		stopped := ts.shutdown()
		c.readUntil("GOAWAY", func(f frame) bool {
			if isFirstStep(f) {
				t.Error("a GOAWAY of usher's")
			}
			return isGoAway(f)
		})
		c.Close()
		if r := ts.clean(stopped); r.HTTP2 != 1 || r.HTTP2OneStep != 1 {
			t.Errorf("the report counts %d HTTP/2 connections, %d of them in one step", r.HTTP2, r.HTTP2OneStep)
		}
	})
}

// TestUserSeesOwnTypes: the user's hooks and handlers get connections and
// listeners of the types that they have without usher's HTTP/2.
func TestUserSeesOwnTypes(t *testing.T) {
	run(t, allModes, func(t *testing.T, m mode) {
		conn, listener := "*track.Conn", "*usher.Listener"
		if m.tls() {
			conn, listener = "*tls.Conn", "*tls.listener"
		}
		var mu sync.Mutex
		saw := make(map[string]int)
		note := func(what string, v any, want string) {
			if got := fmt.Sprintf("%T", v); got != want {
				t.Errorf("%s: %s, want %s", what, got, want)
			}
			mu.Lock()
			defer mu.Unlock()
			saw[what]++
		}
		ts := startServer(t, m, quickly(), func(w http.ResponseWriter, r *http.Request) {
			if m.http2() {
				fmt.Fprint(w, "ok")
				return
			}
			c, rw, err := http.NewResponseController(w).Hijack()
			if err != nil {
				t.Error(err)
				return
			}
			note("Hijack", c, conn)
			rw.WriteString("HTTP/1.1 200 OK\r\nContent-Length: 2\r\nConnection: close\r\n\r\nok")
			rw.Flush()
			c.Close()
		}, func(ts *testServer) {
			ts.http.ConnState = func(c net.Conn, s http.ConnState) { note("ConnState "+s.String(), c, conn) }
			ts.http.BaseContext = func(l net.Listener) context.Context {
				note("BaseContext", l, listener)
				return context.Background()
			}
			ts.http.ConnContext = func(ctx context.Context, c net.Conn) context.Context {
				note("ConnContext", c, conn)
				return ctx
			}
		})
		c := ts.dial()
		if m.http2() {
			c.getStream(1)
			c.readUntil("response", endOf(1))
		} else {
			c.send("GET / HTTP/1.1\r\nHost: usher.test\r\nConnection: Upgrade\r\nUpgrade: echo\r\n\r\n")
			c.answered()
		}
		c.Close()
		ts.clean(ts.shutdown())
		want := []string{"BaseContext", "ConnContext", "ConnState new", "ConnState active", "ConnState closed"}
		if !m.http2() {
			want = []string{"BaseContext", "ConnContext", "ConnState new", "ConnState active", "ConnState hijacked", "Hijack"}
		}
		// net/http reports a connection as closed just after it has closed it.
		for _, what := range want {
			eventually(t, what, func() bool {
				mu.Lock()
				defer mu.Unlock()
				return saw[what] > 0
			})
		}
		if n := saw["BaseContext"]; n != 1 {
			t.Errorf("BaseContext was called %d times", n)
		}
	})
}
