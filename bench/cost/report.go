package main

import (
	"fmt"
	"io"
	"strings"
	"time"

	"github.com/seed-235859eb/usher/bench/report"
)

// heading begins the result of a section, and prints it.
func (l *lab) heading(title string) {
	name, text, _ := strings.Cut(title, ": ")
	l.page.Sections = append(l.page.Sections, report.Section{Title: sentence(name), Text: sentence(text) + "."})
	fmt.Fprintf(l.out, "%s\n%s, %s\n\n", title, time.Now().UTC().Format("2006-01-02 15:04 UTC"), l.about)
}

// sentence begins text with a capital.
func sentence(text string) string { return strings.ToUpper(text[:1]) + text[1:] }

// section is the one that was begun last.
func (l *lab) section() *report.Section { return &l.page.Sections[len(l.page.Sections)-1] }

// table prints lines of cells that are separated by tabs, the first of which
// is the header.
func (l *lab) table(write func(w io.Writer)) {
	var lines strings.Builder
	write(&lines)
	var t report.Table
	for line := range strings.Lines(lines.String()) {
		cells := strings.Split(strings.TrimSuffix(line, "\n"), "\t")
		if t.Header == nil {
			t.Header = cells
		} else {
			t.Rows = append(t.Rows, cells)
		}
	}
	l.section().Tables = append(l.section().Tables, t)
	fmt.Fprintln(l.out, t.Text())
}

// say prints a sentence. It ends a section if more is false.
func (l *lab) say(more bool, format string, args ...any) {
	text := fmt.Sprintf(format, args...)
	l.section().Text += "\n\n" + sentence(text) + "."
	fmt.Fprintf(l.out, "%s\n\n", text)
	if !more {
		fmt.Fprintln(l.out)
	}
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
// to the first.
func (l *lab) printComparison(all []contestant, c comparison, u unit) {
	l.table(func(w io.Writer) {
		fmt.Fprintf(w, "\t%s\t%s\tload generator's share of CPU\n", u.rate, u.cost)
		for i := range all {
			total := sum(c.of(i))
			share := float64(total.generator) / float64(total.generator+total.cpu)
			fmt.Fprintf(w, "%s\t%.2f\t%.3f\t%.0f%%\n", all[i].name, total.rate()/u.perRate, total.cost()/u.perCost, 100*share)
		}
	})
	l.say(true, "others used %.0f%% of the CPUs meanwhile", 100*max(0, c.foreign()))
	l.table(func(w io.Writer) {
		fmt.Fprintf(w, "ratio to %s\tmedian of %d pairs\tmin\tq1\tq3\tmax\tratio of sums\n", all[0].name, len(c))
		for i := 1; i < len(all); i++ {
			for _, q := range []struct {
				name string
				of   func(sample) float64
			}{{"throughput", sample.rate}, {"CPU", sample.cost}} {
				ratio, lo, hi := ratioOfSums(c.of(i), c.of(0), q.of)
				fmt.Fprintf(w, "%s: %s\t%v\t%.4f (95%%: %.4f to %.4f)\n", all[i].name, q.name,
					spreadOf(paired(c.of(i), c.of(0), q.of)), ratio, lo, hi)
			}
		}
	})
}
