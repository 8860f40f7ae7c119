package usher

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"log/slog"
	"net/http"
	"os"
	"os/signal"
	"strings"
	"syscall"
	"testing"
	"testing/synctest"
	"time"

	"github.com/seed-235859eb/usher/internal/memnet"
)

// startRecorded is startVirtual with a log that is kept.
func startRecorded(t *testing.T, opts Options, h http.HandlerFunc) (*virtual, *recorder) {
	rec := &recorder{}
	opts.Logger = rec.logger()
	v := &virtual{t: t, l: memnet.Listen(), served: make(chan error, 1)}
	v.Server = Wrap(newHTTPServer(h1, h), opts)
	go func() { v.served <- v.Serve(v.l) }()
	synctest.Wait()
	return v, rec
}

// count returns how many lines have s in them.
func (r *recorder) count(s string) (n int) {
	r.mu.Lock()
	defer r.mu.Unlock()
	for _, l := range r.lines {
		if strings.Contains(l, s) {
			n++
		}
	}
	return n
}

// TestStopSaysWhatItWaitsFor after 1, 3, 7 and 15 seconds, and names what it
// cuts (#12 D3).
func TestStopSaysWhatItWaitsFor(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		v, rec := startRecorded(t, Options{Shutdown: ShutdownOptions{GracePeriod: 20 * time.Second}}, func(w http.ResponseWriter, r *http.Request) {
			<-r.Context().Done()
		})
		if !rec.contains("usher: serving") || !rec.contains("guarantee=none") {
			t.Error("nothing was said at the start")
		}
		c := v.dial()
		c.send("GET /slow?secret=1 HTTP/1.1\r\nHost: usher.test\r\n\r\n")
		synctest.Wait()
		go v.Shutdown(context.Background())
		began := time.Now()
		for i, at := range []time.Duration{time.Second, 3 * time.Second, 7 * time.Second, 15 * time.Second} {
			time.Sleep(at - time.Since(began) - time.Millisecond)
			synctest.Wait()
			if n := rec.count("still stopping"); n != i {
				t.Errorf("before %v it was said %d times, want %d", at, n, i)
			}
			time.Sleep(time.Millisecond)
			synctest.Wait()
			if n := rec.count("still stopping"); n != i+1 {
				t.Errorf("after %v it was said %d times, want %d", at, n, i+1)
			}
		}
		if !rec.contains("active=1") || !rec.contains("GET /slow (15s)") {
			t.Errorf("the request is not named: %q", rec.lines)
		}
		<-v.served
		if r := v.Stats().Report; len(r.CutRequests) != 1 || r.CutRequests[0] != "GET /slow (20s)" {
			t.Errorf("cut requests %q", r.CutRequests)
		}
		c.Close()
	})
}

// TestFullQueueIsSaid once when it begins and once when it ends (#12 D4).
func TestFullQueueIsSaid(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		v, rec := startRecorded(t, Options{Fairness: FairnessOptions{Slots: 1, MaxQueue: 1}}, func(w http.ResponseWriter, r *http.Request) {
			time.Sleep(time.Second)
		})
		for range 3 {
			var conns []*rawConn
			for range 10 {
				c := v.dial()
				c.send(request)
				conns = append(conns, c)
				synctest.Wait()
			}
			for _, c := range conns {
				c.answered()
				c.Close()
			}
		}
		if n := rec.count("requests are turned away: "); n != 1 {
			t.Errorf("that it began was said %d times", n)
		}
		time.Sleep(fullPause)
		synctest.Wait()
		if n := rec.count("turned away no more"); n != 1 || !rec.contains("turned_away=24") {
			t.Errorf("that it ended was said %d times: %q", n, rec.lines)
		}
		<-v.shutdown()
	})
}

// stuckHandler is a log that nobody reads.
type stuckHandler struct {
	slog.Handler
	release chan struct{}
}

func (h stuckHandler) Handle(context.Context, slog.Record) error {
	<-h.release
	return nil
}

