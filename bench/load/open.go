package load

import (
	"context"
	"fmt"
	"math/rand/v2"
	"sync"
	"time"

	"github.com/seed-235859eb/usher/internal/traffic"
)

// Open is an open loop.
type Open struct {
	Server
	Rate   float64 // requests per second, on average
	Steady bool    // equally spaced, instead of at random (Poisson)
	Seed   uint64  // of chance: the same gives the same times
	// PerRequest has each request make a connection of its own. Without it
	// connections that are idle are used again.
	PerRequest bool
	Clients    int // HTTP/2: connections; 1 if zero

	Duration time.Duration // in which requests are due
	Timeout  time.Duration // of a request, from when it was due; a minute if zero
	// Patience, if not nil, is the Timeout of each request, by chance.
	Patience func(*rand.Rand) time.Duration
	Bound    time.Duration // of an answer that is not Late; 0 for none
	// MaxWaiting bounds the requests under way; 10,000 if zero. One that is
	// due above it waits for its turn, and its time counts.
	MaxWaiting int
	// Each, if not nil, is called for each request, from many goroutines.
	Each func(*Exchange, Outcome)
}

// Run makes the load, and waits for the requests under way.
func (o Open) Run(ctx context.Context) (*Result, error) {
	var err error
	if o.Timeout, err = checkTimes(o.Duration, o.Timeout); err != nil {
		return nil, err
	}
	if !(o.Rate > 0 && o.Rate <= maxRate) {
		return nil, fmt.Errorf("load: Rate is %v: must be positive, and at most %v", o.Rate, maxRate)
	}
	if o.MaxWaiting == 0 {
		o.MaxWaiting = maxClients / 2
	}
	if o.MaxWaiting < 1 || o.MaxWaiting > maxClients || o.Clients < 0 || o.Clients > o.MaxWaiting {
		return nil, fmt.Errorf("load: MaxWaiting is %d, Clients %d: must be at most %d", o.MaxWaiting, o.Clients, maxClients)
	}
	cfg := o.traffic()
	if o.PerRequest {
		cfg.Mode = PerRequest
	}
	if err := cfg.Check(); err != nil {
		return nil, err
	}
	ctx, rec := newRecorder(ctx, o.Bound, o.Each)
	do, closeAll := o.client(cfg)
	defer closeAll()

	var wg sync.WaitGroup
	places := make(chan struct{}, o.MaxWaiting)
	random := rand.New(rand.NewPCG(o.Seed, 0))
	gap := func() time.Duration {
		f := 1.0
		if !o.Steady {
			f = random.ExpFloat64()
		}
		return time.Duration(f / o.Rate * float64(time.Second))
	}
	timer := time.NewTimer(0)
	defer timer.Stop()
	began := time.Now()
	for due := began.Add(gap()); due.Sub(began) < o.Duration; due = due.Add(gap()) {
		if wait := time.Until(due); wait > 0 {
			timer.Reset(wait)
			select {
			case <-timer.C:
			case <-ctx.Done():
			}
		}
		if ctx.Err() != nil {
			break
		}
		rec.result.Behind = max(rec.result.Behind, time.Since(due))
		places <- struct{}{} // those under way end by their deadlines
		timeout := o.Timeout
		if o.Patience != nil {
			timeout = o.Patience(random)
		}
		wg.Go(func() {
			x := new(Exchange)
			do(x, due.Add(timeout))
			rec.record(x, due)
			<-places
		})
	}
	wg.Wait()
	return rec.done(ctx)
}

// client returns what makes one request, and what is to be called after all.
func (o Open) client(cfg traffic.Config) (do func(x *Exchange, deadline time.Time), closeAll func()) {
	if !o.HTTP2 {
		p := &pool{cfg: cfg, perRequest: o.PerRequest}
		return p.do, p.close
	}
	if o.PerRequest {
		return func(x *Exchange, deadline time.Time) {
			client := &client2{cfg: cfg}
			defer client.close()
			client.do(x, deadline)
		}, func() {}
	}
	clients := make([]*client2, max(o.Clients, 1))
	for i := range clients {
		clients[i] = &client2{cfg: cfg}
	}
	var mu sync.Mutex
	turn := 0
	return func(x *Exchange, deadline time.Time) {
			mu.Lock()
			turn++
			client := clients[turn%len(clients)]
			mu.Unlock()
			client.do(x, deadline)
		}, func() {
			for _, client := range clients {
				client.close()
			}
		}
}

// A pool keeps HTTP/1 connections that are idle, and lets go of those that the
// server closes meanwhile.
type pool struct {
	cfg        traffic.Config
	perRequest bool

	mu   sync.Mutex
	idle []idleConn
}

type idleConn struct {
	*traffic.Conn
	stop func() bool // of Watch
}

// do makes a request. Its time begins with the dial, or on a connection in use
// with the sending.
func (p *pool) do(x *Exchange, deadline time.Time) {
	conn := p.take()
	if conn == nil {
		x.Began = time.Now()
		var err error
		if conn, err = traffic.Dial(p.cfg, deadline); err != nil {
			x.Ended, x.Err = time.Now(), err
			return
		}
	}
	if conn.Do(x, deadline) && !p.perRequest {
		p.put(conn)
	} else {
		conn.Close()
	}
}

func (p *pool) put(conn *traffic.Conn) {
	c := idleConn{conn, conn.Watch()}
	p.mu.Lock()
	defer p.mu.Unlock()
	p.idle = append(p.idle, c)
}

// take returns the connection that was used last, or nil if none is idle.
func (p *pool) take() *traffic.Conn {
	for {
		p.mu.Lock()
		n := len(p.idle)
		if n == 0 {
			p.mu.Unlock()
			return nil
		}
		c := p.idle[n-1]
		p.idle = p.idle[:n-1]
		p.mu.Unlock()
		if c.stop() {
			return c.Conn
		}
		c.Close()
	}
}

// close is called when all requests have ended.
func (p *pool) close() {
	for conn := p.take(); conn != nil; conn = p.take() {
		conn.Close()
	}
}
