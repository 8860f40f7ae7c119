package fairness

import (
	"fmt"
	"net/http"
	"sync"
	"sync/atomic"
	"testing"
	"time"
)

// A sleeper is a handler that sleeps, and knows how many do and for how long
// the machine really let them.
type sleeper struct {
	d time.Duration

	mu      sync.Mutex
	running int
	most    int
	slept   []time.Duration
}

func (s *sleeper) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	s.mu.Lock()
	s.running++
	s.most = max(s.most, s.running)
	s.mu.Unlock()
	began := time.Now()
	time.Sleep(s.d)
	s.mu.Lock()
	s.running--
	s.slept = append(s.slept, time.Since(began))
	s.mu.Unlock()
	ok(w, r)
}

// service returns how long a request was served for, at the median.
func (s *sleeper) service() time.Duration {
	s.mu.Lock()
	defer s.mu.Unlock()
	return max(s.d, percentile(s.slept, 50))
}

func ms(d time.Duration) string {
	return fmt.Sprintf("%d ms", d.Round(time.Millisecond).Milliseconds())
}

// checkLimit asks for more than there are slots, over both protocols.
func checkLimit(t *testing.T, c Contender) outcome {
	const slots, requests = 3, 12
	var most [2]int
	for i, http2 := range []bool{false, true} {
		s := &sleeper{d: 10 * time.Millisecond}
		addr := start(t, c, unlimitedQueue(slots), s.ServeHTTP)
		client := newClient(t, http2)
		if !http2 {
			client.Transport.(*http.Transport).DisableKeepAlives = true
		}
		ctx := within(t, patience)
		var wg sync.WaitGroup
		for range requests {
			wg.Go(func() { do(ctx, client, "GET", "http://"+addr, nil) })
		}
		wg.Wait()
		most[i] = s.most
	}
	return outcome{max(most[0], most[1]) <= slots, fmt.Sprintf("%d and %d of %d", most[0], most[1], slots)}
}

// checkSeedCase is the incident that the project began with: a closed loop of
// 200 requests.
func checkSeedCase(t *testing.T, c Contender) outcome {
	const clients, slots, total = 10, 5, 200
	s := &sleeper{d: 200 * time.Millisecond}
	addr := start(t, c, unlimitedQueue(slots), s.ServeHTTP)
	var mu sync.Mutex
	var all []time.Duration
	var left atomic.Int32
	left.Store(total)
	var wg sync.WaitGroup
	for range clients {
		conn := dial(t, addr)
		wg.Go(func() {
			defer conn.Close()
			for left.Add(-1) >= 0 {
				sent := time.Now()
				conn.get("/")
				_, err := conn.answer(2 * patience)
				if err != nil {
					t.Log(err)
					return
				}
				mu.Lock()
				all = append(all, time.Since(sent))
				mu.Unlock()
			}
		})
	}
	wg.Wait()
	ideal := s.service() * clients / slots
	p99 := percentile(all, 99)
	return outcome{
		len(all) == total && float64(p99) <= 1.15*float64(ideal),
		fmt.Sprintf("%s, ideal %s", ms(p99), ms(ideal)),
	}
}

// checkIdle has as many connections as there are slots do nothing.
func checkIdle(t *testing.T, c Contender) outcome {
	const slots = 4
	addr := start(t, c, unlimitedQueue(slots), ok)
	for range slots {
		conn := dial(t, addr)
		conn.get("/")
		if _, err := conn.answer(patience); err != nil {
			t.Fatal(err)
		}
	}
	newcomer := dial(t, addr)
	began := time.Now()
	newcomer.get("/")
	if _, err := newcomer.answer(prompt); err != nil {
		return outcome{false, "not served"}
	}
	return outcome{true, ms(time.Since(began))}
}

// checkFlood has a hundred streams on one connection ask again and again, and
// nine HTTP/1 connections beside it.
func checkFlood(t *testing.T, c Contender) outcome {
	const (
		slots, streams, others = 5, 100, 9
		warmUp, length         = 500 * time.Millisecond, 4 * time.Second
	)
	s := &sleeper{d: 100 * time.Millisecond}
	addr := start(t, c, unlimitedQueue(slots), s.ServeHTTP)
	ctx := within(t, warmUp+length)
	began := time.Now()
	var wg sync.WaitGroup
	flood := newClient(t, true)
	for range streams {
		wg.Go(func() {
			for ctx.Err() == nil {
				do(ctx, flood, "GET", "http://"+addr, nil)
			}
		})
	}
	var mu sync.Mutex
	var all []time.Duration
	for range others {
		client := newClient(t, false)
		wg.Go(func() {
			for ctx.Err() == nil {
				sent := time.Now()
				_, _, err := do(ctx, client, "GET", "http://"+addr, nil)
				took := time.Since(sent)
				// Of one that is under way at the end no more is known than
				// that it took as long as that.
				if err == nil && sent.Sub(began) > warmUp || took > time.Second {
					mu.Lock()
					all = append(all, took)
					mu.Unlock()
				}
			}
		})
	}
	wg.Wait()
	fair := 2 * s.service() // ten connections, five slots
	p99 := percentile(all, 99)
	return outcome{
		float64(p99) <= 1.5*float64(fair),
		fmt.Sprintf("%s, fair %s", ms(p99), ms(fair)),
	}
}