// TestLogThatNobodyReads delays a stop by a tenth of a second at most, and no
// request (#12 C1).
func TestLogThatNobodyReads(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		stuck := stuckHandler{slog.NewTextHandler(&recorder{}, nil), make(chan struct{})}
		v := &virtual{t: t, l: memnet.Listen(), served: make(chan error, 1)}
		v.Server = Wrap(newHTTPServer(h1, http.HandlerFunc(ok)), Options{
			Logger:   slog.New(stuck),
			Fairness: FairnessOptions{Slots: 1},
		})
		go func() { v.served <- v.Serve(v.l) }()
		synctest.Wait()
		c := v.dial()
		c.send(request)
		c.answered()
		c.Close()
		synctest.Wait()
		if took := <-v.shutdown(); took > defaultHandshakeGrace+lastWords {
			t.Errorf("the stop took %v", took)
		}
		close(stuck.release)
	})
}

// TestTLSConfigWithoutCertificate is no reason to serve without TLS (#12 C6).
func TestTLSConfigWithoutCertificate(t *testing.T) {
	s := Wrap(&http.Server{TLSConfig: &tls.Config{}, Addr: "127.0.0.1:0"}, Options{Logger: silent})
	if err := s.Run(t.Context()); err == nil || !strings.Contains(err.Error(), "TLSConfig") || !strings.Contains(err.Error(), "GetCertificate") {
		t.Errorf("Run: %v", err)
	}
}

// TestClientsThatLeaveEndTheStop though silent connections were being closed at
// a pace (#12 C7).
func TestClientsThatLeaveEndTheStop(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		v := startVirtual(t, Options{}, ok)
		var conns []*rawConn
		for range 500 {
			c := v.dial()
			c.send(request)
			c.answered()
			conns = append(conns, c)
		}
		took := v.shutdown()
		time.Sleep(5*time.Second + 10*time.Millisecond) // IdleGrace is over; they are being closed
		for _, c := range conns {
			c.Close()
		}
		if d := <-took; d > 5*time.Second+11*time.Millisecond {
			t.Errorf("the stop took %v", d)
		}
	})
}

// TestDrainingFor: a handler's end of its own can be tested without a server
// (#12 E1).
func TestDrainingFor(t *testing.T) {
	draining := make(chan struct{})
	if Draining(WithDraining(t.Context(), draining)) != (<-chan struct{})(draining) {
		t.Error("not the channel that was given")
	}
	if Draining(t.Context()) != nil {
		t.Error("a channel for a context of no server")
	}
	ts := startServer(t, h1, quickly(), func(w http.ResponseWriter, r *http.Request) {
		fmt.Fprint(w, Draining(r.Context()) == r.Context().Value(serverKey{}).(*Server).Draining())
	})
	if got, err := ts.get(ts.client(), "/"); got != "true" || err != nil {
		t.Errorf("%q, %v", got, err)
	}
}

// TestStreamGrace bounds those whose handlers do not know Draining (#12 E3).
func TestStreamGrace(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		causes := make(chan error, 1)
		v := startVirtual(t, Options{Shutdown: ShutdownOptions{StreamGrace: 10 * time.Second}}, func(w http.ResponseWriter, r *http.Request) {
			if r.URL.Path == "/hijack" {
				c, _, err := http.NewResponseController(w).Hijack()
				if err != nil {
					t.Error(err)
				}
				c.Read(make([]byte, 1)) // until it is closed
				return
			}
			w.(http.Flusher).Flush()
			<-r.Context().Done()
			causes <- context.Cause(r.Context())
		})
		hijacked, stream := v.dial(), v.dial()
		hijacked.send("GET /hijack HTTP/1.1\r\nHost: usher.test\r\n\r\n")
		stream.send("GET /events HTTP/1.1\r\nHost: usher.test\r\nAccept: text/event-stream\r\n\r\n")
		synctest.Wait()
		go func() { // an EventSource comes back on a new connection
			stream.answered()
			stream.Close()
		}()
		took := v.shutdown()
		if d := <-took; d != 9*time.Second { // two of them, from 8 s on, a second apart
			t.Errorf("the stop took %v, want 9s", d)
		}
		if cause := <-causes; cause != ErrShuttingDown {
			t.Errorf("the stream ended with %v", cause)
		}
		hijacked.ended()
		if r := v.Stats().Report; r.Cut != 0 || r.Hijacked != 1 {
			t.Errorf("report %+v", r)
		}
	})
}

