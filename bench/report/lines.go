package report

import (
	"cmp"
	"fmt"
	"html"
	"math"
	"slices"
	"strings"
)

// dashes tell lines apart without their colours, as markers do.
var dashes = []string{"", "7 4", "2 4", "10 4 2 4", "14 5", "5 3 1 3"}

// marker draws the marker of a series. A hollow one stands for a value that
// the scale cannot show.
func (d *drawing) marker(i int, x, y float64, hollow bool, title string) {
	class := fmt.Sprintf("f%d s%d", i%colours, i%colours)
	if hollow {
		class += " hollow"
	}
	inner := ""
	if title != "" {
		inner = "<title>" + html.EscapeString(title) + "</title>"
	}
	const r = 4
	path := func(points ...float64) {
		var b strings.Builder
		for k := 0; k < len(points); k += 2 {
			fmt.Fprintf(&b, "%s,%s ", px(x+points[k]), px(y+points[k+1]))
		}
		d.add(`<polygon points="%s" class="%s">%s</polygon>`, strings.TrimSpace(b.String()), class, inner)
	}
	switch i % 6 {
	case 0:
		d.add(`<circle cx="%s" cy="%s" r="%d" class="%s">%s</circle>`, px(x), px(y), r, class, inner)
	case 1:
		path(-r, -r, r, -r, r, r, -r, r)
	case 2:
		path(0, -r-1, r+1, r, -r-1, r)
	case 3:
		path(0, -r-1.5, r+1.5, 0, 0, r+1.5, -r-1.5, 0)
	case 4:
		path(0, r+1, r+1, -r, -r-1, -r)
	case 5:
		path(-1.5, -r-1, 1.5, -r-1, 1.5, -1.5, r+1, -1.5, r+1, 1.5, 1.5, 1.5, 1.5, r+1, -1.5, r+1, -1.5, 1.5, -r-1, 1.5, -r-1, -1.5, -1.5, -1.5)
	}
}

// look returns the number of the looks of series i: those that the plot is
// about have the first, so that it is the same in all plots.
func (l *Lines) look(i int) (n int) {
	for k, s := range l.Series {
		if s.Focus == l.Series[i].Focus && k < i || s.Focus && !l.Series[i].Focus {
			n++
		}
	}
	return n
}

// stroke returns the attributes of a line of series i.
func (l *Lines) stroke(i int) string {
	look := l.look(i)
	class := fmt.Sprintf("series s%d", look%colours)
	if l.Series[i].Focus {
		class += " strong"
	}
	attributes := `class="` + class + `"`
	// With the second round of colours the dashes are others.
	if dash := dashes[(look+look/colours)%len(dashes)]; dash != "" {
		attributes += ` stroke-dasharray="` + dash + `"`
	}
	return attributes
}

// scales returns both axes, without their places, and their ticks.
func (l *Lines) scales(xTicks, yTicks int) (x, y scale, atX, atY []float64) {
	bounds := func(log bool, each func(take func(float64))) (lo, hi float64) {
		lo, hi = math.Inf(1), math.Inf(-1)
		each(func(v float64) {
			if isNumber(v) && (!log || v > 0) {
				lo, hi = min(lo, v), max(hi, v)
			}
		})
		switch {
		case lo > hi && log:
			return 1, 10
		case lo > hi:
			return 0, 1
		}
		return lo, hi
	}
	xLo, xHi := bounds(l.LogX, func(take func(float64)) {
		for _, s := range l.Series {
			for _, p := range s.Points {
				take(p.X)
			}
		}
		for _, m := range l.XMarks {
			take(m.Value)
		}
	})
	below := false // there is what a logarithmic scale cannot show
	yLo, yHi := bounds(l.LogY, func(take func(float64)) {
		for _, s := range l.Series {
			for _, p := range s.Points {
				take(p.Y)
				below = below || p.Y <= 0
			}
		}
		for _, m := range l.YMarks {
			take(m.Value)
		}
	})
	if l.LogX {
		x, atX = logScale(xLo, xHi, xTicks, true)
	} else {
		x, atX = linearScale(xLo, xHi, xTicks, true)
	}
	if l.LogY {
		if below {
			yLo /= 1.5 // and it lies below all that is shown
		}
		y, atY = logScale(yLo, yHi, yTicks, false)
	} else {
		y, atY = linearScale(min(yLo, 0), max(yHi, 0), yTicks, false)
	}
	return x, y, atX, atY
}

