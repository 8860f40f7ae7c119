// Lab makes incidents happen again, on usher and on what people use instead,
// and shows what came of them:
//
//	cd bench && go run ./lab h13 | starvation | stale-code | crash | overload
//
// It prints tables, and writes a page with plots. Each server is a process of
// its own on a loopback port of the system's choice, is driven over loopback,
// and is stopped, whatever happens. A peer that is not installed is named, and
// left out.
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
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"time"

	"github.com/seed-235859eb/usher/bench/fairness"
	"github.com/seed-235859eb/usher/bench/report"
)

// An experiment is one incident.
type experiment struct {
	name, summary string
	run           func(ctx context.Context, opt options) (*report.Page, error)
}

// experiments are all of them, in the order of the results.
var experiments = []experiment{
	{"h13", "a server is told to stop while requests keep coming", runH13},
	{"starvation", "ten keep-alive connections on five slots, and an HTTP/2 flood", runStarvation},
	{"stale-code", "workers restart under load: who still answers with the old code?", runStaleCode},
	{"crash", "a worker, then the master, is killed under load", runCrash},
	{"rolls", "backends are restarted one by one behind nginx, HAProxy and Caddy", runRolls},
	{"overload", "an open loop of 0.9 to ten times capacity, clients that give up", runOverload},
	{"limiter", "no incident: what a limiter costs, beside its peers", runLimiter},
}

// options are the command line.
type options struct {
	Short          bool      // take seconds, not a minute: to see that it works
	Out            string    // the folder for pages
	Stops, Clients int       // 0 leaves them to the experiment
	Log            io.Writer // for progress
}

// command is what the command line asks for besides.
type command struct {
	options
	names   []string // of experiments
	results bool     // write RESULTS.md
	dir     string   // to this folder
	timeout time.Duration
}

func main() {
	// In a process that an experiment has started as a server, these do not
	// return.
	fairness.ServeIfChild()
	serveIfChild()

	cmd, err := parse(os.Args[1:], os.Stderr)
	switch {
	case errors.Is(err, flag.ErrHelp):
		return
	case err != nil:
		fmt.Fprintln(os.Stderr, "lab:", err)
		os.Exit(2)
	}
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	if err := run(ctx, cmd, os.Stdout); err != nil {
		fmt.Fprintln(os.Stderr, "lab:", err)
		os.Exit(1)
	}
}

// parse reads the command line. Flags may stand before and after a name.
func parse(args []string, stderr io.Writer) (command, error) {
	var cmd command
	fs := flag.NewFlagSet("lab", flag.ContinueOnError)
	fs.SetOutput(stderr)
	fs.BoolVar(&cmd.Short, "short", false, "take seconds, not a minute: says that the experiment works, not what the figures are")
	fs.StringVar(&cmd.Out, "out", "out", "`folder` for pages, and for what results needs")
	fs.IntVar(&cmd.Stops, "stops", 0, "stops of each server; 0 for the experiment's own number")
	fs.IntVar(&cmd.Clients, "clients", 0, "clients at a time; 0 for the experiment's own number")
	fs.StringVar(&cmd.dir, "results", ".", "`folder` for RESULTS.md and its plots")
	fs.DurationVar(&cmd.timeout, "timeout", 10*time.Minute, "give up on an experiment after this time")
	fs.Usage = func() { printUsage(fs) }
	for len(args) > 0 {
		if err := fs.Parse(args); err != nil {
			if errors.Is(err, flag.ErrHelp) {
				return cmd, err
			}
			return cmd, fmt.Errorf("bad flags: %w", err)
		}
		if args = fs.Args(); len(args) == 0 {
			break
		}
		if err := cmd.add(args[0]); err != nil {
			return cmd, err
		}
		args = args[1:]
	}
	switch {
	case len(cmd.names) == 0 && !cmd.results:
		printUsage(fs)
		return cmd, errors.New("which experiment?")
	case cmd.Stops < 0 || cmd.Clients < 0:
		return cmd, errors.New("-stops and -clients must not be negative")
	case cmd.timeout <= 0:
		return cmd, errors.New("-timeout must be positive")
	}
	return cmd, nil
}

// add notes the name of an experiment, or of what stands for several.
func (cmd *command) add(name string) error {
	switch {
	case name == "results":
		cmd.results = true
	case name == "all":
		for _, e := range experiments {
			cmd.names = append(cmd.names, e.name)
		}
	case slices.ContainsFunc(experiments, func(e experiment) bool { return e.name == name }):
		cmd.names = append(cmd.names, name)
	default:
		return fmt.Errorf("there is no experiment %q", name)
	}
	return nil
}

func printUsage(fs *flag.FlagSet) {
	w := fs.Output()
	fmt.Fprint(w, "Usage, from bench: go run ./lab NAME... [flags]\n\n")
	for _, e := range experiments {
		fmt.Fprintf(w, "  %-12s%s\n", e.name, e.summary)
	}
	fmt.Fprintf(w, "  %-12s%s\n", "all", "all of these")
	fmt.Fprintf(w, "  %-12s%s\n\n", "results", "write RESULTS.md and its plots from the pages in -out")
	fs.PrintDefaults()
}

// run makes the experiments.
func run(ctx context.Context, cmd command, out io.Writer) error {
	var failed []error
	for _, name := range cmd.names {
		i := slices.IndexFunc(experiments, func(e experiment) bool { return e.name == name })
		if err := experiments[i].make(ctx, cmd, out); err != nil {
			failed = append(failed, fmt.Errorf("%s: %w", name, err))
		}
		if ctx.Err() != nil {
			break
		}
	}
	if cmd.results && ctx.Err() == nil {
		failed = append(failed, writeResults(cmd.Out, cmd.dir))
	}
	return errors.Join(failed...)
}

// make makes an experiment, and shows what it found.
func (e experiment) make(ctx context.Context, cmd command, out io.Writer) error {
	ctx, cancel := context.WithTimeoutCause(ctx, cmd.timeout, fmt.Errorf("-timeout %v is over", cmd.timeout))
	defer cancel()
	opt := cmd.options
	opt.Log = os.Stderr
	began := time.Now()
	page, err := e.run(ctx, opt)
	if err != nil {
		if ctx.Err() != nil {
			err = cmp.Or(context.Cause(ctx), err)
		}
		return err
	}
	page.Name = e.name
	if opt.Short {
		page.Name += "-short" // which is not a result
	}
	page.Date = began
	page.Machine = cmp.Or(page.Machine, report.Machine())
	if page.Command == "" {
		page.Command = e.command(opt)
	}
	if len(page.Versions) == 0 {
		page.Versions = report.Versions(ctx)
	}
	if err := page.Save(opt.Out); err != nil {
		return err
	}
	_, err = fmt.Fprintf(out, "%s\n%s has the plots. It took %v.\n", page.Text(),
		filepath.Join(opt.Out, page.Name+".html"), time.Since(began).Round(time.Second))
	return err
}

// command returns the command line that makes the experiment so again.
func (e experiment) command(opt options) string {
	line := []string{"cd bench && go run ./lab", e.name}
	if opt.Short {
		line = append(line, "-short")
	}
	if opt.Stops > 0 {
		line = append(line, fmt.Sprint("-stops ", opt.Stops))
	}
	if opt.Clients > 0 {
		line = append(line, fmt.Sprint("-clients ", opt.Clients))
	}
	return strings.Join(line, " ")
}
