package main

import (
	"context"
	"fmt"
	"math/rand/v2"
	"slices"
	"strconv"
	"sync"
	"time"

	"github.com/seed-235859eb/usher/bench/fairness"
	"github.com/seed-235859eb/usher/bench/load"
	"github.com/seed-235859eb/usher/bench/report"
	"github.com/seed-235859eb/usher/bench/usage"
)

// What the servers of an overload do, and how they are limited: as usher is by
// default, as far as they have such limits.
const (
	overloadSlots    = 10
	overloadService  = 50 * time.Millisecond
	overloadCapacity = float64(overloadSlots) / (float64(overloadService) / float64(time.Second))
	overloadMaxQueue = 1280
	overloadMaxWait  = 30 * time.Second
	// A rejection is of use to a client that has somewhere else to go, if it
	// comes soon.
	soon = 100 * time.Millisecond
	// overloadNoise is the part by which the goodput of equals differs.
	overloadNoise = 0.1
	// A load that was sent later than that was not the load: it is repeated, so
	// often at most, and the one sent least late counts.
	overloadLate    = 50 * time.Millisecond
	overloadRepeats = 2
	// Servers are loaded at once if that is light work for the machine.
	overloadAtOnce = 2
)

// overloaded are the servers.
var overloaded = []fairness.Contender{fairness.Bare, fairness.Semaphore, fairness.Throttle, fairness.Bulkhead, fairness.Usher}

// An overloading is one load on all servers.
type overloading struct {
	clients  string
	patience func(*rand.Rand) time.Duration
	times    float64       // capacity
	warmUp   time.Duration // for the queues to grow as long as they will
	length   time.Duration // after that
	outcomes []overloadOutcome
}

// An overloadOutcome is what became of the requests to one server.
type overloadOutcome struct {
	server  string
	result  *load.Result
	goodput float64         // answers per second, in time
	latency []time.Duration // of these, sorted
	unheard int             // requests after the warm-up that were not answered
	soon    int             // of those, the ones that were told so soon
	peakRSS int64           // of the server, in bytes; 0 if that is not known
}

var overloadClients = []struct {
	name     string
	patience func(*rand.Rand) time.Duration
	loads    []float64
}{
	{"give up after 1 s", func(*rand.Rand) time.Duration { return time.Second }, []float64{.9, 1.1, 2, 4, 10}},
	{"give up after 1 s, half of them after 10 s", func(r *rand.Rand) time.Duration {
		return time.Second * time.Duration(1+9*r.IntN(2))
	}, []float64{1.1, 4}},
	{"give up at random, after 2 s on average", func(r *rand.Rand) time.Duration {
		return time.Duration(r.ExpFloat64() * float64(2*time.Second))
	}, []float64{1.1, 4}},
}

// runOverload offers servers more than they can do.
func runOverload(ctx context.Context, opt options) (*report.Page, error) {
	var all []*overloading
	for _, c := range overloadClients {
		for _, times := range c.loads {
			o := &overloading{clients: c.name, patience: c.patience, times: times, warmUp: 3 * time.Second, length: 4 * time.Second}
			if times < 1.5 {
				o.warmUp, o.length = 12*time.Second, 10*time.Second
			}
			if opt.Short {
				if times != 4 {
					continue
				}
				o.warmUp, o.length = time.Second, time.Second
			}
			logf(opt.Log, "overload: %g times capacity, clients %s\n", times, c.name)
			if err := o.run(ctx); err != nil {
				return nil, fmt.Errorf("%g times capacity: %w", times, err)
			}
			all = append(all, o)
		}
	}
	return overloadPage(ctx, all), nil
}

// run loads all servers.
func (o *overloading) run(ctx context.Context) error {
	o.outcomes = make([]overloadOutcome, len(overloaded))
	errs := make([]error, len(overloaded))
	var wg sync.WaitGroup
	for i, c := range overloaded {
		wg.Go(func() { o.outcomes[i], errs[i] = o.best(ctx, c) })
		if o.times > overloadAtOnce {
			wg.Wait()
		}
	}
	wg.Wait()
	for i, err := range errs {
		if err != nil {
			return fmt.Errorf("%s: %w", overloaded[i].Name, err)
		}
	}
	return ctx.Err()
}

// best loads a server, again if the load came late.
func (o *overloading) best(ctx context.Context, c fairness.Contender) (best overloadOutcome, err error) {
	for i := 0; i <= overloadRepeats && (i == 0 || best.result.Behind > overloadLate); i++ {
		outcome, err := o.load(ctx, c)
		if err != nil {
			return outcome, err
		}
		if i == 0 || outcome.result.Behind < best.result.Behind {
			best = outcome
		}
	}
	return best, nil
}

// load loads a server that is new.
func (o *overloading) load(ctx context.Context, c fairness.Contender) (overloadOutcome, error) {
	outcome := overloadOutcome{server: c.Name}
	p, err := fairness.Start(fairness.Spec{
		Contender: c.Name, Sleep: overloadService,
		Limits: fairness.Limits{Slots: overloadSlots, MaxQueue: overloadMaxQueue, MaxWait: overloadMaxWait},
	})
	if err != nil {
		return outcome, err
	}
	defer p.Stop()
	var mu sync.Mutex
	began := time.Now()
	outcome.result, err = load.Open{
		Server: load.Server{Addr: p.Addr}, Rate: o.times * overloadCapacity, Seed: 1, // the same arrivals for all
		Duration: o.warmUp + o.length, Patience: o.patience,
		Each: func(x *load.Exchange, oc load.Outcome) {
			at := x.Ended.Sub(began)
			if at < o.warmUp || at >= o.warmUp+o.length {
				return
			}
			took := x.Ended.Sub(x.Began)
			mu.Lock()
			defer mu.Unlock()
			if oc == load.Answered {
				outcome.latency = append(outcome.latency, took)
				return
			}
			outcome.unheard++
			if oc == load.Rejected && took < soon {
				outcome.soon++
			}
		},
	}.Run(ctx)
	if err != nil {
		return outcome, err
	}
	outcome.goodput = float64(len(outcome.latency)) / o.length.Seconds()
	slices.Sort(outcome.latency)
	if rss, err := usage.PeakRSS(p.PID); err == nil { // not known everywhere
		outcome.peakRSS = rss
	}
	return outcome, ctx.Err()
}

