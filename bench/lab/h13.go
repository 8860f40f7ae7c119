package main

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"github.com/seed-235859eb/usher/bench/load"
	"github.com/seed-235859eb/usher/bench/report"
	"github.com/seed-235859eb/usher/internal/process"
)

// Times of this experiment. They are far above what a stop of this load takes,
// so that what runs into them hangs.
const (
	h13Late    = time.Second      // an answer after more than that is late
	h13Timeout = 10 * time.Second // of a client
	h13Stop    = 15 * time.Second // of a server, then it is killed
	// h13Warm is how long clients have to be answered often enough, before the
	// signal is sent all the same.
	h13Warm = 3 * time.Second
)

// A stopper is a server that is told to stop.
type stopper struct {
	name    string
	focus   bool
	missing string // why it is left out
	// start starts it; term has its first request send the signal.
	start  func(ctx context.Context, term bool) (*process.Process, error)
	noTerm bool // there is no handler of one's own that could

	bursts map[int]*stopped
	modes  map[load.Mode]*stopped
}

// stopped is what became of servers and their clients.
type stopped struct {
	load.Result
	took    []time.Duration // from the signal to the last process's end
	killed  int
	refusal time.Duration // the longest that a client waited to be refused
}

// stoppers are all servers, plain ones first and usher last.
func stoppers(w *workshop, clients int) []*stopper {
	var all []*stopper
	add := func(name, missing string, start func(ctx context.Context, term bool) (*process.Process, error)) *stopper {
		s := &stopper{
			name: name, missing: missing, start: start, focus: strings.HasPrefix(name, "usher"),
			bursts: make(map[int]*stopped), modes: make(map[load.Mode]*stopped),
		}
		all = append(all, s)
		return s
	}
	usher := func(args ...string) func(context.Context, bool) (*process.Process, error) {
		return func(ctx context.Context, term bool) (*process.Process, error) {
			if term {
				return w.startUsher(ctx, append(slices.Clip(args), "-term-on-first-request")...)
			}
			return w.startUsher(ctx, args...)
		}
	}
	child := func(spec childSpec) func(context.Context, bool) (*process.Process, error) {
		return func(ctx context.Context, term bool) (*process.Process, error) {
			spec := spec
			spec.Term = term
			return w.startChild(ctx, spec)
		}
	}
	limit := max(1, clients/2)
	add("http.Server.Shutdown", "", usher("-bare"))
	add(fmt.Sprintf("… behind LimitListener(%d)", limit), "", child(childSpec{Kind: limitListener, Limit: limit}))
	add("fasthttp Shutdown", "", child(childSpec{Kind: fastHTTP}))
	for _, p := range []pumaSpec{{}, {drain: true}, {workers: 2}, {workers: 2, drain: true}} {
		name := "Puma single"
		if p.workers > 0 {
			name = fmt.Sprintf("Puma cluster of %d", p.workers)
		}
		if p.drain {
			name += ", drain_on_shutdown"
		}
		add(name, w.noPuma, func(ctx context.Context, term bool) (*process.Process, error) {
			p := p
			p.term = term
			server, _, err := w.startPuma(ctx, p)
			return server, err
		})
	}
	add("Caddy", w.noCaddy, func(ctx context.Context, _ bool) (*process.Process, error) { return w.startCaddy(ctx) }).noTerm = true
	add("usher", "", usher())
	add(fmt.Sprintf("usher, MaxConns %d", limit), "", usher("-max-conns", fmt.Sprint(limit)))
	noPrefork := ""
	if w.prefork != nil {
		noPrefork = w.prefork.Error()
	}
	add("usher/prefork, 4 workers", noPrefork, func(ctx context.Context, term bool) (*process.Process, error) {
		if term {
			return w.startWorkers(ctx, w.server, 4, "-term-on-first-request")
		}
		return w.startWorkers(ctx, w.server, 4)
	})
	return all
}

