package limit

import (
	"context"
	"fmt"
	"math/rand/v2"
	"net/http"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/seed-235859eb/usher/internal/fairqueue"
)

// An openLoop has requests come by themselves, at so many times the capacity of
// ten slots of 50 ms, whose clients leave when their patience is over.
type openLoop struct {
	times    float64
	patience func(*rand.Rand) time.Duration
	length   time.Duration
}

type openOutcome struct {
	mu             sync.Mutex
	arrived, good  int
	verdicts       map[Verdict]int
	told           time.Duration // the longest wait of one that was told TooLate
	begunForNobody int
}

func (o openLoop) run(l *Limiter) *openOutcome {
	const slots, service = 10, 50 * time.Millisecond
	n := &openOutcome{verdicts: make(map[Verdict]int)}
	random := rand.New(rand.NewPCG(1, 1))
	began := time.Now()
	var wg sync.WaitGroup
	for time.Since(began) < o.length {
		// Nobody knows when the client will leave.
		ctx, leave := context.WithCancel(NewContext(context.Background(), nil))
		leaving := time.AfterFunc(o.patience(random), leave)
		wg.Go(func() {
			defer leave()
			defer leaving.Stop()
			r, _ := http.NewRequestWithContext(ctx, "GET", "/", nil)
			came := time.Now()
			v := l.Serve(nil, r, "", 1, http.HandlerFunc(func(_ http.ResponseWriter, r *http.Request) {
				gone := r.Context().Err() != nil
				time.Sleep(service)
				n.mu.Lock()
				defer n.mu.Unlock()
				if gone {
					n.begunForNobody++
				}
				if r.Context().Err() == nil {
					n.good++
				}
			}))
			n.mu.Lock()
			defer n.mu.Unlock()
			n.arrived++
			n.verdicts[v]++
			if v == TooLate {
				n.told = max(n.told, time.Since(came))
			}
		})
		time.Sleep(time.Duration(random.ExpFloat64() * float64(service) / (o.times * slots)))
	}
	wg.Wait()
	return n
}

// TestGoodput: above capacity, slots serve those who are still there to hear the
// answer, and most of the others are told so at once; below it all are served.
func TestGoodput(t *testing.T) {
	for name, patience := range map[string]func(*rand.Rand) time.Duration{
		"all 1 s": func(*rand.Rand) time.Duration { return time.Second },
		"half 1 s, half 10 s": func(r *rand.Rand) time.Duration {
			return []time.Duration{time.Second, 10 * time.Second}[r.IntN(2)]
		},
		"exponential": func(r *rand.Rand) time.Duration { return time.Duration(r.ExpFloat64() * float64(2*time.Second)) },
	} {
		for _, times := range []float64{.9, 1.1, 2, 4, 10} {
			t.Run(fmt.Sprintf("%s/%g", name, times), func(t *testing.T) {
				synctest.Test(t, func(t *testing.T) {
					l := newTestLimiter(10)
					const length = 10 * time.Second
					n := openLoop{times, patience, length}.run(l)
					goodput := float64(n.good) / length.Seconds() / 200
					if times > 1 && goodput < 0.95 {
						t.Errorf("goodput is %.3f of capacity", goodput)
					}
					if times < 1 && (n.good != n.arrived && name != "exponential" || n.verdicts[TooLate] > 0) {
						t.Errorf("%d of %d were answered, %d turned away", n.good, n.arrived, n.verdicts[TooLate])
					}
					if n.told > 0 {
						t.Errorf("one was told after %v", n.told)
					}
					if times == 4 && name == "all 1 s" {
						if told, rest := n.verdicts[TooLate], n.arrived-n.good; told*4 < rest*3 {
							t.Errorf("%d of %d that were not served were told so at once", told, rest)
						}
					}
					if n.begunForNobody > 0 {
						t.Errorf("%d handlers began when their client had left", n.begunForNobody)
					}
					st := l.Stats()
					if wasted := n.verdicts[Served] - n.good; st.Wasted != uint64(wasted) || st.TooLate != uint64(n.verdicts[TooLate]) ||
						st.Arrived != st.Admitted+st.Full+st.TooLate+st.Expired+st.Stopped+st.Left {
						t.Errorf("%+v: %d were wasted, %d too late", st, wasted, n.verdicts[TooLate])
					}
				})
			})
		}
	}
}

