package main

import (
	"context"
	"fmt"
	"slices"
	"strconv"
	"sync"
	"sync/atomic"
	"time"

	"github.com/seed-235859eb/usher/bench/fairness"
	"github.com/seed-235859eb/usher/bench/load"
	"github.com/seed-235859eb/usher/bench/report"
	"github.com/seed-235859eb/usher/bench/usage"
)

// The case of Router 2.0 and Puma: what hey -c 10 -n 200 asked, of a handler
// that lags.
const (
	starveClients = 10
	starveSlots   = 5
	starveRounds  = 40 // of requests on all slots: 200 requests
	// floodStreams are on one connection, beside the others.
	floodStreams = 100
	floodRounds  = 100
	// starveNoise is the part by which the P99 of equals differ, on a quiet
	// machine and on one that others use, too.
	starveNoise, starveDisturbed = 0.1, 1.0
	// disturbing is the part of the CPUs' time from which on others on the
	// machine spoil a figure.
	disturbing = 0.1
)

// A starvation is one server, and what its clients saw.
type starvation struct {
	name    string
	focus   bool
	missing string // why it was left out, and what to do
	start   func(ctx context.Context) (addr string, pid int, stop func(), err error)
	mode    load.Mode
	http2   bool // it speaks HTTP/2
	limited bool // and has a limit to compare

	alone, beside seen
}

// seen is what HTTP/1 clients saw.
type seen struct {
	clients []clientSeen
	flood   int // answers that the HTTP/2 connection had while they were there
}

// A clientSeen is what one of them saw.
type clientSeen struct {
	waits   []time.Duration // of the requests that were answered
	others  int             // requests of which that is not true
	longest time.Duration   // of all
}

// starving are the servers.
func starving(ctx context.Context, sleep time.Duration) (all []*starvation, versions []string) {
	limits := fairness.Limits{Slots: starveSlots, MaxQueue: 10_000, MaxWait: time.Minute}
	add := func(name string, c fairness.Contender, limits fairness.Limits) {
		spec := fairness.Spec{Contender: c.Name, Limits: limits, Sleep: sleep, HTTP2: true}
		all = append(all, &starvation{
			name: name, mode: load.KeepAlive, http2: true, limited: c.Limits, focus: c.Name == fairness.Usher.Name,
			start: func(context.Context) (string, int, func(), error) {
				p, err := fairness.Start(spec)
				if err != nil {
					return "", 0, nil, err
				}
				return p.Addr, p.PID, p.Stop, nil
			},
		})
	}
	puma := func(name string, mode load.Mode, missing string) {
		all = append(all, &starvation{name: name, mode: mode, limited: true, missing: missing, start: func(ctx context.Context) (string, int, func(), error) {
			p, stop, err := startPuma(ctx, sleepyRack(sleep), fmt.Sprintf("threads %d, %d", starveSlots, starveSlots))
			if err != nil {
				return "", 0, nil, err
			}
			return p.Addr, p.PID, stop, nil
		}})
	}
	add("net/http (no limit)", fairness.Bare, limits)
	version, err := pumaVersion(ctx)
	missing := ""
	if err != nil {
		missing = fmt.Sprintf("%v: %s", err, pumaHint)
	} else {
		version = " " + version
		versions = append(versions, "Puma"+version)
	}
	puma("Puma"+version, load.KeepAlive, missing)
	puma("Puma"+version+", keep-alive off", load.PerRequest, missing)
	add("netutil.LimitListener", fairness.LimitListener, limits)
	add("x/sync/semaphore", fairness.Semaphore, limits)
	add("chi ThrottleBacklog", fairness.Throttle, limits)
	add("failsafe-go Bulkhead", fairness.Bulkhead, limits)
	for _, limits.MaxInline = range []int{1, 10} {
		name := fmt.Sprintf("usher, MaxInline %d", limits.MaxInline)
		if limits.MaxInline == 1 {
			name = "usher (MaxInline 1)"
		}
		add(name, fairness.Usher, limits)
	}
	return all, versions
}

// runStarvation has clients keep connections that there are too few slots for.
func runStarvation(ctx context.Context, opt options) (*report.Page, error) {
	s, err := measureStarvation(ctx, opt)
	if err != nil {
		return nil, err
	}
	return s.page(ctx), nil
}

// starvations are what all servers did.
type starvations struct {
	all                        []*starvation
	versions                   []string
	sleep, length, floodLength time.Duration
	others                     float64 // part of the CPUs' time that others used; -1 if that is not known
}

// ideal is how long each request takes if all are treated alike.
func (s *starvations) ideal() time.Duration { return s.sleep * starveClients / starveSlots }

