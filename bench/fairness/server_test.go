package fairness

import (
	"bufio"
	"io"
	"net"
	"net/http"
	"runtime"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/seed-235859eb/usher/bench/usage"
)

const (
	connections = 1000
	slice       = 100 * time.Millisecond
)

// BenchmarkServer compares whole servers, each a process of its own, with a
// thousand keep-alive connections and next to nothing to do. An iteration puts
// four slices of time for each into one figure: bare, the other, the other,
// bare. Reported are medians of the ratios to bare, in requests per second and
// in requests per second of the server's CPU time. That of net/http with itself
// says how much to believe them. It needs some 25 iterations: -benchtime 25x.
//
// In pipelined, ten requests come at a time and fight for one slot: where
// MaxInline has the most to gain. The semaphore shows what taking turns costs
// there however it is done: each answer wakes its client by itself.
func BenchmarkServer(b *testing.B) {
	for _, bm := range []struct {
		name         string
		slots, depth int
	}{
		{"plain", runtime.GOMAXPROCS(0), 1},
		{"pipelined", 1, 10},
	} {
		b.Run(bm.name, func(b *testing.B) {
			bare := startLoaded(b, Spec{Contender: Bare.Name})
			others := []struct {
				name string
				*loaded
			}{
				{"bare", startLoaded(b, Spec{Contender: Bare.Name})},
				{"no-slots", startLoaded(b, Spec{Contender: Usher.Name})},
				{"semaphore", startLoaded(b, Spec{Contender: Semaphore.Name, Limits: Limits{Slots: bm.slots}})},
				{"inline-1", startLoaded(b, Spec{Contender: Usher.Name, Limits: Limits{Slots: bm.slots, MaxInline: 1}})},
				{"inline-10", startLoaded(b, Spec{Contender: Usher.Name, Limits: Limits{Slots: bm.slots, MaxInline: 10}})},
			}
			var rates []float64
			wall, cpu := make([][]float64, len(others)), make([][]float64, len(others))
			for b.Loop() {
				for i, other := range others {
					x := bare.run(b, bm.depth)
					y := other.run(b, bm.depth)
					y.add(other.run(b, bm.depth))
					x.add(bare.run(b, bm.depth))
					rates = append(rates, x.rate())
					wall[i] = append(wall[i], y.rate()/x.rate())
					cpu[i] = append(cpu[i], y.cpuRate()/x.cpuRate())
				}
			}
			b.ReportMetric(0, "ns/op") // says nothing
			b.ReportMetric(median(rates), "req/s")
			for i, other := range others {
				b.ReportMetric(median(wall[i]), other.name)
				b.ReportMetric(median(cpu[i]), other.name+"-cpu")
			}
		})
	}
}

// A workDone is what a server did in slices of time.
type workDone struct {
	requests  float64
	took, cpu time.Duration
}

func (w *workDone) add(v workDone) {
	w.requests += v.requests
	w.took += v.took
	w.cpu += v.cpu
}

func (w workDone) rate() float64    { return w.requests / w.took.Seconds() }
func (w workDone) cpuRate() float64 { return w.requests / w.cpu.Seconds() }

// A loaded is a server with its connections.
type loaded struct {
	*Process
	conns []net.Conn
	size  int // of an answer
}

const plainRequest = "GET / HTTP/1.1\r\nHost: bench.test\r\n\r\n"

// startLoaded starts a server and connects to it.
func startLoaded(b *testing.B, spec Spec) *loaded {
	p, err := Start(spec)
	if err != nil {
		b.Fatal(err)
	}
	b.Cleanup(p.Stop)
	s := &loaded{Process: p}
	for range connections {
		c, err := net.Dial("tcp", p.Addr)
		if err != nil {
			b.Fatal(err)
		}
		b.Cleanup(func() { c.Close() })
		s.conns = append(s.conns, c)
	}
	s.size = answerSize(b, s.conns[0])
	s.run(b, 1) // all connections are accepted and warm
	return s
}

// answerSize asks once. All answers are of one size.
func answerSize(b *testing.B, c net.Conn) int {
	if _, err := io.WriteString(c, plainRequest); err != nil {
		b.Fatal(err)
	}
	counted := &countingReader{r: c}
	resp, err := http.ReadResponse(bufio.NewReader(counted), nil)
	if err != nil {
		b.Fatal(err)
	}
	if _, err := io.Copy(io.Discard, resp.Body); err != nil {
		b.Fatal(err)
	}
	return counted.n
}

type countingReader struct {
	r io.Reader
	n int
}

func (c *countingReader) Read(p []byte) (int, error) {
	n, err := c.r.Read(p)
	c.n += n
	return n, err
}

// run loads the server for a slice: each connection has depth requests under
// way, and sends as many when all are answered.
func (s *loaded) run(b *testing.B, depth int) workDone {
	requests := strings.Repeat(plainRequest, depth)
	var over atomic.Bool
	var total atomic.Int64
	var wg sync.WaitGroup
	before, err := usage.CPUTime(s.PID)
	if err != nil {
		b.Skip(err)
	}
	began := time.Now()
	timer := time.AfterFunc(slice, func() { over.Store(true) })
	defer timer.Stop()
	for _, c := range s.conns {
		wg.Go(func() {
			answers := make([]byte, depth*s.size)
			n := int64(0)
			for !over.Load() {
				if _, err := io.WriteString(c, requests); err != nil {
					b.Error(err)
					return
				}
				if _, err := io.ReadFull(c, answers); err != nil {
					b.Error(err)
					return
				}
				n += int64(depth)
			}
			total.Add(n)
		})
	}
	wg.Wait()
	took := time.Since(began)
	after, err := usage.CPUTime(s.PID)
	if err != nil {
		b.Fatal(err)
	}
	return workDone{float64(total.Load()), took, after - before}
}

func median(all []float64) float64 {
	all = slices.Sorted(slices.Values(all))
	return all[len(all)/2]
}
