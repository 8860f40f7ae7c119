package main

import (
	"fmt"
	"io"
	"text/tabwriter"
	"time"
)

// heading begins the result of a section.
func (l *lab) heading(title string) {
	fmt.Fprintf(l.out, "%s\n%s, %s\n\n", title, time.Now().UTC().Format("2006-01-02 15:04 UTC"), l.about)
}

// table writes rows of cells that are separated by tabs.
func (l *lab) table(write func(w io.Writer)) {
	w := tabwriter.NewWriter(l.out, 0, 0, 3, ' ', 0)
	write(w)
	w.Flush()
	fmt.Fprintln(l.out)
}

// atMost says how a figure that lies between lo and hi compares with its
// budget. To miss one is a result, not an error: figures depend on the machine.
func atMost(budget, figure, lo, hi float64) string {
	switch {
	case hi <= budget:
		return "met"
	case figure <= budget:
		return "met, but not beyond the noise"
	case lo <= budget:
		return "missed, but not beyond the noise"
	default:
		return "MISSED"
	}
}

// atLeast is atMost for a figure that should be high.
func atLeast(budget, figure, lo, hi float64) string {
	return atMost(-budget, -figure, -hi, -lo)
}

// A unit says how amounts of work are printed.
type unit struct {
	rate, cost string  // column headings
	perRate    float64 // units in one of rate
	perCost    float64 // cost in nanoseconds per unit, in one of cost
}

// printComparison prints the absolute figures of each server, and its ratios
// to the bare one.
func (l *lab) printComparison(c comparison, u unit) {
	l.table(func(w io.Writer) {
		fmt.Fprintf(w, "\t%s\t%s\tload generator's share of CPU\n", u.rate, u.cost)
		for i, name := range contestantNames {
			total := sum(c.of(i))
			share := float64(total.generator) / float64(total.generator+total.cpu)
			fmt.Fprintf(w, "%s\t%.2f\t%.3f\t%.0f%%\n", name, total.rate()/u.perRate, total.cost()/u.perCost, 100*share)
		}
	})
	fmt.Fprintf(l.out, "others used %.0f%% of the CPUs meanwhile\n\n", 100*max(0, c.foreign()))
	l.table(func(w io.Writer) {
		fmt.Fprintf(w, "ratio to bare\tmedian of %d pairs\tmin\tq1\tq3\tmax\tratio of sums\n", len(c))
		for _, i := range []int{ushers, control} {
			for _, q := range []struct {
				name string
				of   func(sample) float64
			}{{"throughput", sample.rate}, {"CPU", sample.cost}} {
				ratio, lo, hi := ratioOfSums(c.of(i), c.of(bare), q.of)
				fmt.Fprintf(w, "%s: %s\t%v\t%.4f (95%%: %.4f to %.4f)\n", contestantNames[i], q.name,
					spreadOf(paired(c.of(i), c.of(bare), q.of)), ratio, lo, hi)
			}
		}
	})
}