// overloadPage shows what came of it.
func overloadPage(ctx context.Context, all []*overloading) *report.Page {
	p := &report.Page{
		Title: "Overload",
		Lead: fmt.Sprintf("Requests come at their times (Poisson), whether or not those before have been answered: an open loop. "+
			"Each takes %s, and %d run at a time: capacity is %.0f requests per second. "+
			"How long clients wait counts from the time at which a request was due; a request whose client has given up is closed by it. "+
			"Each server is a process of its own, new for each load, with usher's default limits as far as it has them: %d in the queue, a wait of %s. "+
			"net/http has no limit: its handlers only sleep, so that it answers all at once, which no real work would do.",
			millis(overloadService), overloadSlots, overloadCapacity, overloadMaxQueue, seconds(overloadMaxWait)),
		Versions: peerVersions(ctx),
	}
	for _, c := range overloadClients {
		var of []*overloading
		for _, o := range all {
			if o.clients == c.name {
				of = append(of, o)
			}
		}
		p.Sections = append(p.Sections, overloadSection(c.name, of))
	}
	return p
}

func overloadSection(clients string, all []*overloading) report.Section {
	lines := func(title, label, unit string, value func(*overloading, overloadOutcome) float64) *report.Lines {
		l := &report.Lines{Title: title, X: report.Axis{Label: "offered load", Unit: "times capacity"}, Y: report.Axis{Label: label, Unit: unit}, LogX: true}
		for i, c := range overloaded {
			if !c.Limits {
				continue
			}
			s := report.Series{Name: c.Name, Focus: c.Name == fairness.Usher.Name}
			for _, o := range all {
				s.Points = append(s.Points, report.Point{X: o.times, Y: value(o, o.outcomes[i])})
			}
			l.Series = append(l.Series, s)
		}
		return l
	}
	goodput := lines("Goodput, clients "+clients, "answers in time, of capacity", "%", func(_ *overloading, x overloadOutcome) float64 {
		return 100 * x.goodput / overloadCapacity
	})
	goodput.YMarks = []report.Mark{{Value: 100, Label: "capacity"}}
	told := lines("Told soon, clients "+clients, "answered with 429 or 503 within 100 ms, of all requests that were not served", "%", func(_ *overloading, x overloadOutcome) float64 {
		if x.unheard == 0 {
			return report.None
		}
		return 100 * float64(x.soon) / float64(x.unheard)
	})
	s := report.Section{Title: "Clients that " + clients, Plots: []report.Plot{
		{Lines: goodput, See: "A line that stays at the top is a server that an overload does not harm."},
		{Lines: told, See: "The higher the better: these clients can go elsewhere at once. The others waited in vain, for an answer or for their timeout."},
	}}
	for _, o := range all {
		s.Tables = append(s.Tables, o.table())
	}
	return s
}

// table is that of one load.
func (o *overloading) table() report.Table {
	usher := o.outcomes[slices.IndexFunc(o.outcomes, func(x overloadOutcome) bool { return x.server == fairness.Usher.Name })]
	t := report.Table{
		Caption: fmt.Sprintf("%g times capacity: %.0f requests per second. Goodput within %.0f %% of usher's is a draw.", o.times, o.times*overloadCapacity, 100*overloadNoise),
		Header: []string{"server", "goodput per s", "of capacity", "against usher", "answered", "rejected", "timed out", "lost, refused, failed",
			"told < 100 ms, of those not served", "P50, ms", "P99, ms", "peak RSS, MiB", "sent late by, ms"},
	}
	share := func(n, of int) string {
		if of == 0 {
			return "–"
		}
		return strconv.FormatFloat(100*float64(n)/float64(of), 'f', 0, 64) + " %"
	}
	for _, x := range o.outcomes {
		r := x.result
		row := []string{x.server, fmt.Sprintf("%.0f", x.goodput), fmt.Sprintf("%.0f %%", 100*x.goodput/overloadCapacity), "",
			share(r.Of(load.Answered), r.Total()), share(r.Of(load.Rejected), r.Total()), share(r.Of(load.TimedOut, load.Late), r.Total()),
			share(r.Of(load.Lost, load.Refused, load.Failed), r.Total()), share(x.soon, x.unheard), "–", "–", "–", wholeMS(r.Behind)}
		if x.server == fairness.Bare.Name {
			row[3] = "no limit"
		} else if x.server != fairness.Usher.Name {
			row[3] = verdict(x.goodput, usher.goodput, overloadNoise)
		}
		if len(x.latency) > 0 {
			row[9], row[10] = wholeMS(rank(x.latency, 50)), wholeMS(rank(x.latency, 99))
		}
		if x.peakRSS > 0 {
			row[11] = strconv.FormatInt(x.peakRSS>>20, 10)
		}
		t.Rows = append(t.Rows, row)
	}
	return t
}
