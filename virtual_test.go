package usher

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"net/http"
	"os"
	"sync"
	"syscall"
	"testing"
	"testing/synctest"
	"time"

	"github.com/seed-235859eb/usher/internal/maxconns"
	"github.com/seed-235859eb/usher/internal/memnet"
)

// virtual is a Server on a listener in memory, in virtual time.
type virtual struct {
	*Server
	t      *testing.T
	l      *memnet.Listener
	served chan error
}

func startVirtual(t *testing.T, opts Options, h http.HandlerFunc) *virtual {
	return startVirtualMode(t, h1, opts, h)
}

func startVirtualMode(t *testing.T, m mode, opts Options, h http.HandlerFunc) *virtual {
	opts.Logger = silent
	v := &virtual{t: t, l: memnet.Listen(), served: make(chan error, 1)}
	v.Server = Wrap(newHTTPServer(m, h), opts)
	go func() { v.served <- v.Serve(v.l) }()
	synctest.Wait()
	return v
}

func (v *virtual) dial() *rawConn {
	v.t.Helper()
	c, err := v.l.Dial(context.Background())
	if err != nil {
		v.t.Fatal(err)
	}
	return &rawConn{Conn: c, t: v.t, r: bufio.NewReader(c)}
}

func (v *virtual) shutdown() (took <-chan time.Duration) {
	result := make(chan time.Duration, 1)
	began := time.Now()
	go func() {
		if err := v.Shutdown(context.Background()); err != nil {
			v.t.Error(err)
		}
		if err := <-v.served; err != http.ErrServerClosed {
			v.t.Errorf("Serve: %v, want http.ErrServerClosed", err)
		}
		result <- time.Since(began)
	}()
	synctest.Wait()
	return result
}

// TestStopEndsWithLastConnection: not a moment later. net/http polls, up to
// half a second late.
func TestStopEndsWithLastConnection(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		const latency = 3210 * time.Millisecond
		v := startVirtual(t, Options{}, func(w http.ResponseWriter, r *http.Request) {
			time.Sleep(latency)
			ok(w, r)
		})
		c := v.dial()
		c.send(request)
		synctest.Wait()
		took := v.shutdown()
		c.answered() // begun before the stop: the connection stays
		c.Close()
		if d := <-took; d != latency {
			t.Errorf("the stop took %v, want %v", d, latency)
		}
	})
}

func TestIdleGraceIsExact(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		v := startVirtual(t, Options{}, ok)
		fresh, idle := v.dial(), v.dial()
		idle.send(request)
		idle.answered()
		time.Sleep(time.Hour)
		took := v.shutdown()
		fresh.ended()
		idle.ended()
		// Two closes, at most a millisecond apart.
		if d := <-took; d < defaultIdleGrace || d > defaultIdleGrace+spread {
			t.Errorf("the stop took %v, want %v", d, defaultIdleGrace)
		}
	})
}

// TestIdleGraceCountsFromTheLastResponse, for a connection whose response was
// under way when the stop began.
func TestIdleGraceCountsFromTheLastResponse(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		v := startVirtual(t, Options{}, func(w http.ResponseWriter, r *http.Request) {
			w.(http.Flusher).Flush()
			time.Sleep(3 * time.Second)
		})
		c := v.dial()
		c.send(request)
		synctest.Wait()
		took := v.shutdown()
		if c.answered().Close {
			t.Error("a header written before the stop says close")
		}
		c.ended()
		if d, want := <-took, 3*time.Second+defaultIdleGrace; d != want {
			t.Errorf("the stop took %v, want %v", d, want)
		}
	})
}

