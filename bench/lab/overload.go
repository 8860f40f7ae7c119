package main

import (
	"context"
	"fmt"
	"runtime"
	"slices"
	"strconv"
	"sync"
	"time"

	"github.com/seed-235859eb/usher/bench/fairness"
	"github.com/seed-235859eb/usher/bench/load"
	"github.com/seed-235859eb/usher/bench/report"
	"github.com/seed-235859eb/usher/bench/usage"
)

// What the clients and the handler of an overload are.
const (
	overloadWork    = 5 * time.Millisecond // CPU time of a request
	overloadTimeout = time.Second          // of a client
	overloadMaxWait = 500 * time.Millisecond
	// A rejection is of use to a client that has somewhere else to go, if it
	// comes soon.
	soon = 100 * time.Millisecond
	// overloadNoise is the part by which the goodput of equals differs.
	overloadNoise = 0.1
	// disturbing is the part of the CPUs' time from which on others on the
	// machine spoil a figure. It is then taken again when they are done, as
	// long as there is patience left for all that.
	disturbing   = 0.1
	calmPatience = time.Minute
)

// overloaded are the servers.
var overloaded = []fairness.Contender{fairness.Bare, fairness.Semaphore, fairness.Throttle, fairness.Bulkhead, fairness.Usher}

// An overloading is how the servers are loaded.
type overloading struct {
	loads    []float64     // times capacity
	length   time.Duration // of each load on each server
	warmUp   time.Duration // of that; in it no answer counts for goodput, and no client has given up yet
	limits   fairness.Limits
	work     int
	capacity float64       // answers per second
	patience time.Duration // with others on the machine
}

// An overloadOutcome is what became of the requests to one server under one
// load.
type overloadOutcome struct {
	server  string
	load    float64
	offered float64 // requests per second
	result  *load.Result
	goodput float64         // answers per second, in time
	waits   []time.Duration // before the handler, of those that were answered; sorted
	soon    int             // rejections that came soon
	cpu     time.Duration   // that the server used; 0 if that is not known
	peakRSS int64           // of the server, in bytes; 0 if that is not known
	others  float64         // part of the CPUs' time that others used; -1 if that is not known
}

// runOverload offers servers more than they can do.
func runOverload(ctx context.Context, opt options) (*report.Page, error) {
	o := overloading{loads: []float64{.5, 1, 2, 5, 10}, length: 2500 * time.Millisecond, warmUp: time.Second, patience: calmPatience}
	if opt.Short {
		o.loads, o.length, o.patience = []float64{.5, 3}, 1500*time.Millisecond, 0
	}
	began := time.Now()
	o.awaitCalm(ctx)
	o.patience -= time.Since(began)
	slots := runtime.GOMAXPROCS(0)
	o.work = fairness.WorkFor(overloadWork)
	var err error
	if o.capacity, err = o.measureCapacity(ctx, slots, opt.Short); err != nil {
		return nil, err
	}
	logf(opt.Log, "overload: capacity is %.0f requests per second\n", o.capacity)
	o.limits = fairness.Limits{
		Slots:   slots,
		MaxWait: overloadMaxWait,
		// As many as can be served in that time.
		MaxQueue: max(1, int(o.capacity*overloadMaxWait.Seconds())),
	}
	var all []overloadOutcome
	for i, times := range o.loads {
		// Nobody is always the first, or the last.
		for j := range overloaded {
			c := overloaded[(i+j)%len(overloaded)]
			logf(opt.Log, "overload: %g times capacity on %s\n", times, c.Name)
			outcome, err := o.undisturbed(ctx, opt, c, times)
			if err != nil {
				return nil, fmt.Errorf("%s at %g times capacity: %w", c.Name, times, err)
			}
			all = append(all, outcome)
		}
	}
	return o.page(ctx, all), nil
}

// measureCapacity returns how many requests a second plain net/http answers
// when there are always just enough for all slots: the best of three, because
// whatever else runs on the machine can only make it less.
func (o *overloading) measureCapacity(ctx context.Context, slots int, short bool) (best float64, err error) {
	p, err := fairness.Start(fairness.Spec{Contender: fairness.Bare.Name, Work: o.work})
	if err != nil {
		return 0, err
	}
	defer p.Stop()
	length := time.Second
	if short {
		length /= 4
	}
	for range 3 {
		result, err := load.Closed{Server: load.Server{Addr: p.Addr}, Clients: 2 * slots, Mode: load.KeepAlive, Duration: length}.Run(ctx)
		if err != nil {
			return 0, err
		}
		best = max(best, float64(result.Of(load.Answered))/result.Took.Seconds())
	}
	if best == 0 && ctx.Err() == nil {
		return 0, fmt.Errorf("net/http answered nothing")
	}
	return best, ctx.Err()
}

