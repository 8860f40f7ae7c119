package main

import (
	"bufio"
	"context"
	"io"
	"math/rand/v2"
	"net"
	"net/http"
	"sync"
	"time"

	"github.com/seed-235859eb/usher/bench/fairness"
)

// A client keeps connections for reuse. It is made for many requests a second:
// http.Client would take a good part of the CPU that it is to measure.
type client struct {
	addr string

	mu   sync.Mutex
	idle []*conn
}

type conn struct {
	net.Conn
	r *bufio.Reader
}

// get asks once and returns the status of the answer, which has to be there by
// the deadline.
func (c *client) get(deadline time.Time) (status int, err error) {
	conn, err := c.take(deadline)
	if err != nil {
		return 0, err
	}
	conn.SetDeadline(deadline)
	status, err = conn.get()
	if err != nil {
		conn.Close()
		return 0, err
	}
	c.mu.Lock()
	c.idle = append(c.idle, conn)
	c.mu.Unlock()
	return status, nil
}

// take returns an idle connection, or a new one.
func (c *client) take(deadline time.Time) (*conn, error) {
	c.mu.Lock()
	if n := len(c.idle); n > 0 {
		defer c.mu.Unlock()
		idle := c.idle[n-1]
		c.idle = c.idle[:n-1]
		return idle, nil
	}
	c.mu.Unlock()
	fresh, err := (&net.Dialer{Deadline: deadline}).Dial("tcp", c.addr)
	if err != nil {
		return nil, err
	}
	return &conn{fresh, bufio.NewReaderSize(fresh, 1024)}, nil
}

func (c *conn) get() (status int, err error) {
	if _, err := io.WriteString(c, "GET / HTTP/1.1\r\nHost: bench.test\r\n\r\n"); err != nil {
		return 0, err
	}
	resp, err := http.ReadResponse(c.r, nil)
	if err != nil {
		return 0, err
	}
	_, err = io.Copy(io.Discard, resp.Body)
	return resp.StatusCode, err
}

// closeIdle is called when all requests have ended.
func (c *client) closeIdle() {
	for _, conn := range c.idle {
		conn.Close()
	}
}

// measureCapacity returns how many requests a second plain net/http answers
// when there are always just enough for all slots: the best of three, because
// whatever else runs on the machine can only make it less.
func measureCapacity(ctx context.Context, work, slots int) (best float64, err error) {
	p, err := fairness.Start(fairness.Spec{Contender: fairness.Bare.Name, Work: work})
	if err != nil {
		return 0, err
	}
	defer p.Stop()
	c := &client{addr: p.Addr}
	defer c.closeIdle()
	for range 3 {
		best = max(best, c.closedLoop(ctx, 2*slots))
	}
	return best, ctx.Err()
}

// closedLoop returns the rate of answers when so many clients ask without a
// pause.
func (c *client) closedLoop(ctx context.Context, clients int) float64 {
	const length = time.Second
	var wg sync.WaitGroup
	var mu sync.Mutex
	answers := 0
	began := time.Now()
	for range clients {
		wg.Go(func() {
			for ctx.Err() == nil && time.Since(began) < length {
				if _, err := c.get(began.Add(2 * length)); err != nil {
					return
				}
				mu.Lock()
				answers++
				mu.Unlock()
			}
		})
	}
	wg.Wait()
	return float64(answers) / time.Since(began).Seconds()
}

// overload sends rate requests a second to a new server.
func overload(ctx context.Context, spec fairness.Spec, rate float64, cfg config) (outcome, error) {
	p, err := fairness.Start(spec)
	if err != nil {
		return outcome{}, err
	}
	defer p.Stop()
	c := &client{addr: p.Addr}
	defer c.closeIdle()
	o := outcome{offered: rate, length: cfg.duration}
	// The same arrivals for all servers.
	random := rand.New(rand.NewPCG(1, uint64(cfg.duration)))
	var wg sync.WaitGroup
	var mu sync.Mutex
	began := time.Now()
	for due := began; due.Sub(began) < cfg.duration && ctx.Err() == nil; {
		due = due.Add(time.Duration(random.ExpFloat64() / rate * float64(time.Second)))
		time.Sleep(time.Until(due))
		o.late = max(o.late, time.Since(due))
		wg.Go(func() {
			status, err := c.get(due.Add(cfg.timeout))
			took := time.Since(due)
			mu.Lock()
			defer mu.Unlock()
			o.count(status, err, took, cfg.timeout)
		})
	}
	wg.Wait()
	if o.cpu, err = p.CPUTime(); err != nil {
		return o, err
	}
	if o.peakRSS, err = p.PeakRSS(); err != nil {
		return o, err
	}
	return o, ctx.Err()
}