// draw draws the lines.
func (l *Lines) draw(d *drawing) {
	d.lines(0, "title", l.Title, titleSize, 20)
	var entries []legendEntry
	for i, s := range l.Series {
		entries = append(entries, legendEntry{s.Name, func(x, y float64) {
			d.add(`<line x1="%s" y1="%s" x2="%s" y2="%s" %s/>`, px(x), px(y-4.5), px(x+sampleWidth), px(y-4.5), l.stroke(i))
			d.marker(l.look(i), x+sampleWidth/2, y-4.5, false, "")
		}})
	}
	if len(entries) > 0 {
		d.legend(entries)
	}

	x, y, atX, atY := l.scales(d.ticks, 6)
	var labels []string
	for _, t := range atY {
		labels = append(labels, formatTick(t))
	}
	x.from, x.to = widest(textSize, labels...)+10, d.width-10
	d.y += 6
	d.lines(0, "soft", axisLabel(l.Y.Label, l.Y.Unit, y.log), textSize, lineStep)
	tops := d.marksAbove(l.XMarks, x)
	d.y += 12
	top := d.y
	d.y += d.height
	y.from, y.to = d.y, top

	d.on(grid, func() {
		for i, t := range atY {
			d.line(x.from, y.at(t), x.to, y.at(t), "grid")
			d.text(x.from-8, y.at(t)+4.5, "end", "soft", labels[i])
		}
		for _, t := range atX {
			d.line(x.at(t), top, x.at(t), d.y, "grid")
		}
		for i, m := range l.XMarks {
			d.line(x.at(m.Value), tops[i], x.at(m.Value), d.y, "mark")
		}
		for _, m := range l.YMarks {
			d.line(x.from, y.at(m.Value), x.to, y.at(m.Value), "mark")
		}
		d.line(x.from, d.y, x.to, d.y, "axis")
		d.line(x.from, top, x.from, d.y, "axis")
	})
	drawn := false
	for i := range l.Series {
		// The one that the plot is about lies above the others.
		if !l.Series[i].Focus {
			drawn = l.drawSeries(d, i, x, y) || drawn
		}
	}
	for i := range l.Series {
		if l.Series[i].Focus {
			drawn = l.drawSeries(d, i, x, y) || drawn
		}
	}
	if !drawn {
		d.text((x.from+x.to)/2, (y.from+y.to)/2, "middle", "soft halo", "no data")
	}
	taken := math.Inf(1)
	for _, m := range slices.SortedFunc(slices.Values(l.YMarks), func(a, b Mark) int { return cmp.Compare(a.Value, b.Value) }) {
		// From the lowest upwards, each above its line and the one before.
		at := min(y.at(m.Value)-5, taken-lineStep)
		taken = at
		d.text(x.to, at, "end", "soft halo", m.Label)
	}
	d.axisBelow(x, atX, l.X.Label, l.X.Unit)
}

// drawSeries draws one line, and says whether there was anything to draw.
func (l *Lines) drawSeries(d *drawing, i int, x, y scale) bool {
	s := l.Series[i]
	// Markers enough to tell the line from others, and not a caterpillar.
	every := max(1, len(s.Points)/12)
	var run []string
	drawn := false
	flush := func() {
		if len(run) > 1 {
			d.add(`<polyline points="%s" %s/>`, strings.Join(run, " "), l.stroke(i))
		}
		run = nil
	}
	for _, p := range s.Points {
		if !isNumber(p.X) || !isNumber(p.Y) {
			flush()
			continue
		}
		run = append(run, px(x.at(p.X))+","+px(y.at(p.Y)))
		drawn = true
	}
	flush()
	for k, p := range s.Points {
		if !isNumber(p.X) || !isNumber(p.Y) {
			continue
		}
		alone := (k == 0 || !isNumber(s.Points[k-1].Y)) && (k == len(s.Points)-1 || !isNumber(s.Points[k+1].Y))
		if k%every != 0 && !alone {
			continue
		}
		off := (y.log && p.Y <= 0) || (x.log && p.X <= 0)
		d.marker(l.look(i), x.at(p.X), y.at(p.Y), off, fmt.Sprintf("%s: %s at %s", s.Name,
			withUnit(formatValue(p.Y), l.Y.Unit), withUnit(formatValue(p.X), l.X.Unit)))
	}
	return drawn
}
