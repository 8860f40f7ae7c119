package main

import (
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/seed-235859eb/usher/bench/fairness"
	"github.com/seed-235859eb/usher/bench/report"
)

// TestMain makes the test's binary a server when it is started as one.
func TestMain(m *testing.M) {
	fairness.ServeIfChild()
	serveIfChild()
	os.Exit(m.Run())
}

func TestParse(t *testing.T) {
	for _, test := range []struct{ args, names, err string }{
		{"h13", "h13", ""},
		{"-short starvation -out /tmp/x crash -stops 3", "starvation crash", ""},
		{"all", "h13 starvation stale-code crash rolls overload limiter", ""},
		{"results", "", ""},
		{"", "", "which experiment"},
		{"-short", "", "which experiment"},
		{"h14", "", `"h14"`},
		{"h13 -stops -1", "", "must not be negative"},
		{"h13 -timeout soon", "", "bad flags"},
		{"h13 -timeout 0s", "", "must be positive"},
		{"h13 -nonsense", "", "bad flags"},
	} {
		cmd, err := parse(strings.Fields(test.args), io.Discard)
		switch {
		case test.err == "" && err != nil, test.err != "" && (err == nil || !strings.Contains(err.Error(), test.err)):
			t.Errorf("%q: error %v, want %q", test.args, err, test.err)
		case err == nil && strings.Join(cmd.names, " ") != test.names:
			t.Errorf("%q: experiments %q, want %s", test.args, cmd.names, test.names)
		}
	}
}

// TestStarvation is the incident. It wants usher fair, and the others to show
// that unfairness would be seen. A machine that is busy with other things can
// make anybody wait: once in three is enough.
func TestStarvation(t *testing.T) {
	const takes = 3
	for take := range takes {
		s, err := measureStarvation(t.Context(), options{Short: true})
		if err != nil {
			t.Fatal(err)
		}
		text := s.page(t.Context()).Text()
		for _, one := range s.all {
			if !strings.Contains(text, "\n"+one.name+" ") {
				t.Fatalf("the page has no line for %s", one.name)
			}
		}
		faults := s.faults()
		if len(faults) == 0 {
			return
		}
		t.Logf("take %d: %q", take+1, faults)
	}
	t.Errorf("not as it should be, %d times", takes)
}

// faults are what TestStarvation does not want.
func (s *starvations) faults() (all []string) {
	fault := func(format string, args ...any) { all = append(all, fmt.Sprintf(format, args...)) }
	alone := func(s *starvation) seen { return s.alone }
	beside := func(s *starvation) seen { return s.beside }
	percentile := func(name string, of func(*starvation) seen, p float64) time.Duration {
		what := of(s.all[slices.IndexFunc(s.all, func(s *starvation) bool { return s.name == name })])
		if n := what.unanswered(); n > 0 {
			fault("%s: %d requests were not answered", name, n)
		}
		return rank(what.all(), p)
	}
	const usher, semaphore, listener = "usher (MaxInline 1)", "x/sync/semaphore", "netutil.LimitListener"
	// A semaphore says how much longer all wait on a busy machine.
	fair := max(s.ideal(), percentile(semaphore, alone, 90))
	if got := percentile(usher, alone, 90); got > fair*3/2 {
		fault("ten connections on usher: P90 is %v, fair is %v", got, fair)
	}
	if got := percentile(usher, beside, 90); got > fair*3/2 {
		fault("nine clients beside a flood on usher: P90 is %v, fair is %v", got, fair)
	}
	if got := percentile(listener, alone, 100); got < s.length {
		fault("ten connections on LimitListener: the longest took %v; five were to wait for the end, for %v", got, s.length)
	}
	if got := percentile(semaphore, beside, 50); got < 5*s.ideal() {
		fault("nine clients beside a flood on a semaphore: P50 is %v; a queue of a hundred takes longer", got)
	}
	return all
}

func TestOverload(t *testing.T) {
	if testing.Short() {
		t.Skip("takes twenty seconds")
	}
	page, err := runOverload(t.Context(), options{Short: true})
	if err != nil {
		t.Fatal(err)
	}
	if text := page.Text(); strings.Contains(text, "NaN") {
		t.Errorf("the page has no number somewhere:\n%s", text)
	}
}

