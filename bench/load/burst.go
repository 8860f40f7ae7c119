package load

import (
	"context"
	"fmt"
	"sync"
	"time"

	"github.com/seed-235859eb/usher/internal/traffic"
)

// A Burst makes HTTP/1 connections, and when all are established sends a
// request on each, all at once. None is refused who connected.
type Burst struct {
	Server
	Requests int
	Timeout  time.Duration // of a request, and of the dials; a minute if zero
	Bound    time.Duration // of an answer that is not Late; 0 for none
	// Each, if not nil, is called for each request, from many goroutines.
	Each func(*Exchange, Outcome)
}

// Run makes the load. A connection that cannot be made is an error.
func (b Burst) Run(ctx context.Context) (*Result, error) {
	var err error
	if b.Timeout, err = checkTimes(maxDuration, b.Timeout); err != nil {
		return nil, err
	}
	if b.Requests < 1 || b.Requests > maxClients {
		return nil, fmt.Errorf("load: Requests is %d: must be 1 to %d", b.Requests, maxClients)
	}
	cfg := b.traffic()
	if err := cfg.Check(); err != nil {
		return nil, err
	}
	ctx, rec := newRecorder(ctx, b.Bound, b.Each)
	deadline := time.Now().Add(b.Timeout)
	var conns []*traffic.Conn
	defer func() {
		for _, conn := range conns {
			conn.Close()
		}
	}()
	for range b.Requests {
		conn, err := traffic.Dial(cfg, deadline)
		if err != nil {
			return nil, fmt.Errorf("load: before the burst: %w", err)
		}
		conns = append(conns, conn)
	}
	var wg sync.WaitGroup
	now := make(chan struct{})
	for _, conn := range conns {
		wg.Go(func() {
			<-now
			x := &Exchange{Began: time.Now()}
			conn.Do(x, x.Began.Add(b.Timeout))
			rec.record(x, x.Began)
		})
	}
	close(now)
	wg.Wait()
	return rec.done(ctx)
}
