package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"strconv"
	"sync"
	"time"

	"github.com/seed-235859eb/usher/bench/usage"
	"github.com/seed-235859eb/usher/internal/process"
)

// maxIdle is the budget for an idle connection, in bytes over bare.
const maxIdle = 256

// settle is how long servers are left alone before their memory is read.
const settle = 500 * time.Millisecond

// measureMemory compares what an idle connection takes.
func measureMemory(ctx context.Context, l *lab) error {
	var resident [2][]float64         // of examples/server as it is
	var heap, stack, rss [2][]float64 // of a child, after garbage collection
	for round := range l.idleRounds {
		for i := range 2 {
			kind := (round + i) % 2 // bare or ushers
			grown, err := l.residentPerConn(ctx, kind)
			if err != nil {
				return fmt.Errorf("%s, round %d: %w", l.withUsher()[kind].name, round+1, err)
			}
			resident[kind] = append(resident[kind], grown)
			f, err := l.footprintPerConn(ctx, kind)
			if err != nil {
				return fmt.Errorf("%s, exact, round %d: %w", l.withUsher()[kind].name, round+1, err)
			}
			heap[kind] = append(heap[kind], f[0])
			stack[kind] = append(stack[kind], f[1])
			rss[kind] = append(rss[kind], f[2])
		}
	}
	l.heading(fmt.Sprintf("memory: bytes for each of %d keep-alive connections that have been served once and are idle, %d fresh processes for each server and line",
		l.idleConns, l.idleRounds))
	var both [2][]float64
	for kind := range both {
		for i := range heap[kind] {
			both[kind] = append(both[kind], heap[kind][i]+stack[kind][i])
		}
	}
	l.table(func(w io.Writer) {
		fmt.Fprintln(w, "medians (least to most)\tbare\tusher\tusher - bare")
		for _, row := range []struct {
			name   string
			values [2][]float64
		}{
			{"live heap, exact", heap},
			{"stacks, exact", stack},
			{"heap and stacks, exact", both},
			{"resident, all garbage returned", rss},
			{"resident, examples/server as it is", resident},
		} {
			b, u := spreadOf(row.values[bare]), spreadOf(row.values[ushers])
			fmt.Fprintf(w, "%s\t%.0f (%.0f to %.0f)\t%.0f (%.0f to %.0f)\t%+.0f\n", row.name,
				b.median, b.min, b.max, u.median, u.min, u.max, u.median-b.median)
		}
	})
	over := median(both[ushers]) - median(both[bare])
	l.say(false, "budget: heap and stacks <= %d over bare: %s", maxIdle, atMost(maxIdle, over, over, over))
	return nil
}

// residentPerConn returns by how much examples/server grows with each idle
// connection. That depends on when it last collected its garbage.
func (l *lab) residentPerConn(ctx context.Context, kind int) (perConn float64, err error) {
	p, err := l.startContestant(ctx, l.withUsher()[kind])
	if err != nil {
		return 0, err
	}
	defer func() { err = errors.Join(err, p.Stop()) }()
	return l.growth(ctx, p.Process, func() (float64, error) {
		n, err := usage.ResidentSize(p.PID)
		return float64(n), err
	})
}

// footprintPerConn returns by how much the heap, the stacks and the resident
// size of a server grow with each idle connection, garbage aside.
func (l *lab) footprintPerConn(ctx context.Context, kind int) (perConn [3]float64, err error) {
	self, err := os.Executable()
	if err != nil {
		return perConn, err
	}
	p, err := l.start(ctx, process.Spec{
		Path: self,
		Args: []string{strconv.Itoa(l.usherSlots)},
		Env:  []string{childEnv + "=" + l.withUsher()[kind].name},
	})
	if err != nil {
		return perConn, err
	}
	defer func() { err = errors.Join(err, p.Stop()) }()
	var seen []footprint
	_, err = l.growth(ctx, p, func() (float64, error) {
		f, err := askFootprint(ctx, p.Addr)
		seen = append(seen, f)
		return 0, err
	})
	if err != nil {
		return perConn, err
	}
	n := float64(l.idleConns)
	before, after := seen[0], seen[1]
	return [3]float64{
		float64(after.Heap-before.Heap) / n, float64(after.Stack-before.Stack) / n, float64(after.RSS-before.RSS) / n,
	}, nil
}

// growth calls measure before and after idle connections are made, and returns
// the difference for each connection.
func (l *lab) growth(ctx context.Context, p *process.Process, measure func() (float64, error)) (float64, error) {
	// Once for what the first request makes.
	if err := holdIdle(ctx, p.Addr, 1, func() error { return pause(ctx, settle) }); err != nil {
		return 0, err
	}
	before, err := measure()
	if err != nil {
		return 0, err
	}
	var after float64
	err = holdIdle(ctx, p.Addr, l.idleConns, func() (err error) {
		if err := pause(ctx, settle); err != nil {
			return err
		}
		after, err = measure()
		return err
	})
	return (after - before) / float64(l.idleConns), err
}

// holdIdle makes n connections, has each of them served once, calls meanwhile,
// and closes them.
func holdIdle(ctx context.Context, addr string, n int, meanwhile func() error) error {
	const dialers = 32
	var (
		wg    sync.WaitGroup
		mu    sync.Mutex
		conns []*net.TCPConn
		errs  []error
	)
	defer func() {
		for _, c := range conns {
			c.SetLinger(0) // a reset: no TIME_WAIT takes the port away from the next round
			c.Close()
		}
	}()
	for i := range dialers {
		wg.Go(func() {
			for k := i; k < n && ctx.Err() == nil; k += dialers {
				w, err := openKeepAlive(addr)
				mu.Lock()
				if err != nil {
					errs = append(errs, fmt.Errorf("connection %d: %w", len(conns)+1, err))
					mu.Unlock()
					return
				}
				conns = append(conns, w.(*keepAliveClient).conn)
				mu.Unlock()
			}
		})
	}
	wg.Wait()
	if len(errs) > 0 {
		return errs[0]
	}
	if err := context.Cause(ctx); err != nil {
		return err
	}
	return meanwhile()
}

// askFootprint asks a child for its footprint, on a connection of its own.
func askFootprint(ctx context.Context, addr string) (f footprint, err error) {
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, "http://"+addr+"/footprint", nil)
	if err != nil {
		return f, err
	}
	tr := &http.Transport{DisableKeepAlives: true}
	resp, err := tr.RoundTrip(req)
	if err != nil {
		return f, err
	}
	defer resp.Body.Close()
	if resp.StatusCode != http.StatusOK {
		return f, fmt.Errorf("footprint: %s", resp.Status)
	}
	if err := json.NewDecoder(resp.Body).Decode(&f); err != nil {
		return f, fmt.Errorf("footprint: %w", err)
	}
	return f, nil
}