func TestResults(t *testing.T) {
	out, dir := t.TempDir(), t.TempDir()
	if err := writeResults(out, dir); err == nil {
		t.Error("results of nothing")
	}
	for _, p := range []*report.Page{
		{Name: "overload", Title: "Overload", Command: "run this"},
		{Name: "h13", Title: "H13: stop!", Sections: []report.Section{{Plots: []report.Plot{{Lines: &report.Lines{Title: "plot"}}}}}},
		{Name: "h13-short", Title: "not this"},
	} {
		if err := p.Save(out); err != nil {
			t.Fatal(err)
		}
	}
	stale := filepath.Join(dir, "results", "h13-7.svg")
	os.Mkdir(filepath.Dir(stale), 0o777)
	os.WriteFile(stale, nil, 0o666)
	if err := writeResults(out, dir); err != nil {
		t.Fatal(err)
	}
	text, err := os.ReadFile(filepath.Join(dir, "RESULTS.md"))
	if err != nil {
		t.Fatal(err)
	}
	h13, overload := strings.Index(string(text), "## H13: stop!"), strings.Index(string(text), "## Overload")
	if h13 < 0 || overload < h13 || !strings.Contains(string(text), "[H13: stop!](#h13-stop)") || strings.Contains(string(text), "not this") {
		t.Errorf("RESULTS.md is\n%s", text)
	}
	if _, err := os.Stat(filepath.Join(dir, "results", "h13-1.svg")); err != nil {
		t.Error(err)
	}
	if _, err := os.Stat(stale); err == nil {
		t.Error("a plot that is no longer shown is left")
	}
}

func TestFigures(t *testing.T) {
	var hundred []time.Duration
	for i := range 100 {
		hundred = append(hundred, time.Duration(i+1))
	}
	for p, want := range map[float64]time.Duration{0: 1, 50: 50, 99: 99, 99.5: 100, 100: 100} {
		if got := rank(hundred, p); got != want {
			t.Errorf("P%g of 1 to 100 is %d", p, got)
		}
	}
	if rank(nil, 99) != 0 {
		t.Error("there is a P99 of nothing")
	}
	for n, want := range map[int]string{0: "0", 999: "999", 1000: "1,000", -1234567: "-1,234,567", -123: "-123"} {
		if got := count(n); got != want {
			t.Errorf("count(%d) = %s", n, got)
		}
	}
	for _, test := range []struct {
		theirs, ushers float64
		want           string
	}{{105, 100, "draws, +5 %"}, {150, 100, "wins, +50 %"}, {20, 100, "loses, -80 %"}, {1, 0, "–"}} {
		if got := verdict(test.theirs, test.ushers, .1); got != test.want {
			t.Errorf("verdict(%g, %g) = %s, want %s", test.theirs, test.ushers, got, test.want)
		}
	}
	if got := verdictOfTime(300, 100, .1); got != "loses, 3×" {
		t.Errorf("three times as long: %s", got)
	}
}

func TestParseBenchmarks(t *testing.T) {
	r := parseBenchmarks([]byte(`goos: linux
BenchmarkHandOff/usher-2   1000   900 ns/op   0 B/op   0 allocs/op
BenchmarkHandOff/usher-2   1000   1100 ns/op   0 B/op   0 allocs/op
BenchmarkHandOff/none   1000   1.5 ns/op
BenchmarkHandOff/chi-2   1000   800 ns/op   93.5 %contended
PASS
`))
	if got := r.median("HandOff/usher", "ns/op"); got != 1000 {
		t.Errorf("the median of 900 and 1100 is %g", got)
	}
	if got := r["HandOff/chi"]["%contended"]; len(got) != 1 || got[0] != 93.5 {
		t.Errorf("%%contended is %v", got)
	}
	if got := strings.Join(r.names("HandOff/"), " "); got != "HandOff/none HandOff/usher HandOff/chi" {
		t.Errorf("names are %s", got)
	}
}