// runH13 stops servers while requests keep coming.
func runH13(ctx context.Context, opt options) (page *report.Page, err error) {
	if errNoSignals != nil {
		return nil, errNoSignals
	}
	stops, clients, modes, bursts := 1, 96, load.Modes, []burst{{20, 3}, {200, 1}}
	if opt.Short {
		stops, clients, modes, bursts = 1, 32, []load.Mode{load.PerRequest, load.KeepAlive}, []burst{{20, 1}}
	}
	if opt.Stops > 0 {
		stops = opt.Stops
	}
	if opt.Clients > 0 {
		clients = opt.Clients
	}
	w, err := openWorkshop(ctx)
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, w.close()) }()
	all := stoppers(w, clients)
	for _, s := range all {
		if s.missing != "" {
			logf(opt.Log, "h13: %s is left out: %s\n", s.name, s.missing)
		}
	}
	// One after the other, and again: what changes on the machine meanwhile
	// changes for all.
	for n := range stops {
		for _, s := range all {
			if s.missing != "" {
				continue
			}
			began := time.Now()
			if err := s.round(ctx, clients, modes, bursts); err != nil {
				return nil, fmt.Errorf("%s: %w", s.name, err)
			}
			logf(opt.Log, "h13: stop %d of %d: %s, %v\n", n+1, stops, s.name, time.Since(began).Round(100*time.Millisecond))
		}
	}
	return h13Page(all, w, stops, clients, modes, bursts), nil
}

// A burst is so many requests at once, in a round several times: what becomes
// of few depends on chance.
type burst struct{ requests, times int }

// round stops the server for each burst and mode.
func (s *stopper) round(ctx context.Context, clients int, modes []load.Mode, bursts []burst) error {
	for _, b := range bursts {
		for range b.times {
			if s.noTerm {
				continue
			}
			if err := s.stopBurst(ctx, b.requests); err != nil {
				return fmt.Errorf("%d requests at once: %w", b.requests, err)
			}
		}
	}
	for _, m := range modes {
		if err := s.stopUnderLoad(ctx, m, clients); err != nil {
			return fmt.Errorf("%v: %w", m, err)
		}
	}
	return nil
}

// stopBurst is the story's own case: the first of n requests stops the server.
func (s *stopper) stopBurst(ctx context.Context, n int) error {
	p, err := s.start(ctx, true)
	if err != nil {
		return err
	}
	defer p.Kill()
	var mu sync.Mutex
	var began time.Time // of the first request
	r, err := load.Burst{
		Server: load.Server{Addr: p.Addr}, Requests: n, Timeout: h13Timeout, Bound: h13Late,
		Each: func(x *load.Exchange, _ load.Outcome) {
			mu.Lock()
			defer mu.Unlock()
			if began.IsZero() || x.Began.Before(began) {
				began = x.Began
			}
		},
	}.Run(ctx)
	if err != nil {
		return err
	}
	if s.bursts[n] == nil {
		s.bursts[n] = new(stopped)
	}
	return s.bursts[n].add(ctx, r, p, began, 0)
}

// stopUnderLoad sends SIGTERM at a random moment after each client could have
// been answered.
func (s *stopper) stopUnderLoad(ctx context.Context, m load.Mode, clients int) error {
	p, err := s.start(ctx, false)
	if err != nil {
		return err
	}
	defer p.Kill()
	var (
		answers atomic.Int64
		refusal atomic.Int64
		at      atomic.Int64 // when the signal was sent, since began
	)
	after := int64(clients + rand.IntN(8*clients))
	began := time.Now()
	stop := func() {
		if at.CompareAndSwap(0, int64(time.Since(began))) {
			p.Signal(syscall.SIGTERM)
		}
	}
	defer time.AfterFunc(h13Warm, stop).Stop()
	r, err := load.Closed{
		Server: load.Server{Addr: p.Addr}, Clients: clients, Mode: m,
		Duration: h13Warm + h13Stop, Timeout: h13Timeout, Bound: h13Late,
		Each: func(x *load.Exchange, o load.Outcome) {
			switch {
			case o == load.Answered && answers.Add(1) == after:
				stop()
			case o == load.Refused:
				took := int64(x.Ended.Sub(x.Began))
				for old := refusal.Load(); took > old && !refusal.CompareAndSwap(old, took); old = refusal.Load() {
				}
			}
		},
	}.Run(ctx)
	if err != nil {
		return err
	}
	stop() // no client is left, for whatever reason
	if s.modes[m] == nil {
		s.modes[m] = new(stopped)
	}
	return s.modes[m].add(ctx, r, p, began.Add(time.Duration(at.Load())), time.Duration(refusal.Load()))
}

