package main

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/seed-235859eb/usher/bench/load"
	"github.com/seed-235859eb/usher/bench/report"
	"github.com/seed-235859eb/usher/internal/process"
)

const (
	crashWorkers = 4
	crashEvery   = 200 * time.Millisecond
	// crashKills stays below what usher/prefork takes for a crash loop: five a
	// minute for each worker. fasthttp/prefork gives up after two in its life;
	// the lab turns that off.
	crashKills   = 15
	crashRate    = 500 // requests per second, each on a connection of its own
	crashTimeout = 5 * time.Second
	// hungConns wait when the worker that hangs is killed, hungFor after.
	hungConns = 200
	hungFor   = 500 * time.Millisecond
	// crashBehind is how late requests may be sent for figures to count, if
	// there is a better try among crashTries.
	crashBehind = 50 * time.Millisecond
	crashTries  = 3
	// orphanClients are busy when the master is killed.
	orphanClients = 32
)

// A crasher is a master with workers that are killed.
type crasher struct {
	name    string
	focus   bool
	missing string
	start   func(ctx context.Context) (*process.Process, error)
	workers *regexp.Regexp // a line of a worker that is ready; its last group is the PID

	calm, killed load.Result
	kills        int
	hung         load.Result
	masterless   map[load.Mode]*orphaned
}

// killing is what clients saw of one server.
type killing struct {
	calm, killed *load.Result
	kills        int
}

// behind is how late requests were sent, at most: the machine had other things
// to do.
func (k killing) behind() time.Duration { return max(k.calm.Behind, k.killed.Behind) }

// orphaned is what became of workers without a master, and of their clients.
type orphaned struct {
	load.Result
	left  time.Duration // at most, from the master's death to the last worker's end
	never int           // times that workers did not end
}

func crashers(w *workshop) []*crasher {
	fast := func(kind string) func(context.Context) (*process.Process, error) {
		return func(ctx context.Context) (*process.Process, error) {
			return w.startChild(ctx, childSpec{Kind: kind, Workers: crashWorkers})
		}
	}
	all := []*crasher{
		{name: "fasthttp/prefork, Reuseport", start: fast(fastHTTPPrefork), workers: workerListens},
		{name: "fasthttp/prefork, one socket", start: fast(fastHTTPShared), workers: workerListens},
		{name: "Puma cluster", missing: w.noPuma, start: func(ctx context.Context) (*process.Process, error) {
			p, _, err := w.startPuma(ctx, pumaSpec{workers: crashWorkers})
			return p, err
		}, workers: pumaBooted},
		{name: "usher/prefork", focus: true, start: func(ctx context.Context) (*process.Process, error) {
			return w.startWorkers(ctx, w.server, crashWorkers)
		}, workers: workerListens},
	}
	if w.prefork != nil {
		all[len(all)-1].missing = w.prefork.Error()
	}
	for _, c := range all {
		c.masterless = make(map[load.Mode]*orphaned)
	}
	return all
}

var crashModes = []load.Mode{load.PerRequest, load.KeepAlive}

// runCrash kills workers, and then the master, under load.
func runCrash(ctx context.Context, opt options) (page *report.Page, err error) {
	if errNoSignals != nil {
		return nil, errNoSignals
	}
	rounds, kills := 2, crashKills
	if opt.Short {
		rounds, kills = 1, 5
	}
	if opt.Stops > 0 {
		rounds = opt.Stops
	}
	w, err := openWorkshop(ctx)
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, w.close()) }()
	all := crashers(w)
	for _, c := range all {
		if c.missing != "" {
			logf(opt.Log, "crash: %s is left out: %s\n", c.name, c.missing)
		}
	}
	for n := range rounds {
		for _, c := range all {
			if c.missing != "" {
				continue
			}
			began := time.Now()
			if err := c.round(ctx, kills, crashTries, opt.Log); err != nil {
				return nil, fmt.Errorf("%s: %w", c.name, err)
			}
			logf(opt.Log, "crash: round %d of %d: %s, %v\n", n+1, rounds, c.name, time.Since(began).Round(100*time.Millisecond))
		}
	}
	return crashPage(all, w, rounds, kills), nil
}

// round does everything once, each with a new server.
func (c *crasher) round(ctx context.Context, kills, tries int, log io.Writer) error {
	var best killing
	for n := range tries {
		k, err := c.killWorkers(ctx, kills)
		if err != nil {
			return fmt.Errorf("workers: %w", err)
		}
		if n == 0 || k.behind() < best.behind() {
			best = k
		}
		if best.behind() <= crashBehind {
			break
		}
		logf(log, "crash: %s: the generator did not get the CPU for %v\n", c.name, k.behind().Round(time.Millisecond))
	}
	c.calm.Add(best.calm)
	c.killed.Add(best.killed)
	c.kills += best.kills
	if err := c.killHung(ctx); err != nil {
		return fmt.Errorf("a worker that hangs: %w", err)
	}
	for _, m := range crashModes {
		if err := c.killMaster(ctx, m); err != nil {
			return fmt.Errorf("the master: %w", err)
		}
	}
	return nil
}