func measureStarvation(ctx context.Context, opt options) (*starvations, error) {
	sleep, rounds, flood := 200*time.Millisecond, starveRounds, floodRounds
	if opt.Short {
		sleep, rounds, flood = 50*time.Millisecond, 20, 30
	}
	length := time.Duration(rounds) * sleep
	floodLength := time.Duration(flood) * sleep
	all, versions := starving(ctx, sleep)

	// They run beside each other: handlers sleep, so that the machine does, too.
	logf(opt.Log, "starvation: %d clients on %d slots for %v, then for %v with an HTTP/2 connection of %d streams beside %d of them\n",
		starveClients, starveSlots, length, floodLength, floodStreams, starveClients-1)
	watch := usage.NewWatch()
	var measured atomic.Int64 // CPU time of the servers
	errs := make(chan error, len(all))
	var wg sync.WaitGroup
	for _, s := range all {
		if s.missing != "" {
			logf(opt.Log, "starvation: %s is left out: %s\n", s.name, s.missing)
			continue
		}
		wg.Go(func() {
			addr, pid, stop, err := s.start(ctx)
			if err != nil {
				errs <- err
				return
			}
			defer stop()
			defer func() {
				cpu, _ := usage.CPUTime(pid)
				measured.Add(int64(cpu))
			}()
			if s.alone, err = starve(ctx, addr, s.mode, starveClients, 0, length); err != nil {
				errs <- fmt.Errorf("%s: %w", s.name, err)
				return
			}
			if !s.http2 {
				return
			}
			if s.beside, err = starve(ctx, addr, s.mode, starveClients-1, floodStreams, floodLength); err != nil {
				errs <- fmt.Errorf("%s, flood: %w", s.name, err)
			}
		})
	}
	wg.Wait()
	select {
	case err := <-errs:
		return nil, err
	default:
	}
	if err := ctx.Err(); err != nil {
		return nil, err
	}
	return &starvations{all, versions, sleep, length, floodLength, watch.Others(time.Duration(measured.Load()))}, nil
}

// starve asks for so long. Clients are loops of their own, so that each is
// known by what it saw.
func starve(ctx context.Context, addr string, mode load.Mode, clients, streams int, length time.Duration) (seen, error) {
	s := seen{clients: make([]clientSeen, clients)}
	began := time.Now()
	var wg sync.WaitGroup
	errs := make(chan error, clients+1)
	run := func(c load.Closed) {
		c.Addr, c.Duration, c.GoOn = addr, length, true
		if _, err := c.Run(ctx); err != nil {
			errs <- err
		}
	}
	if streams > 0 {
		wg.Go(func() {
			var mu sync.Mutex
			run(load.Closed{Server: load.Server{HTTP2: true}, Clients: 1, Streams: streams, Each: func(x *load.Exchange, o load.Outcome) {
				mu.Lock()
				defer mu.Unlock()
				if o == load.Answered && x.Ended.Before(began.Add(length)) {
					s.flood++
				}
			}})
		})
		// It is there first: it has filled the queue when the others come.
		time.Sleep(50 * time.Millisecond)
	}
	for i := range s.clients {
		client := &s.clients[i]
		wg.Go(func() {
			run(load.Closed{Clients: 1, Mode: mode, Each: func(x *load.Exchange, o load.Outcome) {
				// One after the other: it is one client.
				took := x.Ended.Sub(x.Began)
				client.longest = max(client.longest, took)
				if o == load.Answered {
					client.waits = append(client.waits, took)
				} else {
					client.others++
				}
			}})
		})
	}
	wg.Wait()
	select {
	case err := <-errs:
		return s, err
	default:
		return s, nil
	}
}

// all returns how long each request took that was answered, sorted.
func (s seen) all() (waits []time.Duration) {
	for _, c := range s.clients {
		waits = append(waits, c.waits...)
	}
	slices.Sort(waits)
	return waits
}

// unanswered is the number of requests without an answer.
func (s seen) unanswered() (n int) {
	for _, c := range s.clients {
		n += c.others
	}
	return n
}

// best returns the client with the most answers, worst that with the fewest,
// or of these the one that waited longest.
func (s seen) best() clientSeen  { return slices.MinFunc(s.clients, compareLuck) }
func (s seen) worst() clientSeen { return slices.MaxFunc(s.clients, compareLuck) }

func compareLuck(a, b clientSeen) int {
	if n := len(b.waits) - len(a.waits); n != 0 {
		return n
	}
	return int(a.longest - b.longest)
}

func (c clientSeen) String() string {
	if len(c.waits) == 0 {
		return "0 answers"
	}
	var sum time.Duration
	for _, w := range c.waits {
		sum += w
	}
	return fmt.Sprintf("%d × %s", len(c.waits), count(int(ms(sum)/float64(len(c.waits))+.5)))
}

