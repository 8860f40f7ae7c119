package usher

import (
	"context"
	"fmt"
	"io"
	"mime/multipart"
	"net"
	"net/http"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"
)

// atRest waits until l has no request, and fails the test if it never does.
func atRest(t *testing.T, l *Limiter) {
	t.Helper()
	eventually(t, "the limiter is at rest", func() bool {
		st := l.Stats()
		return st.Running == 0 && st.Waiting == 0 && st.Resuming == 0
	})
	if st := l.Stats(); st.Arrived != st.Admitted+st.Full+st.TooLate+st.Expired+st.Shutdown+st.Left {
		t.Errorf("the counts do not add up: %+v", st)
	}
}

// TestManyLimitersOnAConnection: one inside another, and beside each other.
func TestManyLimitersOnAConnection(t *testing.T) {
	run(t, allModes, func(t *testing.T, m mode) {
		a := mustLimiter(t, FairnessOptions{Slots: 1, MaxInline: 3})
		b := mustLimiter(t, FairnessOptions{Slots: 1, MaxInline: 3})
		mux := http.NewServeMux()
		mux.Handle("/a", a.Handler(http.HandlerFunc(ok)))
		mux.Handle("/b", b.Handler(http.HandlerFunc(ok)))
		mux.HandleFunc("/", ok)
		opts := fairly(2)
		opts.Fairness.MaxInline = 3
		ts := startServer(t, m, opts, mux.ServeHTTP)
		var wg sync.WaitGroup
		var clients []*http.Client
		for range 4 {
			client := ts.client()
			clients = append(clients, client)
			for i := range 4 {
				wg.Go(func() {
					for n := range 25 {
						if _, err := ts.get(client, []string{"/a", "/b", "/"}[(i+n)%3]); err != nil {
							t.Error(err)
							return
						}
					}
				})
			}
		}
		wg.Wait()
		for _, l := range []*Limiter{a, b, ts.Limiter()} {
			atRest(t, l)
		}
		for _, c := range clients {
			c.CloseIdleConnections()
		}
	})
}

// TestTimeoutHandlerAround: its handler outlives the request, and the next one
// comes over the same connection.
func TestTimeoutHandlerAround(t *testing.T) {
	run(t, allModes, func(t *testing.T, m mode) {
		l := mustLimiter(t, FairnessOptions{Slots: 1})
		release := make(chan struct{})
		h := http.TimeoutHandler(l.Handler(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			io.Copy(io.Discard, r.Body)
			if r.URL.Path == "/slow" {
				<-release
			}
		})), 20*time.Millisecond, "")
		ts := startServer(t, m, quickly(), h.ServeHTTP, func(ts *testServer) { ts.http.ConnContext = ConnContext })
		client := ts.client()
		for range 10 {
			resp, err := client.Post(ts.url("/slow"), "text/plain", strings.NewReader("body"))
			if err != nil {
				t.Fatal(err)
			}
			resp.Body.Close()
			if resp.StatusCode != http.StatusServiceUnavailable {
				t.Errorf("%s from a handler that is too slow", resp.Status)
			}
		}
		close(release)
		atRest(t, l)
		if _, err := ts.get(client, "/"); err != nil {
			t.Error(err)
		}
		client.CloseIdleConnections()
	})
}

// TestNotRunIsNotOK: a request whose handler never ran must not look served.
func TestNotRunIsNotOK(t *testing.T) {
	run(t, allModes, func(t *testing.T, m mode) {
		g := newGated()
		opts := fairly(1)
		var l *Limiter
		ts := startServer(t, m, opts, g.ServeHTTP, func(ts *testServer) {
			l = mustLimiter(t, opts.Fairness)
			inner := l.Handler(ts.http.Handler)
			ts.http.Handler = http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
				if r.URL.Path == "/deadline" {
					ctx, cancel := context.WithTimeout(r.Context(), 10*time.Millisecond)
					defer cancel()
					r = r.WithContext(ctx)
				}
				inner.ServeHTTP(w, r)
			})
			ts.Server = Wrap(ts.http, quickly())
		})
		holder := ts.client()
		held := make(chan error, 1)
		go func() {
			_, err := ts.get(holder, "/")
			held <- err
		}()
		<-g.begun
		other := ts.client()
		if _, err := ts.get(other, "/deadline"); err == nil || !strings.Contains(err.Error(), "503") {
			t.Errorf("past a deadline from outside: %v, want 503", err)
		}
		if m == h1 {
			c := ts.dial()
			c.send(request)
			eventually(t, "the request waits", func() bool { return l.Stats().Waiting == 1 })
			c.Conn.(*net.TCPConn).CloseWrite()
			if resp := c.answered(); resp.StatusCode != 503 || !resp.Close {
				t.Errorf("a client that closed its sending side got %s", resp.Status)
			}
		}
		close(g.release)
		if err := <-held; err != nil {
			t.Error(err)
		}
		holder.CloseIdleConnections()
		other.CloseIdleConnections()
		atRest(t, l)
	})
}

