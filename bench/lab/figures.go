package main

import (
	"context"
	"fmt"
	"io"
	"math"
	"strconv"
	"strings"
	"time"

	"github.com/seed-235859eb/usher/bench/fairness"
	"github.com/seed-235859eb/usher/bench/load"
	"github.com/seed-235859eb/usher/bench/report"
)

// percentiles are those of the tables.
var percentiles = []float64{50, 90, 95, 99, 100}

// rank returns a percentile of sorted durations: the least that is not less
// than so many of them.
func rank(sorted []time.Duration, p float64) time.Duration {
	if len(sorted) == 0 {
		return 0
	}
	i := int(math.Ceil(float64(len(sorted))*p/100-1e-9)) - 1
	return sorted[min(max(i, 0), len(sorted)-1)]
}

// ms is a duration as plots have it.
func ms(d time.Duration) float64 { return float64(d) / float64(time.Millisecond) }

// count writes a whole number.
func count(n int) string {
	s := strconv.Itoa(n)
	for i := len(s) - 3; i > 0 && s[i-1] != '-'; i -= 3 {
		s = s[:i] + "," + s[i:]
	}
	return s
}

// wholeMS writes a duration in milliseconds, without the unit.
func wholeMS(d time.Duration) string { return count(int(math.Round(ms(d)))) }

// millis is wholeMS with the unit.
func millis(d time.Duration) string { return wholeMS(d) + " ms" }

// seconds writes a duration for a text.
func seconds(d time.Duration) string { return fmt.Sprintf("%g s", d.Seconds()) }

// leaveOut returns all but those that lack what they need, and a paragraph that
// says who that is.
func leaveOut[T any](all []T, missing func(T) (name, why string)) (rest []T, note string) {
	var out []string
	for _, x := range all {
		if name, why := missing(x); why != "" {
			out = append(out, name+" ("+why+")")
		} else {
			rest = append(rest, x)
		}
	}
	if len(out) > 0 {
		note = "\n\nLeft out: " + strings.Join(out, "; ") + "."
	}
	return rest, note
}

// outcomeNames are the columns of what became of requests, and fatesOf their
// values.
func outcomeNames() (names []string) {
	for _, o := range load.Outcomes {
		names = append(names, o.String())
	}
	return names
}

func fatesOf(r *load.Result) (row []string) {
	for _, o := range load.Outcomes {
		row = append(row, count(r.Of(o)))
	}
	return row
}

// verdict compares a figure with usher's, where more is better. Within noise,
// a part of it, they draw.
func verdict(theirs, ushers, noise float64) string {
	if ushers == 0 {
		return "–"
	}
	part := theirs/ushers - 1
	percent := fmt.Sprintf("%+.0f %%", 100*part)
	switch {
	case math.Abs(part) <= noise:
		return "draws, " + percent
	case part > 0:
		return "wins, " + percent
	}
	return "loses, " + percent
}

// verdictOfTime compares a time with usher's, where less is better.
func verdictOfTime(theirs, ushers time.Duration, noise float64) string {
	if theirs == 0 || ushers == 0 {
		return "–"
	}
	times := float64(theirs) / float64(ushers)
	switch {
	case math.Abs(times-1) <= noise:
		return "draws"
	case times < 1:
		return fmt.Sprintf("wins, %.2g×", times)
	}
	return fmt.Sprintf("loses, %.2g×", times)
}

// peerVersions are those of what package fairness compares.
func peerVersions(ctx context.Context) []string {
	var modules []string
	for _, c := range fairness.Contenders {
		modules = append(modules, c.Module)
	}
	return report.Versions(ctx, modules...)
}

// logf tells how far an experiment has come.
func logf(w io.Writer, format string, args ...any) {
	if w != nil {
		fmt.Fprintf(w, format, args...)
	}
}