// undisturbed loads a server, again if others used the machine meanwhile, and
// returns the outcome that was disturbed least.
func (o *overloading) undisturbed(ctx context.Context, opt options, c fairness.Contender, times float64) (best overloadOutcome, err error) {
	if best, err = o.run(ctx, c, times); err != nil {
		return best, err
	}
	for best.others >= disturbing && o.patience > 0 {
		logf(opt.Log, "overload: others used %.0f %% of the CPUs meanwhile\n", 100*best.others)
		began := time.Now()
		o.awaitCalm(ctx)
		again, err := o.run(ctx, c, times)
		if err != nil {
			return again, err
		}
		if again.others < best.others {
			best = again
		}
		o.patience -= time.Since(began)
	}
	return best, nil
}

// awaitCalm returns when others hardly use the CPUs, or patience is over.
func (o *overloading) awaitCalm(ctx context.Context) {
	ctx, cancel := context.WithTimeout(ctx, o.patience)
	defer cancel()
	for ctx.Err() == nil {
		watch := usage.NewWatch()
		select {
		case <-ctx.Done():
		case <-time.After(time.Second):
		}
		if watch.Others(0) < disturbing/2 {
			return
		}
	}
}

// run loads a server that is new.
func (o *overloading) run(ctx context.Context, c fairness.Contender, times float64) (overloadOutcome, error) {
	outcome := overloadOutcome{server: c.Name, load: times, offered: times * o.capacity}
	p, err := fairness.Start(fairness.Spec{Contender: c.Name, Limits: o.limits, Work: o.work, Timed: true})
	if err != nil {
		return outcome, err
	}
	defer p.Stop()
	var mu sync.Mutex
	good := 0
	began, watch := time.Now(), usage.NewWatch()
	outcome.result, err = load.Open{
		Server: load.Server{Addr: p.Addr}, Rate: outcome.offered, Seed: 1, // the same arrivals for all
		Duration: o.length, Timeout: overloadTimeout, Bound: overloadTimeout,
		Each: func(x *load.Exchange, oc load.Outcome) {
			took := x.Ended.Sub(x.Began)
			mu.Lock()
			defer mu.Unlock()
			switch oc {
			case load.Answered:
				if at := x.Ended.Sub(began); at >= o.warmUp && at < o.length {
					good++
				}
				if served, err := time.ParseDuration(x.Header.Get(fairness.ServiceHeader)); err == nil {
					outcome.waits = append(outcome.waits, took-served)
				}
			case load.Rejected:
				if took < soon {
					outcome.soon++
				}
			}
		},
	}.Run(ctx)
	if err != nil {
		return outcome, err
	}
	outcome.goodput = float64(good) / (o.length - o.warmUp).Seconds()
	slices.Sort(outcome.waits)
	// None of these is known everywhere.
	if cpu, err := usage.CPUTime(p.PID); err == nil {
		outcome.cpu = cpu
	}
	if rss, err := usage.PeakRSS(p.PID); err == nil {
		outcome.peakRSS = rss
	}
	outcome.others = watch.Others(outcome.cpu)
	return outcome, ctx.Err()
}

// p99 is the latency of answers in time. Those that came later are longer.
func (x overloadOutcome) p99() time.Duration {
	in, late := x.result.Of(load.Answered), x.result.Of(load.Late)
	return load.Quantile(x.result.Latency, 99*float64(in)/float64(max(in+late, 1)))
}

