package limit

import (
	"context"
	"fmt"
	"io"
	"net"
	"net/http"
	"runtime"
	"strings"
	"sync"
	"testing"
	"time"
)

// onSockets runs f on real sockets for each of the protocols.
func onSockets(t *testing.T, modes []mode, f func(*testing.T, mode)) {
	t.Helper()
	for _, m := range modes {
		t.Run(string(m), func(t *testing.T) {
			t.Parallel()
			f(t, m)
		})
	}
}

var h1Modes = []mode{h1, h1tls}

func eventually(t testing.TB, what string, cond func() bool) {
	t.Helper()
	deadline := time.Now().Add(30 * time.Second)
	for !cond() {
		if time.Now().After(deadline) {
			t.Fatalf("never happened: %s", what)
		}
		time.Sleep(time.Millisecond)
	}
}

// atRest fails the test if l keeps a slot, or a flow, or has lost count.
func atRest(t *testing.T, l *Limiter) {
	t.Helper()
	eventually(t, "the limiter is at rest", func() bool {
		n := l.Stats()
		return n.Running+n.Waiting+n.Resuming+n.Keyed == 0
	})
	if n := l.Stats(); n.Arrived != n.Admitted+n.Full+n.Expired+n.Stopped+n.Left {
		t.Errorf("the counts do not add up: %+v", n)
	}
}

// TestClientLeavesWhileItWaits: it is taken out, however it waits, whatever flow
// it belongs to, and whatever of its body has been read.
func TestClientLeavesWhileItWaits(t *testing.T) {
	onSockets(t, allModes, func(t *testing.T, m mode) {
		const timeout = 50 * time.Millisecond
		for _, tt := range []struct {
			name   string
			key    string
			around func(http.Handler) http.Handler
		}{
			{"plain", "", func(h http.Handler) http.Handler { return h }},
			{"FlowKey", "all", func(h http.Handler) http.Handler { return h }},
			{"inside another limiter", "", func(h http.Handler) http.Handler { return limited(newTestLimiter(10), h.ServeHTTP) }},
			{"FlowKey, inside another limiter", "all", func(h http.Handler) http.Handler { return keyed(newTestLimiter(10), "other", h) }},
			{"MaxBytesHandler", "", func(h http.Handler) http.Handler { return http.MaxBytesHandler(h, 1<<20) }},
			{"body read outside", "", func(h http.Handler) http.Handler {
				return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
					io.ReadFull(r.Body, make([]byte, 4))
					h.ServeHTTP(w, r)
				})
			}},
		} {
			for _, body := range []bool{false, true} {
				for _, readTimeout := range []time.Duration{0, timeout} {
					t.Run(fmt.Sprintf("%s, body=%v, ReadTimeout=%v", tt.name, body, readTimeout), func(t *testing.T) {
						if body && !m.http2() && runtime.GOOS != "linux" {
							t.Skip("behind unread bytes this system does not tell")
						}
						l := newTestLimiter(1)
						release, held := make(chan struct{}), make(chan struct{})
						h := keyed(l, tt.key, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
							if r.URL.Path != "/hold" {
								t.Error("the handler of a client that left ran")
								return
							}
							close(held)
							<-release
						}))
						s := startOnSocket(t, m, tt.around(h), func(srv *http.Server) { srv.ReadTimeout = readTimeout })
						// A busy machine may shake hands for longer than ReadTimeout.
						holder := s.send("/hold", nil)
						for holds := false; !holds; {
							select {
							case <-held:
								holds = true
							case a := <-holder:
								if readTimeout == 0 {
									t.Fatal(a.err)
								}
								holder = s.send("/hold", nil)
							}
						}
						ctx, leave := context.WithCancel(t.Context())
						began := time.Now()
						gone := s.upload(ctx, body)
						eventually(t, "the request waits", func() bool {
							select {
							case <-gone:
								began = time.Now()
								gone = s.upload(ctx, body)
							default:
							}
							return l.Stats().Waiting == 1
						})
						eventually(t, "ReadTimeout is over", func() bool { return time.Since(began) > 2*readTimeout })
						leave()
						<-gone
						eventually(t, "it is taken out", func() bool {
							n := l.Stats()
							return n.Waiting == 0 && n.Left >= 1
						})
						close(release)
						if a := <-holder; a.err != nil {
							t.Error(a.err)
						}
						atRest(t, l)
					})
				}
			}
		}
	})
}

// upload sends part of a body, if asked for, and closes the channel that it
// returns when ctx has ended.
func (s *server) upload(ctx context.Context, part bool) <-chan struct{} {
	scheme, method := "http", "GET"
	if s.mode.tls() {
		scheme = "https"
	}
	var body io.Reader
	if part {
		method = "POST"
		r, w := io.Pipe()
		body = r
		go io.WriteString(w, "part")
		context.AfterFunc(ctx, func() { w.CloseWithError(io.ErrUnexpectedEOF) })
	}
	r, err := http.NewRequestWithContext(ctx, method, scheme+"://usher.test/", body)
	if err != nil {
		s.t.Fatal(err)
	}
	gone := make(chan struct{})
	client := s.client()
	go func() {
		defer close(gone)
		if resp, err := client.Do(r); err == nil {
			resp.Body.Close()
		}
	}()
	return gone
}

