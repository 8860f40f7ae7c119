package main

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"os"
	"runtime"
	"slices"
	"strconv"
	"sync"
	"sync/atomic"
	"time"

	"github.com/seed-235859eb/usher/bench/process"
	"github.com/seed-235859eb/usher/bench/usage"
)

// A sample is what happened in one slice.
type sample struct {
	units int64 // requests, or bytes
	took  time.Duration
	cpuTimes
}

// cpuTimes are used in a slice, or up to a moment.
type cpuTimes struct {
	cpu       time.Duration // of the server
	generator time.Duration // of this process
	busy      time.Duration // of all CPUs, whoever used them
}

// rate is units per second.
func (s sample) rate() float64 { return float64(s.units) / s.took.Seconds() }

// cost is the server's CPU time per unit, in nanoseconds.
func (s sample) cost() float64 { return float64(s.cpu) / float64(s.units) }

// The servers that are compared. The control is a second bare one: what is
// read for it instead of 1.00 is noise.
const (
	bare = iota
	ushers
	control
	contestants
)

var contestantNames = [contestants]string{"bare", "usher", "bare again"}

// startContestant starts examples/server as one of them.
func (l *lab) startContestant(ctx context.Context, i int) (*process.Process, error) {
	args := []string{"-addr", "127.0.0.1:0"}
	switch {
	case i != ushers:
		args = append(args, "-bare")
	case l.usherSlots > 0:
		args = append(args, "-slots", strconv.Itoa(l.usherSlots))
	}
	return l.start(ctx, process.Spec{Path: l.server, Args: args})
}

// orders are the orders of the slices of a round; each server follows each
// other one, and comes in each place, equally often.
var orders = [...][contestants]int{
	{bare, ushers, control}, {control, ushers, bare}, {ushers, control, bare},
	{bare, control, ushers}, {control, bare, ushers}, {ushers, bare, control},
}

// A round is a slice of each server.
type round [contestants]sample

// A comparison is the rounds that count.
type comparison []round

// of returns the samples of one server.
func (c comparison) of(contestant int) []sample {
	samples := make([]sample, len(c))
	for i, r := range c {
		samples[i] = r[contestant]
	}
	return samples
}

// foreign returns the share of the CPUs that others used meanwhile: other
// programs, the kernel's own threads, and the hypervisor. The system counts
// time in ticks: the share is not exact, and may come out below zero.
func (c comparison) foreign() float64 {
	var total sample
	for _, r := range c {
		for _, s := range r {
			total = total.plus(s)
		}
	}
	return float64(total.busy-total.cpu-total.generator) / float64(total.took) / float64(runtime.NumCPU())
}

const (
	// batches is how often the processes are replaced by fresh ones: two
	// processes of the same program are not equally fast, for as long as they
	// live.
	batches = 4
	// blockTime is how long rounds must take together for foreign to mean
	// something.
	blockTime = 750 * time.Millisecond
	// quiet is the share of the CPUs that others may use.
	quiet = 0.05
	// tries is how many times the wanted number of rounds is made, at most.
	tries = 2
)

// compare has n workers keep one server busy at a time, in slices of d that
// alternate. It goes on until enough blocks of rounds were quiet, or for a
// bounded time, and keeps those in which others used least. What the servers
// did in a block has no say in that.
func (l *lab) compare(ctx context.Context, rounds int, d time.Duration, n int, open dialWorker) (comparison, error) {
	perBlock := min(rounds, int((blockTime+contestants*d-1)/(contestants*d)))
	wanted := (rounds + perBlock - 1) / perBlock
	perBatch := (wanted + batches - 1) / batches
	var blocks []comparison
	for found := 0; found < wanted && len(blocks) < tries*wanted; {
		more := min(perBatch, tries*wanted-len(blocks))
		c, err := l.compareBatch(ctx, len(blocks)*perBlock, more*perBlock, d, n, open)
		if err != nil {
			return nil, err
		}
		for b := range slices.Chunk(c, perBlock) {
			if b.foreign() <= quiet {
				found++
			}
			blocks = append(blocks, b)
		}
	}
	slices.SortStableFunc(blocks, func(a, b comparison) int { return cmp.Compare(a.foreign(), b.foreign()) })
	return slices.Concat(blocks[:wanted]...)[:rounds], nil
}

