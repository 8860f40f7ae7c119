package main

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/seed-235859eb/usher/bench/load"
	"github.com/seed-235859eb/usher/bench/report"
	"github.com/seed-235859eb/usher/internal/process"
)

const (
	rollTimes   = 9
	rollClients = 64
	rollTimeout = 30 * time.Second // of a client
	// rollPatience is how long a new backend may take to get a request from a
	// balancer that is to find it. rollHaste is when the next roll begins all
	// the same, behind one that is not configured to.
	rollPatience = 30 * time.Second
	rollHaste    = time.Second
	// rollCalm is the time between two rolls.
	rollCalm = 500 * time.Millisecond
	// rollLong bounds the load.
	rollLong = 10 * time.Minute
)

// A roller is a balancer with backends that are restarted, one after the other.
type roller struct {
	*balancer
	what    string   // configuration and backends
	changes []change // of what is in deploy/
	args    []string // of the backends
	hasty   bool     // a new backend may wait long for a request
	keeps   bool     // no request is to fail
	fails   bool     // some are

	modes map[load.Mode]*rolled
}

// rolled is what became of requests and backends.
type rolled struct {
	*load.Result
	during  []time.Duration // that answers took while a backend was restarted
	between []time.Duration // that they took while none was
	took    []time.Duration // from a backend's signal to its successor's first answer
}

// failed are all requests but those that were answered.
func (r *rolled) failed() int { return r.Total() - r.Of(load.Answered) }

// What the backends are.
const (
	byUsher = "usher"
	byBare  = "http.Server.Shutdown"
)

// rollers are all of them. Those with the configuration that is in deploy/ have
// no changes.
func rollers(all []*balancer) (rs []*roller) {
	add := func(r *roller) { rs = append(rs, r) }
	for _, b := range all {
		// It depends on its version what becomes of requests behind Caddy.
		sure := b.name != caddy
		add(&roller{balancer: b, what: byUsher, keeps: sure})
		add(&roller{balancer: b, what: byBare, args: []string{"-bare"}, fails: sure})
	}
	delay := []string{"-delay", "600ms"}
	for _, b := range all {
		switch b.name {
		case nginx:
			add(&roller{
				balancer: b, what: byUsher + "; a connection for each request", keeps: true,
				changes: []change{{"keepalive 32;", ""}},
			})
			add(&roller{
				balancer: b, what: byUsher + "; max_fails is 1, as by default", hasty: true, fails: true,
				changes: []change{{" max_fails=0", ""}},
			})
			add(&roller{
				balancer: b, what: byUsher + "; proxy_next_upstream off",
				changes: []change{{"proxy_next_upstream error timeout;", "proxy_next_upstream off;"}},
			})
		case haproxy:
			changes := []change{{"retries 3", "retries 0"}, {"inter 1s fall 2", "inter 200ms fall 1"}}
			add(&roller{balancer: b, what: byUsher + "; retries 0, inter 200ms fall 1", changes: changes})
			add(&roller{balancer: b, what: byUsher + " with Delay 600 ms; retries 0, inter 200ms fall 1", changes: changes, args: delay})
		case caddy:
			changes := []change{{"health_interval 1s", "health_interval 200ms"}}
			add(&roller{balancer: b, what: byUsher + " with Delay 600 ms; health_interval 200ms", changes: changes, args: delay})
		}
	}
	for _, r := range rs {
		r.modes = make(map[load.Mode]*rolled)
	}
	return rs
}

// rollModes are how clients behave: as many requests as the machine serves, and
// fewer, with which times say more.
var rollModes = []load.Mode{load.KeepAlive, load.Think}

// A rolling is what rollers are to do.
type rolling struct {
	times, clients int
	calm           time.Duration
}

