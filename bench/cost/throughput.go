package main

import (
	"context"
	"fmt"
	"time"
)

var requests = unit{rate: "1000 requests/s", cost: "server CPU µs/request", perRate: 1e3, perCost: 1e3}

// The budget, from DESIGN.md.
const (
	minThroughput = 0.98
	maxCPU        = 1.02
)

// measureThroughput compares a tiny handler on keep-alive connections.
func measureThroughput(ctx context.Context, l *lab) error {
	c, err := l.compare(ctx, l.withUsher(), l.slices, l.slice, l.clients, openKeepAlive)
	if err != nil {
		return err
	}
	l.heading(fmt.Sprintf("throughput: GET / on %d keep-alive connections, %d slices of %v for each server", l.clients, l.slices, l.slice))
	l.printComparison(l.withUsher(), c, requests)
	throughput := spreadOf(paired(c.of(ushers), c.of(bare), sample.rate))
	cpu, lo, hi := ratioOfSums(c.of(ushers), c.of(bare), sample.cost)
	l.say(false, "budget: median throughput >= %.2f: %s; CPU per request, of sums, <= %.2f: %s",
		minThroughput, atLeast(minThroughput, throughput.median, throughput.lo, throughput.hi),
		maxCPU, atMost(maxCPU, cpu, lo, hi))
	return nil
}

// measureClose compares a tiny handler with a connection for each request.
func measureClose(ctx context.Context, l *lab) error {
	rounds := max(1, l.slices/4)
	c, err := l.compare(ctx, l.withUsher(), rounds, l.slice, l.clients, openClosing)
	if err != nil {
		return err
	}
	l.heading(fmt.Sprintf("close: GET / with a connection for each request, %d at a time, %d slices of %v for each server", l.clients, rounds, l.slice))
	l.printComparison(l.withUsher(), c, requests)
	l.say(false, "no budget")
	return nil
}

// fileSlice is long enough for several files.
const fileSlice = 30 * time.Millisecond

// measureFile compares a file of 16 MiB, which net/http sends by sendfile.
func measureFile(ctx context.Context, l *lab) error {
	d := max(l.slice, fileSlice)
	rounds := max(1, int(time.Duration(l.slices)*l.slice/(2*d)))
	c, err := l.compare(ctx, l.withUsher(), rounds, d, l.fileClients, openFile)
	if err != nil {
		return err
	}
	l.heading(fmt.Sprintf("file: GET /file of 16 MiB on %d keep-alive connections, %d slices of %v for each server", l.fileClients, rounds, d))
	l.printComparison(l.withUsher(), c, unit{rate: "GiB/s", cost: "server CPU ms/GiB", perRate: 1 << 30, perCost: 1e6 / (1 << 30)})
	cpu := spreadOf(paired(c.of(ushers), c.of(bare), sample.cost))
	l.say(false, "budget: median CPU per byte <= %.2f: %s", maxCPU, atMost(maxCPU, cpu.median, cpu.lo, cpu.hi))
	return nil
}
