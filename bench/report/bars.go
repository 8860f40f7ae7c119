package report

import (
	"cmp"
	"fmt"
	"html"
	"math"
	"slices"
	"strconv"
)

const (
	barHeight = 13
	barStep   = 19
	inset     = 6   // of what stands on a band
	maxGutter = 0.4 // of the width, for what stands before bars
)

// labels returns those of all bars, in the order in which they first come.
func (b *Bars) labels() (all []string) {
	for _, g := range b.Groups {
		for _, bar := range g.Bars {
			if !slices.Contains(all, bar.Label) {
				all = append(all, bar.Label)
			}
		}
	}
	return all
}

// letter returns the i-th: A, B, and so on, then A2.
func letter(i int) string {
	s := string(rune('A' + i%26))
	if i >= 26 {
		s += strconv.Itoa(i/26 + 1)
	}
	return s
}

// empty says whether no bar of the group can be drawn.
func (g Group) empty() bool {
	return !slices.ContainsFunc(g.Bars, func(b Bar) bool { return isNumber(b.Value) })
}

// text returns what stands at the end of a bar.
func (b *Bars) text(bar Bar) string {
	switch {
	case isNumber(bar.Value):
		return withUnit(formatValue(bar.Value), b.Unit)
	case bar.Note != "":
		return ""
	}
	return "no value"
}

// scale returns the axis, without its places, and its ticks.
func (b *Bars) scale(n int) (scale, []float64) {
	lo, hi := 0.0, 0.0
	if b.Log {
		lo = math.Inf(1)
	}
	take := func(v float64) {
		if isNumber(v) && (!b.Log || v > 0) {
			lo, hi = min(lo, v), max(hi, v)
		}
	}
	for _, g := range b.Groups {
		for _, bar := range g.Bars {
			take(bar.Value)
		}
	}
	for _, m := range b.Marks {
		take(m.Value)
	}
	switch {
	case b.Log && hi == 0:
		return logScale(1, 10, n, false)
	case b.Log:
		// The shortest bar is to be seen.
		s, ticks := logScale(lo/1.25, hi, n, false)
		for len(ticks) > 1 && ticks[len(ticks)-1] > hi*(1+1e-9) {
			ticks = ticks[:len(ticks)-1]
		}
		s.hi = max(hi, ticks[len(ticks)-1])
		return s, ticks
	}
	return linearScale(lo, hi, n, true)
}

// draw draws the bars.
func (b *Bars) draw(d *drawing) {
	labels := b.labels()
	d.lines(0, "title", b.Title, titleSize, 20)
	// Labels that there is no place for stand in the legend, and letters in
	// their place.
	short := slices.Clone(labels)
	legend := slices.Clone(labels)
	if len(labels) > 1 && inset+widest(textSize, labels...)+8 > maxGutter*d.width {
		for i := range labels {
			short[i] = letter(i)
			legend[i] = short[i] + ": " + labels[i]
		}
	}
	if len(labels) > 1 {
		var entries []legendEntry
		for i, label := range legend {
			entries = append(entries, legendEntry{label, func(x, y float64) {
				d.add(`<rect x="%s" y="%s" width="%d" height="%d" rx="2" class="f%d"/>`, px(x), px(y-11), sampleWidth, barHeight, i%colours)
			}})
		}
		d.legend(entries)
	}

	// A group of one bar has its name beside that, if there is place.
	var names []string
	single := len(labels) <= 1
	for _, g := range b.Groups {
		names = append(names, g.Name)
		single = single && len(g.Bars) == 1
	}
	beside := single && inset+widest(textSize, names...)+8 <= maxGutter*d.width
	gutter := widest(textSize, short...)
	switch {
	case beside:
		gutter = widest(textSize, names...)
	case single:
		gutter = 0
	}
	gutter += inset + 8

	end := 0.0
	for _, g := range b.Groups {
		for _, bar := range g.Bars {
			end = max(end, textWidth(b.text(bar), textSize))
		}
	}
	s, ticks := b.scale(d.ticks)
	s.from, s.to = gutter, max(d.width-end-12, gutter+0.3*d.width)

	d.y += 4
	if b.YLabel != "" {
		d.lines(0, "soft", b.YLabel, textSize, lineStep)
	}
	tops := d.marksAbove(b.Marks, s)
	d.y += 6
	top := d.y
	zero := s.from
	if !s.log {
		zero = s.at(0)
	}
	for _, g := range b.Groups {
		began := d.y
		d.lit = g.Focus
		if !beside {
			d.lines(inset, "name halo", g.Name, textSize*boldness, lineStep)
			d.y += 3
		}
		top := d.y
		bars := g.Bars
		if g.empty() {
			// One line says so.
			nothing := Bar{Value: None}
			for _, bar := range bars {
				nothing.Note = cmp.Or(nothing.Note, bar.Note)
			}
			bars = []Bar{nothing}
		}
		for _, bar := range bars {
			i := slices.Index(labels, bar.Label)
			label := ""
			switch {
			case beside:
				label = g.Name
			case !single && i >= 0:
				label = short[i]
			}
			b.drawBar(d, s, bar, label, i)
		}
		d.on(grid, func() { d.line(zero, top, zero, d.y, "axis") })
		d.y += 5
		if g.Focus {
			d.on(bands, func() {
				d.add(`<rect x="0" y="%s" width="%s" height="%s" rx="4" class="band"/>`, px(began), px(d.width), px(d.y-began))
			})
		}
		d.lit = false
		if !beside {
			d.y += 4
		}
	}
	if len(b.Groups) == 0 {
		d.y += 40
		d.text((s.from+s.to)/2, d.y-14, "middle", "soft halo", "no data")
	}
	d.on(grid, func() {
		for _, t := range ticks {
			d.line(s.at(t), top, s.at(t), d.y, "grid")
		}
		for i, m := range b.Marks {
			d.line(s.at(m.Value), tops[i], s.at(m.Value), d.y, "mark")
		}
	})
	d.axisBelow(s, ticks, b.XLabel, b.Unit)
}

