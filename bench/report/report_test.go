package report

import (
	"encoding/json"
	"encoding/xml"
	"errors"
	"io"
	"math"
	"path/filepath"
	"reflect"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"testing"
)

func TestSaveAndLoad(t *testing.T) {
	dir := t.TempDir()
	want := demo()
	if err := want.Save(dir); err != nil {
		t.Fatal(err)
	}
	got, err := Load(filepath.Join(dir, "demo.json"))
	if err != nil {
		t.Fatal(err)
	}
	// NaN differs from itself: what matters is what is shown.
	if got.HTML() != want.HTML() || got.Text() != want.Text() || !got.Date.Equal(want.Date) {
		t.Error("the page that was loaded differs from the one that was saved")
	}
}

func TestNoValueInJSON(t *testing.T) {
	text, err := json.Marshal([]any{Bar{"P50", None, "not installed"}, Point{1, math.Inf(1)}, Point{2, .5}})
	if err != nil {
		t.Fatal(err)
	}
	if got, want := string(text), `[{"Label":"P50","Value":null,"Note":"not installed"},[1,null],[2,0.5]]`; got != want {
		t.Errorf("got %s, want %s", got, want)
	}
}

func TestTicks(t *testing.T) {
	for _, test := range []struct {
		lo, hi     float64
		n          int
		log, tight bool
		want       []float64
		from, to   float64 // the ends of the scale
	}{
		{0, 8031, 8, false, false, []float64{0, 2000, 4000, 6000, 8000, 10000}, 0, 10000},
		{0, 8031, 8, false, true, []float64{0, 2000, 4000, 6000, 8000}, 0, 8031},
		{0, 0.3, 4, false, false, []float64{0, .1, .2, .3}, 0, .3},
		{0, 100, 6, false, false, []float64{0, 20, 40, 60, 80, 100}, 0, 100},
		{-3, 3, 6, false, false, []float64{-3, -2, -1, 0, 1, 2, 3}, -3, 3},
		{5, 5, 4, false, true, []float64{6, 8, 10}, 5, 10},
		{.5, 10, 8, true, true, []float64{.5, 1, 2, 5, 10}, .5, 10},
		{160, 8031, 8, true, false, []float64{100, 200, 500, 1000, 2000, 5000, 10000}, 100, 10000},
		{3, 500, 6, true, false, []float64{3, 10, 30, 100, 300, 1000}, 3, 1000},
		{1, 1e9, 5, true, false, []float64{1, 1000, 1e6, 1e9}, 1, 1e9},
		{7, 7, 8, true, false, []float64{5, 10, 20, 50, 100}, 5, 100},
	} {
		make := linearScale
		if test.log {
			make = logScale
		}
		s, ticks := make(test.lo, test.hi, test.n, test.tight)
		near := func(a, b float64) bool { return math.Abs(a-b) <= 1e-9*max(1, math.Abs(b)) }
		if !slices.EqualFunc(ticks, test.want, near) || !near(s.lo, test.from) || !near(s.hi, test.to) {
			t.Errorf("%g to %g: ticks %v from %g to %g; want %v from %g to %g",
				test.lo, test.hi, ticks, s.lo, s.hi, test.want, test.from, test.to)
		}
	}
}

func TestScale(t *testing.T) {
	log := scale{lo: 1, hi: 10000, from: 100, to: 500, log: true}
	for v, want := range map[float64]float64{1: 100, 10: 200, 100: 300, 10000: 500, 0: 100, -5: 100, 1e9: 500} {
		if got := log.at(v); math.Abs(got-want) > 1e-6 {
			t.Errorf("logarithmic: %g is at %g, want %g", v, got, want)
		}
	}
	down := scale{lo: 0, hi: 50, from: 300, to: 100}
	for v, want := range map[float64]float64{0: 300, 25: 200, 50: 100} {
		if got := down.at(v); got != want {
			t.Errorf("linear: %g is at %g, want %g", v, got, want)
		}
	}
}

