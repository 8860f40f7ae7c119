//go:build unix

package main

import (
	"context"
	"errors"
	"os"
	"runtime"
	"strings"
	"testing"
	"time"

	"github.com/seed-235859eb/usher/bench/load"
)

// keepsAll reports whether usher promises to lose nothing here.
const keepsAll = runtime.GOOS == "linux"

func testWorkshop(t *testing.T) *workshop {
	t.Helper()
	w, err := openWorkshop(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := w.close(); err != nil {
			t.Error(err)
		}
	})
	return w
}

// checkKept fails the test if usher lost requests of r, and something was asked.
func checkKept(t *testing.T, what string, r *load.Result) {
	t.Helper()
	if r.Of(load.Answered) == 0 {
		t.Errorf("%s: nothing was answered", what)
	}
	if n := r.Of(load.Lost, load.TimedOut, load.Failed, load.Rejected); n > 0 && keepsAll {
		t.Errorf("%s: %d of %d were not answered: %s", what, n, r.Total(), strings.Join(r.Errors, "; "))
	}
}

// TestH13 is the incident in its short form. It wants usher to lose nothing,
// and http.Server to show that a loss would be seen.
func TestH13(t *testing.T) {
	w := testWorkshop(t)
	const clients, requests, bare = 24, 20, "http.Server.Shutdown"
	bursts := []burst{{requests, 1}}
	modes := []load.Mode{load.PerRequest, load.KeepAlive}
	var done []*stopper
	for _, s := range stoppers(w, clients) {
		if s.missing != "" {
			t.Logf("%s: %s", s.name, s.missing)
			continue
		}
		if !s.focus && s.name != bare {
			continue
		}
		if err := s.round(t.Context(), clients, modes, bursts); err != nil {
			t.Fatalf("%s: %v", s.name, err)
		}
		done = append(done, s)
		b := s.bursts[requests]
		if b.Total() != requests || len(b.took)+b.killed != 1 {
			t.Errorf("%s: a burst of %d, and %d stops", s.name, b.Total(), len(b.took)+b.killed)
		}
		switch {
		case s.focus:
			checkKept(t, s.name+", burst", &b.Result)
			for _, m := range modes {
				checkKept(t, s.name+", "+m.String(), &s.modes[m].Result)
				if s.modes[m].killed > 0 {
					t.Errorf("%s, %v: it did not stop", s.name, m)
				}
			}
		case b.Of(load.Lost)+s.modes[load.PerRequest].Of(load.Lost)+s.modes[load.KeepAlive].Of(load.Lost) == 0:
			t.Errorf("%s lost nothing: this test sees nothing", s.name)
		}
	}
	checkPage(t, h13Page(done, w, 1, clients, modes, bursts).Text(), "20 requests at once", "usher ")
}

func checkPage(t *testing.T, text string, want ...string) {
	t.Helper()
	for _, s := range want {
		if !strings.Contains(text, s) {
			t.Errorf("the page does not say %q:\n%s", s, text)
		}
	}
	if strings.Contains(text, "NaN") || strings.Contains(text, "%!") {
		t.Errorf("the page says nonsense:\n%s", text)
	}
}

