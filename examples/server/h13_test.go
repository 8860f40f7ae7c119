//go:build unix

package main

import (
	"errors"
	"flag"
	"fmt"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/seed-235859eb/usher/internal/traffic"
)

// The long form:
//
//	go test ./examples/server -run TestH13 -v -h13.rounds 50 -long
var (
	h13Rounds = flag.Int("h13.rounds", 2, "rounds of each case")
	long      = flag.Bool("long", false, "one test at a time")
)

// TestH13 is the reproduction of the H13 story: a handler that has its own
// server stopped on the first of many requests that arrive at once. Each request
// is answered or refused, and the program ends well.
func TestH13(t *testing.T) {
	for kind, args := range kinds() {
		for _, clients := range []int{20, 200} {
			for _, latency := range []string{"0s", "20ms"} {
				t.Run(fmt.Sprintf("%s/%d requests/%s", kind, clients, latency), func(t *testing.T) {
					parallel(t)
					answered, refused := 0, 0
					for range *h13Rounds {
						p := start(t, append([]string{"-term-on-first-request", "-latency", latency}, args...)...)
						for _, x := range atOnce(p.addr, clients) {
							switch {
							case x.Err == nil && x.Status == 200:
								answered++
							case x.Nth == 0 && errors.Is(x.Err, syscall.ECONNREFUSED):
								refused++
							default:
								t.Errorf("status %d, %v", x.Status, x.Err)
							}
						}
						if err := p.wait(); err != nil {
							t.Errorf("the server ended with %v", err)
						}
						if !strings.Contains(p.output(), "usher: stopped") {
							t.Error("the first request did not stop the server")
						}
					}
					t.Logf("%d rounds: %d answered, %d refused", *h13Rounds, answered, refused)
					if answered == 0 {
						t.Error("no request was answered")
					}
				})
			}
		}
	}
}

// TestH13Bare proves that TestH13 can see the error of the story: a plain
// http.Server has it, sooner or later.
func TestH13Bare(t *testing.T) {
	parallel(t)
	const enough = 50
	for round := 1; round <= enough; round++ {
		p := start(t, "-bare", "-term-on-first-request", "-latency", "20ms")
		lost := 0
		for _, x := range atOnce(p.addr, 200) {
			if x.Nth > 0 && x.Err != nil {
				lost++
			}
		}
		if err := p.wait(); err != nil {
			t.Errorf("the server ended with %v", err)
		}
		if lost > 0 {
			t.Logf("round %d: %d of 200 requests lost", round, lost)
			return
		}
	}
	t.Errorf("http.Server lost nothing in %d rounds: this test sees nothing", enough)
}

// atOnce makes many requests at once, each on a connection of its own.
func atOnce(addr string, clients int) []traffic.Exchange {
	exchanges := make([]traffic.Exchange, clients)
	var wg sync.WaitGroup
	begin := make(chan struct{})
	for i := range exchanges {
		x := &exchanges[i]
		wg.Go(func() {
			<-begin
			deadline := time.Now().Add(patience)
			c, err := traffic.Dial(traffic.Config{Network: "tcp", Addr: addr}, deadline)
			if err != nil {
				x.Err = err
				return
			}
			defer c.Close()
			c.Do(x, deadline)
		})
	}
	close(begin)
	wg.Wait()
	return exchanges
}