// TestWatchEndsWithTheWait: although another goroutine sets deadlines all the
// time, a request that has been given its slot runs.
func TestWatchEndsWithTheWait(t *testing.T) {
	onSockets(t, h1Modes, func(t *testing.T, m mode) {
		l := newTestLimiter(1)
		release, held := make(chan struct{}), make(chan struct{})
		h := limited(l, func(w http.ResponseWriter, r *http.Request) {
			if r.URL.Path == "/hold" {
				close(held)
				<-release
				return
			}
			io.Copy(w, r.Body)
		})
		s := startOnSocket(t, m, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			rc := http.NewResponseController(w)
			over := make(chan struct{})
			var wg sync.WaitGroup
			defer wg.Wait()
			defer close(over)
			wg.Go(func() {
				for {
					select {
					case <-over:
						return
					default:
						rc.SetReadDeadline(time.Now().Add(time.Hour))
						runtime.Gosched()
					}
				}
			})
			h.ServeHTTP(w, r)
		}))
		holder := s.send("/hold", nil)
		<-held
		var all []<-chan answer
		for range 5 {
			all = append(all, s.send("/", strings.NewReader("body")))
		}
		eventually(t, "the requests wait", func() bool { return l.Stats().Waiting == 5 })
		close(release)
		for _, got := range append(all, holder) {
			if a := <-got; a.err != nil {
				t.Error(a.err)
			}
		}
		atRest(t, l)
	})
}

// TestHijackFreesAllSlots: those of all limiters that the request went through,
// also for the preface of HTTP/2 that a handler takes over.
func TestHijackFreesAllSlots(t *testing.T) {
	onSockets(t, h1Modes, func(t *testing.T, m mode) {
		for _, depth := range []int{1, 2, 3} {
			for _, key := range []string{"", "all"} {
				for _, first := range []string{
					"GET / HTTP/1.1\r\nHost: usher.test\r\n\r\n",
					"POST / HTTP/1.1\r\nHost: usher.test\r\nContent-Length: 4\r\n\r\nbody",
					"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
				} {
					t.Run(fmt.Sprintf("%d limiters, key %q, %.4s", depth, key, first), func(t *testing.T) {
						const conns = 4
						taken := make(chan net.Conn, conns)
						release := make(chan struct{})
						h := http.Handler(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
							c, _, err := http.NewResponseController(w).Hijack()
							if err != nil {
								t.Error(err)
								return
							}
							taken <- c
							<-release // as x/net's h2c does, it serves the connection here
							c.Close()
						}))
						var all []*Limiter
						for range depth {
							l := newTestLimiter(1)
							all = append(all, l)
							h = keyed(l, key, h)
						}
						s := startOnSocket(t, m, h)
						for range conns {
							c := s.connect()
							defer c.Close()
							if _, err := io.WriteString(c, first); err != nil {
								t.Fatal(err)
							}
							<-taken // although the handler before still runs
						}
						for _, l := range all {
							if n := l.Stats(); n.Running != 0 || n.Admitted != conns {
								t.Errorf("stats %+v with %d connections taken over", n, conns)
							}
						}
						close(release)
						for _, l := range all {
							atRest(t, l)
						}
					})
				}
			}
		}
	})
}

// TestNoSlotIsKeptForHandlersAround: MaxInline is no reason, unless nothing stands
// around the limiter.
func TestNoSlotIsKeptForHandlersAround(t *testing.T) {
	onSockets(t, h1Modes, func(t *testing.T, m mode) {
		for _, body := range []string{"", "body"} {
			for _, depth := range []int{1, 2} {
				t.Run(fmt.Sprintf("body=%q, %d limiters", body, depth), func(t *testing.T) {
					var all []*Limiter
					began, first := make(chan struct{}), make(chan struct{})
					h := http.Handler(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
						io.Copy(io.Discard, r.Body)
						if r.URL.Path == "/first" {
							close(began)
							<-first
						}
					}))
					for range depth {
						l := New(Options{Slots: 1, MaxInline: 10, MaxQueue: 1024, MaxWait: time.Minute})
						all = append(all, l)
						h = limited(l, h.ServeHTTP)
					}
					around := make(chan struct{})
					s := startOnSocket(t, m, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
						h.ServeHTTP(w, r)
						if r.URL.Path == "/first" {
							<-around
						}
					}))
					send := func(path string) <-chan answer {
						if body == "" {
							return s.send(path, nil)
						}
						return s.send(path, strings.NewReader(body))
					}
					firstGot := send("/first")
					<-began
					others := []<-chan answer{send("/"), send("/")}
					eventually(t, "others wait", func() bool { return all[len(all)-1].Stats().Waiting == 2 })
					close(first)
					for _, got := range others {
						if a := <-got; a.err != nil {
							t.Error(a.err)
						}
					}
					close(around)
					if a := <-firstGot; a.err != nil {
						t.Error(a.err)
					}
					for _, l := range all {
						atRest(t, l)
					}
				})
			}
		}
	})
}