// TestCrash kills workers of usher and of fasthttp, in the short form.
func TestCrash(t *testing.T) {
	w := testWorkshop(t)
	var done []*crasher
	for _, c := range crashers(w) {
		if c.missing != "" {
			t.Logf("%s: %s", c.name, c.missing)
			continue
		}
		reuseport := strings.Contains(c.name, "Reuseport")
		if !c.focus && !reuseport {
			continue
		}
		if err := c.round(t.Context(), 3, 1, nil); err != nil {
			t.Fatalf("%s: %v", c.name, err)
		}
		done = append(done, c)
		if c.kills != 3 || c.hung.Total() != hungConns || c.killed.Of(load.Answered) == 0 {
			t.Errorf("%s: %d killed, %d answered, %d beside one that hung", c.name, c.kills, c.killed.Of(load.Answered), c.hung.Total())
		}
		switch {
		case c.focus:
			// What runs in a worker that is killed is lost, and nothing else.
			if n := c.killed.Of(load.Lost, load.TimedOut); n > 5 {
				t.Errorf("%s: %d lost by %d kills", c.name, n, c.kills)
			}
			checkKept(t, c.name+", a worker hangs", &c.hung)
			for _, m := range crashModes {
				checkKept(t, c.name+", without its master, "+m.String(), &c.masterless[m].Result)
				if c.masterless[m].never > 0 {
					t.Errorf("%s, %v: workers outlive their master", c.name, m)
				}
			}
		case runtime.GOOS == "linux" && c.hung.Of(load.Lost) == 0:
			t.Errorf("%s: nothing lost in a queue of its own: this test sees nothing", c.name)
		}
	}
	if len(done) == 2 {
		checkPage(t, crashPage(done, w, 1, 3).Text(), "usher/prefork", "fasthttp/prefork")
	}
}

// TestStaleCode restarts workers of usher once.
func TestStaleCode(t *testing.T) {
	w := testWorkshop(t)
	all, err := restarters(t.Context(), w, 2)
	if err != nil {
		t.Fatal(err)
	}
	r := all[len(all)-1]
	if r.missing != "" {
		t.Skip(r.missing)
	}
	if err := r.run(t.Context(), 3, 1, time.Second); err != nil {
		t.Fatal(err)
	}
	checkKept(t, r.name, r.result)
	re := r.restarts[0]
	if re.failed {
		t.Fatal("the restart was never over")
	}
	if all, old, _ := r.stale(r.began, re.from, "v1"); all == 0 || old > 0 {
		t.Errorf("before the restart: %d of %d answers are not of the first build", old, all)
	}
	if all, old, _ := r.stale(re.to, re.until, "v2"); all == 0 || old > 0 {
		t.Errorf("after the restart: %d of %d answers are not of the second build", old, all)
	}
	checkPage(t, stalePage([]*restarter{r}, w, 3, 1, time.Second).Text(), "No server answered with old code")
}

// TestStale counts invented answers.
func TestStale(t *testing.T) {
	began := time.Now()
	at := func(ms int) time.Time { return began.Add(time.Duration(ms) * time.Millisecond) }
	r := &restarter{
		began:    began,
		answers:  []answer{{at(10), "v1"}, {at(310), "v1"}, {at(320), "v2"}, {at(610), "v1"}, {at(650), "v2"}, {at(700), "v2"}, {at(710), "v2"}},
		restarts: []restart{{build: "v2", from: at(300), to: at(600), until: at(1000)}},
	}
	all, old, last := r.stale(at(600), at(1000), "v2")
	if all != 4 || old != 1 || !last.Equal(at(610)) {
		t.Errorf("%d of %d are old, the last at %v", old, all, last.Sub(began))
	}
	points := r.points() // bins of 200 ms
	if len(points) != 6 || points[0].Y != 0 || points[1].Y != 50 || points[3].Y != 25 {
		t.Errorf("points are %v", points)
	}
}

// TestIncidentsInterrupted leaves experiments in their midst: no process and no
// file is to stay.
func TestIncidentsInterrupted(t *testing.T) {
	if testing.Short() {
		t.Skip("takes ten seconds")
	}
	t.Setenv("TMPDIR", t.TempDir())
	for _, e := range experiments {
		if e.name != "h13" && e.name != "crash" && e.name != "stale-code" {
			continue
		}
		t.Run(e.name, func(t *testing.T) {
			cause := errors.New("enough")
			ctx, cancel := context.WithCancelCause(t.Context())
			timer := time.AfterFunc(4*time.Second, func() { cancel(cause) })
			defer timer.Stop()
			if _, err := e.run(ctx, options{}); !errors.Is(err, cause) {
				t.Errorf("error %v, want %v", err, cause)
			}
			if left, err := os.ReadDir(os.TempDir()); err != nil || len(left) > 0 {
				t.Errorf("left behind: %v, %v", left, err)
			}
		})
	}
}
