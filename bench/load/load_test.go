package load

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"
)

// serve accepts connections until the test ends, and has each served in a
// goroutine of its own.
func serve(t *testing.T, f func(net.Conn)) (addr string) {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	var wg sync.WaitGroup
	wg.Go(func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			wg.Go(func() {
				defer c.Close()
				f(c)
			})
		}
	})
	t.Cleanup(func() {
		l.Close()
		wg.Wait()
	})
	return l.Addr().String()
}

// Each of these ends a connection after a request has been read.
var ends = []struct {
	name string
	want Outcome
	end  func(net.Conn)
}{
	{"nothing", Lost, func(net.Conn) {}},
	{"reset", Lost, func(c net.Conn) { c.(*net.TCPConn).SetLinger(0) }},
	{"half a header", Lost, func(c net.Conn) { io.WriteString(c, "HTTP/1.1 200 OK\r\nContent-Le") }},
	{"half a body", Lost, func(c net.Conn) { io.WriteString(c, "HTTP/1.1 200 OK\r\nContent-Length: 10\r\n\r\n12345") }},
	{"half a chunk", Lost, func(c net.Conn) { io.WriteString(c, "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\na\r\n12345") }},
	{"no last chunk", Lost, func(c net.Conn) {
		io.WriteString(c, "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\n12345\r\n")
	}},
	{"503", Rejected, status("503 Service Unavailable")},
	{"429", Rejected, status("429 Too Many Requests")},
	{"500", Failed, status("500 Internal Server Error")},
}

func status(s string) func(net.Conn) {
	return func(c net.Conn) {
		io.WriteString(c, "HTTP/1.1 "+s+"\r\nConnection: close\r\nContent-Length: 2\r\n\r\nno")
	}
}

// dropper answers requests, but each k-th by end, and counts these.
func dropper(t *testing.T, k int64, end func(net.Conn)) (addr string, dropped *atomic.Int64) {
	var seen atomic.Int64
	dropped = new(atomic.Int64)
	return serve(t, func(c net.Conn) {
		for r := bufio.NewReader(c); ; {
			req, err := http.ReadRequest(r)
			if err != nil {
				return
			}
			if _, err := io.Copy(io.Discard, req.Body); err != nil {
				return
			}
			if seen.Add(1)%k == 0 {
				dropped.Add(1)
				end(c)
				return
			}
			io.WriteString(c, "HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok")
		}
	}), dropped
}

// check compares counts with all that was asked.
func check(t *testing.T, r *Result, want map[Outcome]int) {
	t.Helper()
	for _, o := range Outcomes {
		if r.Of(o) != want[o] {
			t.Errorf("%d %v, want %d", r.Of(o), o, want[o])
		}
	}
	if t.Failed() {
		t.Log(strings.Join(r.Errors, "\n"))
	}
}

const long = time.Minute // which no test takes

// TestClosedCountsDrops has every seventh response go wrong in each way.
func TestClosedCountsDrops(t *testing.T) {
	const requests, k = 70, 7
	for _, tt := range ends {
		for _, mode := range Modes {
			if tt.want == Lost && tt.name != "nothing" && mode != KeepAlive {
				continue // the same code, for seconds
			}
			t.Run(tt.name+"/"+mode.String(), func(t *testing.T) {
				t.Parallel()
				addr, dropped := dropper(t, k, tt.end)
				r, err := Closed{
					Server: Server{Addr: addr}, Clients: 10, Mode: mode,
					Duration: long, Requests: requests, GoOn: true,
				}.Run(t.Context())
				if err != nil {
					t.Fatal(err)
				}
				check(t, r, map[Outcome]int{Answered: requests - requests/k, tt.want: requests / k})
				if dropped.Load() != requests/k {
					t.Errorf("the server dropped %d", dropped.Load())
				}
				if n := r.Latency.TotalCount(); n != requests-requests/k {
					t.Errorf("%d latencies", n)
				}
			})
		}
	}
}

// TestOpenCountsDrops does the same to arrivals that wait for nobody.
func TestOpenCountsDrops(t *testing.T) {
	const k = 7
	for _, tt := range ends {
		for _, perRequest := range []bool{false, true} {
			t.Run(fmt.Sprintf("%s/%t", tt.name, perRequest), func(t *testing.T) {
				t.Parallel()
				addr, dropped := dropper(t, k, tt.end)
				r, err := Open{
					Server: Server{Addr: addr}, Rate: 1000, Seed: 1, PerRequest: perRequest, Duration: 150 * time.Millisecond,
				}.Run(t.Context())
				if err != nil {
					t.Fatal(err)
				}
				n := int(dropped.Load())
				if total := r.Total(); total < 75 || total > 225 || n != total/k {
					t.Errorf("%d requests, %d dropped", total, n)
				}
				check(t, r, map[Outcome]int{Answered: r.Total() - n, tt.want: n})
			})
		}
	}
}

