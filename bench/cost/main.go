// Cost measures what usher costs against bare net/http, and prints a table:
//
//	cd bench && go run ./cost
//
// The README beside its module says what each figure is. It builds
// examples/server and runs it as processes, with usher and with -bare, on
// loopback ports of the system's choice.
package main

import (
	"cmp"
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"os"
	"os/signal"
	"slices"
	"strings"
	"syscall"
	"time"

	"github.com/seed-235859eb/usher/bench/report"
)

// config is the command line.
type config struct {
	only    []string
	timeout time.Duration
	results string
	args    []string // the command line

	slice                time.Duration
	slices               int
	clients, fileClients int
	usherSlots           int

	idleConns  int
	idleRounds int
	stopRounds int
}

// A section is one group of figures.
type section struct {
	name string
	run  func(context.Context, *lab) error
}

// sections are all of them, in the order in which they run.
var sections = []section{
	{"throughput", measureThroughput},
	{"close", measureClose},
	{"file", measureFile},
	{"http2", measureHTTP2},
	{"workers", measureWorkers},
	{"memory", measureMemory},
	{"stop", measureStop},
}

func main() {
	if kind := os.Getenv(childEnv); kind != "" {
		if err := serveChild(kind, os.Args[1:]); err != nil {
			fmt.Fprintln(os.Stderr, "cost: child:", err)
			os.Exit(1)
		}
		return
	}
	cfg, err := parse(os.Args[1:], os.Stderr)
	switch {
	case errors.Is(err, flag.ErrHelp):
		return
	case err != nil:
		fmt.Fprintln(os.Stderr, "cost:", err)
		os.Exit(2)
	}
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	if err := run(ctx, cfg, os.Stdout); err != nil {
		fmt.Fprintln(os.Stderr, "cost:", err)
		os.Exit(1)
	}
}

// parse reads the command line.
func parse(args []string, stderr io.Writer) (config, error) {
	var names []string
	for _, s := range sections {
		names = append(names, s.name)
	}
	cfg := config{args: args}
	fs := flag.NewFlagSet("cost", flag.ContinueOnError)
	fs.SetOutput(stderr)
	only := fs.String("only", "", "measure only these, separated by commas: "+strings.Join(names, ", "))
	fs.DurationVar(&cfg.timeout, "timeout", 15*time.Minute, "give up after this time")
	fs.StringVar(&cfg.results, "out", "", "`folder` for a page, and for what go run ./lab results needs")
	fs.DurationVar(&cfg.slice, "slice", 25*time.Millisecond, "length of a slice: throughput, close, and file if that is longer than 30ms")
	fs.IntVar(&cfg.slices, "slices", 800, "slices for each server: throughput; close takes a quarter as long, file half as long")
	fs.IntVar(&cfg.clients, "clients", 64, "connections: throughput and close")
	fs.IntVar(&cfg.fileClients, "file-clients", 2, "connections: file")
	fs.IntVar(&cfg.usherSlots, "usher-slots", 0, "Slots of usher's limiter; 0 for none")
	fs.IntVar(&cfg.idleConns, "idle-conns", 10_000, "idle connections: memory; both processes need as many descriptors")
	fs.IntVar(&cfg.idleRounds, "idle-rounds", 3, "fresh processes for each server and figure: memory")
	fs.IntVar(&cfg.stopRounds, "stop-rounds", 12, "stops for each case: stop")
	if err := fs.Parse(args); err != nil {
		if errors.Is(err, flag.ErrHelp) {
			return cfg, err
		}
		return cfg, fmt.Errorf("bad flags: %w", err)
	}
	if fs.NArg() > 0 {
		return cfg, fmt.Errorf("unexpected argument %q", fs.Arg(0))
	}
	cfg.only = names
	if *only != "" {
		cfg.only = strings.Split(*only, ",")
	}
	for _, name := range cfg.only {
		if !slices.Contains(names, name) {
			return cfg, fmt.Errorf("-only %s: there is no such section", name)
		}
	}
	for name, n := range map[string]int{
		"slices":  cfg.slices,
		"clients": cfg.clients, "file-clients": cfg.fileClients, "idle-conns": cfg.idleConns,
		"idle-rounds": cfg.idleRounds, "stop-rounds": cfg.stopRounds,
	} {
		if n < 1 {
			return cfg, fmt.Errorf("-%s=%d: must be at least 1", name, n)
		}
	}
	if cfg.usherSlots < 0 {
		return cfg, fmt.Errorf("-usher-slots=%d: must not be negative", cfg.usherSlots)
	}
	if cfg.slice <= 0 || cfg.timeout <= 0 {
		return cfg, errors.New("-slice and -timeout must be positive")
	}
	return cfg, nil
}

// A lab is what the sections share.
type lab struct {
	config
	out    io.Writer
	dir    string // for the server and what it writes; removed at the end
	server string // the examples/server binary
	about  string // the machine and the versions, for each result
	page   report.Page
}

// run builds the server and measures.
func run(ctx context.Context, cfg config, out io.Writer) (err error) {
	ctx, cancel := context.WithTimeoutCause(ctx, cfg.timeout, fmt.Errorf("-timeout %v is over", cfg.timeout))
	defer cancel()
	dir, err := os.MkdirTemp("", "usher-cost-*")
	if err != nil {
		return fmt.Errorf("temporary directory: %w", err)
	}
	defer func() { err = errors.Join(err, os.RemoveAll(dir)) }()

	l := &lab{config: cfg, out: out, dir: dir}
	if err := l.build(ctx); err != nil {
		return err
	}
	began := time.Now()
	for _, s := range sections {
		if !slices.Contains(cfg.only, s.name) {
			continue
		}
		if err := s.run(ctx, l); err != nil {
			return fmt.Errorf("%s: %w", s.name, cmp.Or(context.Cause(ctx), err))
		}
	}
	fmt.Fprintf(out, "took %v\n", time.Since(began).Round(time.Second))
	if cfg.results == "" {
		return nil
	}
	return l.save(ctx, began)
}

// save writes what was printed as a page.
func (l *lab) save(ctx context.Context, began time.Time) error {
	l.page.Name, l.page.Title = "cost", "What usher costs"
	l.page.Lead = "usher against bare net/http. For throughput and CPU both are up at once as processes, and get load in short slices that alternate; " +
		"\"bare again\" is a second bare server in the same rotation, and what it differs from 1 is noise."
	l.page.Command = strings.Join(append([]string{"cd bench && go run ./cost"}, l.args...), " ")
	l.page.Versions = report.Versions(ctx, "golang.org/x/net")
	if l.usherSlots > 0 {
		l.page.Title += fmt.Sprintf(" with Slots: %d", l.usherSlots)
		l.page.Name += "-slots"
	}
	l.page.Machine, l.page.Date = report.Machine(), began
	return l.page.Save(l.results)
}
