package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"time"

	"github.com/seed-235859eb/usher/bench/load"
)

// fleets are a server in one process, and with workers.
func fleets() []contestant {
	return []contestant{
		{name: "one process"},
		{"1 worker", []string{"-workers", "1"}, 1},
		{"2 workers", []string{"-workers", "2"}, 2},
		{"4 workers", []string{"-workers", "4"}, 4},
		{name: "one process again"},
	}
}

const (
	// calm is the part of what one process can do that latency is measured at:
	// the generator of an open loop needs more of the machine.
	calm = 0.15
	// latencySlices is how many slices of throughput make one of latency.
	latencySlices = 10
)

// measureWorkers compares workers with one process. CPU is that of all
// processes, the master among them.
func measureWorkers(ctx context.Context, l *lab) error {
	rounds := max(1, l.slices/4)
	for _, kind := range []struct {
		name       string
		open       dialWorker
		perRequest bool
	}{
		{fmt.Sprintf("GET / on %d keep-alive connections", l.clients), openKeepAlive, false},
		{fmt.Sprintf("GET / with a connection for each request, %d at a time", l.clients), openClosing, true},
	} {
		c, err := l.compare(ctx, fleets(), rounds, l.slice, l.clients, kind.open)
		if err != nil {
			return err
		}
		l.heading(fmt.Sprintf("workers: %s, %d slices of %v for each server; CPU of all processes together", kind.name, rounds, l.slice))
		l.printComparison(fleets(), c, requests)
		if err := l.latency(ctx, calm*sum(c.of(0)).rate(), kind.perRequest); err != nil {
			return err
		}
	}
	return nil
}

// latency offers all fleets the same rate.
func (l *lab) latency(ctx context.Context, rate float64, perRequest bool) (err error) {
	all := fleets()
	servers, stop, err := l.startAll(ctx, all, 0)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, stop()) }()
	p50, p99 := make([][]float64, len(all)), make([][]float64, len(all)) // of slices, in ms
	late := make([]time.Duration, len(all))
	d := latencySlices * l.slice
	rounds := max(1, l.slices/25)
	orders := orders(len(all))
	for k := range rounds + 1 {
		for _, i := range orders[k%len(orders)] {
			r, err := load.Open{
				Server: load.Server{Addr: servers[i].Addr}, Rate: rate, Seed: uint64(k), PerRequest: perRequest, Duration: d,
			}.Run(ctx)
			switch {
			case err != nil:
				return fmt.Errorf("%s: %w", all[i].name, err)
			case ctx.Err() != nil:
				return context.Cause(ctx)
			case r.Of(load.Answered) != r.Total():
				return fmt.Errorf("%s: %d of %d requests were answered: %v", all[i].name, r.Of(load.Answered), r.Total(), r.Errors)
			case k > 0: // the first was to warm up
				p50[i] = append(p50[i], load.Quantile(r.Latency, 50).Seconds()*1e3)
				p99[i] = append(p99[i], load.Quantile(r.Latency, 99).Seconds()*1e3)
				late[i] = max(late[i], r.Behind)
			}
		}
	}
	l.say(true, "%.0f requests/s, at random, for %d slices of %v: %.0f%% of what one process can do", rate, rounds, d, 100*calm)
	l.table(func(w io.Writer) {
		fmt.Fprintln(w, "latency of a slice, ms\tmedian P50 (q1 to q3)\tmedian P99 (q1 to q3)\tgenerator late by at most")
		for i := range all {
			mid, tail := spreadOf(p50[i]), spreadOf(p99[i])
			fmt.Fprintf(w, "%s\t%.2f (%.2f to %.2f)\t%.1f (%.1f to %.1f)\t%.1f\n", all[i].name,
				mid.median, mid.q1, mid.q3, tail.median, tail.q1, tail.q3, late[i].Seconds()*1e3)
		}
	})
	l.say(false, "no budget")
	return nil
}