func TestFormat(t *testing.T) {
	for v, want := range map[float64]string{
		0: "0", 0.123456: "0.123", 1.5: "1.5", 2: "2", 12.34: "12.3", 201.7: "202", 8030.9: "8,031", 1234567: "1,234,567", -1500: "−1,500", 0.00004: "0.00004",
	} {
		if got := formatValue(v); got != want {
			t.Errorf("formatValue(%g) = %q, want %q", v, got, want)
		}
	}
	if got := formatTick(.1 + .2); got != "0.3" {
		t.Errorf("formatTick(.1 + .2) = %q", got)
	}
}

// element is a start tag of a plot.
type element struct {
	name string
	at   map[string]string
	text string
}

func (e element) number(t *testing.T, name string) float64 {
	t.Helper()
	v, err := strconv.ParseFloat(e.at[name], 64)
	if err != nil {
		t.Fatalf("%s: %s=%q: %v", e.name, name, e.at[name], err)
	}
	return v
}

// parse returns the elements of a plot, which must be XML.
func parse(t *testing.T, svg string) (all []element) {
	t.Helper()
	d := xml.NewDecoder(strings.NewReader(svg))
	var open []int
	for {
		token, err := d.Token()
		if errors.Is(err, io.EOF) {
			return all
		}
		if err != nil {
			t.Fatalf("not XML: %v\n%s", err, svg)
		}
		switch token := token.(type) {
		case xml.StartElement:
			e := element{name: token.Name.Local, at: make(map[string]string)}
			for _, a := range token.Attr {
				e.at[a.Name.Local] = a.Value
			}
			open = append(open, len(all))
			all = append(all, e)
		case xml.CharData:
			if len(open) > 0 {
				all[open[len(open)-1]].text += string(token)
			}
		case xml.EndElement:
			open = open[:len(open)-1]
		}
	}
}

func plots(p *Page) (all []Plot) {
	for _, s := range p.Sections {
		all = append(all, s.Plots...)
	}
	return all
}

// TestPlotsAreWhole looks for what is drawn twice at one place, or outside.
func TestPlotsAreWhole(t *testing.T) {
	for _, plot := range plots(demo()) {
		for _, s := range []size{wide, narrow} {
			elements := parse(t, plot.draw(s).svg("x", plot.title(), plot.See, ""))
			box := strings.Fields(elements[0].at["viewBox"])
			width, _ := strconv.ParseFloat(box[2], 64)
			height, _ := strconv.ParseFloat(box[3], 64)
			type place struct {
				x1, x2, y float64
				text      string
			}
			var texts []place
			for _, e := range elements {
				if e.name != "text" {
					continue
				}
				x, y, w := e.number(t, "x"), e.number(t, "y"), textWidth(e.text, textSize)
				switch e.at["text-anchor"] {
				case "middle":
					x -= w / 2
				case "end":
					x -= w
				}
				if x < -1 || x+w > width+1 || y > height {
					t.Errorf("%s, %s: %q from %.0f to %.0f at %.0f lies outside of %.0f × %.0f", plot.title(), s.name, e.text, x, x+w, y, width, height)
				}
				for _, other := range texts {
					if math.Abs(other.y-y) < textSize-2 && x < other.x2 && other.x1 < x+w {
						t.Errorf("%s, %s: %q and %q overlap", plot.title(), s.name, e.text, other.text)
					}
				}
				texts = append(texts, place{x, x + w, y, e.text})
			}
		}
	}
}

func TestBarsAreInProportion(t *testing.T) {
	lengths := func(log bool, values ...float64) (all []float64) {
		g := Group{Name: "g"}
		for i, v := range values {
			g.Bars = append(g.Bars, Bar{Label: strconv.Itoa(i), Value: v})
		}
		plot := Plot{Bars: &Bars{Title: "t", Groups: []Group{g}, Log: log}}
		for _, e := range parse(t, plot.SVG()) {
			if e.name == "rect" && e.at["height"] == strconv.Itoa(barHeight) && e.at["width"] != strconv.Itoa(sampleWidth) {
				all = append(all, e.number(t, "width"))
			}
		}
		return all
	}
	linear := lengths(false, 100, 400, 0, None)
	if len(linear) != 2 || math.Abs(linear[1]/linear[0]-4) > .05 {
		t.Errorf("bars of 100, 400, 0 and none are %v long", linear)
	}
	log := lengths(true, 10, 100, 1000)
	if len(log) != 3 || math.Abs((log[2]-log[1])-(log[1]-log[0])) > .3 || log[0] <= 0 {
		t.Errorf("logarithmic bars of 10, 100, 1000 are %v long", log)
	}
}