// add waits for the server's end, and counts.
func (st *stopped) add(ctx context.Context, r *load.Result, p *process.Process, signalled time.Time, refusal time.Duration) error {
	timer := time.NewTimer(time.Until(signalled.Add(h13Stop)))
	defer timer.Stop()
	select {
	case <-p.Ended():
		st.took = append(st.took, p.Gone().Sub(signalled))
	case <-timer.C:
		st.killed++
	case <-ctx.Done():
		return context.Cause(ctx)
	}
	st.Result.Add(r)
	st.refusal = max(st.refusal, refusal)
	return nil
}

// h13Page shows it.
func h13Page(all []*stopper, w *workshop, stops, clients int, modes []load.Mode, bursts []burst) *report.Page {
	page := &report.Page{
		Title: "H13: a server is told to stop while requests keep coming",
		Lead: fmt.Sprintf("Each server got SIGTERM %s for each kind of client, with %d clients that never retry. "+
			"A request is lost if its connection was established, or in use, and no whole response came back. "+
			"Refused is a connect that was answered by a reset: a router sends that request elsewhere, and nothing is lost. "+
			"A client stops at the first request that is refused or lost. "+
			"Late is an answer after more than %s. Clients give up after %s, and a server that has not ended %s after the signal is killed.",
			times(stops), clients, seconds(h13Late), seconds(h13Timeout), seconds(h13Stop)),
		Versions: append(report.Versions(context.Background(), "github.com/valyala/fasthttp", "golang.org/x/net"), w.versions...),
	}
	all, out := leaveOut(all, func(s *stopper) (string, string) { return s.name, s.missing })
	page.Lead += out

	story := report.Section{
		Title: "The story's own case",
		Text:  "A handler sends SIGTERM to its master, if there is one, and to its own process, on the first of many requests that arrive at once. All connections were established before: none can be refused, and what is not answered is lost.",
	}
	for _, b := range bursts {
		caption := fmt.Sprintf("%d requests at once, %s", b.requests, times(stops*b.times))
		story.Tables = append(story.Tables, h13Table(caption, all, false, func(s *stopper) *stopped { return s.bursts[b.requests] }))
	}
	page.Sections = append(page.Sections, story)

	summary := report.Section{
		Title: "Lost under load",
		Text:  h13Summary(all, modes),
		Tables: []report.Table{{
			Caption: fmt.Sprintf("Requests lost in %s, %d clients. What clients gave up on is in it.", plural(stops, "stop"), clients),
			Header:  append([]string{"server"}, modeNames(modes)...),
		}},
		Plots: []report.Plot{{
			See: "A bar is how many requests one stop loses, on average.",
			Bars: &report.Bars{
				Title: "Requests lost at each stop", XLabel: "requests lost", Unit: "",
			},
		}},
	}
	for _, s := range all {
		row := []string{s.name}
		group := report.Group{Name: s.name, Focus: s.focus}
		for _, m := range modes {
			lost := s.modes[m].Of(load.Lost, load.TimedOut)
			row = append(row, count(lost))
			group.Bars = append(group.Bars, report.Bar{Label: m.String(), Value: float64(lost) / float64(stops)})
		}
		summary.Tables[0].Rows = append(summary.Tables[0].Rows, row)
		summary.Plots[0].Bars.Groups = append(summary.Plots[0].Bars.Groups, group)
	}
	page.Sections = append(page.Sections, summary)

	fates := report.Section{
		Title: "What became of each request, and how long a stop took",
		Text:  h13Quicker(all) + " Every request is in one column. The wait of those that are refused is part of what a stop costs: while usher's gate is shut, a new client's handshake goes unanswered, and its system tries again after a second.",
	}
	for _, m := range modes {
		fates.Tables = append(fates.Tables, h13Table(m.String(), all, true, func(s *stopper) *stopped { return s.modes[m] }))
	}
	page.Sections = append(page.Sections, fates)
	return page
}