// pids returns those of workers that were ready at some time.
func (c *crasher) pids(p *process.Process) (pids []int) {
	for _, m := range p.Matches(c.workers) {
		if pid, err := strconv.Atoi(m[len(m)-1]); err == nil {
			pids = append(pids, pid)
		}
	}
	return pids
}

// signalWorker sends a signal to a worker, by its id.
func signalWorker(pid int, sig os.Signal) error {
	worker, err := os.FindProcess(pid)
	if err != nil {
		return err
	}
	defer worker.Release()
	return worker.Signal(sig)
}

func crashLoad(addr string, length time.Duration) load.Open {
	return load.Open{
		Server: load.Server{Addr: addr}, Rate: crashRate, PerRequest: true,
		Duration: length, Timeout: crashTimeout, Bound: time.Second,
	}
}

// killWorkers puts load on the server, first with nobody killed, and then with
// a random worker killed each time that crashEvery is over, if there is one.
func (c *crasher) killWorkers(ctx context.Context, kills int) (k killing, err error) {
	p, err := c.start(ctx)
	if err != nil {
		return k, err
	}
	defer p.Kill()
	length := crashEvery * time.Duration(kills)
	if k.calm, err = crashLoad(p.Addr, length/2).Run(ctx); err != nil {
		return k, err
	}
	over := make(chan struct{})
	var wg sync.WaitGroup
	wg.Go(func() {
		tick := time.NewTicker(crashEvery)
		defer tick.Stop()
		dead := make(map[int]bool)
		for n := 0; n < kills; {
			select {
			case <-tick.C:
				n++
			case <-over:
				return
			}
			live := slices.DeleteFunc(c.pids(p), func(pid int) bool { return dead[pid] })
			if len(live) == 0 {
				continue
			}
			pid := live[rand.IntN(len(live))]
			dead[pid] = true
			if signalWorker(pid, os.Kill) == nil {
				k.kills++
			}
		}
	})
	// A bit longer, so that what the last crash does is seen.
	k.killed, err = crashLoad(p.Addr, length+crashEvery).Run(ctx)
	close(over)
	wg.Wait()
	return k, cmp.Or(err, context.Cause(ctx))
}

// killHung has one worker do nothing any more, sends requests of which its
// socket gets a share, and kills it.
func (c *crasher) killHung(ctx context.Context) error {
	p, err := c.start(ctx)
	if err != nil {
		return err
	}
	defer p.Kill()
	pid := c.pids(p)[0]
	if err := hang(ctx, pid); err != nil {
		return err
	}
	killed := time.AfterFunc(hungFor, func() { signalWorker(pid, os.Kill) })
	defer killed.Stop()
	r, err := load.Burst{Server: load.Server{Addr: p.Addr}, Requests: hungConns, Timeout: crashTimeout, Bound: time.Second}.Run(ctx)
	if err != nil {
		return err
	}
	c.hung.Add(r)
	return context.Cause(ctx)
}

// killMaster kills the master while clients are busy, which go on until they
// are refused, or lose a request.
func (c *crasher) killMaster(ctx context.Context, m load.Mode) error {
	p, err := c.start(ctx)
	if err != nil {
		return err
	}
	defer p.Kill()
	const patience = 10 * time.Second
	death := time.Now().Add(300 * time.Millisecond)
	killed := time.AfterFunc(time.Until(death), func() { p.Signal(os.Kill) })
	defer killed.Stop()
	r, err := load.Closed{
		Server: load.Server{Addr: p.Addr}, Clients: orphanClients, Mode: m,
		Duration: patience, Timeout: crashTimeout, Bound: time.Second,
	}.Run(ctx)
	if err != nil {
		return err
	}
	o := c.masterless[m]
	if o == nil {
		o = new(orphaned)
		c.masterless[m] = o
	}
	o.Add(r)
	timer := time.NewTimer(time.Until(death.Add(patience)))
	defer timer.Stop()
	select {
	case <-p.Ended():
		o.left = max(o.left, p.Gone().Sub(death))
	case <-timer.C:
		o.never++
	case <-ctx.Done():
		return context.Cause(ctx)
	}
	return nil
}

