// Package report shows what an experiment found: as text for a terminal, as
// one HTML page that opens without a network, and as Markdown with plots in
// files of their own.
package report

import (
	"encoding/json"
	"fmt"
	"math"
	"os"
	"path/filepath"
	"time"
)

// A Page is what one experiment found.
type Page struct {
	Name     string // of its files, without an extension
	Title    string
	Lead     string // what was done, and what came of it; "\n\n" ends a paragraph
	Sections []Section
	Command  string // that makes it again
	Versions []string
	Date     time.Time
	Machine  string
}

// A Section is one part of a page.
type Section struct {
	Title   string
	Text    string // says what to see
	Tables  []Table
	Plots   []Plot
	Command string // that makes this part, if it is not that of the page
}

// A Table is shown as it is. A column whose cells begin with digits stands to
// the right.
type Table struct {
	Caption string
	Header  []string
	Rows    [][]string
}

// A Plot is one of Bars and Lines.
type Plot struct {
	See   string // says what to see
	Bars  *Bars  `json:",omitempty"`
	Lines *Lines `json:",omitempty"`
}

// Bars are drawn from left to right, below the names of their groups.
type Bars struct {
	Title  string
	XLabel string // what the length of a bar is
	YLabel string // what the groups are
	Unit   string // of the values: "ms"
	Groups []Group
	Log    bool   // a logarithmic scale; a value of zero has no bar there, and says 0
	Marks  []Mark // values to compare with
}

// A Group has a bar for each label.
type Group struct {
	Name  string
	Bars  []Bar
	Focus bool // what the plot is about
}

// A Bar is one value. NaN stands for none.
type Bar struct {
	Label string // the same in each group
	Value float64
	Note  string // stands after the value, or in its place if there is none
}

// Lines are series over a common axis.
type Lines struct {
	Title      string
	X, Y       Axis
	Series     []Series
	XMarks     []Mark // moments to see
	YMarks     []Mark // values to compare with
	LogX, LogY bool   // logarithmic scales; what is not positive is drawn at the edge
}

// An Axis says what is on it.
type Axis struct {
	Label string
	Unit  string
}

// A Series is one line. It is broken where Y is NaN.
type Series struct {
	Name   string
	Points []Point
	Focus  bool // what the plot is about
}

// A Point of a [Series].
type Point struct{ X, Y float64 }

// A Mark is a line across a plot.
type Mark struct {
	Value float64
	Label string
}

// None is the value of a bar or a point that has none.
var None = math.NaN()

// number is a float64 that may be [None], as JSON has it.
type number float64

func (n number) MarshalJSON() ([]byte, error) {
	if f := float64(n); math.IsNaN(f) || math.IsInf(f, 0) {
		return []byte("null"), nil
	}
	return json.Marshal(float64(n))
}

func (n *number) UnmarshalJSON(text []byte) error {
	if string(text) == "null" {
		*n = number(None)
		return nil
	}
	return json.Unmarshal(text, (*float64)(n))
}

type jsonBar struct {
	Label string
	Value number
	Note  string `json:",omitempty"`
}

// MarshalJSON writes no value as null.
func (b Bar) MarshalJSON() ([]byte, error) {
	return json.Marshal(jsonBar{b.Label, number(b.Value), b.Note})
}

// UnmarshalJSON is the reverse of [Bar.MarshalJSON].
func (b *Bar) UnmarshalJSON(text []byte) error {
	var j jsonBar
	err := json.Unmarshal(text, &j)
	*b = Bar{j.Label, float64(j.Value), j.Note}
	return err
}

// MarshalJSON writes a pair, with no value as null.
func (p Point) MarshalJSON() ([]byte, error) {
	return json.Marshal([2]number{number(p.X), number(p.Y)})
}

// UnmarshalJSON is the reverse of [Point.MarshalJSON].
func (p *Point) UnmarshalJSON(text []byte) error {
	var pair [2]number
	err := json.Unmarshal(text, &pair)
	*p = Point{float64(pair[0]), float64(pair[1])}
	return err
}

// Save writes the page to dir, as Name.html for people and as Name.json for
// [Load].
func (p *Page) Save(dir string) error {
	if err := os.MkdirAll(dir, 0o777); err != nil {
		return err
	}
	text, err := json.MarshalIndent(p, "", "\t")
	if err != nil {
		return fmt.Errorf("report: %s: %w", p.Name, err)
	}
	if err := os.WriteFile(filepath.Join(dir, p.Name+".json"), append(text, '\n'), 0o666); err != nil {
		return err
	}
	return os.WriteFile(filepath.Join(dir, p.Name+".html"), []byte(p.HTML()), 0o666)
}

// Load reads what [Page.Save] has written to a .json file.
func Load(file string) (*Page, error) {
	text, err := os.ReadFile(file)
	if err != nil {
		return nil, err
	}
	p := new(Page)
	if err := json.Unmarshal(text, p); err != nil {
		return nil, fmt.Errorf("report: %s: %w", file, err)
	}
	return p, nil
}
