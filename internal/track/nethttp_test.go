package track

import (
	"crypto/tls"
	"fmt"
	"io"
	"net"
	"net/http"
	"regexp"
	"strings"
	"sync"
	"testing"
	"time"
)

// A tape records what net/http does with a connection, where a Conn would be.
type tape struct {
	net.Conn
	mu  sync.Mutex
	log []string
}

func (tp *tape) add(format string, args ...any) {
	tp.mu.Lock()
	defer tp.mu.Unlock()
	tp.log = append(tp.log, fmt.Sprintf(format, args...))
}

// String returns one line for all that happened, as "; read 4096; got 52; …".
func (tp *tape) String() string {
	tp.mu.Lock()
	defer tp.mu.Unlock()
	return "; " + strings.Join(tp.log, "; ") + ";"
}

func (tp *tape) Read(p []byte) (int, error) {
	tp.add("read %d", len(p))
	n, err := tp.Conn.Read(p)
	if err != nil {
		tp.add("failed")
	} else {
		tp.add("got %d", n)
	}
	return n, err
}

func (tp *tape) Write(p []byte) (int, error) {
	tp.add("write")
	return tp.Conn.Write(p)
}

func (tp *tape) SetReadDeadline(t time.Time) error {
	if t.IsZero() || t.After(time.Now()) {
		tp.add("deadline")
	} else {
		tp.add("abort")
	}
	return tp.Conn.SetReadDeadline(t)
}

// tapes is a listener that records.
type tapes struct {
	net.Listener
	made chan *tape
}

func (l *tapes) Accept() (net.Conn, error) {
	c, err := l.Listener.Accept()
	if err != nil {
		return nil, err
	}
	tp := &tape{Conn: c}
	l.made <- tp
	return tp, nil
}

func tapeOf(c net.Conn) *tape {
	if tc, ok := c.(*tls.Conn); ok {
		c = tc.NetConn()
	}
	return c.(*tape)
}

// serveTaped serves h over m and returns the address, and the tapes as connections
// are accepted. Handlers find theirs in the request's context.
func serveTaped(t *testing.T, m mode, h func(*tape, http.ResponseWriter, *http.Request), setUp ...func(*http.Server)) (addr string, made chan *tape) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	srv := m.server(t, func(w http.ResponseWriter, r *http.Request) {
		tp := tapeOf(r.Context().Value(connKey{}).(net.Conn))
		tp.add("handler")
		if h != nil {
			h(tp, w, r)
		}
		tp.add("return")
	})
	srv.ConnContext = withConn
	srv.ConnState = func(c net.Conn, state http.ConnState) { tapeOf(c).add("%v", state) }
	for _, f := range setUp {
		f(srv)
	}
	made = make(chan *tape, 1)
	m.serve(t, srv, &tapes{l, made})
	return l.Addr().String(), made
}

// waits for the tape to match a regular expression.
func (tp *tape) waits(t *testing.T, what, re string) {
	t.Helper()
	rx := regexp.MustCompile(re)
	deadline := time.Now().Add(10 * time.Second)
	for !rx.MatchString(tp.String()) {
		if time.Now().After(deadline) {
			t.Fatalf("%s: %s\ndoes not match %s", what, tp, re)
		}
		time.Sleep(time.Millisecond)
	}
}

func (tp *tape) lacks(t *testing.T, what, re string) {
	t.Helper()
	if found := regexp.MustCompile(re).FindString(tp.String()); found != "" {
		t.Errorf("%s: %s\nhas %s", what, tp, found)
	}
}