// TestCloseIsSpread: many silent connections are not closed in one moment.
func TestCloseIsSpread(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		const n = 2000
		v := startVirtual(t, Options{}, ok)
		var wg sync.WaitGroup
		var mu sync.Mutex
		ends := map[time.Duration]int{}
		began := time.Now()
		for range n {
			c := v.dial()
			wg.Go(func() {
				c.ended()
				mu.Lock()
				ends[time.Since(began)]++
				mu.Unlock()
			})
		}
		took := v.shutdown()
		wg.Wait()
		d := <-took
		if spread := d - defaultIdleGrace; spread < defaultIdleGrace/11 || spread > defaultIdleGrace/9 {
			t.Errorf("%d connections were closed within %v, want about %v", n, spread, defaultIdleGrace/10)
		}
		for at, n := range ends {
			if n > 2 {
				t.Errorf("%d connections were closed at %v", n, at)
			}
		}
	})
}

func TestDelayIsKept(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		const delay = 7 * time.Second
		opts := Options{Shutdown: ShutdownOptions{Delay: delay}}
		v := startVirtual(t, opts, ok)
		if d := <-v.shutdown(); d != delay {
			t.Errorf("a stop without connections took %v, want the delay of %v", d, delay)
		}

		v = startVirtual(t, opts, ok)
		took := v.shutdown()
		time.Sleep(2 * time.Second)
		if p := v.Phase(); p != PhaseLameDuck {
			t.Errorf("phase %v, want lame duck", p)
		}
		v.endLameDuck("test")
		if d := <-took; d != 2*time.Second {
			t.Errorf("the cut lame duck took %v, want 2s", d)
		}
	})
}

// TestQuickStop is what SIGINT asks for: no Delay and no IdleGrace, but
// requests in flight are still answered.
func TestQuickStop(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		v := startVirtual(t, Options{Shutdown: ShutdownOptions{Delay: 10 * time.Second}}, func(w http.ResponseWriter, r *http.Request) {
			w.(http.Flusher).Flush()
			time.Sleep(2 * time.Second)
		})
		fresh, busy := v.dial(), v.dial()
		busy.send(request)
		synctest.Wait()
		began := time.Now()
		v.beginStop(context.Background(), stopCause{quick: true})
		fresh.ended()
		if d := time.Since(began); d != 0 {
			t.Errorf("a silent connection was closed after %v, want at once", d)
		}
		busy.answered()
		busy.ended()
		if err := <-v.served; err != http.ErrServerClosed {
			t.Errorf("Serve: %v, want http.ErrServerClosed", err)
		}
		if d := time.Since(began); d != 2*time.Second {
			t.Errorf("the stop took %v, want 2s", d)
		}
	})
}

// TestGracePeriodIsExact: nothing is cancelled before it is over.
func TestGracePeriodIsExact(t *testing.T) {
	for _, tt := range []struct {
		name    string
		timeout time.Duration // of Shutdown's context
		want    time.Duration
	}{
		{"grace period", 0, defaultGracePeriod},
		{"context", 10 * time.Second, 9 * time.Second}, // a tenth is for the end
	} {
		t.Run(tt.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				cancelled := make(chan error, 1)
				v := startVirtual(t, Options{}, func(w http.ResponseWriter, r *http.Request) {
					<-r.Context().Done()
					cancelled <- context.Cause(r.Context())
				})
				c := v.dial()
				defer c.Close()
				c.send(request)
				synctest.Wait()
				ctx := context.Background()
				if tt.timeout > 0 {
					var cancel context.CancelFunc
					ctx, cancel = context.WithTimeout(ctx, tt.timeout)
					defer cancel()
				}
				began := time.Now()
				stopped := make(chan error, 1)
				go func() { stopped <- v.Shutdown(ctx) }()
				if cause := <-cancelled; cause != ErrShuttingDown {
					t.Errorf("cause %v", cause)
				}
				if d := time.Since(began); d != tt.want {
					t.Errorf("cancelled after %v, want %v", d, tt.want)
				}
				if err := <-stopped; err == nil {
					t.Error("Shutdown returned nil")
				}
				<-v.served
			})
		})
	}
}

