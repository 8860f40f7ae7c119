package report

import (
	"testing"
	"time"
)

// demo has all that a page can have, and what is hard to show. To look at it:
//
//	go test ./report -run Demo -artifacts -outputdir /tmp
func demo() *Page {
	percentiles := func(name string, focus bool, values ...float64) Group {
		g := Group{Name: name, Focus: focus}
		for i, label := range []string{"P50", "P95", "P99", "max"} {
			g.Bars = append(g.Bars, Bar{Label: label, Value: values[i]})
		}
		return g
	}
	starved := percentiles("netutil.LimitListener, whose name is long & has <tags> in it", false, 202, 8024.4, 8030, 8031)
	starved.Bars[3].Note = "five of ten connections got nothing for 8 s"
	missing := percentiles("Puma 5.6.5", false, None, None, None, None)
	missing.Bars[0].Note = "not installed"
	latency := Bars{
		Title: "How long requests took", XLabel: "time from request to answer", YLabel: "server", Unit: "ms",
		Groups: []Group{
			percentiles("net/http", false, 201, 202.4, 203, 203),
			starved,
			missing,
			percentiles("usher", true, 401, 402, 403, 0),
		},
		Marks: []Mark{{400, "ideal"}, {200, "the handler alone"}},
	}
	logarithmic := latency
	logarithmic.Log, logarithmic.Title = true, "The same, logarithmic"
	goodput := Lines{
		Title: "Goodput over offered load", X: Axis{"offered load", "times capacity"}, Y: Axis{"answers in time", "1/s"},
		LogX:   true,
		YMarks: []Mark{{367, "capacity"}},
		Series: []Series{
			{Name: "net/http", Points: []Point{{.5, 192}, {1, 300}, {2, 154}, {5, 38}, {10, 132}}},
			{Name: "chi Throttle", Points: []Point{{.5, 192}, {1, None}, {2, 412}, {5, 360}, {10, 360}}},
			{Name: "usher", Focus: true, Points: []Point{{.5, 192}, {1, 355}, {2, 346}, {5, 404}, {10, 358}}},
			{Name: "a fourth", Points: []Point{{.5, 100}, {1, 120}, {2, 140}, {5, 150}, {10, 160}}},
			{Name: "a fifth one", Points: []Point{{.5, 80}, {1, 82}, {2, 85}, {5, 90}, {10, 80}}},
			{Name: "and a sixth one", Points: []Point{{.5, 40}, {1, 42}, {2, 45}, {5, 250}, {10, 260}}},
		},
	}
	share := Lines{
		Title: "Old answers over time", X: Axis{"time", "s"}, Y: Axis{"share of answers by the old code", "%"},
		XMarks: []Mark{{3, "restart begins"}, {4, "first worker new"}, {14.5, "restart reported done"}},
	}
	var old, fresh Series
	old.Name, fresh.Name, fresh.Focus = "Puma, fork_worker", "usher/prefork", true
	for i := range 80 {
		x := float64(i) / 4
		old.Points = append(old.Points, Point{x, max(50, 100-max(0, x-3)*6)})
		fresh.Points = append(fresh.Points, Point{x, min(100, max(0, 100-max(0, x-3)*9))})
	}
	share.Series = []Series{old, fresh}
	wait := Lines{
		Title: "Queue wait", X: Axis{"offered load", "times capacity"}, Y: Axis{"P99", "ms"}, LogY: true,
		Series: []Series{{Name: "usher", Points: []Point{{.5, 0}, {1, 3}, {2, 480}, {5, 500}, {10, 500}}}},
	}
	return &Page{
		Name: "demo", Title: "All that a page can show", Command: "cd bench && go test ./report -run Demo -artifacts",
		Lead:     "Ten keep-alive connections on five slots: `hey -c 10 -n 200`, with a handler of 200 ms. A semaphore in the handler draws with usher here.\n\nThe second paragraph says what came of it, and holds <b>markup</b> & ampersands that are not markup.",
		Versions: []string{"go1.26.8", "golang.org/x/net v0.62.0", "github.com/go-chi/chi/v5 v5.5.0", "github.com/failsafe-go/failsafe-go v0.9.8"},
		Date:     time.Date(2026, 11, 21, 14, 3, 0, 0, time.UTC), Machine: "linux/amd64, kernel 6.18.44, 2 CPUs",
		Sections: []Section{
			{Title: "Percentiles", Text: "All bars of one server should be as long as each other.",
				Plots: []Plot{
					{See: "LimitListener's tail is twenty times the ideal; usher's is the ideal.", Bars: &latency},
					{See: "The same on a logarithmic scale.", Bars: &logarithmic},
				},
				Tables: []Table{{Caption: "Time from request to answer, in ms", Header: []string{"server", "P50", "P90", "P95", "P99", "max", "luckiest connection", "slowest connection", "notes"},
					Rows: [][]string{
						{"net/http", "201", "202", "202", "203", "203", "201", "203"},
						{"netutil.LimitListener", "202", "203", "8,024", "8,030", "8,031", "201", "8,031", "five connections were served, the other five not at all until those had left"},
						{"Puma 5.6.5", "–", "–", "–", "–", "–", "–", "–", "not installed: `apt install puma`"},
						{"usher", "401", "402", "402", "403", "403", "401", "403", "a | b"},
					}}}},
			{Title: "Lines", Plots: []Plot{{See: "What is served in time.", Lines: &goodput}, {See: "Old answers end.", Lines: &share}, {See: "Zero on a logarithmic scale is hollow, at the edge.", Lines: &wait}}},
			{Title: "Single bars", Plots: []Plot{
				{See: "One value each.", Bars: &Bars{Title: "Requests lost in 20 stops", XLabel: "requests lost", YLabel: "server", Groups: []Group{
					{Name: "Shutdown", Bars: []Bar{{Value: 2810}}}, {Name: "fasthttp", Bars: []Bar{{Value: 31}}}, {Name: "caddy", Bars: []Bar{{Value: None, Note: "not installed"}}}, {Name: "usher", Focus: true, Bars: []Bar{{Value: 0}}}}}},
				{See: "Labels that are too long for a narrow screen.", Bars: &Bars{Title: "Lost by kind of client", XLabel: "requests", Groups: []Group{
					{Name: "Shutdown", Bars: []Bar{{Label: "connection per request", Value: 29}, {Label: "20 ms between connect and request", Value: 32}}},
					{Name: "usher", Focus: true, Bars: []Bar{{Label: "connection per request"}, {Label: "20 ms between connect and request"}}}}}},
				{See: "Nothing at all.", Bars: &Bars{Title: "Empty", Unit: "ms"}},
				{See: "Nothing at all.", Lines: &Lines{Title: "Empty", Series: []Series{{Name: "none"}}}},
			}},
		},
	}
}

// TestDemo writes the page to be looked at.
func TestDemo(t *testing.T) {
	if err := demo().Save(t.ArtifactDir()); err != nil {
		t.Fatal(err)
	}
}
