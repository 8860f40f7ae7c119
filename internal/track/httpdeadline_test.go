package track

import (
	"bufio"
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/seed-235859eb/usher/internal/memnet"
)

// A scene is a request or two to an http.Server with timeouts.
type scene struct {
	u      time.Duration // unit of time
	conn   net.Conn
	reader *bufio.Reader
	begun  time.Time
	exact  bool // time is virtual

	mu  sync.Mutex
	log []string
	say chan struct{} // the handler has the client go on
}

func (s *scene) note(format string, args ...any) {
	text := fmt.Sprintf(format, args...)
	if s.exact {
		text += fmt.Sprint(" at ", time.Since(s.begun))
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.log = append(s.log, text)
}

func (s *scene) send(text string) {
	if _, err := io.WriteString(s.conn, text); err != nil {
		s.note("cannot send")
	}
}

// await waits until the handler has the client go on.
func (s *scene) await() {
	select {
	case <-s.say:
	case <-time.After(100 * s.u):
		s.note("no handler")
	}
}

// receive notes the response, or that there is none.
func (s *scene) receive() {
	resp, err := http.ReadResponse(s.reader, nil)
	if err != nil {
		s.note("no response")
		return
	}
	b, err := io.ReadAll(resp.Body)
	s.note("response %d %q %v", resp.StatusCode, b, err)
}

// end notes the first line of what comes until the connection ends.
func (s *scene) end() {
	b, _ := io.ReadAll(s.reader)
	line, _, _ := strings.Cut(string(b), "\r\n")
	s.note("end %q", line)
}

func outcome(err error) string {
	switch {
	case err == nil:
		return "ok"
	case errors.Is(err, os.ErrDeadlineExceeded):
		return "timeout"
	case errors.Is(err, context.Canceled):
		return "cancelled"
	}
	return err.Error()
}

// readBody notes what is read of r's body.
func (s *scene) readBody(r *http.Request) {
	b, err := io.ReadAll(r.Body)
	s.note("read %q %s", b, outcome(err))
}

var scenes = []struct {
	name    string
	setUp   func(srv *http.Server, u time.Duration)
	handler func(s *scene, w http.ResponseWriter, r *http.Request)
	client  func(s *scene)
	want    string
	exact   bool // on a real clock it would be a race
}{
	{name: "ReadHeaderTimeout, half a header",
		setUp:  func(srv *http.Server, u time.Duration) { srv.ReadHeaderTimeout = u },
		client: func(s *scene) { s.send(aGet[:10]); s.end() }, want: `end "HTTP/1.1 400 Bad Request"`},
	{name: "ReadHeaderTimeout, silence",
		setUp:  func(srv *http.Server, u time.Duration) { srv.ReadHeaderTimeout = u },
		client: func(s *scene) { s.end() }, want: `end ""`},
	{name: "ReadTimeout, half a body",
		setUp:   func(srv *http.Server, u time.Duration) { srv.ReadTimeout = u },
		handler: func(s *scene, _ http.ResponseWriter, r *http.Request) { s.readBody(r) },
		client:  func(s *scene) { s.send(aPost + "01234"); s.end() }, want: `read "01234" timeout; end "HTTP/1.1 200 OK"`},
	{name: "ReadTimeout passes in the handler",
		setUp: func(srv *http.Server, u time.Duration) { srv.ReadTimeout = u },
		handler: func(s *scene, w http.ResponseWriter, r *http.Request) {
			time.Sleep(3 * s.u)
			s.note("context %s", outcome(r.Context().Err()))
		},
		client: func(s *scene) { s.send(aGet); s.receive(); s.send(aGet); s.receive() },
		want:   `context ok; response 200 "" <nil>; context ok; response 200 "" <nil>`},
	{name: "ReadTimeout passed, and the client leaves",
		setUp: func(srv *http.Server, u time.Duration) { srv.ReadTimeout = u },
		handler: func(s *scene, w http.ResponseWriter, r *http.Request) {
			time.Sleep(3 * s.u)
			s.say <- struct{}{}
			<-r.Context().Done()
			s.note("context %s", outcome(r.Context().Err()))
			s.say <- struct{}{}
		},
		client: func(s *scene) { s.send(aGet); s.await(); s.conn.Close(); s.await() }, want: `context cancelled`},
	{name: "IdleTimeout",
		setUp:  func(srv *http.Server, u time.Duration) { srv.IdleTimeout = u },
		client: func(s *scene) { s.send(aGet); s.receive(); s.end() }, want: `response 200 "" <nil>; end ""`},
	{name: "IdleTimeout, then ReadHeaderTimeout",
		setUp:  func(srv *http.Server, u time.Duration) { srv.IdleTimeout, srv.ReadHeaderTimeout = 1000*u, 2*u },
		client: func(s *scene) { s.send(aGet); s.receive(); time.Sleep(4 * s.u); s.send(aGet[:9]); s.end() },
		want:   `response 200 "" <nil>; end "HTTP/1.1 400 Bad Request"`},
	{name: "ReadHeaderTimeout does not run between requests",
		setUp:  func(srv *http.Server, u time.Duration) { srv.IdleTimeout, srv.ReadHeaderTimeout = 1000*u, 3*u },
		client: func(s *scene) { s.send(aGet); s.receive(); time.Sleep(5 * s.u); s.send(aGet); s.receive() },
		want:   `response 200 "" <nil>; response 200 "" <nil>`},
	{name: "WriteTimeout",
		setUp: func(srv *http.Server, u time.Duration) { srv.WriteTimeout = u },
		handler: func(s *scene, w http.ResponseWriter, r *http.Request) {
			time.Sleep(3 * s.u)
			io.WriteString(w, "late")
			s.note("wrote %s", outcome(http.NewResponseController(w).Flush()))
		},
		client: func(s *scene) { s.send(aGet); s.receive() }, want: `wrote timeout; no response`},
	{name: "WriteTimeout begins with each request",
		setUp:  func(srv *http.Server, u time.Duration) { srv.WriteTimeout = 5 * u },
		client: func(s *scene) { s.send(aGet); s.receive(); time.Sleep(7 * s.u); s.send(aGet); s.receive() },
		want:   `response 200 "" <nil>; response 200 "" <nil>`},
	{name: "WriteTimeout, extended by the handler",
		setUp: func(srv *http.Server, u time.Duration) { srv.WriteTimeout = 3 * u },
		handler: func(s *scene, w http.ResponseWriter, r *http.Request) {
			s.note("set %s", outcome(http.NewResponseController(w).SetWriteDeadline(time.Now().Add(1000*s.u))))
			time.Sleep(5 * s.u)
		},
		client: func(s *scene) { s.send(aGet); s.receive() }, want: `set ok; response 200 "" <nil>`},
	{name: "ReadTimeout, cleared by the handler",
		setUp: func(srv *http.Server, u time.Duration) { srv.ReadTimeout = 3 * u },
		handler: func(s *scene, w http.ResponseWriter, r *http.Request) {
			s.note("set %s", outcome(http.NewResponseController(w).SetReadDeadline(time.Time{})))
			time.Sleep(5 * s.u)
			s.say <- struct{}{}
			s.readBody(r)
		},
		client: func(s *scene) { s.send(aPost); s.await(); s.send(theBody); s.receive() },
		want:   `set ok; read "0123456789" ok; response 200 "" <nil>`},
	{name: "a deadline in the past, then cleared",
		handler: func(s *scene, w http.ResponseWriter, r *http.Request) {
			rc := http.NewResponseController(w)
			rc.SetReadDeadline(longAgo)
			s.readBody(r)
			rc.SetReadDeadline(time.Time{})
			s.say <- struct{}{}
			s.readBody(r)
			rc.SetWriteDeadline(longAgo)
			io.WriteString(w, "never")
			s.note("wrote %s", outcome(rc.Flush()))
		},
		client: func(s *scene) { s.send(aPost); s.await(); s.send(theBody); s.receive() },
		want:   `read "" timeout; read "0123456789" ok; wrote timeout; no response`},
	{name: "a deadline in the past, under the background read",
		handler: func(s *scene, w http.ResponseWriter, r *http.Request) {
			time.Sleep(s.u)
			http.NewResponseController(w).SetReadDeadline(longAgo)
			<-r.Context().Done()
			s.note("context %s", outcome(r.Context().Err()))
		},
		client: func(s *scene) { s.send(aGet); s.receive() }, want: `context cancelled; response 200 "" <nil>`},
	{name: "extended while a read waits", exact: true,
		handler: func(s *scene, w http.ResponseWriter, r *http.Request) {
			rc := http.NewResponseController(w)
			rc.SetReadDeadline(time.Now().Add(5 * s.u))
			go func() {
				time.Sleep(4 * s.u)
				rc.SetReadDeadline(time.Now().Add(5 * s.u))
				time.Sleep(4 * s.u)
				s.say <- struct{}{}
			}()
			s.readBody(r)
		},
		client: func(s *scene) { s.send(aPost); s.await(); s.send(theBody); s.receive() },
		want:   `read "0123456789" ok; response 200 "" <nil>`},
	{name: "shortened while a read waits",
		handler: func(s *scene, w http.ResponseWriter, r *http.Request) {
			rc := http.NewResponseController(w)
			rc.SetReadDeadline(time.Now().Add(1000 * s.u))
			go func() {
				time.Sleep(2 * s.u)
				rc.SetReadDeadline(time.Now().Add(s.u))
			}()
			s.readBody(r)
		},
		client: func(s *scene) { s.send(aPost); s.receive() }, want: `read "" timeout; response 200 "" <nil>`},
	{name: "Hijack with a deadline pending",
		setUp: func(srv *http.Server, u time.Duration) { srv.ReadTimeout, srv.WriteTimeout = 3*u, 3*u },
		handler: func(s *scene, w http.ResponseWriter, r *http.Request) {
			c, _, err := http.NewResponseController(w).Hijack()
			s.note("hijacked %s", outcome(err))
			defer c.Close()
			time.Sleep(5 * s.u)
			s.say <- struct{}{}
			b := make([]byte, 5)
			_, err = io.ReadFull(c, b)
			s.note("read %q %s", b, outcome(err))
			c.SetReadDeadline(time.Now().Add(s.u))
			_, err = c.Read(b)
			s.note("read %s", outcome(err))
			_, err = io.WriteString(c, "bye")
			s.note("wrote %s", outcome(err))
		},
		client: func(s *scene) { s.send(aGet); s.await(); s.send("hello"); s.end() },
		want:   `hijacked ok; read "hello" ok; read timeout; wrote ok; end "bye"`},
}

// TestServerDeadlines has net/http do the same over connections that are
// followed, over sockets, below TLS, and in virtual time.
func TestServerDeadlines(t *testing.T) {
	for _, sc := range scenes {
		play := func(t *testing.T, m mode, u time.Duration, exact, followed bool) string {
			s := &scene{u: u, exact: exact, say: make(chan struct{}, 2)}
			srv := m.server(t, func(w http.ResponseWriter, r *http.Request) {
				if sc.handler != nil {
					sc.handler(s, w, r)
				}
			})
			if sc.setUp != nil {
				sc.setUp(srv, s.u)
			}
			set := NewSet(nobody{})
			wrap := func(c net.Conn) net.Conn { return c }
			if followed {
				wrap = func(c net.Conn) net.Conn { return set.Add(c) }
				srv.ConnState = func(c net.Conn, state http.ConnState) { Of(c).Report(c, state) }
			}
			var client net.Conn
			var err error
			if exact {
				l := memnet.Listen()
				go srv.Serve(listenerFunc{l, wrap})
				client, err = l.Dial(context.Background())
			} else {
				var l net.Listener
				if l, err = net.Listen("tcp", "127.0.0.1:0"); err != nil {
					t.Fatal(err)
				}
				m.serve(t, srv, listenerFunc{l, wrap})
				client, err = net.Dial("tcp", l.Addr().String())
			}
			if err != nil {
				t.Fatal(err)
			}
			s.conn, s.begun = client, time.Now()
			client.SetDeadline(time.Now().Add(2000 * u))
			if m.tls {
				s.conn = tls.Client(client, &tls.Config{InsecureSkipVerify: true})
				s.conn.(*tls.Conn).Handshake()
			}
			s.reader = bufio.NewReader(s.conn)
			sc.client(s)
			client.Close()
			srv.Close()
			if exact {
				time.Sleep(time.Minute) // what net/http still waits for
			}
			s.mu.Lock()
			defer s.mu.Unlock()
			return strings.Join(s.log, "; ")
		}
		t.Run(sc.name, func(t *testing.T) {
			for _, m := range []mode{http1Modes[0], http1Modes[2]} {
				if sc.exact {
					break
				}
				for _, followed := range []bool{false, true} {
					t.Run(fmt.Sprintf("%s/followed=%v", m.name, followed), func(t *testing.T) {
						t.Parallel()
						// A machine that stalls for a timeout may take its time.
						var got string
						for u := soon; got != sc.want; u *= 4 {
							if u > 2*time.Second {
								t.Fatalf("%s\nwant %s", got, sc.want)
							}
							got = play(t, m, u, false, followed)
						}
					})
				}
			}
			t.Run("virtual", func(t *testing.T) {
				var got [2]string
				for i, followed := range []bool{false, true} {
					synctest.Test(t, func(t *testing.T) { got[i] = play(t, http1Modes[0], soon, true, followed) })
				}
				if got[0] != got[1] {
					t.Errorf("bare: %s\nfollowed: %s", got[0], got[1])
				}
			})
		})
	}
}