// TestIdleGraceFitsTheTimeLeft: silence alone does not make a stop fall short.
func TestIdleGraceFitsTheTimeLeft(t *testing.T) {
	for _, tt := range []struct {
		name    string
		opts    ShutdownOptions
		timeout time.Duration
	}{
		{"short context", ShutdownOptions{}, 5 * time.Second},
		{"long delay", ShutdownOptions{Delay: 22 * time.Second}, time.Hour},
	} {
		t.Run(tt.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				v := startVirtual(t, Options{Shutdown: tt.opts}, ok)
				c := v.dial()
				c.send(request)
				c.answered()
				ctx, cancel := context.WithTimeout(t.Context(), tt.timeout)
				defer cancel()
				if err := v.Shutdown(ctx); err != nil {
					t.Error(err)
				}
				if err := <-v.served; err != http.ErrServerClosed {
					t.Errorf("Serve: %v, want http.ErrServerClosed", err)
				}
				c.ended()
			})
		})
	}
}

// TestStopLetsNewcomersIn: who waits for MaxConns when the stop begins is
// served, and silent connections do not keep it from that.
func TestStopLetsNewcomersIn(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		v := startVirtual(t, Options{Listener: ListenerOptions{MaxConns: 2}}, ok)
		mute := []*rawConn{v.dial(), v.dial()}
		waits := v.dial()
		waits.send(request)
		synctest.Wait()
		began := time.Now()
		took := v.shutdown()
		waits.answered()
		if d := time.Since(began); d != 0 {
			t.Errorf("a newcomer waited %v after the stop began", d)
		}
		waits.ended()
		for _, c := range mute {
			c.ended()
		}
		<-took
	})
}

// blockedConn blocks in Close.
type blockedConn struct {
	net.Conn
	release chan struct{}
}

func (c blockedConn) Close() error {
	<-c.release
	return c.Conn.Close()
}

type blockedListener struct {
	*memnet.Listener
	release chan struct{}
}

func (l blockedListener) Accept() (net.Conn, error) {
	c, err := l.Listener.Accept()
	if err != nil {
		return nil, err
	}
	return blockedConn{c, l.release}, nil
}

// TestBlockedClose: a connection whose Close hangs does not hang the stop.
func TestBlockedClose(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		inner := blockedListener{memnet.Listen(), make(chan struct{})}
		s := Wrap(newHTTPServer(h1, http.HandlerFunc(ok)), Options{Logger: silent})
		served := make(chan error, 1)
		go func() { served <- s.Serve(inner) }()
		for range 2 {
			c, err := inner.Dial(t.Context())
			if err != nil {
				t.Fatal(err)
			}
			defer c.Close()
		}
		synctest.Wait()
		began := time.Now()
		if err := s.Shutdown(context.Background()); err == nil {
			t.Error("Shutdown returned nil although connections were not closed")
		}
		if d := time.Since(began); d > defaultGracePeriod+5*time.Second {
			t.Errorf("Shutdown took %v", d)
		}
		<-served
		close(inner.release)
	})
}

// TestHookBudget: hooks share what is left, and get a tenth of GracePeriod
// when nothing is.
func TestHookBudget(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		v := startVirtual(t, Options{}, ok)
		var budgets []time.Duration
		for range 2 {
			v.OnShutdown("hook", func(ctx context.Context) error {
				d, _ := ctx.Deadline()
				budgets = append(budgets, time.Until(d))
				return nil
			})
		}
		<-v.shutdown()
		if len(budgets) != 2 || budgets[0] != defaultGracePeriod/2 || budgets[1] != defaultGracePeriod {
			t.Errorf("budgets %v of a quick stop", budgets)
		}

		v = startVirtual(t, Options{}, func(w http.ResponseWriter, r *http.Request) { <-r.Context().Done() })
		c := v.dial()
		defer c.Close()
		c.send(request)
		synctest.Wait()
		var budget time.Duration
		v.OnShutdown("hook", func(ctx context.Context) error {
			d, _ := ctx.Deadline()
			budget = time.Until(d)
			return nil
		})
		if err := v.Shutdown(context.Background()); err == nil {
			t.Error("Shutdown returned nil")
		}
		<-v.served
		if budget != defaultGracePeriod/10 {
			t.Errorf("budget %v past GracePeriod, want %v", budget, defaultGracePeriod/10)
		}
	})
}