// runRolls restarts backends behind load balancers.
func runRolls(ctx context.Context, opt options) (page *report.Page, err error) {
	if errNoSignals != nil {
		return nil, errNoSignals
	}
	do := rolling{rollTimes, rollClients, rollCalm}
	if opt.Short {
		do.times = 3
	}
	if opt.Stops > 0 {
		do.times = opt.Stops
	}
	if opt.Clients > 0 {
		do.clients = opt.Clients
	}
	w, err := openWorkshop(ctx)
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, w.close()) }()
	all := rollers(balancers(ctx))
	for _, r := range all {
		if r.missing != "" {
			logf(opt.Log, "rolls: %s is left out: %s\n", r.name, r.missing)
			continue
		}
		for _, m := range rollModes {
			began := time.Now()
			if err := r.run(ctx, w, m, do); err != nil {
				return nil, fmt.Errorf("%s, %s: %w", r.name, r.what, err)
			}
			logf(opt.Log, "rolls: %s, %s, %v: %v\n", r.name, r.what, m, time.Since(began).Round(100*time.Millisecond))
		}
	}
	return rollsPage(ctx, all, do), nil
}

// A backend is a place for one server after the other.
type backend struct {
	addr string
	*process.Process
}

func (r *roller) startBackend(ctx context.Context, w *workshop, addr string) (*process.Process, error) {
	return process.Start(ctx, process.Spec{
		Path: w.server, Args: append([]string{"-addr", addr}, r.args...), Env: []string{"TMPDIR=" + w.dir},
	})
}

// run restarts backends, one at a time and in turns, while clients ask through
// the balancer.
func (r *roller) run(ctx context.Context, w *workshop, m load.Mode, do rolling) error {
	var backends []*backend
	var addrs []string
	defer func() {
		for _, b := range backends {
			b.Kill()
		}
	}()
	for range deployed {
		addr, release, err := process.Reserve()
		if err != nil {
			return err
		}
		defer release()
		p, err := r.startBackend(ctx, w, addr)
		if err != nil {
			return err
		}
		backends, addrs = append(backends, &backend{addr, p}), append(addrs, addr)
	}
	front, err := r.start(ctx, w, addrs, r.changes)
	if err != nil {
		return err
	}
	defer front.Kill()

	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	var (
		watch   rollWatch
		result  *load.Result
		loadErr error
		loaded  sync.WaitGroup
	)
	loaded.Go(func() {
		result, loadErr = load.Closed{
			Server: load.Server{Addr: front.Addr}, Clients: do.clients, Mode: m, Body: "body",
			Duration: rollLong, Timeout: rollTimeout, GoOn: true, Each: watch.each,
		}.Run(ctx)
		cancel(loadErr)
	})
	took, err := r.restart(ctx, w, backends, do, &watch)
	if err != nil {
		err = fmt.Errorf("%w\n%s", err, front.Output())
	}
	cancel(nil)
	loaded.Wait()
	if err := errors.Join(loadErr, err); err != nil {
		return err
	}
	r.modes[m] = &rolled{result, watch.during, watch.between, took}
	for _, all := range [][]time.Duration{watch.during, watch.between, took} {
		slices.Sort(all)
	}
	return nil
}

// restart restarts the backends, and returns how long each took.
func (r *roller) restart(ctx context.Context, w *workshop, backends []*backend, do rolling, watch *rollWatch) (took []time.Duration, err error) {
	for _, b := range backends {
		if err := r.awaitAnswer(ctx, watch, b.PID); err != nil {
			return nil, err
		}
	}
	for n := range do.times {
		if err := pause(ctx, do.calm); err != nil {
			return nil, err
		}
		b := backends[n%len(backends)]
		began := watch.begin()
		if err := b.Stop(); err != nil {
			return nil, err
		}
		p, err := r.startBackend(ctx, w, b.addr)
		if err != nil {
			return nil, err
		}
		b.Process = p
		if err := r.awaitAnswer(ctx, watch, p.PID); err != nil {
			return nil, err
		}
		took = append(took, watch.end().Sub(began))
	}
	return took, pause(ctx, do.calm)
}

