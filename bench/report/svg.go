package report

import (
	"fmt"
	"html"
	"math"
	"regexp"
	"strconv"
	"strings"
	"unicode"
)

// A size is what a plot is drawn for. Type does not shrink with the screen: a
// narrow one gets a drawing of its own.
type size struct {
	name   string
	width  float64
	height float64 // of the area of lines
	ticks  int     // on the axis from left to right
}

var (
	wide   = size{"wide", 720, 300, 8}
	narrow = size{"narrow", 344, 230, 5}
)

// Sizes of type, and the height of a line of it.
const (
	boldness  = 1.08          // how much wider bold text is
	titleSize = 15 * boldness // for its width
	textSize  = 13
	lineStep  = 18
)

// A drawing is an SVG in the making. What is drawn grows downwards from y.
type drawing struct {
	size
	y      float64
	layers [3]strings.Builder // the later above the earlier
	layer  int                // that is drawn on
	lit    bool               // what is drawn lies on a band
}

// The layers of a drawing.
const (
	bands = iota
	grid
	front
)

// px writes a length.
func px(v float64) string {
	return strconv.FormatFloat(math.Round(v*10)/10, 'f', -1, 64)
}

func (d *drawing) add(format string, args ...any) {
	fmt.Fprintf(&d.layers[d.layer], format+"\n", args...)
}

// on draws on another layer.
func (d *drawing) on(layer int, draw func()) {
	before := d.layer
	d.layer = layer
	draw()
	d.layer = before
}

// text writes s with its baseline at y. The anchor is start, middle or end.
func (d *drawing) text(x, y float64, anchor, class, s string) {
	if s == "" {
		return
	}
	if d.lit {
		class += " lit"
	}
	d.add(`<text x="%s" y="%s" text-anchor="%s" class="%s">%s</text>`, px(x), px(y), anchor, class, html.EscapeString(s))
}

func (d *drawing) line(x1, y1, x2, y2 float64, class string) {
	d.add(`<line x1="%s" y1="%s" x2="%s" y2="%s" class="%s"/>`, px(x1), px(y1), px(x2), px(y2), class)
}

// lines writes s in lines that fit between x and the right edge.
func (d *drawing) lines(x float64, class, s string, fontSize float64, step float64) {
	for _, line := range wrap(s, d.width-x, fontSize) {
		d.y += step
		d.text(x, d.y, "start", class, line)
	}
}

// svg returns the drawing as an element. Its title and description are for
// those who do not see it. Ids begin with id. A style makes it a file.
func (d *drawing) svg(id, title, desc, style string) string {
	var b strings.Builder
	margin := 0.0 // a page has its own
	if style != "" {
		margin = 16
	}
	width, height := d.width+2*margin, d.y+8+2*margin
	fmt.Fprintf(&b, `<svg xmlns="http://www.w3.org/2000/svg" viewBox="%s %s %s %s" class="plot %s" role="img" aria-labelledby="%s-t %s-d"`,
		px(-margin), px(-margin), px(width), px(height), d.name, id, id)
	if style != "" {
		fmt.Fprintf(&b, ` width="%s" height="%s"`, px(width), px(height))
	}
	fmt.Fprintf(&b, ">\n<title id=\"%s-t\">%s</title>\n<desc id=\"%s-d\">%s</desc>\n",
		id, html.EscapeString(title), id, html.EscapeString(desc))
	if style != "" {
		fmt.Fprintf(&b, "<style>%s</style>\n<rect x=\"%s\" y=\"%s\" width=\"%s\" height=\"%s\" class=\"paper\"/>\n",
			style, px(-margin), px(-margin), px(width), px(height))
	}
	for i := range d.layers {
		b.WriteString(d.layers[i].String())
	}
	b.WriteString("</svg>\n")
	return b.String()
}

// textWidth estimates the width of s, rather too wide than too narrow: which
// font there will be is not known.
func textWidth(s string, fontSize float64) float64 {
	em := 0.0
	for _, r := range s {
		switch {
		case strings.ContainsRune("iljI.,:;'|!()[]/ \u00a0", r):
			em += 0.36
		case strings.ContainsRune("mwMW%@", r):
			em += 0.95
		case r >= 0x2e80: // of East Asia, and emoji
			em += 1.1
		case unicode.IsUpper(r):
			em += 0.72
		default:
			em += 0.62
		}
	}
	return em * fontSize
}

// wrap breaks s between words into lines that are not wider than width, unless
// a word is.
func wrap(s string, width, fontSize float64) (lines []string) {
	line := ""
	// A no-break space is a space, but not for breaking.
	for word := range strings.FieldsFuncSeq(noBreak(s), func(r rune) bool { return r == ' ' || r == '\n' }) {
		longer := word
		if line != "" {
			longer = line + " " + word
		}
		if line != "" && textWidth(longer, fontSize) > width {
			lines = append(lines, line)
			longer = word
		}
		line = longer
	}
	if line != "" {
		lines = append(lines, line)
	}
	return lines
}

// amount is a number with its unit.
var amount = regexp.MustCompile(`(\d) (ms|s|%|MiB|KiB|GiB)\b`)

// noBreak keeps numbers together with their units.
func noBreak(s string) string { return amount.ReplaceAllString(s, "$1\u00a0$2") }