func TestZeroAndNoneAreSaid(t *testing.T) {
	bars := Bars{Title: "t", Unit: "ms", Groups: []Group{
		{Name: "g", Bars: []Bar{{Label: "a", Value: 5}, {Label: "b"}, {Label: "c", Value: None}}},
		{Name: "h", Bars: []Bar{{Label: "a", Value: None, Note: "not installed"}, {Label: "b", Value: None}}},
	}}
	for _, bars.Log = range []bool{false, true} {
		var texts []string
		for _, e := range parse(t, Plot{Bars: &bars}.SVG()) {
			if e.name == "text" {
				texts = append(texts, e.text)
			}
		}
		for want, n := range map[string]int{"0\u00a0ms": 1, "no value": 1, "not installed": 1} {
			if got := strings.Count(strings.Join(texts, "\n")+"\n", want+"\n"); got != n {
				t.Errorf("log %v: %q is there %d times, want %d: %q", bars.Log, want, got, n, texts)
			}
		}
	}
}

func TestLineBreaksWhereThereIsNoValue(t *testing.T) {
	lines := Lines{Title: "t", Series: []Series{{Name: "s", Points: []Point{{0, 1}, {1, 2}, {2, None}, {3, 4}, {4, None}, {5, 1}, {6, 0}}}}}
	var polylines, hollow int
	for _, lines.LogY = range []bool{false, true} {
		polylines, hollow = 0, 0
		for _, e := range parse(t, Plot{Lines: &lines}.SVG()) {
			switch {
			case e.name == "polyline":
				polylines++
			case strings.Contains(e.at["class"], "hollow"):
				hollow++
			}
		}
		if want := map[bool]int{true: 1}[lines.LogY]; polylines != 2 || hollow != want {
			t.Errorf("logarithmic %v: %d lines and %d hollow markers, want 2 and %d", lines.LogY, polylines, hollow, want)
		}
	}
}

func TestSeriesDifferWithoutColour(t *testing.T) {
	seen := make(map[string]int)
	lines := Lines{}
	for i := range 12 {
		lines.Series = append(lines.Series, Series{Name: strconv.Itoa(i)})
		key := lines.stroke(i)
		if other, ok := seen[key]; ok {
			t.Errorf("series %d and %d look the same: %s", other, i, key)
		}
		seen[key] = i
	}
	// Colours may repeat; then dashes may not.
	if dashes[1%len(dashes)] == dashes[(7+7/colours)%len(dashes)] {
		t.Error("series 1 and 7 have one colour and one dash")
	}
}

func TestEmpty(t *testing.T) {
	for _, plot := range []Plot{
		{Bars: &Bars{}},
		{Bars: &Bars{Log: true, Groups: []Group{{}}}},
		{Lines: &Lines{}},
		{Lines: &Lines{LogX: true, LogY: true, Series: []Series{{Points: []Point{{None, None}}}}}},
		{},
	} {
		svg := plot.SVG()
		parse(t, svg)
		if strings.Contains(svg, "NaN") || strings.Contains(svg, "Inf") {
			t.Errorf("a plot of nothing has %s", svg)
		}
	}
	empty := new(Page)
	empty.Text()
	empty.HTML()
	empty.Markdown("plots")
	Table{}.Text()
	Table{}.Markdown()
}