// page shows what came of it.
func (o *overloading) page(ctx context.Context, all []overloadOutcome) *report.Page {
	of := func(server string, times float64) overloadOutcome {
		return all[slices.IndexFunc(all, func(x overloadOutcome) bool { return x.server == server && x.load == times })]
	}
	p := &report.Page{
		Title: "Overload",
		Lead: fmt.Sprintf("Requests come at their times (Poisson), whether or not those before have been answered: an open loop. "+
			"Each keeps a CPU busy for %s; its client gives up after %s, counted from the time at which the request was due. "+
			"Capacity is what plain net/http answers in a closed loop of as many clients as it can make use of: %.0f requests per second on %d CPUs, which the clients share. "+
			"Each server is a process of its own, new for each load. Limits, as far as a server has them: %d slots, %d in the queue, a wait of %s.\n\n"+
			"What bounds its queue keeps its goodput: chi's Throttle does that as well as usher. "+
			"What bounds nothing, or the wait alone, ends up working for clients that have left.",
			millis(overloadWork), seconds(overloadTimeout), o.capacity, runtime.NumCPU(), o.limits.Slots, o.limits.MaxQueue, millis(overloadMaxWait)),
		Versions: peerVersions(ctx),
	}
	lines := func(title, label, unit string, value func(overloadOutcome) float64) *report.Lines {
		l := &report.Lines{Title: title, X: report.Axis{Label: "offered load", Unit: "times capacity"}, Y: report.Axis{Label: label, Unit: unit}, LogX: true}
		for _, c := range overloaded {
			s := report.Series{Name: c.Name, Focus: c.Name == fairness.Usher.Name}
			for _, times := range o.loads {
				s.Points = append(s.Points, report.Point{X: times, Y: value(of(c.Name, times))})
			}
			l.Series = append(l.Series, s)
		}
		return l
	}
	goodput := lines("Goodput over offered load", "answers in time, of capacity", "%", func(x overloadOutcome) float64 {
		return 100 * x.goodput / o.capacity
	})
	goodput.YMarks = []report.Mark{{Value: 100, Label: "capacity"}}
	latency := lines("P99 of the answers in time", "from when the request was due", "ms", func(x overloadOutcome) float64 {
		if x.result.Of(load.Answered) == 0 {
			return report.None
		}
		return ms(x.p99())
	})
	latency.YMarks = []report.Mark{{Value: ms(overloadTimeout), Label: "client's timeout"}}
	waits := lines("Wait before the handler, P99 of the answers in time", "wait", "ms", func(x overloadOutcome) float64 {
		if len(x.waits) == 0 {
			return report.None
		}
		return max(0, ms(rank(x.waits, 99)))
	})
	waits.YMarks = []report.Mark{{Value: ms(overloadMaxWait), Label: "bound of the wait"}}
	told := lines("Requests that were turned away, and told soon", "answered with 429 or 503 within 100 ms, of all requests that were not served", "%", func(x overloadOutcome) float64 {
		unserved := x.result.Total() - x.result.Of(load.Answered)
		if unserved == 0 {
			return report.None
		}
		return 100 * float64(x.soon) / float64(unserved)
	})
	memory := lines("Memory of the server", "the most that was resident", "MiB", func(x overloadOutcome) float64 {
		if x.peakRSS == 0 {
			return report.None
		}
		return float64(x.peakRSS) / (1 << 20)
	})
	p.Sections = []report.Section{
		{Title: "What is served", Text: "At half of capacity all are alike; from there on it is the queue that counts.",
			Plots: []report.Plot{
				{Lines: goodput, See: "A line that stays at the top is a server that an overload does not harm. net/http has everybody wait for everybody, and hardly an answer comes in time."},
				{Lines: latency, See: "With a queue in front of it a server that is full answers late, but in time."},
			}},
		{Title: "What is not served", Text: "Who cannot be served is better told at once than left to wait.",
			Plots: []report.Plot{
				{Lines: waits, See: "From the request to the handler, as the client sees it: latency less the time in the handler. It contains the way to the server and back, which is long while the CPUs are busy, so that it can pass the bound. Without a queue the time goes by in the handler, where all share the CPUs."},
				{Lines: told, See: "The higher the better: these clients can go elsewhere at once. The others waited in vain, for an answer or for their timeout. Where all were served there is no value."},
				{Lines: memory, See: "Each connection costs memory, whoever holds its request."},
			}},
		{Title: "All figures", Text: fmt.Sprintf("What others used of the CPUs while a figure was taken is in the last column; from %.0f %% on it was taken again, for a minute in all, and the quietest is here. Where that was disturbed, too, nobody wins.", 100*disturbing), Tables: o.tables(of)},
	}
	return p
}

// tables make one for each load.
func (o *overloading) tables(of func(server string, times float64) overloadOutcome) (all []report.Table) {
	for _, times := range o.loads {
		usher := of(fairness.Usher.Name, times)
		t := report.Table{
			Caption: fmt.Sprintf("%g times capacity: %.0f requests per second. Goodput within %.0f %% of usher's is a draw.", times, usher.offered, 100*overloadNoise),
			Header: []string{"server", "goodput per s", "of capacity", "against usher", "answered", "rejected", "of these < 100 ms", "timed out", "lost, refused, failed",
				"P99, ms", "wait P50, ms", "wait P99, ms", "CPU per answer, ms", "peak RSS, MiB", "sent late by, ms", "others' CPU"},
		}
		for _, c := range overloaded {
			x := of(c.Name, times)
			r := x.result
			share := func(n, of int) string {
				if of == 0 {
					return "–"
				}
				return strconv.FormatFloat(100*float64(n)/float64(of), 'f', 0, 64) + " %"
			}
			answered, total := r.Of(load.Answered), r.Total()
			row := []string{
				x.server, fmt.Sprintf("%.0f", x.goodput), fmt.Sprintf("%.0f %%", 100*x.goodput/o.capacity), verdict(x.goodput, usher.goodput, overloadNoise),
				share(answered, total), share(r.Of(load.Rejected), total), share(x.soon, r.Of(load.Rejected)), share(r.Of(load.TimedOut, load.Late), total),
				share(r.Of(load.Lost, load.Refused, load.Failed), total),
			}
			switch {
			case c.Name == fairness.Usher.Name:
				row[3] = ""
			case max(x.others, usher.others) >= disturbing:
				row[3] = "disturbed"
			}
			if answered == 0 {
				row = append(row, "–", "–", "–", "–")
			} else {
				cpu := "–"
				if x.cpu > 0 {
					cpu = fmt.Sprintf("%.1f", ms(x.cpu)/float64(answered))
				}
				row = append(row, wholeMS(x.p99()), wholeMS(rank(x.waits, 50)), wholeMS(rank(x.waits, 99)), cpu)
			}
			rss := "–"
			if x.peakRSS > 0 {
				rss = strconv.FormatInt(x.peakRSS>>20, 10)
			}
			others := "–"
			if x.others >= 0 {
				others = fmt.Sprintf("%.0f %%", 100*x.others)
			}
			t.Rows = append(t.Rows, append(row, rss, wholeMS(r.Behind), others))
		}
		all = append(all, t)
	}
	return all
}
