package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/seed-235859eb/usher/bench/load"
	"github.com/seed-235859eb/usher/bench/report"
	"github.com/seed-235859eb/usher/internal/process"
)

const (
	staleWorkers = 24
	staleRate    = 200 // requests per second, each on a connection of its own
	// staleBefore and staleAfter are how long answers are looked at before a
	// restart, and after the log says that it is over.
	staleBefore = time.Second
	staleAfter  = 4 * time.Second
	// stalePatience is how long a restart may take.
	stalePatience = 90 * time.Second
	staleBin      = 200 * time.Millisecond
	// pumaCheck is how often Puma's workers say that they live, pumaTimeout
	// the time after which the master kills one that it does not hear of: a
	// fifth of what they were in the report, 5 s and 30 s.
	pumaCheck   = time.Second
	pumaTimeout = 6 * time.Second
)

// pumaPhase is written for each worker that has booted.
var pumaPhase = regexp.MustCompile(`Worker (\d+) \(PID: \d+\) booted.*, phase: (\d+)$`)

// killedAsHung is written when a master kills a worker that it does not hear of.
var killedAsHung = regexp.MustCompile(`Terminating timed out worker|prefork: killing a worker`)

// ushersEnd is written when a restart is over.
var ushersEnd = regexp.MustCompile(`msg="prefork: restarted"`)

// A restarter is a server that replaces its workers.
type restarter struct {
	name    string
	focus   bool
	missing string
	// start starts it with build 1. install puts another build in the place of
	// the one before; over says whether the n-th restart is, as the log has it.
	start func(ctx context.Context, workers int) (p *process.Process, install func(build int) error, err error)
	over  func(p *process.Process, n, workers int) bool

	result   *load.Result
	began    time.Time
	answers  []answer
	restarts []restart
}

// An answer came from a build.
type answer struct {
	at    time.Time // when its request began
	build string
}

// A restart is to bring a build.
type restart struct {
	build    string
	from, to time.Time // the signal; the line of the log
	failed   bool      // there was no such line
	hung     int       // workers that the master has killed meanwhile
	until    time.Time // when no more answers were looked at
}

func buildName(n int) string { return fmt.Sprint("v", n) }

func restarters(ctx context.Context, w *workshop, builds int) ([]*restarter, error) {
	var programs []string
	for n := 1; n <= builds; n++ {
		program, err := process.BuildServer(ctx, w.dir, buildName(n))
		if err != nil {
			return nil, err
		}
		programs = append(programs, program)
	}
	puma := func(name string, config ...string) *restarter {
		return &restarter{
			name: name, missing: w.noPuma,
			start: func(ctx context.Context, workers int) (*process.Process, func(int) error, error) {
				p, dir, err := w.startPuma(ctx, pumaSpec{
					workers: workers, build: buildName(1),
					config: append(config,
						fmt.Sprintf("worker_check_interval %d", int(pumaCheck.Seconds())),
						fmt.Sprintf("worker_timeout %d", int(pumaTimeout.Seconds()))),
				})
				return p, func(n int) error {
					return os.WriteFile(filepath.Join(dir, "build"), []byte(buildName(n)), 0o666)
				}, err
			},
			over: func(p *process.Process, n, workers int) bool {
				booted := make(map[string]bool) // some boot again and again
				for _, m := range p.Matches(pumaPhase) {
					if m[2] == fmt.Sprint(n) {
						booted[m[1]] = true
					}
				}
				return len(booted) == workers
			},
		}
	}
	usher := &restarter{
		name: "usher/prefork", focus: true,
		start: func(ctx context.Context, workers int) (*process.Process, func(int) error, error) {
			dir, err := w.folder()
			if err != nil {
				return nil, nil, err
			}
			program := filepath.Join(dir, "server")
			install := func(n int) error {
				// As a package manager does it: the file that runs is left alone.
				if err := os.Link(programs[n-1], program+".new"); err != nil {
					return err
				}
				return os.Rename(program+".new", program)
			}
			if err := install(1); err != nil {
				return nil, nil, err
			}
			p, err := w.startWorkers(ctx, program, workers)
			return p, install, err
		},
		over: func(p *process.Process, n, _ int) bool { return len(p.Matches(ushersEnd)) >= n },
	}
	if w.prefork != nil {
		usher.missing = w.prefork.Error()
	}
	return []*restarter{puma("Puma cluster"), puma("Puma cluster, fork_worker", "fork_worker 0"), usher}, nil
}