// TestReadersLeftBehind: handlers return while a goroutine of theirs still
// reads the body.
func TestReadersLeftBehind(t *testing.T) {
	run(t, allModes, func(t *testing.T, m mode) {
		ts := startServer(t, m, fairly(2), func(w http.ResponseWriter, r *http.Request) {
			if r.Body == http.NoBody {
				return
			}
			go func() {
				defer func() { recover() }() // net/http panics when the body is read after the handler's end
				io.Copy(io.Discard, r.Body)
			}()
			time.Sleep(time.Millisecond / 2)
		})
		var wg sync.WaitGroup
		for range 8 {
			wg.Go(func() {
				client := ts.client()
				defer client.CloseIdleConnections()
				for range 40 {
					body, rest := io.Pipe()
					go func() {
						for range 3 {
							io.WriteString(rest, strings.Repeat("x", 1000))
							time.Sleep(time.Millisecond)
						}
						rest.Close()
					}()
					if resp, err := client.Post(ts.url("/"), "text/plain", body); err == nil {
						io.Copy(io.Discard, resp.Body)
						resp.Body.Close()
					}
					body.Close()
				}
			})
		}
		wg.Wait()
		atRest(t, ts.Limiter())
	})
}

// TestMultipartIsCleanedUp: the Limiter gives handlers a copy of the request, and
// hands the form back, to net/http over HTTP/1, and to handlers around it. Over
// HTTP/2, net/http makes a copy too since Go 1.27, and removes no files.
func TestMultipartIsCleanedUp(t *testing.T) {
	dir := t.TempDir()
	t.Setenv("TMPDIR", dir)
	parse := func(w http.ResponseWriter, r *http.Request) {
		if err := r.ParseMultipartForm(1); err != nil {
			t.Error(err)
		}
	}
	l, err := NewLimiter(FairnessOptions{Slots: 1})
	if err != nil {
		t.Fatal(err)
	}
	limited := l.Handler(http.HandlerFunc(parse))
	around := func(w http.ResponseWriter, r *http.Request) {
		limited.ServeHTTP(w, r)
		if r.MultipartForm == nil {
			t.Error("the handler around the limiter finds no form")
			return
		}
		r.MultipartForm.RemoveAll()
	}
	for _, tt := range []struct {
		mode    mode
		opts    Options
		handler http.HandlerFunc
	}{{h1, fairly(1), parse}, {h1, quickly(), around}, {h2c, quickly(), around}} {
		ts := startServer(t, tt.mode, tt.opts, tt.handler)
		client := ts.client()
		var body strings.Builder
		mw := multipart.NewWriter(&body)
		part, _ := mw.CreateFormFile("file", "name")
		io.WriteString(part, strings.Repeat("x", 1<<20))
		mw.Close()
		resp, err := client.Post(ts.url("/"), mw.FormDataContentType(), strings.NewReader(body.String()))
		if err != nil {
			t.Fatal(err)
		}
		resp.Body.Close()
		eventually(t, "the file is gone", func() bool {
			left, _ := filepath.Glob(filepath.Join(dir, "multipart-*"))
			return len(left) == 0
		})
		client.CloseIdleConnections()
	}
}

