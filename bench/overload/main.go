// Overload offers servers more than they can do, and prints what came of it:
//
//	cd bench && go run ./overload
//
// Arrivals are an open loop: they come at their times whether or not those
// before have been answered, and an answer's latency counts from the time at
// which its request was due. A client gives up after a second. Each server is
// a process of its own, new for each load, and keeps a CPU busy for each
// request.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"os"
	"os/signal"
	"runtime"
	"strconv"
	"strings"
	"syscall"
	"time"

	"github.com/seed-235859eb/usher/bench/fairness"
)

// config is the command line.
type config struct {
	loads    []float64 // times capacity
	duration time.Duration
	work     time.Duration
	timeout  time.Duration
	maxWait  time.Duration
	out      string
}

func main() {
	fairness.ServeIfChild()
	cfg, err := parse(os.Args[1:])
	switch {
	case errors.Is(err, flag.ErrHelp):
		return
	case err != nil:
		fmt.Fprintln(os.Stderr, "overload:", err)
		os.Exit(2)
	}
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	if err := run(ctx, cfg, os.Stdout); err != nil {
		fmt.Fprintln(os.Stderr, "overload:", err)
		os.Exit(1)
	}
}

func parse(args []string) (config, error) {
	var cfg config
	fs := flag.NewFlagSet("overload", flag.ContinueOnError)
	loads := fs.String("loads", "0.5,2,5,10", "arrivals, in multiples of capacity")
	fs.DurationVar(&cfg.duration, "duration", 4*time.Second, "of each load on each server")
	fs.DurationVar(&cfg.work, "work", 5*time.Millisecond, "CPU time of a request")
	fs.DurationVar(&cfg.timeout, "timeout", time.Second, "of a client")
	fs.DurationVar(&cfg.maxWait, "max-wait", 500*time.Millisecond, "of a request in a server's queue")
	fs.StringVar(&cfg.out, "out", "", "also write the table to this file")
	if err := fs.Parse(args); err != nil {
		return cfg, err
	}
	for s := range strings.SplitSeq(*loads, ",") {
		load, err := strconv.ParseFloat(s, 64)
		if err != nil || load <= 0 {
			return cfg, fmt.Errorf("-loads: %q is not a positive number", s)
		}
		cfg.loads = append(cfg.loads, load)
	}
	for name, d := range map[string]time.Duration{
		"duration": cfg.duration, "work": cfg.work, "timeout": cfg.timeout, "max-wait": cfg.maxWait,
	} {
		if d <= 0 {
			return cfg, fmt.Errorf("-%s=%v: must be positive", name, d)
		}
	}
	return cfg, nil
}

// run measures, and prints each line when it is known.
func run(ctx context.Context, cfg config, out io.Writer) error {
	var table strings.Builder
	out = io.MultiWriter(out, &table)
	slots := runtime.GOMAXPROCS(0)
	work := fairness.WorkFor(cfg.work)
	fmt.Fprintf(out, "%s, %s %s/%s, %d CPUs, which the clients share.\n",
		time.Now().UTC().Format(time.DateOnly), runtime.Version(), runtime.GOOS, runtime.GOARCH, runtime.NumCPU())
	fmt.Fprintf(out, "%v of CPU per request, %d slots, wait ≤ %v, client timeout %v, Poisson arrivals for %v.\n",
		cfg.work, slots, cfg.maxWait, cfg.timeout, cfg.duration)
	capacity, err := measureCapacity(ctx, work, slots)
	if err != nil {
		return err
	}
	fmt.Fprintf(out, "Capacity: %.0f requests per second.\n\n", capacity)
	fmt.Fprint(out, header)
	limits := fairness.Limits{
		Slots:   slots,
		MaxWait: cfg.maxWait,
		// As many as can be served in that time.
		MaxQueue: max(1, int(capacity*cfg.maxWait.Seconds())),
	}
	for _, load := range cfg.loads {
		for _, c := range []fairness.Contender{fairness.Bare, fairness.Throttle, fairness.Usher} {
			spec := fairness.Spec{Contender: c.Name, Limits: limits, Work: work}
			o, err := overload(ctx, spec, load*capacity, cfg)
			if err != nil {
				return fmt.Errorf("%s at %g times capacity: %w", c.Name, load, err)
			}
			fmt.Fprint(out, o.line(load, capacity, c.Name))
		}
	}
	if cfg.out == "" {
		return nil
	}
	return os.WriteFile(cfg.out, []byte(table.String()), 0o666)
}