func TestBackgroundRead(t *testing.T) {
	const what = "BackgroundRead: net/http learns that a client leaves by a Read of one byte, which is the only one of its kind"
	run(t, http1Modes, func(t *testing.T, m mode) {
		finish := make(chan struct{})
		addr, made := serveTaped(t, m, func(tp *tape, w http.ResponseWriter, r *http.Request) {
			b := make([]byte, 1)
			for {
				if _, err := r.Body.Read(b); err != nil {
					break
				}
			}
			tp.add("body")
			<-finish
		})
		c := m.dial(t, addr)
		send(t, c, aGet)
		tp := <-made
		if m.tls {
			// crypto/tls reads whole records.
			tp.waits(t, what, `active; .*body;`)
			tp.waits(t, what, `active; .*read \d+;`)
		} else {
			tp.waits(t, what, `active; .*read 1;`)
		}
		finish <- struct{}{}
		tp.waits(t, what, `idle; .*read \d+;$`)
		send(t, c, aPost+"01234")
		tp.waits(t, what, `idle; .*active; .*read \d\d+;$`)
		tp.lacks(t, what, `idle; .*active; .*read 1;`)
		send(t, c, "56789")
		if m.tls {
			tp.waits(t, what, `idle; .*active; .*body;`)
			tp.waits(t, what, `idle; .*active; .*got \d+; ([^g]* )?read \d+;[^g]*$`)
			tp.lacks(t, what+", and over TLS there is none", `read 1;`)
		} else {
			tp.waits(t, what, `idle; .*active; .*read 1;`)
			tp.lacks(t, what, `idle; .*read 1;.*got 5;`)
		}
		finish <- struct{}{}
		tp.waits(t, what, `idle; .*idle; .*read \d+;$`)
		tp.lacks(t, what, `idle; [^a]*read 1;`)
	})
}

func TestIdleDeadlines(t *testing.T) {
	const what = "IdleDeadlines: net/http sets the read deadline once when idle, and once more when four bytes have come"
	for _, timeouts := range []bool{false, true} {
		t.Run(fmt.Sprint("timeouts=", timeouts), func(t *testing.T) {
			run(t, http1Modes, func(t *testing.T, m mode) {
				addr, made := serveTaped(t, m, nil, func(srv *http.Server) {
					if timeouts {
						srv.ReadHeaderTimeout, srv.IdleTimeout = time.Hour, time.Hour
					}
				})
				c := m.dial(t, addr)
				send(t, c, aGet)
				tp := <-made
				tp.waits(t, what, `idle; deadline; read \d+;$`)
				send(t, c, aGet[:3])
				tp.waits(t, what, `idle; deadline; read \d+; got \d+; (read \d+; got \d+; )*read \d+;$`)
				send(t, c, aGet[3:4])
				tp.waits(t, what, `idle; deadline; (read \d+; got \d+; )+deadline; read \d+;$`)
				send(t, c, aGet[4:])
				tp.waits(t, what, `idle; .*idle; deadline; read \d+;$`)
			})
		})
	}
}

func TestWholeBuffer(t *testing.T) {
	what := fmt.Sprintf("WholeBuffer: between requests net/http reads into all the room of a buffer of %d bytes", wholeBuffer)
	run(t, http1Modes[:2], func(t *testing.T, m mode) {
		addr, made := serveTaped(t, m, func(_ *tape, _ http.ResponseWriter, r *http.Request) { io.Copy(io.Discard, r.Body) })
		c := m.dial(t, addr)
		tp := <-made
		first := fmt.Sprintf(`new; read %d;$`, wholeBuffer)
		if m.http2 {
			first = fmt.Sprintf(`new; read %d;$`, len(http2Preface)) // it looks for this first
		}
		tp.waits(t, what, first)
		send(t, c, aPost+"0123456789")
		tp.waits(t, what, fmt.Sprintf(`idle; deadline; read %d;$`, wholeBuffer))
		// What comes behind a request in one piece takes its room.
		send(t, c, aPost+"0123456789GE")
		tp.waits(t, what, fmt.Sprintf(`idle; .*idle; deadline; read %d;$`, wholeBuffer-2))
		send(t, c, aGet[2:8])
		tp.waits(t, what, fmt.Sprintf(`idle; .*idle; .*read %d;$`, wholeBuffer-8))
		send(t, c, aGet[8:])
		tp.waits(t, what, fmt.Sprintf(`idle; .*idle; .*idle; deadline; read %d;$`, wholeBuffer))
		// A header that has been read in pieces leaves nothing behind.
		for i := range aGet {
			send(t, c, aGet[i:i+1])
		}
		tp.waits(t, what, fmt.Sprintf(`(idle; .*){3}idle; deadline; read %d;$`, wholeBuffer))
	})
}