// compareBatch makes some rounds with fresh processes; first is the number of
// rounds before it.
func (l *lab) compareBatch(ctx context.Context, first, rounds int, d time.Duration, n int, open dialWorker) (c comparison, err error) {
	var servers [contestants]*process.Process
	var workers [contestants][]worker
	var wg sync.WaitGroup
	var ends [contestants]error
	defer func() {
		wg.Wait()
		err = errors.Join(append(ends[:], err)...)
	}()
	for _, i := range orders[first%len(orders)] {
		p, err := l.startContestant(ctx, i)
		if err != nil {
			return nil, err
		}
		servers[i] = p
		defer wg.Go(func() { ends[i] = p.Stop() })
		var closeAll func()
		if workers[i], closeAll, err = openWorkers(ctx, n, open, p.Addr); err != nil {
			return nil, err
		}
		defer closeAll()
	}
	for i := range servers {
		if _, err := slice(ctx, servers[i], workers[i], max(2*d, 500*time.Millisecond)); err != nil {
			return nil, fmt.Errorf("%s, warm-up: %w", contestantNames[i], err)
		}
	}
	for k := range rounds {
		var r round
		for _, i := range orders[(first+k)%len(orders)] {
			if r[i], err = slice(ctx, servers[i], workers[i], d); err != nil {
				return nil, fmt.Errorf("%s, round %d: %w", contestantNames[i], first+k+1, err)
			}
		}
		c = append(c, r)
	}
	return c, nil
}

// slice keeps p busy for about d: each worker finishes what it is at.
func slice(ctx context.Context, p *process.Process, workers []worker, d time.Duration) (sample, error) {
	var (
		wg    sync.WaitGroup
		over  atomic.Bool
		units atomic.Int64
		mu    sync.Mutex
		errs  []error
	)
	before, err := readCPUTimes(p.PID)
	if err != nil {
		return sample{}, err
	}
	began := time.Now()
	for _, w := range workers {
		wg.Go(func() {
			var sum int64
			defer func() { units.Add(sum) }()
			for !over.Load() {
				n, err := w.do()
				if err != nil {
					over.Store(true)
					mu.Lock()
					errs = append(errs, err)
					mu.Unlock()
					return
				}
				sum += n
			}
		})
	}
	pauseErr := pause(ctx, d)
	over.Store(true)
	wg.Wait()
	s := sample{units: units.Load(), took: time.Since(began)}
	switch {
	case pauseErr != nil:
		return s, pauseErr
	case len(errs) > 0:
		return s, errs[0]
	}
	after, err := readCPUTimes(p.PID)
	s.cpuTimes = after.minus(before)
	return s, err
}

// readCPUTimes returns the times up to now.
func readCPUTimes(pid int) (t cpuTimes, err error) {
	if t.busy, err = usage.BusyTime(); err != nil {
		return t, err
	}
	if t.cpu, err = usage.CPUTime(pid); err != nil {
		return t, err
	}
	t.generator, err = usage.CPUTime(os.Getpid())
	return t, err
}

func (t cpuTimes) minus(u cpuTimes) cpuTimes {
	return cpuTimes{t.cpu - u.cpu, t.generator - u.generator, t.busy - u.busy}
}

func (s sample) plus(t sample) sample {
	s.units += t.units
	s.took += t.took
	s.cpu += t.cpu
	s.generator += t.generator
	s.busy += t.busy
	return s
}

// pause waits for d, or returns why ctx ended before that.
func pause(ctx context.Context, d time.Duration) error {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-t.C:
		return nil
	case <-ctx.Done():
		return context.Cause(ctx)
	}
}