// TestClosedStopsAtLoss: without GoOn a client loses one request at most.
func TestClosedStopsAtLoss(t *testing.T) {
	addr, dropped := dropper(t, 5, func(net.Conn) {})
	r, err := Closed{Server: Server{Addr: addr}, Clients: 8, Mode: KeepAlive, Duration: long}.Run(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	check(t, r, map[Outcome]int{Answered: 32, Lost: 8})
	if dropped.Load() != 8 {
		t.Errorf("the server dropped %d", dropped.Load())
	}
}

// TestBody: requests with a body are POST, and the connection is used on.
func TestBody(t *testing.T) {
	const body = "some text"
	var posts, conns atomic.Int64
	addr := serve(t, func(c net.Conn) {
		conns.Add(1)
		for r := bufio.NewReader(c); ; {
			req, err := http.ReadRequest(r)
			if err != nil {
				return
			}
			if got, _ := io.ReadAll(req.Body); req.Method == http.MethodPost && string(got) == body {
				posts.Add(1)
			}
			io.WriteString(c, "HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok")
		}
	})
	r, err := Closed{Server: Server{Addr: addr}, Clients: 2, Mode: KeepAlive, Body: body, Duration: long, Requests: 20}.Run(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	check(t, r, map[Outcome]int{Answered: 20})
	if posts.Load() != 20 || conns.Load() > 2 {
		t.Errorf("%d requests with the body, on %d connections", posts.Load(), conns.Load())
	}
}

// TestStall stalls a server once. Of its waiting a closed loop sees as many
// requests as it has clients; an open loop sees all that came meanwhile.
func TestStall(t *testing.T) {
	t.Parallel()
	const (
		rate   = 250
		stall  = 400 * time.Millisecond
		slow   = 100 * time.Millisecond
		length = 1200 * time.Millisecond
	)
	server := func(t *testing.T) string {
		var mu sync.Mutex
		stallAt := time.Now().Add(300 * time.Millisecond)
		return serve(t, func(c net.Conn) {
			for r := bufio.NewReader(c); ; {
				if _, err := http.ReadRequest(r); err != nil {
					return
				}
				mu.Lock()
				if !stallAt.IsZero() && time.Now().After(stallAt) {
					stallAt = time.Time{}
					time.Sleep(stall)
				}
				mu.Unlock()
				time.Sleep(time.Millisecond)
				io.WriteString(c, "HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok")
			}
		})
	}
	const clients = 2
	closed, err := Closed{
		Server: Server{Addr: server(t)}, Clients: clients, Mode: KeepAlive, Duration: length, Bound: slow,
	}.Run(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	open, err := Open{
		Server: Server{Addr: server(t)}, Rate: rate, Steady: true, Duration: length, Bound: slow,
	}.Run(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	t.Logf("closed: %d of %d late, P90 %v; open: %d of %d late, P90 %v",
		closed.Of(Late), closed.Total(), Quantile(closed.Latency, 90), open.Of(Late), open.Total(), Quantile(open.Latency, 90))
	if n := closed.Of(Late); n < 1 || n > open.Of(Late)/2 || closed.Total() < 20*clients {
		t.Errorf("closed loop: %d late of %d", n, closed.Total())
	}
	// All that were due in the stall, but for its last tenth of a second.
	want := int(rate * (stall - slow).Seconds())
	if n := open.Of(Late); n < want*9/10 {
		t.Errorf("open loop: %d late, want %d", n, want)
	}
	if p90 := Quantile(open.Latency, 90); p90 < slow {
		t.Errorf("open loop: P90 %v", p90)
	}
	if c, o := Quantile(closed.Latency, 100), Quantile(open.Latency, 100); c < stall-slow || o < stall-slow {
		t.Errorf("the longest wait: closed %v, open %v", c, o)
	}
}

// TestOpenMaxWaiting: who waits for its turn waits from the time it was due.
func TestOpenMaxWaiting(t *testing.T) {
	t.Parallel()
	addr := serve(t, func(c net.Conn) {
		for r := bufio.NewReader(c); ; {
			if _, err := http.ReadRequest(r); err != nil {
				return
			}
			time.Sleep(50 * time.Millisecond)
			io.WriteString(c, "HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok")
		}
	})
	r, err := Open{
		Server: Server{Addr: addr}, Rate: 100, Steady: true, Duration: 95 * time.Millisecond, MaxWaiting: 1,
	}.Run(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	check(t, r, map[Outcome]int{Answered: 9})
	if longest := Quantile(r.Latency, 100); longest < 350*time.Millisecond {
		t.Errorf("the last of nine took %v", longest)
	}
}

// gone returns an address at which nobody listens.
func gone(t *testing.T) string {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	return l.Addr().String()
}

func TestRefused(t *testing.T) {
	for _, s := range []Server{
		{Addr: gone(t)},
		{Addr: gone(t), HTTP2: true},
		{Network: "unix", Addr: filepath.Join(t.TempDir(), "s")},
	} {
		r, err := Closed{Server: s, Clients: 4, Duration: long, Requests: 20, GoOn: true}.Run(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		check(t, r, map[Outcome]int{Refused: 20})
		r, err = Closed{Server: s, Clients: 4, Duration: long}.Run(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		check(t, r, map[Outcome]int{Refused: 4})
		r, err = Open{Server: s, Rate: 1000, Steady: true, Duration: 10500 * time.Microsecond}.Run(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		check(t, r, map[Outcome]int{Refused: 10})
	}
}

func TestTimedOut(t *testing.T) {
	t.Parallel()
	const timeout = 50 * time.Millisecond
	// A server that reads, and one that does not even accept.
	silent := serve(t, func(c net.Conn) { io.Copy(io.Discard, c) })
	for _, http2 := range []bool{false, true} {
		s := Server{Addr: silent, HTTP2: http2}
		began := time.Now()
		r, err := Closed{Server: s, Clients: 3, Duration: long, Requests: 6, Timeout: timeout, GoOn: true}.Run(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		check(t, r, map[Outcome]int{TimedOut: 6})
		if took := time.Since(began); took < 2*timeout {
			t.Errorf("took %v", took)
		}
		r, err = Open{Server: s, Rate: 100, Steady: true, Duration: 95 * time.Millisecond, Timeout: timeout}.Run(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		check(t, r, map[Outcome]int{TimedOut: 9})
	}
}

func TestBurst(t *testing.T) {
	addr, _ := dropper(t, 4, func(net.Conn) {})
	r, err := Burst{Server: Server{Addr: addr}, Requests: 20}.Run(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	check(t, r, map[Outcome]int{Answered: 15, Lost: 5})
	if _, err := (Burst{Server: Server{Addr: gone(t)}, Requests: 20}).Run(t.Context()); err == nil {
		t.Error("nobody listened, and that is no error")
	}
}

func TestClassify(t *testing.T) {
	op := func(err error) error { return &net.OpError{Op: "dial", Err: os.NewSyscallError("connect", err)} }
	for _, tt := range []struct {
		x    Exchange
		want Outcome
	}{
		{Exchange{Nth: 1, Status: 204}, Answered},
		{Exchange{Nth: 1, Status: 302}, Failed},
		{Exchange{Err: op(syscall.ECONNREFUSED)}, Refused},
		{Exchange{Err: op(syscall.ENOENT)}, Refused},
		{Exchange{Err: op(syscall.EAGAIN)}, Refused},
		{Exchange{Err: op(syscall.ECONNRESET)}, Lost}, // from the accept queue
		{Exchange{Err: op(syscall.ETIMEDOUT)}, TimedOut},
		{Exchange{Err: op(os.ErrDeadlineExceeded)}, TimedOut},
		{Exchange{Nth: 1, Err: op(os.ErrDeadlineExceeded)}, TimedOut},
		{Exchange{Nth: 2, Err: op(syscall.ECONNRESET)}, Lost},
		{Exchange{Nth: 2, Err: op(syscall.EPIPE)}, Lost},
		{Exchange{Nth: 1, Err: io.ErrUnexpectedEOF}, Lost},
	} {
		if got := classify(&tt.x); got != tt.want {
			t.Errorf("%+v: %v, want %v", tt.x, got, tt.want)
		}
	}
}

// TestGeneratorFails: a generator that runs out of its own means has no result.
func TestGeneratorFails(t *testing.T) {
	ctx, rec := newRecorder(t.Context(), 0, nil)
	rec.record(&Exchange{Err: fmt.Errorf("dial: %w", syscall.EMFILE)}, time.Now())
	if ctx.Err() == nil {
		t.Error("the run goes on")
	}
	if r, err := rec.done(ctx); r != nil || !errors.Is(err, syscall.EMFILE) {
		t.Errorf("result %v, error %v", r, err)
	}
}

// A runner is each of the generators.
type runner interface {
	Run(context.Context) (*Result, error)
}

func TestBounds(t *testing.T) {
	here := Server{Addr: "127.0.0.1:1"}
	for name, tt := range map[string]struct {
		r    runner
		want string
	}{
		"closed, elsewhere":   {Closed{Server: Server{Addr: "192.0.2.1:80"}, Clients: 1, Duration: 1}, "not a loopback address"},
		"closed h2 elsewhere": {Closed{Server: Server{Addr: "192.0.2.1:80", HTTP2: true}, Clients: 1, Duration: 1}, "not a loopback address"},
		"open, elsewhere":     {Open{Server: Server{Addr: "[2001:db8::1]:80"}, Rate: 1, Duration: 1}, "not a loopback address"},
		"burst, elsewhere":    {Burst{Server: Server{Addr: "example.com:80"}, Requests: 1}, "not a loopback address"},
		"closed, no time":     {Closed{Server: here, Clients: 1}, "Duration"},
		"open, no time":       {Open{Server: here, Rate: 1}, "Duration"},
		"too long":            {Open{Server: here, Rate: 1, Duration: 25 * time.Hour}, "Duration"},
		"bad timeout":         {Open{Server: here, Rate: 1, Duration: 1, Timeout: -1}, "Timeout"},
		"nobody":              {Closed{Server: here, Duration: 1}, "Clients"},
		"too many":            {Closed{Server: here, Clients: 1000, Streams: 1000, Duration: 1}, "Clients"},
		"a body over h2":      {Closed{Server: Server{Addr: "127.0.0.1:1", HTTP2: true}, Clients: 1, Body: "b", Duration: 1}, "Body"},
		"no rate":             {Open{Server: here, Duration: 1}, "Rate"},
		"too much":            {Open{Server: here, Rate: 1e9, Duration: 1}, "Rate"},
		"too many waiting":    {Open{Server: here, Rate: 1, Duration: 1, MaxWaiting: 1e6}, "MaxWaiting"},
		"no requests":         {Burst{Server: here}, "Requests"},
	} {
		if _, err := tt.r.Run(t.Context()); err == nil || !strings.Contains(err.Error(), tt.want) {
			t.Errorf("%s: %v", name, err)
		}
	}
}

// TestContext ends runs before their time.
func TestContext(t *testing.T) {
	addr, _ := dropper(t, 1<<62, nil)
	for _, r := range []runner{
		Closed{Server: Server{Addr: addr}, Clients: 4, Duration: long},
		Open{Server: Server{Addr: addr}, Rate: 100, Duration: long},
		Open{Server: Server{Addr: addr}, Rate: 0.001, Duration: long},
	} {
		ctx, cancel := context.WithTimeout(t.Context(), 50*time.Millisecond)
		began := time.Now()
		res, err := r.Run(ctx)
		cancel()
		if err != nil || res.Of(Answered) != res.Total() || time.Since(began) > long/2 {
			t.Errorf("%+v, %v after %v", res, err, time.Since(began))
		}
	}
}

// TestPoolLetsGo: a connection that the server closes while it is idle loses
// nothing.
func TestPoolLetsGo(t *testing.T) {
	t.Parallel()
	addr := serve(t, func(c net.Conn) {
		r := bufio.NewReader(c)
		if _, err := http.ReadRequest(r); err == nil {
			io.WriteString(c, "HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok")
		}
	})
	r, err := Open{Server: Server{Addr: addr}, Rate: 5, Steady: true, Duration: 1100 * time.Millisecond}.Run(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	check(t, r, map[Outcome]int{Answered: 5})
	if n := r.FirstByte.TotalCount(); n != 5 {
		t.Errorf("%d connections", n)
	}
}

func TestResultAdd(t *testing.T) {
	addr, _ := dropper(t, 4, func(net.Conn) {})
	var sum Result
	for range 3 {
		r, err := Closed{Server: Server{Addr: addr}, Clients: 1, Duration: long, Requests: 8, GoOn: true}.Run(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		sum.Add(r)
	}
	check(t, &sum, map[Outcome]int{Answered: 18, Lost: 6})
	if len(sum.Errors) != maxErrors || sum.Latency.TotalCount() != 18 || sum.Took <= 0 {
		t.Errorf("%+v", sum)
	}
}
