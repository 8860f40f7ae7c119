// Package traffic makes HTTP/1 load of the kinds that a stopping server loses,
// and counts what became of each request as its client sees it: nothing is
// retried, and nothing hides behind a connection pool. It talks to loopback
// and unix sockets only.
package traffic

import (
	"context"
	"fmt"
	"net"
	"net/http"
	"sync"
	"sync/atomic"
	"time"
)

// A Mode is how clients behave.
type Mode int

// The modes.
const (
	// PerRequest dials for each request.
	PerRequest Mode = iota
	// SlowStart is PerRequest with 20 ms between connect and request.
	SlowStart
	// KeepAlive sends one request after the other on a connection until it is
	// told to close it.
	KeepAlive
	// Think is KeepAlive with 10 ms between a response and the next request,
	// in which the client also leaves if the server closes.
	Think
	// Upload dials for each request and sends 64 KiB in eight parts, 5 ms
	// apart.
	Upload
)

// Modes are all modes.
var Modes = []Mode{PerRequest, SlowStart, KeepAlive, Think, Upload}

var names = [...]string{"connection per request", "20 ms between connect and request", "keep-alive", "keep-alive, 10 ms think time", "slow 64 KiB upload"}

// String says what the mode does.
func (m Mode) String() string { return names[m] }

const (
	slowStart  = 20 * time.Millisecond
	thinkTime  = 10 * time.Millisecond
	uploadSize = 64 << 10
	parts      = 8
	partPause  = 5 * time.Millisecond
	// patience is far above any wait that a test causes: a client that runs
	// into it has lost its request.
	patience = 60 * time.Second
)

// Config describes the load.
type Config struct {
	Network string // "tcp" or "unix"
	Addr    string
	Path    string // "/" if empty
	Body    string // sent with POST if not empty; GET without one. Not for Upload, which has its own
	TLS     bool   // without verification
	Clients int
	Mode    Mode

	Timeout  time.Duration   // of a request with its dial; a minute if zero
	Requests int             // of all clients together; 0 for no bound
	GoOn     bool            // past a request that was lost, or refused
	Each     func(*Exchange) // called after each request, from many goroutines
}

// A Result counts outcomes.
type Result struct {
	Answered int      // requests with a whole response, of status 200
	Lost     int      // requests on an established connection without one
	Refused  int      // connects that failed
	Slow     int      // connects, failed or not, that took SlowConnect or longer
	Errors   []string // of the first few that were lost
}

// SlowConnect is how long a connect takes at least whose first packet was dropped:
// TCP sends it again after a second.
const SlowConnect = 900 * time.Millisecond

// Check reports an error if the server is not on this machine.
func (cfg Config) Check() error {
	if cfg.Network == "unix" {
		return nil
	}
	host, _, err := net.SplitHostPort(cfg.Addr)
	if ip := net.ParseIP(host); err != nil || ip == nil || !ip.IsLoopback() {
		return fmt.Errorf("traffic: %q is not a loopback address", cfg.Addr)
	}
	return nil
}

// Run starts the clients and waits until each has been refused, as all are
// once the server is gone, or has lost a request, or ctx has ended. A client
// finishes the request it is in. onAnswer, if not nil, is called after each
// answer, from many goroutines.
func Run(ctx context.Context, cfg Config, onAnswer func()) (Result, error) {
	if err := cfg.Check(); err != nil {
		return Result{}, err
	}
	if cfg.Timeout == 0 {
		cfg.Timeout = patience
	}
	var (
		wg    sync.WaitGroup
		mu    sync.Mutex
		total Result
		asked atomic.Int64
	)
	for range cfg.Clients {
		wg.Go(func() {
			c := client{cfg: cfg, asked: &asked, onAnswer: onAnswer}
			c.run(ctx)
			mu.Lock()
			defer mu.Unlock()
			total.Answered += c.Answered
			total.Lost += c.Lost
			total.Refused += c.Refused
			total.Slow += c.Slow
			total.Errors = append(total.Errors, c.Errors[:min(len(c.Errors), maxErrors-len(total.Errors))]...)
		})
	}
	wg.Wait()
	return total, nil
}

const (
	maxErrors = 5
	// retryPause keeps a client that goes on from asking a server that is not
	// there without a pause.
	retryPause = 5 * time.Millisecond
)

// client is one client.
type client struct {
	cfg      Config
	asked    *atomic.Int64
	onAnswer func()
	Result
}

// next reports whether there is another request to make.
func (c *client) next(ctx context.Context) bool {
	return ctx.Err() == nil && (c.cfg.Requests == 0 || c.asked.Add(1) <= int64(c.cfg.Requests))
}

func (c *client) run(ctx context.Context) {
	for c.next(ctx) {
		before := c.Lost + c.Refused
		x := &Exchange{Began: time.Now()}
		conn, err := Dial(c.cfg, x.Began.Add(c.cfg.Timeout))
		if time.Since(x.Began) >= SlowConnect {
			c.Slow++
		}
		if err != nil {
			x.Ended, x.Err = time.Now(), err
			c.Refused++
			c.report(x)
		} else {
			c.use(ctx, conn, x)
			conn.Close()
		}
		if c.Lost+c.Refused == before {
			continue
		}
		if !c.cfg.GoOn {
			return
		}
		time.Sleep(retryPause)
	}
}

// use sends requests on a connection until it is to be closed. The first is x.
func (c *client) use(ctx context.Context, conn *Conn, x *Exchange) {
	for {
		again := c.do(conn, x)
		if !again || c.cfg.Mode != KeepAlive && c.cfg.Mode != Think {
			return
		}
		if c.cfg.Mode == Think && !conn.Await(time.Now().Add(thinkTime)) {
			return // the server has closed, and nothing was under way
		}
		if !c.next(ctx) {
			return
		}
		x = new(Exchange)
	}
}

// do makes one request and counts it.
func (c *client) do(conn *Conn, x *Exchange) (again bool) {
	if x.Began.IsZero() {
		x.Began = time.Now()
	}
	again = conn.Do(x, x.Began.Add(c.cfg.Timeout))
	err := x.Err
	if err == nil && x.Status != http.StatusOK {
		err = fmt.Errorf("request %d of a connection: status %d", x.Nth, x.Status)
	}
	if err == nil {
		c.Answered++
		if c.onAnswer != nil {
			c.onAnswer()
		}
	} else {
		c.Lost++
		if len(c.Errors) < maxErrors {
			c.Errors = append(c.Errors, err.Error())
		}
		again = again && c.cfg.GoOn
	}
	c.report(x)
	return again
}

func (c *client) report(x *Exchange) {
	if c.cfg.Each != nil {
		c.cfg.Each(x)
	}
}