// runStaleCode restarts workers under load, each time with another build.
func runStaleCode(ctx context.Context, opt options) (page *report.Page, err error) {
	if errNoSignals != nil {
		return nil, errNoSignals
	}
	workers, restarts, after := staleWorkers, 1, staleAfter
	if opt.Short {
		workers, after = 4, time.Second
	}
	if opt.Stops > 0 {
		restarts = opt.Stops
	}
	w, err := openWorkshop(ctx)
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, w.close()) }()
	all, err := restarters(ctx, w, restarts+1)
	if err != nil {
		return nil, err
	}
	// Beside each other: what counts is who answers, not how fast.
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	var wg sync.WaitGroup
	for _, r := range all {
		if r.missing != "" {
			logf(opt.Log, "stale-code: %s is left out: %s\n", r.name, r.missing)
			continue
		}
		wg.Go(func() {
			began := time.Now()
			if err := r.run(ctx, workers, restarts, after); err != nil {
				cancel(fmt.Errorf("%s: %w", r.name, err))
				return
			}
			logf(opt.Log, "stale-code: %s: %s, %v\n", r.name, plural(restarts, "restart"), time.Since(began).Round(100*time.Millisecond))
		})
	}
	wg.Wait()
	if ctx.Err() != nil {
		return nil, context.Cause(ctx)
	}
	return stalePage(all, w, workers, restarts, after), nil
}

// run starts the server and restarts its workers under load.
func (r *restarter) run(ctx context.Context, workers, restarts int, after time.Duration) error {
	p, install, err := r.start(ctx, workers)
	if err != nil {
		return err
	}
	defer p.Kill()
	ctx, stopLoad := context.WithCancel(ctx)
	defer stopLoad()
	var mu sync.Mutex
	var loadErr error
	var wg sync.WaitGroup
	r.began = time.Now()
	wg.Go(func() {
		r.result, loadErr = load.Open{
			Server: load.Server{Addr: p.Addr}, Rate: staleRate, PerRequest: true, Timeout: 20 * time.Second, Bound: time.Second,
			Duration: time.Duration(restarts) * (staleBefore + stalePatience + after),
			Each: func(x *load.Exchange, o load.Outcome) {
				if o == load.Answered || o == load.Late {
					mu.Lock()
					r.answers = append(r.answers, answer{x.Began, x.Header.Get("X-Build")})
					mu.Unlock()
				}
			},
		}.Run(ctx)
		stopLoad()
	})
	err = func() error {
		hung := 0
		for n := 1; n <= restarts; n++ {
			if err := wait(ctx, staleBefore); err != nil {
				return err
			}
			if err := install(n + 1); err != nil {
				return err
			}
			now := restart{build: buildName(n + 1), from: time.Now()}
			if err := p.Signal(restartSignal); err != nil {
				return err
			}
			for !r.over(p, n, workers) && time.Since(now.from) < stalePatience {
				if err := wait(ctx, 10*time.Millisecond); err != nil {
					return err
				}
			}
			now.to = time.Now()
			now.failed = !r.over(p, n, workers)
			now.hung = len(p.Matches(killedAsHung)) - hung
			hung += now.hung
			if err := wait(ctx, after); err != nil {
				return err
			}
			now.until = time.Now()
			r.restarts = append(r.restarts, now)
		}
		return nil
	}()
	stopLoad()
	wg.Wait()
	return errors.Join(err, loadErr)
}

// wait waits, or for the end of ctx.
func wait(ctx context.Context, d time.Duration) error {
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-timer.C:
		return nil
	case <-ctx.Done():
		return context.Cause(ctx)
	}
}

// stale returns how many requests that began in a time were answered, and how
// many of them by another build. The last such began at last.
func (r *restarter) stale(from, to time.Time, build string) (all, old int, last time.Time) {
	for _, a := range r.answers {
		if a.at.Before(from) || !a.at.Before(to) {
			continue
		}
		all++
		if a.build != build {
			old++
			if a.at.After(last) {
				last = a.at
			}
		}
	}
	return all, old, last
}

