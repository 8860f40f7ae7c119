// Package traffic makes HTTP/1 load of the kinds that a stopping server loses,
// and counts what became of each request as its client sees it: nothing is
// retried, and nothing hides behind a connection pool. It talks to loopback
// and unix sockets only.
package traffic

import (
	"bufio"
	"context"
	"crypto/tls"
	"fmt"
	"io"
	"net"
	"net/http"
	"strings"
	"sync"
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
	TLS     bool // without verification
	Clients int
	Mode    Mode
}

// A Result counts outcomes.
type Result struct {
	Answered int      // requests with a whole response
	Lost     int      // requests on an established connection without one
	Refused  int      // connects that failed
	Errors   []string // of the first few that were lost
}

// Run starts the clients and waits until each has been refused, as all are
// once the server is gone, or ctx has ended. A client finishes the request it
// is in. onAnswer, if not nil, is called after each answer, from many
// goroutines.
func Run(ctx context.Context, cfg Config, onAnswer func()) (Result, error) {
	if cfg.Network != "unix" {
		host, _, err := net.SplitHostPort(cfg.Addr)
		if ip := net.ParseIP(host); err != nil || ip == nil || !ip.IsLoopback() {
			return Result{}, fmt.Errorf("traffic: %q is not a loopback address", cfg.Addr)
		}
	}
	var (
		wg    sync.WaitGroup
		mu    sync.Mutex
		total Result
	)
	for range cfg.Clients {
		wg.Go(func() {
			c := client{cfg: cfg, onAnswer: onAnswer}
			c.run(ctx)
			mu.Lock()
			defer mu.Unlock()
			total.Answered += c.answered
			total.Refused += c.refused
			if c.lost != nil {
				total.Lost++
				if len(total.Errors) < 5 {
					total.Errors = append(total.Errors, c.lost.Error())
				}
			}
		})
	}
	wg.Wait()
	return total, nil
}

// client is one client. It stops at the first request that it loses.
type client struct {
	cfg      Config
	onAnswer func()
	answered int
	refused  int
	lost     error
}

func (c *client) run(ctx context.Context) {
	for ctx.Err() == nil && c.lost == nil {
		conn, err := net.DialTimeout(c.cfg.Network, c.cfg.Addr, patience)
		if err != nil {
			c.refused++
			return
		}
		c.lost = c.use(ctx, conn)
		conn.Close()
	}
}

// use sends requests on a connection until it is to be closed. An error means
// that a request was lost.
func (c *client) use(ctx context.Context, conn net.Conn) error {
	conn.SetDeadline(time.Now().Add(patience))
	if c.cfg.TLS {
		conn = tls.Client(conn, &tls.Config{InsecureSkipVerify: true})
	}
	if c.cfg.Mode == SlowStart {
		time.Sleep(slowStart)
	}
	r := bufio.NewReader(conn)
	for n := 1; ; n++ {
		if err := c.send(conn); err != nil {
			return fmt.Errorf("request %d of a connection, while sending: %w", n, err)
		}
		resp, err := http.ReadResponse(r, nil)
		if err != nil {
			return fmt.Errorf("request %d of a connection, before its response: %w", n, err)
		}
		_, err = io.Copy(io.Discard, resp.Body)
		resp.Body.Close()
		if err != nil {
			return fmt.Errorf("request %d of a connection, in its response: %w", n, err)
		}
		if resp.StatusCode != http.StatusOK {
			return fmt.Errorf("request %d of a connection: %s", n, resp.Status)
		}
		c.answered++
		if c.onAnswer != nil {
			c.onAnswer()
		}
		if resp.Close || ctx.Err() != nil || c.cfg.Mode != KeepAlive && c.cfg.Mode != Think {
			return nil
		}
		if c.cfg.Mode == Think {
			conn.SetReadDeadline(time.Now().Add(thinkTime))
			_, err := r.Peek(1)
			if ne, ok := err.(net.Error); !ok || !ne.Timeout() {
				return nil // the server has closed, and nothing was under way
			}
			// A deadline leaves a TLS connection unusable only for writes.
			conn.SetReadDeadline(time.Now().Add(patience))
		}
	}
}

var upload = strings.Repeat("usher 8\n", uploadSize/parts/8)

// send sends one request.
func (c *client) send(w io.Writer) error {
	if c.cfg.Mode != Upload {
		_, err := io.WriteString(w, "GET / HTTP/1.1\r\nHost: usher.test\r\n\r\n")
		return err
	}
	if _, err := fmt.Fprintf(w, "POST / HTTP/1.1\r\nHost: usher.test\r\nContent-Length: %d\r\n\r\n", uploadSize); err != nil {
		return err
	}
	for range parts {
		if _, err := io.WriteString(w, upload); err != nil {
			return err
		}
		time.Sleep(partPause)
	}
	return nil
}