func TestEscaping(t *testing.T) {
	const evil = `<script>"&'|`
	p := &Page{
		Name: "x", Title: evil, Lead: evil, Command: evil, Machine: evil, Versions: []string{evil},
		Sections: []Section{{
			Title: evil, Text: evil, Command: evil,
			Tables: []Table{{Caption: evil, Header: []string{evil}, Rows: [][]string{{evil}}}},
			Plots: []Plot{
				{See: evil, Bars: &Bars{Title: evil, XLabel: evil, YLabel: evil, Unit: evil, Marks: []Mark{{1, evil}},
					Groups: []Group{{Name: evil, Bars: []Bar{{evil, 1, evil}, {"other", 2, ""}}}}}},
				{See: evil, Lines: &Lines{Title: evil, X: Axis{evil, evil}, Y: Axis{evil, evil}, XMarks: []Mark{{1, evil}}, YMarks: []Mark{{1, evil}},
					Series: []Series{{Name: evil, Points: []Point{{1, 1}}}}}},
			},
		}},
	}
	if strings.Contains(p.HTML(), "<script") {
		t.Error("the page has markup of what it shows")
	}
	text, files := p.Markdown("plots")
	for line := range strings.SplitSeq(text, "\n") {
		if strings.Contains(line, "<script") && !strings.HasPrefix(line, "    ") {
			t.Errorf("the Markdown has markup of what it shows: %s", line)
		}
	}
	if len(files) != 2 {
		t.Errorf("%d plots, want 2", len(files))
	}
	for _, svg := range files {
		parse(t, svg)
	}
	table := Table{Header: []string{"a", "b"}, Rows: [][]string{{"1|2", "3"}}}.Markdown()
	if got := len(regexp.MustCompile(`(^|[^\\])\|`).FindAllString(strings.Split(table, "\n")[2], -1)); got != 3 {
		t.Errorf("a row of two cells has %d bars: %s", got, table)
	}
}

// TestPageNeedsNothingElse looks for what a page would fetch.
func TestPageNeedsNothingElse(t *testing.T) {
	page := demo().HTML()
	for _, fetch := range []string{"src=", "url(", "@import", "<link", "<script", "http://", "https://"} {
		rest := strings.ReplaceAll(page, `xmlns="http://www.w3.org/2000/svg"`, "")
		if strings.Contains(rest, fetch) {
			t.Errorf("the page has %s", fetch)
		}
	}
	ids := regexp.MustCompile(` id="([^"]*)"`).FindAllStringSubmatch(page, -1)
	seen := make(map[string]bool)
	for _, id := range ids {
		if seen[id[1]] {
			t.Errorf("two elements are called %s", id[1])
		}
		seen[id[1]] = true
	}
	for _, refs := range regexp.MustCompile(`aria-labelledby="([^"]*)"`).FindAllStringSubmatch(page, -1) {
		for ref := range strings.FieldsSeq(refs[1]) {
			if !seen[ref] {
				t.Errorf("there is no element %s", ref)
			}
		}
	}
	if n := strings.Count(page, "<desc"); n != 2*len(plots(demo())) {
		t.Errorf("%d descriptions", n)
	}
}

func TestTableText(t *testing.T) {
	got := Table{
		Caption: "times",
		Header:  []string{"server", "P99, ms", "notes"},
		Rows:    [][]string{{"net/http", "≤ 203", "é"}, {"usher", "4,030"}, {"Puma", "–", "not installed"}},
	}.Text()
	want := `times
server     P99, ms   notes
--------   -------   -------------
net/http     ≤ 203   é
usher        4,030
Puma             –   not installed
`
	if got != want {
		t.Errorf("got\n%s\nwant\n%s", got, want)
	}
}

func TestWrap(t *testing.T) {
	lines := wrap("five of ten connections got nothing for 8 s", 150, textSize)
	if got := strings.Join(lines, " "); strings.ReplaceAll(got, "\u00a0", " ") != "five of ten connections got nothing for 8 s" {
		t.Errorf("words are lost: %q", lines)
	}
	for _, line := range lines {
		if textWidth(line, textSize) > 150 {
			t.Errorf("%q is too long", line)
		}
		if line == "s" {
			t.Error("a number lost its unit")
		}
	}
	if got := wrap("", 100, textSize); len(got) != 0 {
		t.Errorf("nothing has %d lines", len(got))
	}
	if got := wrap("unbreakably", 5, textSize); !reflect.DeepEqual(got, []string{"unbreakably"}) {
		t.Errorf("a long word became %q", got)
	}
}
