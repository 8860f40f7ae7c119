package main

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"os"
	"regexp"
	"runtime"
	"slices"
	"strconv"
	"sync"
	"sync/atomic"
	"time"

	"github.com/seed-235859eb/usher/bench/usage"
	"github.com/seed-235859eb/usher/internal/process"
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

// A contestant is one of the servers that are compared.
type contestant struct {
	name    string
	args    []string // of examples/server
	workers int      // processes besides its own
}

// The contestants of most sections, in the order of withUsher. The control is a
// second bare one: what is read for it instead of 1.00 is noise.
const (
	bare = iota
	ushers
	control
)

func (l *lab) withUsher() []contestant {
	u := contestant{name: "usher"}
	if l.usherSlots > 0 {
		u.args = []string{"-slots", strconv.Itoa(l.usherSlots)}
	}
	return []contestant{{name: "bare", args: []string{"-bare"}}, u, {name: "bare again", args: []string{"-bare"}}}
}

// A running is a contestant that runs.
type running struct {
	*process.Process
	pids []int // its own first
}

var workerStarted = regexp.MustCompile(`msg="prefork: worker started".* pid=(\d+)`)

func (l *lab) startContestant(ctx context.Context, c contestant) (running, error) {
	p, err := l.start(ctx, process.Spec{
		Path: l.server, Args: append([]string{"-addr", "127.0.0.1:0"}, c.args...),
		Times: max(1, c.workers), // each says that it listens
	})
	if err != nil {
		return running{}, err
	}
	// A worker may say that it listens before its master says that it has
	// started.
	started := p.Matches(workerStarted)
	for end := time.Now().Add(10 * time.Second); len(started) < c.workers && time.Now().Before(end); started = p.Matches(workerStarted) {
		time.Sleep(time.Millisecond)
	}
	r := running{p, []int{p.PID}}
	for _, m := range started {
		pid, _ := strconv.Atoi(m[1])
		r.pids = append(r.pids, pid)
	}
	if len(r.pids) != 1+c.workers {
		return running{}, errors.Join(fmt.Errorf("%s: %d processes have started, want %d", c.name, len(r.pids), 1+c.workers), p.Stop())
	}
	return r, nil
}

// orders returns orders of the slices of a round of n servers, in which each
// follows each other one, and comes in each place, equally often: a Williams
// design.
func orders(n int) (all [][]int) {
	first := make([]int, n)
	for i := range first {
		if first[i] = (i + 1) / 2; i%2 == 0 {
			first[i] = (n - i/2) % n
		}
	}
	for shift := range n {
		order := make([]int, n)
		for i := range order {
			order[i] = (first[i] + shift) % n
		}
		all = append(all, order)
		if n%2 == 1 {
			order = slices.Clone(order)
			slices.Reverse(order)
			all = append(all, order)
		}
	}
	return all
}

// A round is a slice of each server.
type round []sample

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
func (l *lab) compare(ctx context.Context, all []contestant, rounds int, d time.Duration, n int, open dialWorker) (comparison, error) {
	roundTime := time.Duration(len(all)) * d
	perBlock := min(rounds, int((blockTime+roundTime-1)/roundTime))
	wanted := (rounds + perBlock - 1) / perBlock
	perBatch := (wanted + batches - 1) / batches
	var blocks []comparison
	for found := 0; found < wanted && len(blocks) < tries*wanted; {
		more := min(perBatch, tries*wanted-len(blocks))
		c, err := l.compareBatch(ctx, all, len(blocks)*perBlock, more*perBlock, d, n, open)
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
func (l *lab) compareBatch(ctx context.Context, all []contestant, first, rounds int, d time.Duration, n int, open dialWorker) (c comparison, err error) {
	servers, stop, err := l.startAll(ctx, all, first)
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, stop()) }()
	workers := make([][]worker, len(all))
	for i, p := range servers {
		var closeAll func()
		if workers[i], closeAll, err = openWorkers(ctx, n, open, p.Addr); err != nil {
			return nil, err
		}
		defer closeAll()
		if _, err := slice(ctx, p, workers[i], max(2*d, 500*time.Millisecond)); err != nil {
			return nil, fmt.Errorf("%s, warm-up: %w", all[i].name, err)
		}
	}
	orders := orders(len(all))
	for k := range rounds {
		r := make(round, len(all))
		for _, i := range orders[(first+k)%len(orders)] {
			if r[i], err = slice(ctx, servers[i], workers[i], d); err != nil {
				return nil, fmt.Errorf("%s, round %d: %w", all[i].name, first+k+1, err)
			}
		}
		c = append(c, r)
	}
	return c, nil
}

// startAll starts all servers, in an order that k says. The function that it
// returns stops them.
func (l *lab) startAll(ctx context.Context, all []contestant, k int) (servers []running, stop func() error, err error) {
	servers = make([]running, len(all))
	stop = func() error {
		ends := make([]error, len(all))
		var wg sync.WaitGroup
		for i, p := range servers {
			if p.Process != nil {
				wg.Go(func() { ends[i] = p.Stop() })
			}
		}
		wg.Wait()
		return errors.Join(ends...)
	}
	orders := orders(len(all))
	for _, i := range orders[k%len(orders)] {
		if servers[i], err = l.startContestant(ctx, all[i]); err != nil {
			return nil, nil, errors.Join(err, stop())
		}
	}
	return servers, stop, nil
}

// slice keeps p busy for about d: each worker finishes what it is at.
func slice(ctx context.Context, p running, workers []worker, d time.Duration) (sample, error) {
	var (
		wg    sync.WaitGroup
		over  atomic.Bool
		units atomic.Int64
		mu    sync.Mutex
		errs  []error
	)
	before, err := readCPUTimes(p.pids)
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
	after, err := readCPUTimes(p.pids)
	s.cpuTimes = after.minus(before)
	return s, err
}

// readCPUTimes returns the times up to now.
func readCPUTimes(pids []int) (t cpuTimes, err error) {
	if t.busy, err = usage.BusyTime(); err != nil {
		return t, err
	}
	for _, pid := range pids {
		cpu, err := usage.CPUTime(pid)
		if err != nil {
			return t, err
		}
		t.cpu += cpu
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