// stalePage shows it.
func stalePage(all []*restarter, w *workshop, workers, restarts int, after time.Duration) *report.Page {
	all, out := leaveOut(all, func(r *restarter) (string, string) { return r.name, r.missing })
	page := &report.Page{
		Title: "Stale code: who answers after a restart?",
		Lead: fmt.Sprintf("%d workers are replaced, %s, with a new build, while %d requests per second come on connections of their own. "+
			"Each response says which build made it. A restart is over when the log says so: Puma has then booted a worker of the new phase for each old one, usher/prefork says that it has restarted. "+
			"From then on %s of answers are looked at.\n\n"+
			"In the report that this is about, Puma's workers said every 5 s that they live, and the master killed those that it had not heard of for 30 s. Here that is %s and %s.",
			workers, times(restarts), staleRate, seconds(after), seconds(pumaCheck), seconds(pumaTimeout)),
		Versions: append(report.Versions(context.Background(), "golang.org/x/net"), w.versions...),
	}
	page.Lead += out
	ends := report.Table{
		Caption: "After the log says that the restart is over",
		Header:  []string{"server", "restart", "took", "workers killed as hung", "answers after", "old ones", "share", "the last, after the end"},
	}
	lines := &report.Lines{Title: "Answers of old code", X: report.Axis{Label: "time since the load began", Unit: "s"}, Y: report.Axis{Label: "share of answers", Unit: "%"}}
	fates := report.Table{Caption: "What became of all requests", Header: append([]string{"server"}, outcomeNames()...)}
	var verdicts []string
	for _, r := range all {
		stale := 0
		for n, re := range r.restarts {
			all, old, last := r.stale(re.to, re.until, re.build)
			took, lastText := wholeSeconds(re.to.Sub(re.from)), "–"
			if re.failed {
				took = "not over after " + took
			}
			if old > 0 {
				lastText = wholeSeconds(last.Sub(re.to))
			}
			stale += old
			ends.Rows = append(ends.Rows, []string{r.name, fmt.Sprint(n + 1), took, count(re.hung), count(all), count(old), percent(old, all), lastText})
		}
		if stale > 0 {
			verdicts = append(verdicts, r.name)
		}
		lines.Series = append(lines.Series, report.Series{Name: r.name, Focus: r.focus, Points: r.points()})
		fates.Rows = append(fates.Rows, append([]string{r.name}, fatesOf(r.result)...))
	}
	text := "No server answered with old code after it had said that the restart was over."
	if len(verdicts) > 0 {
		text = "Old code after the restart was over: " + strings.Join(verdicts, "; ") + "."
	}
	text += quickerRestarts(all)
	page.Sections = []report.Section{{
		Title: "Who answers", Text: text, Tables: []report.Table{ends},
		Plots: []report.Plot{{See: "The share jumps to 100 % when a new build is put in place, and should come down to 0 and stay there.", Lines: lines}},
	}, {
		Title: "What it cost the clients", Text: "Every request is in one column.", Tables: []report.Table{fates},
	}}
	return page
}

// quickerRestarts says whose first restart took less time than usher's.
func quickerRestarts(all []*restarter) string {
	took := func(r *restarter) time.Duration { return r.restarts[0].to.Sub(r.restarts[0].from) }
	i := slices.IndexFunc(all, func(r *restarter) bool { return r.focus })
	if i < 0 {
		return ""
	}
	var quicker []string
	for _, r := range all {
		if !r.focus && took(r) < took(all[i]) {
			quicker = append(quicker, fmt.Sprintf("%s (%s)", r.name, wholeSeconds(took(r))))
		}
	}
	if len(quicker) == 0 {
		return ""
	}
	return fmt.Sprintf(" usher/prefork took %s, a second of which it looks at how its first new worker does. Sooner: %s.", wholeSeconds(took(all[i])), strings.Join(quicker, "; "))
}

// points are the share of old answers over time. A build is old from the
// moment in which there is a newer one.
func (r *restarter) points() (points []report.Point) {
	if len(r.restarts) == 0 {
		return nil
	}
	end := r.restarts[len(r.restarts)-1].until
	bins := make([]struct{ all, old int }, end.Sub(r.began)/staleBin+1)
	for _, a := range r.answers {
		if a.at.Before(r.began) || a.at.After(end) {
			continue
		}
		bin := &bins[a.at.Sub(r.began)/staleBin]
		bin.all++
		if a.build != r.newest(a.at) {
			bin.old++
		}
	}
	for i, bin := range bins {
		share := report.None
		if bin.all > 0 {
			share = 100 * float64(bin.old) / float64(bin.all)
		}
		points = append(points, report.Point{X: (time.Duration(i) * staleBin).Seconds(), Y: share})
	}
	return points
}

// newest returns the build that was there at a time.
func (r *restarter) newest(at time.Time) string {
	build := buildName(1)
	for _, re := range r.restarts {
		if !at.Before(re.from) {
			build = re.build
		}
	}
	return build
}

func wholeSeconds(d time.Duration) string { return fmt.Sprintf("%.1f s", d.Seconds()) }

func percent(n, of int) string {
	if of == 0 {
		return "–"
	}
	return fmt.Sprintf("%.1f %%", 100*float64(n)/float64(of))
}
