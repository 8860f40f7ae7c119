package load

import (
	"context"
	"fmt"
	"sync"
	"sync/atomic"
	"time"

	"github.com/seed-235859eb/usher/internal/traffic"
)

// Closed is a closed loop.
type Closed struct {
	Server
	Clients int
	Mode    Mode   // HTTP/1 only
	Body    string // sent with POST if not empty; HTTP/1 only
	Streams int    // HTTP/2: that a client has open at a time; 1 if zero

	Duration time.Duration // after which no client begins another request
	Requests int           // of all clients together; 0 for no bound
	Timeout  time.Duration // of a request with its dial; a minute if zero
	Bound    time.Duration // of an answer that is not Late; 0 for none
	// GoOn has a client go on past a request that was refused, lost, or not
	// answered with 200. Without it that is its last.
	GoOn bool
	// Each, if not nil, is called for each request, from many goroutines.
	Each func(*Exchange, Outcome)
}

// Run makes the load. It returns when all clients have ended, or ctx has and
// the requests under way, too.
func (c Closed) Run(ctx context.Context) (*Result, error) {
	var err error
	if c.Timeout, err = checkTimes(c.Duration, c.Timeout); err != nil {
		return nil, err
	}
	c.Streams = max(c.Streams, 1)
	if n := c.Clients * c.Streams; n < 1 || n > maxClients {
		return nil, fmt.Errorf("load: Clients is %d: must be 1 to %d", n, maxClients)
	}
	if c.HTTP2 && c.Body != "" {
		return nil, fmt.Errorf("load: Body is %q: HTTP/2 requests have none", c.Body)
	}
	cfg := c.traffic()
	cfg.Body = c.Body
	cfg.Clients, cfg.Mode, cfg.Requests, cfg.Timeout, cfg.GoOn = c.Clients, c.Mode, c.Requests, c.Timeout, c.GoOn
	if err := cfg.Check(); err != nil {
		return nil, err
	}
	ctx, rec := newRecorder(ctx, c.Bound, c.Each)
	timed, cancel := context.WithTimeout(ctx, c.Duration)
	defer cancel()
	if c.HTTP2 {
		c.runHTTP2(timed, cfg, rec)
		return rec.done(ctx)
	}
	cfg.Each = func(x *Exchange) { rec.record(x, x.Began) }
	if _, err := traffic.Run(timed, cfg, nil); err != nil {
		return nil, err
	}
	return rec.done(ctx)
}

// goOnPause keeps a client that goes on from asking a server that is not there
// without a pause.
const goOnPause = 5 * time.Millisecond

func (c Closed) runHTTP2(ctx context.Context, cfg traffic.Config, rec *recorder) {
	var wg sync.WaitGroup
	var asked atomic.Int64
	for range c.Clients {
		client := &client2{cfg: cfg}
		var streams sync.WaitGroup
		for range c.Streams {
			streams.Go(func() {
				for ctx.Err() == nil && (c.Requests == 0 || asked.Add(1) <= int64(c.Requests)) {
					x := &Exchange{Began: time.Now()}
					client.do(x, x.Began.Add(c.Timeout))
					rec.record(x, x.Began)
					if classify(x) == Answered {
						continue
					}
					if !c.GoOn {
						return
					}
					time.Sleep(goOnPause)
				}
			})
		}
		wg.Go(func() {
			streams.Wait()
			client.close()
		})
	}
	wg.Wait()
}