// TestHTTP2IsLeftAloneForAMoment: a request that follows the preface within
// 100 ms of a stop is answered, and then comes the GOAWAY.
func TestHTTP2IsLeftAloneForAMoment(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		v := startVirtualMode(t, h2c, Options{}, ok)
		c := v.dial()
		c.send("PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n")
		c.sendFrame(frameSettings, 0, 0, "")
		synctest.Wait()
		took := v.shutdown()
		time.Sleep(http2Settle / 2)
		c.getStream(1)
		c.readUntil("response", endOf(1))
		c.Close()
		<-took

		// Silence ends after that moment, and a second for each GOAWAY: for the
		// first one, if the client does not answer.
		for _, answers := range []bool{true, false} {
			v = startVirtualMode(t, h2c, Options{}, ok)
			c = v.dial()
			c.send("PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n")
			c.sendFrame(frameSettings, 0, 0, "")
			synctest.Wait()
			took = v.shutdown()
			c.readUntil("first GOAWAY", isFirstStep)
			want := http2Settle + time.Second
			if answers {
				c.answerPing()
			} else {
				want += time.Second
			}
			c.readUntil("second GOAWAY", isSecondStep)
			if d := <-took; d != want {
				t.Errorf("a stop with an idle HTTP/2 connection that answers (%v) took %v, want %v", answers, d, want)
			}
			c.Close()
		}
	})
}

// TestHTTP2PrefaceDuringDrain: net/http would not find a connection in its
// preface for the GOAWAY, so that is waited for.
func TestHTTP2PrefaceDuringDrain(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		v := startVirtualMode(t, h2c, Options{}, ok)
		c := v.dial()
		took := v.shutdown()
		c.send("PRI * HTTP/2.0\r\n\r\n")
		time.Sleep(2 * time.Second)
		c.send("SM\r\n\r\n")
		c.sendFrame(frameSettings, 0, 0, "")
		c.readUntil("GOAWAY", isGoAway)
		c.Close()
		<-took
	})
}

// TestMaxConns: at the limit, a connection that has been idle for long enough
// makes room, busy ones do not, and each response is then a last one.
func TestMaxConns(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		release := make(chan struct{})
		v := startVirtual(t, Options{Listener: ListenerOptions{MaxConns: 3}}, func(w http.ResponseWriter, r *http.Request) {
			if r.Method == "POST" {
				<-release
			}
			ok(w, r)
		})
		get := func(c *rawConn) *http.Response {
			c.send(request)
			return c.answered()
		}
		oldest, older, busy := v.dial(), v.dial(), v.dial()
		get(oldest)
		time.Sleep(time.Second)
		get(older)
		busy.send("POST / HTTP/1.1\r\nHost: usher.test\r\nContent-Length: 0\r\n\r\n")
		time.Sleep(time.Second)
		began := time.Now()

		a := v.dial()
		get(a)
		if d := time.Since(began); d != 0 {
			t.Errorf("a newcomer beside an idle connection waited %v", d)
		}
		oldest.ended()

		b := v.dial()
		get(b)
		older.ended()
		if d := time.Since(began); d != 0 {
			t.Errorf("the next newcomer waited %v", d)
		}

		// a and b have just been answered: a newcomer waits until that is a
		// second ago.
		c := v.dial()
		get(c)
		a.ended()
		if d := time.Since(began); d != maxconns.EvictAfter {
			t.Errorf("a newcomer beside young idle connections waited %v, want %v", d, maxconns.EvictAfter)
		}

		// Or until one of them is answered again: it is asked to leave then.
		get(b)
		began = time.Now()
		d := v.dial()
		synctest.Wait()
		if st := v.Stats(); st.Connections.Open != 4 || st.IdleEvicted != 3 {
			t.Errorf("stats %+v with a newcomer waiting", st)
		}
		if !get(b).Close {
			t.Error("an answer while a newcomer waits does not say close")
		}
		b.Close()
		get(d)
		if d := time.Since(began); d != 0 {
			t.Errorf("a newcomer waited %v although a connection left", d)
		}

		// One that never sent a byte goes after five seconds.
		d.Close()
		synctest.Wait()
		began = time.Now()
		mute := v.dial()
		c.send("POST / HTTP/1.1\r\nHost: usher.test\r\nContent-Length: 0\r\n\r\n")
		e := v.dial()
		get(e)
		mute.ended()
		if d := time.Since(began); d != maxconns.EvictNewAfter {
			t.Errorf("a newcomer beside a mute connection waited %v, want %v", d, maxconns.EvictNewAfter)
		}

		close(release)
		busy.answered()
		c.answered()
		for _, conn := range []*rawConn{c, e, busy} {
			conn.Close()
		}
		<-v.shutdown()
	})
}