// TestNobodyToServe: a request whose client leaves at the moment at which it is
// handed a slot does not begin, and the slot goes on to the next.
func TestNobodyToServe(t *testing.T) {
	for range 50 {
		synctest.Test(t, func(t *testing.T) {
			l := newTestLimiter(1)
			first := new(lease)
			first.init(new(fairqueue.Flow))
			l.queue.TryAcquire(first.flow)
			var leaver, last bool
			serve := func(ctx context.Context, begun *bool) {
				r, _ := http.NewRequestWithContext(NewContext(ctx, nil), "GET", "/", nil)
				l.Serve(nil, r, "", 1, http.HandlerFunc(func(http.ResponseWriter, *http.Request) { *begun = true }))
			}
			ctx, leave := context.WithCancel(context.Background())
			go serve(ctx, &leaver)
			synctest.Wait()
			go serve(context.Background(), &last)
			synctest.Wait()
			l.mu.Lock()
			l.release(first, l.queue.Release)
			leave()
			l.mu.Unlock()
			synctest.Wait()
			if st := l.Stats(); leaver || !last || st.Left != 1 || st.Running != 0 || st.Admitted != 1 {
				t.Errorf("the one that left began: %v, the last one: %v; %+v", leaver, last, st)
			}
		})
	}
}

// TestGivesUpAt: a request whose client is known to give up before its turn is
// told at once, or when that time has come; others are not.
func TestGivesUpAt(t *testing.T) {
	const service = 100 * time.Millisecond
	synctest.Test(t, func(t *testing.T) {
		l := New(Options{Slots: 1, MaxInline: 1, MaxQueue: 1024, MaxWait: time.Minute, GivesUpAt: func(r *http.Request) time.Time {
			d, err := time.ParseDuration(r.Header.Get("Gives-Up-After"))
			if err != nil {
				return time.Time{}
			}
			return time.Now().Add(d)
		}})
		var wg sync.WaitGroup
		ask := func(header, value string, timeout time.Duration, want Verdict, after time.Duration) {
			ctx, cancel := context.WithTimeout(NewContext(context.Background(), nil), timeout)
			r, _ := http.NewRequestWithContext(ctx, "GET", "/", nil)
			if header != "" {
				r.Header.Set(header, value)
			}
			came := time.Now()
			wg.Go(func() {
				defer cancel()
				v := l.Serve(nil, r, "", 1, http.HandlerFunc(func(http.ResponseWriter, *http.Request) { time.Sleep(service) }))
				if took := time.Since(came); v != want || took != after {
					t.Errorf("%s %s, timeout %v: verdict %v after %v, want %v after %v", header, value, timeout, v, took, want, after)
				}
			})
			synctest.Wait()
		}
		ask("", "", time.Hour, Served, service)
		ask("Gives-Up-After", "30ms", time.Hour, TooLate, 30*time.Millisecond) // nobody knows yet how long a service takes
		for i := range 10 {
			ask("", "", time.Hour, Served, time.Duration(i+2)*service)
		}
		time.Sleep(11 * service / 2) // which is known now; five wait
		ask("Gives-Up-After", "400ms", time.Hour, TooLate, 0)
		ask("Grpc-Timeout", "400m", time.Hour, TooLate, 0)
		ask("", "", 4*service, TooLate, 0)
		ask("Grpc-Timeout", "3S", time.Hour, Served, 13*service/2)
		wg.Wait()
		if st := l.Stats(); st.TooLate != 4 || st.Left != 0 {
			t.Errorf("%+v", st)
		}
	})
}

// TestGrpcTimeout: what the header may say, and what it may not.
func TestGrpcTimeout(t *testing.T) {
	for v, want := range map[string]time.Duration{
		"1H": time.Hour, "90M": 90 * time.Minute, "0S": 0, "20000m": 20 * time.Second, "99999999u": 99999999 * time.Microsecond, "5n": 5,
	} {
		if got, ok := grpcTimeout(&http.Request{Header: http.Header{"Grpc-Timeout": {v}}}); !ok || got != want {
			t.Errorf("%q: %v, %v; want %v", v, got, ok, want)
		}
	}
	for _, v := range []string{"", "S", "5", "-5S", "+5S", "5s", "123456789S", "99999999H", "1.5S", "5 S"} {
		if got, ok := grpcTimeout(&http.Request{Header: http.Header{"Grpc-Timeout": {v}}}); ok {
			t.Errorf("%q: %v", v, got)
		}
	}
}