// widest returns the width of the widest.
func widest(fontSize float64, all ...string) (w float64) {
	for _, s := range all {
		w = max(w, textWidth(s, fontSize))
	}
	return w
}

// colours is how many there are; further ones begin again, with other dashes
// and markers.
const colours = 6

// plotStyle colours plots. The palette is Okabe and Ito's, as far as it stands
// out against the paper. Nothing is told by colour alone.
const plotStyle = `
.plot{--paper:#fff;--ink:#1d2129;--soft:#5a6270;--grid:#e3e6ea;--axis:#8b93a0;--focus:#eef4fb;` +
	`--c0:#0072b2;--c1:#c04f00;--c2:#00805e;--c3:#a8478c;--c4:#7a6300;--c5:#4b5563;background:var(--paper)}
@media(prefers-color-scheme:dark){.plot{--paper:#14171c;--ink:#e6e8eb;--soft:#a3abb8;--grid:#2b313a;--axis:#6b7480;--focus:#1c2632;` +
	`--c0:#56b4e9;--c1:#ff9b54;--c2:#3fd0a4;--c3:#e695cb;--c4:#e6d24a;--c5:#b9c0cb}}
.plot text{font:13px system-ui,-apple-system,"Segoe UI",Roboto,"Helvetica Neue",Arial,sans-serif;fill:var(--ink);font-variant-numeric:tabular-nums}
.plot .title{font-size:15px;font-weight:600}
.plot .name{font-weight:600}
.plot .soft{fill:var(--soft)}
.plot .halo{paint-order:stroke;stroke:var(--paper);stroke-width:4px;stroke-linejoin:round}
.plot .halo.lit{stroke:var(--focus)}
.plot .paper{fill:var(--paper)}
.plot .band{fill:var(--focus)}
.plot .grid{stroke:var(--grid)}
.plot .axis{stroke:var(--axis)}
.plot .mark{stroke:var(--soft);stroke-dasharray:2 3;stroke-width:1.5}
.plot .series{fill:none;stroke-width:2;stroke-linejoin:round;stroke-linecap:round}
.plot .strong{stroke-width:3.5}
.plot .hollow{fill:var(--paper)!important;stroke-width:2}
.plot .f0{fill:var(--c0)}.plot .f1{fill:var(--c1)}.plot .f2{fill:var(--c2)}.plot .f3{fill:var(--c3)}.plot .f4{fill:var(--c4)}.plot .f5{fill:var(--c5)}
.plot .s0{stroke:var(--c0)}.plot .s1{stroke:var(--c1)}.plot .s2{stroke:var(--c2)}.plot .s3{stroke:var(--c3)}.plot .s4{stroke:var(--c4)}.plot .s5{stroke:var(--c5)}
`

// draw draws the plot for a size.
func (p Plot) draw(s size) *drawing {
	d := &drawing{size: s, layer: front}
	switch {
	case p.Bars != nil:
		p.Bars.draw(d)
	case p.Lines != nil:
		p.Lines.draw(d)
	}
	return d
}

// title returns the title of what the plot is.
func (p Plot) title() string {
	switch {
	case p.Bars != nil:
		return p.Bars.Title
	case p.Lines != nil:
		return p.Lines.Title
	}
	return ""
}

// SVG returns the plot as a file of its own.
func (p Plot) SVG() string {
	return p.draw(wide).svg("plot", p.title(), p.See, plotStyle)
}

// A legendEntry is one of a legend. Its sample is drawn at the left of a
// baseline, and is sampleWidth wide.
type legendEntry struct {
	name   string
	sample func(x, y float64)
}

const sampleWidth = 30

// legend writes entries from left to right, in as many lines as they need.
func (d *drawing) legend(entries []legendEntry) {
	x := 0.0
	d.y += lineStep + 4
	for _, e := range entries {
		w := sampleWidth + 6 + textWidth(e.name, textSize)
		if x > 0 && x+w > d.width {
			x = 0
			d.y += lineStep + 2
		}
		e.sample(x, d.y)
		d.text(x+sampleWidth+6, d.y, "start", "", e.name)
		x += w + 18
	}
}

// marksAbove writes the labels of marks at their places from left to right,
// each in the first line in which it touches no other, and returns for each
// where its line begins.
func (d *drawing) marksAbove(marks []Mark, s scale) (tops []float64) {
	type span struct{ from, to float64 }
	var rows [][]span
	at := make([]int, len(marks))
	spans := make([]span, len(marks))
	for i, m := range marks {
		w := textWidth(m.Label, textSize)
		from := min(max(0, s.at(m.Value)-w/2), max(0, d.width-w))
		spans[i] = span{from, from + w}
		for at[i] = 0; at[i] < len(rows); at[i]++ {
			free := true
			for _, other := range rows[at[i]] {
				free = free && (spans[i].to+8 < other.from || other.to+8 < spans[i].from)
			}
			if free {
				break
			}
		}
		if at[i] == len(rows) {
			rows = append(rows, nil)
		}
		rows[at[i]] = append(rows[at[i]], spans[i])
	}
	for i, m := range marks {
		y := d.y + float64(at[i]+1)*lineStep
		d.text(spans[i].from, y, "start", "soft halo", m.Label)
		tops = append(tops, y+4)
	}
	d.y += float64(len(rows)) * lineStep
	return tops
}