// page shows what came of it.
func (s *starvations) page(ctx context.Context) *report.Page {
	all, ideal := s.all, s.ideal()
	p := &report.Page{
		Title: "Keep-alive starvation",
		Lead: fmt.Sprintf("%d keep-alive connections ask a server that has %d slots, and a handler that sleeps for %s: the case of Heroku's Router 2.0 and Puma. "+
			"Each has one request under way at a time. Fair is %s for every request: its turn, and that of the one before it. "+
			"All servers run at the same time, each as a process of its own; they and their clients sleep most of the time.\n\n"+
			"For HTTP/1 a plain semaphore in the handler is fair, whoever makes it, and usher draws with it. They part where one connection brings many requests: HTTP/2.",
			starveClients, starveSlots, millis(s.sleep), millis(ideal)),
		Versions: append(peerVersions(ctx), s.versions...),
	}
	usher := all[slices.IndexFunc(all, func(s *starvation) bool { return s.focus })]
	bars := func(s *starvation, what seen) report.Group {
		g := report.Group{Name: s.name, Focus: s.focus}
		waits := what.all()
		for _, q := range []float64{50, 95, 99} {
			b := report.Bar{Label: fmt.Sprintf("P%g", q), Value: report.None}
			switch {
			case s.missing != "":
				b.Note = "left out: " + s.missing
			case len(waits) > 0:
				b.Value = float64(rank(waits, q)) / float64(time.Millisecond)
			}
			g.Bars = append(g.Bars, b)
		}
		return g
	}
	noise := starveNoise
	if s.others >= disturbing {
		noise = starveDisturbed
		p.Lead += fmt.Sprintf("\n\nOthers used %.0f %% of the CPUs meanwhile, so that all times are less exact, and one less than twice another is a draw.", 100*s.others)
	}
	row := func(s *starvation, what, ushers seen, more ...string) []string {
		cells := []string{s.name}
		waits := what.all()
		for _, q := range percentiles {
			if len(waits) == 0 {
				cells = append(cells, "–")
			} else {
				cells = append(cells, wholeMS(rank(waits, q)))
			}
		}
		if s.missing != "" {
			return append(cells, "left out: "+s.missing)
		}
		cells = append(cells, what.best().String(), what.worst().String())
		switch {
		case s.focus:
			cells = append(cells, "")
		case !s.limited:
			cells = append(cells, "no limit")
		default:
			cells = append(cells, verdictOfTime(rank(waits, 99), rank(ushers.all(), 99), noise))
		}
		return append(cells, more...)
	}
	header := []string{"server", "P50", "P90", "P95", "P99", "max", "luckiest connection", "slowest connection", "P99 against usher"}

	alone := report.Section{
		Title: "Ten connections on five slots",
		Text: fmt.Sprintf("For %s, in which five slots have time for %d requests. Look at how far P99 is from P50: all requests are alike, so what lies between is unfairness.",
			seconds(s.length), int(s.length/s.sleep)*starveSlots),
	}
	plot := &report.Bars{
		Title: "Time from request to answer, ten connections on five slots", XLabel: "time", YLabel: "server", Unit: "ms",
		Log: true, Marks: []report.Mark{{Value: ms(ideal), Label: "fair"}},
	}
	table := report.Table{Caption: "Time from request to answer in ms. A connection: its answers × their mean.", Header: append(slices.Clone(header), "unanswered")}
	beside := report.Section{
		Title: fmt.Sprintf("An HTTP/2 connection with %d streams beside nine HTTP/1 clients", floodStreams),
		Text: fmt.Sprintf("For %s. The nine are what is measured. Each stream asks again when it has been answered; the connection is one of ten, so that its fair share is a tenth of the answers, and the nine wait %s as before.",
			seconds(s.floodLength), millis(ideal)),
	}
	besidePlot := &report.Bars{
		Title: "The same, for nine HTTP/1 clients beside a flood over HTTP/2", XLabel: "time", YLabel: "server", Unit: "ms",
		Log: true, Marks: []report.Mark{{Value: ms(ideal), Label: "fair"}},
	}
	besideTable := report.Table{Caption: "Time from request to answer of the nine in ms, and the share of all answers that went to the flood (fair: 10 %).", Header: append(slices.Clone(header), "flood's share")}
	for _, s := range all {
		plot.Groups = append(plot.Groups, bars(s, s.alone))
		table.Rows = append(table.Rows, row(s, s.alone, usher.alone, strconv.Itoa(s.alone.unanswered())))
		if !s.http2 {
			continue
		}
		besidePlot.Groups = append(besidePlot.Groups, bars(s, s.beside))
		answers := len(s.beside.all()) + s.beside.flood
		besideTable.Rows = append(besideTable.Rows, row(s, s.beside, usher.beside, fmt.Sprintf("%.0f %%", 100*float64(s.beside.flood)/float64(max(answers, 1)))))
	}
	alone.Plots = []report.Plot{{Bars: plot, See: "Puma lets a connection go on for ten requests before it looks at who waits: one request in ten or so takes ten turns. " +
		"LimitListener gives five connections everything, and the others wait until those leave. Bars of one length are fair ones. usher's MaxInline 10 lets a connection go on, too, if its next request is already there. net/http has no limit, and is there for comparison."}}
	alone.Tables = []report.Table{table}
	beside.Plots = []report.Plot{{Bars: besidePlot, See: "A queue of requests, however fair, is a queue behind a hundred streams of one connection. usher seats connections: the nine wait as if the flood were one of them."}}
	beside.Tables = []report.Table{besideTable}
	p.Sections = []report.Section{alone, beside}
	return p
}