// TestHijackWithFlowKey: the slot comes back whatever the flow is.
func TestHijackWithFlowKey(t *testing.T) {
	opts := fairly(1)
	opts.Fairness.FlowKey = func(*http.Request) string { return "all" }
	hijacked := make(chan net.Conn, 1)
	release := make(chan struct{})
	ts := startServer(t, h1, opts, func(w http.ResponseWriter, r *http.Request) {
		c, _, err := http.NewResponseController(w).Hijack()
		if err != nil {
			t.Error(err)
		}
		hijacked <- c
		<-release
	})
	c := ts.dial()
	c.send(request)
	server := <-hijacked
	atRest(t, ts.Limiter())
	close(release)
	server.Close()
}

// TestLingerEnds: a slot that is kept for a connection's next request is given
// up when that is not one for the limiter, or waits for the client's body.
func TestLingerEnds(t *testing.T) {
	if bestGuarantee < GuaranteeQueue {
		t.Skip("nothing lingers here")
	}
	for _, tt := range []struct{ name, first, next string }{
		{"exempt", "GET /first HTTP/1.1\r\nHost: usher.test\r\n\r\n", "GET /exempt HTTP/1.1\r\nHost: usher.test\r\n\r\n"},
		{"unread body", "POST /first HTTP/1.1\r\nHost: usher.test\r\nContent-Length: 1000\r\n\r\nsome", ""},
	} {
		t.Run(tt.name, func(t *testing.T) {
			opts := fairly(1)
			opts.Fairness.MaxInline = 10
			opts.Fairness.Exempt = func(r *http.Request) bool { return r.URL.Path == "/exempt" }
			begun, first, exempt := make(chan struct{}), make(chan struct{}), make(chan struct{})
			ts := startServer(t, h1, opts, func(w http.ResponseWriter, r *http.Request) {
				switch r.URL.Path {
				case "/first":
					close(begun)
					<-first
				case "/exempt":
					<-exempt
				}
			})
			defer close(exempt)
			c := ts.dial()
			c.send(tt.first + tt.next)
			<-begun
			other := ts.dial()
			other.send(request)
			eventually(t, "the other waits", func() bool { return ts.Limiter().Stats().Waiting == 1 })
			close(first)
			other.answered()
		})
	}
}

// TestMaxBytesHandlerAround: the body is wrapped, and net/http watches the
// connection, before the limiter sees the request.
func TestMaxBytesHandlerAround(t *testing.T) {
	run(t, h1Modes, func(t *testing.T, m mode) {
		l := mustLimiter(t, FairnessOptions{Slots: 1})
		g := newGated()
		ts := startServer(t, m, quickly(), http.MaxBytesHandler(l.Handler(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			if r.URL.Path == "/hold" {
				g.ServeHTTP(w, r)
			}
			fmt.Fprint(w, r.Context().Err())
		})), 1<<20).ServeHTTP, func(ts *testServer) { ts.http.ConnContext = ConnContext })
		holder := ts.dial()
		holder.send("GET /hold HTTP/1.1\r\nHost: usher.test\r\n\r\n")
		<-g.begun
		c := ts.dial()
		c.send(request)
		eventually(t, "the request waits", func() bool { return l.Stats().Waiting == 1 })
		close(g.release)
		for range 3 {
			if _, body, err := c.response(); body != "<nil>" || err != nil {
				t.Errorf("the request's context says %q, %v", body, err)
			}
			c.send(request)
		}
		c.answered()
		atRest(t, l)
	})
}

// TestBodyCloseHoldsNoSlot: it reads what the client still sends.
func TestBodyCloseHoldsNoSlot(t *testing.T) {
	run(t, h1Modes, func(t *testing.T, m mode) {
		ts := startServer(t, m, fairly(1), func(w http.ResponseWriter, r *http.Request) { r.Body.Close() })
		c := ts.dial()
		c.send("POST / HTTP/1.1\r\nHost: usher.test\r\nContent-Length: 1000\r\n\r\nsome")
		eventually(t, "the slot is given back", func() bool {
			st := ts.Limiter().Stats()
			return st.Yields == 1 && st.Running == 0
		})
		other := ts.dial()
		other.send(request)
		other.answered()
		c.send(strings.Repeat("x", 996))
		c.answered()
	})
}