// TestRunAll: the last server answers until the others have stopped (#12 E2).
func TestRunAll(t *testing.T) {
	begun, release := make(chan struct{}), make(chan struct{})
	addrs := make(chan string, 2)
	newServer := func(h http.HandlerFunc) *Server {
		srv := newHTTPServer(h1, h)
		srv.Addr = "127.0.0.1:0"
		s := Wrap(srv, quickly())
		return s
	}
	main := newServer(func(w http.ResponseWriter, r *http.Request) {
		close(begun)
		<-release
		ok(w, r)
	})
	internal := newServer(ok)
	ctx, stop := context.WithCancel(t.Context())
	result := make(chan error, 1)
	go func() { result <- RunAll(ctx, main, internal) }()
	for _, s := range []*Server{main, internal} {
		eventually(t, "the server serves", func() bool {
			listeners, _ := s.known()
			if len(listeners) == 0 {
				return false
			}
			addrs <- listeners[0].Addr().String()
			return true
		})
	}
	get := func(addr string) error {
		client := &http.Client{Transport: &http.Transport{DisableKeepAlives: true}}
		resp, err := client.Get("http://" + addr)
		if err == nil {
			resp.Body.Close()
		}
		return err
	}
	mainAddr, internalAddr := <-addrs, <-addrs
	answered := make(chan error, 1)
	go func() { answered <- get(mainAddr) }()
	<-begun
	stop()
	eventually(t, "the main server drains", func() bool { return main.Phase() >= PhaseDrain })
	if err := get(internalAddr); err != nil {
		t.Errorf("the internal server while the main one drains: %v", err)
	}
	close(release)
	if err := <-answered; err != nil {
		t.Error(err)
	}
	if err := <-result; err != nil {
		t.Errorf("RunAll: %v", err)
	}
	if main.Phase() != PhaseStopped || internal.Phase() != PhaseStopped {
		t.Error("not all have stopped")
	}
	if err := RunAll(t.Context()); err != nil {
		t.Errorf("RunAll of nothing: %v", err)
	}
}

// TestRunAllFails: a server that cannot listen stops the others.
func TestRunAllFails(t *testing.T) {
	good, bad := newHTTPServer(h1, http.HandlerFunc(ok)), newHTTPServer(h1, nil)
	good.Addr, bad.Addr = "127.0.0.1:0", "256.0.0.1:0"
	err := RunAll(t.Context(), Wrap(good, quickly()), Wrap(bad, quickly()))
	if err == nil || errors.Is(err, http.ErrServerClosed) || !strings.Contains(err.Error(), "256.0.0.1") {
		t.Errorf("RunAll: %v", err)
	}
}

// TestRunLeavesIgnoredSignals: a SIGINT that was ignored at the start, as by a
// shell's "command &", is not meant for the server (#12 F13).
func TestRunLeavesIgnoredSignals(t *testing.T) {
	signal.Ignore(os.Interrupt)
	defer signal.Reset(os.Interrupt)
	srv := newHTTPServer(h1, http.HandlerFunc(ok))
	srv.Addr = "127.0.0.1:0"
	s := Wrap(srv, quickly())
	result := make(chan error, 1)
	go func() { result <- s.Run(t.Context()) }()
	eventually(t, "the server serves", func() bool { return s.Phase() == PhaseServing })
	self, err := os.FindProcess(os.Getpid())
	if err != nil {
		t.Fatal(err)
	}
	for _, sig := range []os.Signal{os.Interrupt, syscall.SIGTERM} {
		if err := self.Signal(sig); err != nil {
			t.Fatal(err)
		}
	}
	if err := <-result; err != nil {
		t.Error(err)
	}
	if r := s.Stats().Report; r.Reason != syscall.SIGTERM.String() {
		t.Errorf("stopped by %q", r.Reason)
	}
}