// crashPage shows it.
func crashPage(all []*crasher, w *workshop, rounds, kills int) *report.Page {
	all, out := leaveOut(all, func(c *crasher) (string, string) { return c.name, c.missing })
	page := &report.Page{
		Title: "Crash: workers are killed under load",
		Lead: fmt.Sprintf("A master with %d workers. A request is lost if its connection was established, or in use, and no whole response came back; "+
			"what runs in a worker that is killed is lost with every server. What can be kept is what waits in a queue, and whoever comes next. "+
			"usher/prefork spaces out the restarts of a seat that crashes again and again, and gives up after %d crashes in a minute; fasthttp/prefork gives up after two in its life, which was turned off here.",
			crashWorkers, 5*crashWorkers),
		Versions: append(report.Versions(context.Background(), "github.com/valyala/fasthttp"), w.versions...),
	}
	page.Lead += out
	us := func(r *load.Result, percent float64) string {
		if r.FirstByte.TotalCount() == 0 {
			return "–"
		}
		return fmt.Sprintf("%.1f ms", ms(load.Quantile(r.FirstByte, percent)))
	}
	header := func(more ...string) []string {
		return slices.Concat([]string{"server"}, outcomeNames(), more)
	}

	workers := report.Section{
		Title: fmt.Sprintf("kill -9 of a random worker every %s", millis(crashEvery)),
		Text: fmt.Sprintf("%d requests per second, each with a connection of its own, %d times %d workers killed. The times are those from the beginning of connect to the first byte of the response. "+
			"usher/prefork starts the worker of a seat again at once after its first crash, after about 0.25 s the next time, then 0.5 s and so on, but at once while fewer than half of the seats have a worker. The last column is how late the generator was: what is large there disturbed the times.", crashRate, rounds, kills),
	}
	quantiles := []string{"P50", "P99", "longest"}
	calm := report.Table{Caption: "Nobody is killed", Header: header("P50", "P99", "longest", "sent late by ≤")}
	killed := report.Table{Caption: "Workers are killed", Header: header("killed", "P50", "P99", "longest", "sent late by ≤")}
	bars := &report.Bars{Title: "Connect to first byte while workers are killed", XLabel: "time", Unit: "ms", Log: true}
	hung := report.Section{
		Title: "A worker hangs, and is killed",
		Text:  fmt.Sprintf("One of the workers is stopped (SIGSTOP), %d connections are made with a request on each, and after %s the worker is killed. Those that were in its own queue are reset with it; a queue that others hold, too, is served by them.", hungConns, millis(hungFor)),
	}
	hungTable := report.Table{Caption: fmt.Sprintf("%d connections, %s", hungConns, times(rounds)), Header: header("P50", "longest wait")}
	masters := report.Section{
		Title: "The master is killed",
		Text:  fmt.Sprintf("kill -9 of the master, with %d clients that go on until they are refused or lose a request. Nobody starts it again here; what is to be seen is whether workers see their requests through, and leave.", orphanClients),
	}
	for _, c := range all {
		calm.Rows = append(calm.Rows, slices.Concat([]string{c.name}, fatesOf(&c.calm), []string{us(&c.calm, 50), us(&c.calm, 99), us(&c.calm, 100), millis(c.calm.Behind)}))
		killed.Rows = append(killed.Rows, slices.Concat([]string{c.name}, fatesOf(&c.killed), []string{count(c.kills), us(&c.killed, 50), us(&c.killed, 99), us(&c.killed, 100), millis(c.killed.Behind)}))
		group := report.Group{Name: c.name, Focus: c.focus}
		for i, percent := range []float64{50, 99, 100} {
			group.Bars = append(group.Bars, report.Bar{Label: quantiles[i], Value: ms(load.Quantile(c.killed.FirstByte, percent))})
		}
		bars.Groups = append(bars.Groups, group)
		hungTable.Rows = append(hungTable.Rows, slices.Concat([]string{c.name}, fatesOf(&c.hung), []string{us(&c.hung, 50), us(&c.hung, 100)}))
	}
	workers.Tables = []report.Table{killed, calm}
	workers.Plots = []report.Plot{{See: "A long bar is a client that waited for a worker that was not there.", Bars: bars}}
	hung.Tables = []report.Table{hungTable}
	for _, m := range crashModes {
		t := report.Table{Caption: m.String(), Header: header("last process gone after")}
		for _, c := range all {
			o := c.masterless[m]
			left := millis(o.left)
			if o.never > 0 {
				left = fmt.Sprintf("%s not in 10 s", times(o.never))
			}
			t.Rows = append(t.Rows, slices.Concat([]string{c.name}, fatesOf(&o.Result), []string{left}))
		}
		masters.Tables = append(masters.Tables, t)
	}
	workers.Text += betterThanUsher(all, func(c *crasher) *load.Result { return &c.killed })
	hung.Text += betterThanUsher(all, func(c *crasher) *load.Result { return &c.hung })
	page.Sections = []report.Section{workers, hung, masters}
	return page
}

// betterThanUsher says whose longest wait is less than usher's.
func betterThanUsher(all []*crasher, of func(*crasher) *load.Result) string {
	longest := func(c *crasher) time.Duration { return load.Quantile(of(c).FirstByte, 100) }
	i := slices.IndexFunc(all, func(c *crasher) bool { return c.focus })
	if i < 0 {
		return ""
	}
	var better []string
	for _, c := range all {
		if c.focus || longest(c) >= longest(all[i]) {
			continue
		}
		text := c.name + ", " + millis(longest(c))
		if lost := of(c).Of(load.Lost); lost > of(all[i]).Of(load.Lost) {
			text += fmt.Sprintf(", with %s lost", count(lost))
		}
		better = append(better, text)
	}
	if len(better) == 0 {
		return ""
	}
	return fmt.Sprintf(" The longest wait for usher/prefork is %s. Shorter: %s.", millis(longest(all[i])), strings.Join(better, "; "))
}