// TestReadTimeoutDoesNotRunInTheQueue: nor does what it leaves after that
// shrink.
func TestReadTimeoutDoesNotRunInTheQueue(t *testing.T) {
	run(t, allModes, func(t *testing.T, m mode) {
		const timeout = 400 * time.Millisecond
		g := newGated()
		ts := startServer(t, m, fairly(1), func(w http.ResponseWriter, r *http.Request) {
			if r.URL.Path == "/hold" {
				g.ServeHTTP(w, r)
				return
			}
			n, err := io.Copy(io.Discard, r.Body)
			fmt.Fprint(w, n, err)
		}, func(ts *testServer) { ts.http.ReadTimeout = timeout })
		holder, waiter := ts.client(), ts.client()
		go ts.get(holder, "/hold")
		<-g.begun
		const size = 100_000 // more than net/http has read
		got := make(chan string, 1)
		began := time.Now()
		go func() {
			resp, err := waiter.Post(ts.url("/"), "text/plain", strings.NewReader(strings.Repeat("x", size)))
			if err != nil {
				got <- err.Error()
				return
			}
			defer resp.Body.Close()
			b, _ := io.ReadAll(resp.Body)
			got <- string(b)
		}()
		eventually(t, "the request waits", func() bool { return ts.Limiter().Stats().Waiting == 1 })
		eventually(t, "ReadTimeout is over", func() bool { return time.Since(began) > 2*timeout })
		close(g.release)
		if s := <-got; s != fmt.Sprint(size, " <nil>") {
			t.Errorf("the body: %s", s)
		}
		holder.CloseIdleConnections()
		waiter.CloseIdleConnections()
	})
}

// TestCopyOfTheRequest: what net/http and handlers around the limiter put into
// the request, or take from it, is there on both sides.
func TestCopyOfTheRequest(t *testing.T) {
	pattern := make(chan string, 1)
	mux := http.NewServeMux()
	mux.HandleFunc("/things/{id}", func(w http.ResponseWriter, r *http.Request) {
		io.Copy(io.Discard, r.Body)
		fmt.Fprint(w, r.PathValue("id"), r.Trailer)
	})
	l := mustLimiter(t, FairnessOptions{Slots: 1})
	inner := l.Handler(mux)
	ts := startServer(t, h1, quickly(), func(w http.ResponseWriter, r *http.Request) {
		inner.ServeHTTP(w, r)
		pattern <- r.Pattern
	})
	c := ts.dial()
	c.send("POST /things/7 HTTP/1.1\r\nHost: usher.test\r\nTransfer-Encoding: chunked\r\n\r\n4\r\nbody\r\n0\r\nX-Sum: 1\r\n\r\n")
	if _, body, err := c.response(); body != "7map[X-Sum:[1]]" || err != nil {
		t.Errorf("the handler saw %q, %v", body, err)
	}
	if p := <-pattern; p != "/things/{id}" {
		t.Errorf("the pattern outside is %q", p)
	}
}

// TestQueueWaitIsOfThisRequest, not of one before it on the connection.
func TestQueueWaitIsOfThisRequest(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		opts := FairnessOptions{
			Slots:   1,
			Exempt:  func(r *http.Request) bool { return r.URL.Path == "/exempt" },
			FlowKey: func(r *http.Request) string { return r.URL.RawQuery },
		}
		v, get := limited(t, opts, func(w http.ResponseWriter, r *http.Request) {
			if r.URL.Path == "/slow" {
				time.Sleep(time.Second)
			}
			fmt.Fprint(w, QueueWait(r.Context()))
		})
		slow := get("/slow")
		c := get("/")
		for i, path := range []string{"", "/exempt", "/?key", "/"} {
			if i > 0 {
				c.send("GET " + path + " HTTP/1.1\r\nHost: usher.test\r\n\r\n")
			}
			want := "0s"
			if i == 0 {
				want = "1s"
			}
			if _, body, err := c.response(); body != want || err != nil {
				t.Errorf("request %d: waited %q, %v, want %s", i, body, err, want)
			}
		}
		slow.answered()
		slow.Close()
		c.Close()
		v.end()
	})
}