func (b *Bars) drawBar(d *drawing, s scale, bar Bar, label string, colour int) {
	middle := d.y + barStep/2.0
	base := middle + 4.5
	d.text(s.from-8, base, "end", "halo", label)
	x := s.from
	if isNumber(bar.Value) && (bar.Value > 0 || !s.log) {
		from, to := s.from, s.at(bar.Value)
		if !s.log {
			from = s.at(0)
		}
		x = max(from, to)
		if from != to {
			d.add(`<rect x="%s" y="%s" width="%s" height="%d" rx="2" class="f%d"><title>%s</title></rect>`,
				px(min(from, to)), px(middle-barHeight/2.0), px(math.Abs(to-from)), barHeight, max(colour, 0)%colours,
				html.EscapeString(fmt.Sprintf("%s: %s", bar.Label, b.text(bar))))
		}
	}
	text := b.text(bar)
	class := "halo"
	if !isNumber(bar.Value) {
		class = "soft halo"
	}
	d.text(x+6, base, "start", class, text)
	d.y += barStep
	if bar.Note == "" {
		return
	}
	// Behind the value if there is place for it, else below the bar.
	behind := x + 6
	if text != "" {
		behind += textWidth(text, textSize) + 6
	}
	if behind+textWidth(bar.Note, textSize) <= d.width {
		d.text(behind, base, "start", "soft halo", bar.Note)
		return
	}
	d.y -= 3
	d.lines(s.from+inset, "soft halo", bar.Note, textSize, lineStep-2)
	d.y += 6
}

// axisBelow writes the ticks of an axis from left to right, and its label.
func (d *drawing) axisBelow(s scale, ticks []float64, label, unit string) {
	d.y += lineStep
	taken := math.Inf(-1)
	for _, t := range ticks {
		text := formatTick(t)
		w := textWidth(text, textSize)
		x := min(max(s.at(t), w/2), d.width-w/2)
		if x-w/2 < taken+6 {
			continue // there is no place for it
		}
		taken = x + w/2
		d.text(x, d.y, "middle", "soft", text)
	}
	for _, line := range wrap(axisLabel(label, unit, s.log), d.width, textSize) {
		d.y += lineStep
		// Below the middle of the axis, and whole.
		half := textWidth(line, textSize) / 2
		d.text(min(max((s.from+s.to)/2, half), max(half, d.width-half)), d.y, "middle", "soft", line)
	}
}

// axisLabel returns what stands beside an axis.
func axisLabel(label, unit string, log bool) string {
	switch {
	case label == "":
		label = unit
	case unit != "":
		label += ", " + unit
	}
	if log {
		label += " (logarithmic)"
	}
	return label
}