// awaitAnswer waits until a client has been answered by a backend.
func (r *roller) awaitAnswer(ctx context.Context, watch *rollWatch, pid int) error {
	patience := rollPatience
	if r.hasty {
		patience = rollHaste
	}
	timer := time.NewTimer(patience)
	defer timer.Stop()
	select {
	case <-watch.await(pid):
		return nil
	case <-ctx.Done():
		return context.Cause(ctx)
	case <-timer.C:
		if r.hasty {
			return nil
		}
		return fmt.Errorf("a new backend got no request in %v", patience)
	}
}

// pause waits, for as long as ctx lasts.
func pause(ctx context.Context, d time.Duration) error {
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-timer.C:
		return nil
	case <-ctx.Done():
		return context.Cause(ctx)
	}
}

// rollsPage shows it.
func rollsPage(ctx context.Context, all []*roller, do rolling) *report.Page {
	page := &report.Page{
		Title: "Rolls: backends are restarted behind a load balancer",
		Lead: fmt.Sprintf("Three backends behind a balancer were restarted one at a time, %s in all: SIGTERM, the end of the process, a new process on the same port. "+
			"%s after a client was answered by that, the next followed. "+
			"Meanwhile %d clients sent POST requests through the balancer, each on a connection of its own that stays, and none a second time: what was not answered with 200 has failed. "+
			"POST, because a balancer may send it to another backend only if it has not reached the first. "+
			"The configurations are those in deploy/, but for what the tables say. "+
			"Times are of answers: of those that came while a backend was restarted, and of those in between, in the same run.",
			times(do.times), seconds(do.calm), do.clients),
		Versions: report.Versions(ctx, "golang.org/x/net"),
	}
	all, out := leaveOut(all, func(r *roller) (string, string) { return r.name + ", " + r.what, r.missing })
	page.Lead += out
	for _, r := range all {
		if v := r.name + " " + r.version; !slices.Contains(page.Versions, v) {
			page.Versions = append(page.Versions, v)
		}
	}
	plot := &report.Bars{Title: "Requests that failed at each roll", XLabel: "failed requests"}
	section := report.Section{
		Text:  "A roll takes the time from the signal to the first answer by the new process.",
		Plots: []report.Plot{{See: "A bar is how many requests one roll costs, on average.", Bars: plot}},
	}
	groups := make([]report.Group, len(all))
	for _, m := range rollModes {
		t := report.Table{Caption: m.String(), Header: []string{
			"balancer", "backends", "requests", "failed",
			"P50 in rolls", "between", "P99 in rolls", "between", "P99 of all", "longest in rolls", "between", "a roll takes, median",
		}}
		for i, r := range all {
			seen := r.modes[m]
			if seen == nil {
				continue
			}
			row := []string{r.name, r.what, count(seen.Total()), count(seen.failed())}
			for _, p := range []float64{50, 99, 100} {
				row = append(row, tenthsOfMS(rank(seen.during, p)), tenthsOfMS(rank(seen.between, p)))
				if p == 99 {
					row = append(row, tenthsOfMS(load.Quantile(seen.Latency, p)))
				}
			}
			t.Rows = append(t.Rows, append(row, millis(rank(seen.took, 50))))
			groups[i].Name, groups[i].Focus = r.name+", "+r.what, strings.HasPrefix(r.what, byUsher)
			groups[i].Bars = append(groups[i].Bars, report.Bar{Label: m.String(), Value: float64(seen.failed()) / float64(do.times)})
		}
		section.Tables = append(section.Tables, t)
	}
	plot.Groups = groups
	page.Sections = []report.Section{section}
	return page
}

// tenthsOfMS writes a duration that is to be compared with another.
func tenthsOfMS(d time.Duration) string { return fmt.Sprintf("%.1f ms", ms(d)) }