// exhausted fails to accept a few times for want of descriptors.
type exhausted struct {
	*memnet.Listener
	mu    sync.Mutex
	left  int
	errno error
}

func (l *exhausted) Accept() (c net.Conn, err error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.left > 0 {
		l.left--
		return nil, &net.OpError{Op: "accept", Net: "mem", Addr: l.Addr(), Err: os.NewSyscallError("accept4", l.errno)}
	}
	return l.Listener.Accept()
}

// TestAcceptOutlivesExhaustion: no error reaches the caller, who may be a
// server that gives up.
func TestAcceptOutlivesExhaustion(t *testing.T) {
	for _, errno := range []error{syscall.EMFILE, syscall.ENFILE, syscall.ENOBUFS, syscall.ENOMEM} {
		synctest.Test(t, func(t *testing.T) {
			inner := &exhausted{Listener: memnet.Listen(), left: 3, errno: errno}
			l := newListener(inner, ListenerOptions{}, silent)
			accepted := make(chan error, 1)
			began := time.Now()
			go func() {
				c, err := l.Accept()
				if err == nil {
					c.Close()
				}
				accepted <- err
			}()
			client, err := inner.Dial(t.Context())
			if err != nil {
				t.Fatal(err)
			}
			defer client.Close()
			if err := <-accepted; err != nil {
				t.Errorf("%v: %v", errno, err)
			}
			if d, want := time.Since(began), (5+10+20)*time.Millisecond; d != want {
				t.Errorf("%v: accepted after %v, want %v", errno, d, want)
			}
			l.Close()
		})
	}
}

// TestFatesAddUp has clients do random things around a stop at a random
// moment: each connection has one fate, and who has sent a whole request in
// time gets an answer.
func TestFatesAddUp(t *testing.T) {
	seeds := 300
	if testing.Short() {
		seeds = 30
	}
	for seed := range seeds {
		synctest.Test(t, func(t *testing.T) { fatesAddUp(t, rand.New(rand.NewPCG(uint64(seed), 0))) })
		if t.Failed() {
			t.Fatalf("seed %d", seed)
		}
	}
}