func TestStateOrder(t *testing.T) {
	const what = "StateOrder: New before the first Read, Active between the header and the handler, Idle between the response and the next Read"
	const mark = "the end of the response"
	get := func(t *testing.T, client *http.Client, m mode) {
		t.Helper()
		resp, err := client.Get(m.url())
		if err != nil {
			t.Fatal(err)
		}
		defer resp.Body.Close()
		if b, err := io.ReadAll(resp.Body); !strings.HasSuffix(string(b), mark) {
			t.Errorf("a response ends with %q, %v", b[max(0, len(b)-20):], err)
		}
	}
	run(t, http1Modes, func(t *testing.T, m mode) {
		addr, made := serveTaped(t, m, func(_ *tape, w http.ResponseWriter, _ *http.Request) {
			io.WriteString(w, strings.Repeat("x", 10000))
			w.(http.Flusher).Flush()
			io.WriteString(w, mark)
		})
		client := m.client(t, addr)
		get(t, client, m)
		tp := <-made
		// Background reads are on another goroutine.
		// They may get the next request, when the client has all of the response.
		const background = `((read \d+|got \d+|abort|failed|deadline); )*`
		handshake := ``
		if m.tls {
			handshake = `(read \d+; got \d+; |write; )+`
		}
		request := `(read \d+; |got \d+; )*(deadline; )*active; ` + background + `handler; (read \d+; |write; )+return; (` +
			background + `write; )+` + background + `idle; deadline; `
		tp.waits(t, what, `^; new; `+handshake+request+`read \d+;$`)
		get(t, client, m)
		tp.waits(t, what, `^; new; `+handshake+request+request+`read \d+;$`)
	})
	run(t, http2Modes, func(t *testing.T, m mode) {
		addr, made := serveTaped(t, m, func(_ *tape, w http.ResponseWriter, _ *http.Request) { io.WriteString(w, mark) })
		client := m.client(t, addr)
		get(t, client, m)
		get(t, client, m)
		(<-made).waits(t, what, `^; new; .*got .*active; idle; (.*active; .*handler; .*return; .*idle;){2}`)
	})
}

func TestHijackedBeforeRead(t *testing.T) {
	const what = "HijackedBeforeRead: Hijacked comes before the handler that took the connection over can read from it"
	run(t, http1Modes, func(t *testing.T, m mode) {
		addr, made := serveTaped(t, m, func(tp *tape, w http.ResponseWriter, _ *http.Request) {
			c, _, err := http.NewResponseController(w).Hijack()
			tp.add("taken")
			if err != nil {
				t.Error(err)
				return
			}
			defer c.Close()
			c.Read(make([]byte, 7))
		})
		c := m.dial(t, addr)
		send(t, c, aGet)
		tp := <-made
		tp.waits(t, what, `active; [^h]*handler; (read 1; |read \d{3,}; )?(deadline; |abort; |failed; |read 1; |read \d{3,}; )*hijacked; taken; read`)
		send(t, c, "7 bytes")
		tp.waits(t, what, `hijacked; taken; read \d+; got \d+;`)
	})
}

// TestReport: the States of real connections in every mode.
func TestReport(t *testing.T) {
	run(t, allModes, func(t *testing.T, m mode) {
		l, err := net.Listen("tcp", "127.0.0.1:0")
		if err != nil {
			t.Fatal(err)
		}
		set := NewSet(nobody{})
		made := make(chan *Conn, 1)
		var during State
		srv := m.server(t, func(http.ResponseWriter, *http.Request) {
			set.Each(func(_ *Conn, st State) { during = st })
		})
		srv.ConnState = func(c net.Conn, state http.ConnState) { Of(c).Report(c, state) }
		m.serve(t, srv, listenerFunc{l, func(c net.Conn) net.Conn {
			fc := set.Add(c)
			made <- fc
			return fc
		}})
		client := m.client(t, l.Addr().String())
		resp, err := client.Get(m.url())
		if err != nil {
			t.Fatal(err)
		}
		resp.Body.Close()
		c := <-made
		eventually(t, "quiet after the request", func() bool { return c.State().Quiet() })
		if during.Reported() != http.StateActive || during.Quiet() {
			t.Errorf("in the request: %s", describe(during))
		}
		st := c.State()
		if st.HTTP2() != m.speaksHTTP2 || st.Detached() != m.speaksHTTP2 {
			t.Errorf("after the request: %s", describe(st))
		}
		if all, attached := set.Open(); all != 1 || attached == 1 == m.speaksHTTP2 {
			t.Errorf("%d open, %d of those attached", all, attached)
		}
		if (c.tls.Load() != nil) != m.tls {
			t.Error("the TLS connection above is not known, or one where there is none")
		}
	})
}