// h13Table has the same columns for all servers.
func h13Table(caption string, all []*stopper, connects bool, of func(*stopper) *stopped) report.Table {
	t := report.Table{Caption: caption, Header: append([]string{"server"}, outcomeNames()...)}
	if connects {
		t.Header = append(t.Header, "refused after ≤")
	}
	t.Header = append(t.Header, "time to stop, median", "longest")
	for _, s := range all {
		st := of(s)
		row := []string{s.name}
		if st == nil {
			for range len(t.Header) - 1 {
				row = append(row, "–")
			}
			t.Rows = append(t.Rows, row)
			continue
		}
		row = append(row, fatesOf(&st.Result)...)
		if connects {
			row = append(row, dash(st.Of(load.Refused) == 0, millis(st.refusal)))
		}
		slices.Sort(st.took)
		longest := dash(len(st.took) == 0, millis(rank(st.took, 100)))
		if st.killed > 0 {
			longest = fmt.Sprintf("%s never", times(st.killed))
		}
		t.Rows = append(t.Rows, append(row, dash(len(st.took) == 0, millis(rank(st.took, 50))), longest))
	}
	return t
}

// h13Summary says who loses nothing, and who is quicker than usher.
func h13Summary(all []*stopper, modes []load.Mode) string {
	var none, some []string
	for _, s := range all {
		lost := 0
		for _, m := range modes {
			lost += s.modes[m].Of(load.Lost, load.TimedOut)
		}
		if lost == 0 {
			none = append(none, s.name)
		} else {
			some = append(some, fmt.Sprintf("%s (%s)", s.name, count(lost)))
		}
	}
	if len(none) == 0 {
		none = []string{"nobody"}
	}
	text := "Lost nothing: " + strings.Join(none, "; ") + "."
	if len(some) > 0 {
		text += " Lost requests: " + strings.Join(some, "; ") + "."
	}
	return text
}

// h13Quicker says whose stops take less time than usher's.
func h13Quicker(all []*stopper) string {
	median := func(s *stopper) time.Duration {
		var took []time.Duration
		for _, st := range s.modes {
			took = append(took, st.took...)
			for range st.killed {
				took = append(took, h13Stop)
			}
		}
		slices.Sort(took)
		return rank(took, 50)
	}
	var ushers time.Duration
	for _, s := range all {
		if s.name == "usher" {
			ushers = median(s)
		}
	}
	var quicker []string
	for _, s := range all {
		if !s.focus && median(s) < ushers {
			quicker = append(quicker, fmt.Sprintf("%s (%s)", s.name, millis(median(s))))
		}
	}
	if len(quicker) == 0 {
		return fmt.Sprintf("Nobody stops sooner than usher, which takes %s at the median.", millis(ushers))
	}
	return fmt.Sprintf("usher takes %s to stop, at the median: it waits for handshakes under way. These stop sooner: %s.", millis(ushers), strings.Join(quicker, "; "))
}

func modeNames(modes []load.Mode) (names []string) {
	for _, m := range modes {
		names = append(names, m.String())
	}
	return names
}

func dash(is bool, s string) string {
	if is {
		return "–"
	}
	return s
}

func times(n int) string {
	switch n {
	case 1:
		return "once"
	case 2:
		return "twice"
	}
	return fmt.Sprintf("%d times", n)
}

func plural(n int, what string) string {
	if n == 1 {
		return "1 " + what
	}
	return fmt.Sprintf("%d %ss", n, what)
}