func fatesAddUp(t *testing.T, rnd *rand.Rand) {
	opts := Options{Shutdown: ShutdownOptions{Delay: time.Duration(rnd.IntN(2)) * time.Second, GracePeriod: 20 * time.Second}}
	if rnd.IntN(3) == 0 {
		opts.Listener.MaxConns = 1 + rnd.IntN(8)
	}
	v := startVirtual(t, opts, func(w http.ResponseWriter, r *http.Request) {
		switch r.URL.Path {
		case "/hijack":
			c, _, err := http.NewResponseController(w).Hijack()
			if err != nil {
				t.Error(err)
				return
			}
			time.Sleep(2 * time.Second)
			c.Close()
		case "/panic":
			panic(http.ErrAbortHandler)
		case "/ever":
			time.Sleep(time.Hour)
		default:
			time.Sleep(time.Second)
			ok(w, r)
		}
	})
	ctx, cancel := context.WithCancel(context.Background())
	var wg sync.WaitGroup
	for range 1 + rnd.IntN(12) {
		rnd := rand.New(rand.NewPCG(rnd.Uint64(), 0))
		wg.Go(func() {
			for ctx.Err() == nil {
				randomClient(ctx, t, v, rnd)
			}
		})
	}
	time.Sleep(time.Duration(rnd.IntN(5000)) * time.Millisecond)
	err := v.Shutdown(context.Background())
	cancel()
	wg.Wait()
	if err := <-v.served; err != http.ErrServerClosed {
		t.Errorf("Serve: %v, want http.ErrServerClosed", err)
	}
	r := v.Stats().Report
	if in, out := r.Open+r.AcceptedLate, r.Served+r.HungUp+r.Idle+r.Hijacked+r.Cut; in != out || v.Stats().Connections.Open != 0 {
		t.Errorf("%d connections came and %d left, %d are open: %+v", in, out, v.Stats().Connections.Open, *r)
	}
	if (err != nil) != (r.Cut > 0) {
		t.Errorf("Shutdown returned %v, and %d connections were cut", err, r.Cut)
	}
	time.Sleep(2 * time.Hour) // handlers that nothing ends
}

// randomClient makes one connection and does random things on it.
func randomClient(ctx context.Context, t *testing.T, v *virtual, rnd *rand.Rand) {
	dialling, stop := context.WithTimeout(ctx, time.Minute)
	nc, err := v.l.Dial(dialling)
	stop()
	if err != nil {
		<-ctx.Done()
		return
	}
	defer nc.Close()
	pause := func() { time.Sleep(time.Duration(rnd.IntN(1500)) * time.Millisecond) }
	r := bufio.NewReader(nc)
	pause()
	for range rnd.IntN(4) {
		path := "/"
		if n := rnd.IntN(40); n < 3 {
			path = []string{"/hijack", "/panic", "/ever"}[n]
		}
		head := "GET " + path + " HTTP/1.1\r\nHost: usher.test\r\n\r\n"
		half := rnd.IntN(len(head) + 1)
		io.WriteString(nc, head[:half])
		if rnd.IntN(3) == 0 {
			pause()
		}
		if rnd.IntN(10) == 0 {
			return // hang up in the middle
		}
		if _, err := io.WriteString(nc, head[half:]); err != nil {
			return
		}
		if rnd.IntN(10) == 0 {
			return // do not wait for the answer
		}
		resp, err := http.ReadResponse(r, nil)
		if err != nil {
			if path == "/" && v.opts.Listener.MaxConns == 0 && half > 0 && v.Phase() < PhaseHard {
				t.Errorf("a request was lost in phase %v: %v", v.Phase(), err)
			}
			return
		}
		io.Copy(io.Discard, resp.Body)
		if resp.Close {
			return
		}
		pause()
		// Leave if the server has closed meanwhile.
		nc.SetReadDeadline(time.Now().Add(time.Nanosecond))
		if _, err := r.Peek(1); err == io.EOF || errors.Is(err, io.ErrClosedPipe) {
			return
		}
		nc.SetReadDeadline(time.Time{})
	}
}

func TestPhaseNames(t *testing.T) {
	if got := fmt.Sprint(PhaseStarting, PhaseStopped, Phase(99), GuaranteeAll, Guarantee(7)); got != "starting stopped Phase(99) all Guarantee(7)" {
		t.Error(got)
	}
}
