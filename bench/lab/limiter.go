package main

import (
	"bufio"
	"bytes"
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/seed-235859eb/usher/bench/report"
)

// benchRounds is how many times the limiters are measured, each after the
// others.
const benchRounds = 10

// runLimiter runs the benchmarks of package fairness that are about a limiter
// by itself. What they print stays in limiter.txt, for benchstat.
func runLimiter(ctx context.Context, opt options) (*report.Page, error) {
	rounds, length := benchRounds, 200*time.Millisecond
	if opt.Short {
		rounds, length = 2, 20*time.Millisecond
	}
	text, err := benchmarks(ctx, opt, rounds, "^Benchmark(FreeSlot|HandOff)$", length.String())
	if err != nil {
		return nil, err
	}
	file := filepath.Join(opt.Out, "limiter.txt")
	if err := os.MkdirAll(opt.Out, 0o777); err != nil {
		return nil, err
	}
	if err := os.WriteFile(file, text, 0o666); err != nil {
		return nil, err
	}
	results := parseBenchmarks(text)
	p := &report.Page{
		Title: "What a limiter costs",
		Lead: fmt.Sprintf("Limiters by themselves, as middleware around a handler that does nothing. Medians of %d runs, each limiter after the others in turn. "+
			"A channel is the least that limits: no bound on the queue, and no thought about who is in it. `benchstat %s` reads what was printed.", rounds, file),
		Versions: peerVersions(ctx),
	}
	for _, b := range []struct{ name, title, text, see string }{
		{"FreeSlot", "A free slot", "A request that finds a free slot.", "usher's budget is 100 ns."},
		{"HandOff", "A hand-off", "Sixteen clients pass one slot around; each yields while it has it, so that the others wait. The time is from one handler's turn to the next.", "usher's budget is 1,500 ns."},
	} {
		s := report.Section{Title: b.title, Text: b.text}
		bars := &report.Bars{Title: b.title, XLabel: "time of a request", YLabel: "limiter", Unit: "ns"}
		t := report.Table{Header: []string{"limiter", "ns, median", "ns, least to most", "bytes", "allocations", "against usher"}}
		ushers := results.median(b.name+"/usher", "ns/op")
		for _, name := range results.names(b.name + "/") {
			limiter := strings.TrimPrefix(name, b.name+"/")
			ns := results[name]["ns/op"]
			median := results.median(name, "ns/op")
			against := verdictOfTime(time.Duration(median*1000), time.Duration(ushers*1000), 0.1)
			switch limiter {
			case "usher":
				against = ""
			case "none":
				against = "no limit"
			}
			t.Rows = append(t.Rows, []string{limiter, fmt.Sprintf("%.0f", median), fmt.Sprintf("%.0f to %.0f", slices.Min(ns), slices.Max(ns)),
				fmt.Sprintf("%.0f", results.median(name, "B/op")), fmt.Sprintf("%.0f", results.median(name, "allocs/op")), against})
			bars.Groups = append(bars.Groups, report.Group{Name: limiter, Focus: limiter == "usher", Bars: []report.Bar{{Label: "median", Value: median}}})
		}
		s.Tables = []report.Table{t}
		s.Plots = []report.Plot{{Bars: bars, See: b.see}}
		p.Sections = append(p.Sections, s)
	}
	return p, nil
}

// benchmarks builds the tests of package fairness once, runs some of their
// benchmarks so many times, and returns what they printed.
func benchmarks(ctx context.Context, opt options, rounds int, pattern, benchtime string) ([]byte, error) {
	dir, err := os.MkdirTemp("", "usher-lab-bench-*")
	if err != nil {
		return nil, err
	}
	defer os.RemoveAll(dir)
	program := filepath.Join(dir, "fairness.test")
	build := exec.CommandContext(ctx, "go", "test", "-c", "-o", program, "./fairness")
	if out, err := build.CombinedOutput(); err != nil {
		return nil, fmt.Errorf("go test -c ./fairness, to be run in bench: %w\n%s", err, out)
	}
	var all bytes.Buffer
	for round := range rounds {
		logf(opt.Log, "benchmarks: round %d of %d\n", round+1, rounds)
		cmd := exec.CommandContext(ctx, program, "-test.run", "^$", "-test.bench", pattern, "-test.benchtime", benchtime)
		// Their servers are their own business, and end with them.
		cmd.Dir = "fairness"
		cmd.Stderr = opt.Log
		out, err := cmd.Output()
		if err != nil {
			return nil, fmt.Errorf("benchmarks: %w\n%s", err, out)
		}
		all.Write(out)
	}
	return all.Bytes(), nil
}

// benchmarkResults are values by benchmark and unit.
type benchmarkResults map[string]map[string][]float64

// parseBenchmarks reads what go test -bench prints.
func parseBenchmarks(text []byte) benchmarkResults {
	results := make(benchmarkResults)
	for sc := bufio.NewScanner(bytes.NewReader(text)); sc.Scan(); {
		fields := strings.Fields(sc.Text())
		if len(fields) < 4 || !strings.HasPrefix(fields[0], "Benchmark") {
			continue
		}
		name := strings.TrimPrefix(fields[0], "Benchmark")
		// Without GOMAXPROCS, which follows it unless that is 1.
		if i := strings.LastIndexByte(name, '-'); i > 0 {
			if _, err := strconv.Atoi(name[i+1:]); err == nil {
				name = name[:i]
			}
		}
		if results[name] == nil {
			results[name] = make(map[string][]float64)
		}
		for i := 2; i+1 < len(fields); i += 2 {
			if v, err := strconv.ParseFloat(fields[i], 64); err == nil {
				results[name][fields[i+1]] = append(results[name][fields[i+1]], v)
			}
		}
	}
	return results
}

// names returns those that begin with prefix: none, usher, and then the others
// by their medians.
func (r benchmarkResults) names(prefix string) (names []string) {
	place := func(name string) float64 {
		switch strings.TrimPrefix(name, prefix) {
		case "none":
			return -2
		case "usher":
			return -1
		}
		return r.median(name, "ns/op")
	}
	for name := range r {
		if strings.HasPrefix(name, prefix) {
			names = append(names, name)
		}
	}
	slices.SortFunc(names, func(a, b string) int {
		if place(a) < place(b) {
			return -1
		}
		return 1
	})
	return names
}

// median returns that of one unit.
func (r benchmarkResults) median(name, unit string) float64 {
	all := slices.Sorted(slices.Values(r[name][unit]))
	if len(all) == 0 {
		return report.None
	}
	return (all[(len(all)-1)/2] + all[len(all)/2]) / 2
}
