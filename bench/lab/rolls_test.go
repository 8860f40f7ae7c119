//go:build unix

package main

import (
	"strings"
	"testing"
	"time"

	"github.com/seed-235859eb/usher/bench/load"
)

// TestRolls restarts backends behind real balancers, nine times, with the
// configurations in deploy/. It wants usher to fail no request, over connections
// that stay and over new ones. http.Server is to show that a failure would be
// seen, and nginx's own max_fails that the configuration matters.
func TestRolls(t *testing.T) {
	w := testWorkshop(t)
	do := rolling{rollTimes, rollClients, 50 * time.Millisecond}
	all := rollers(balancers(t.Context()))
	var done []*roller
	for _, r := range all {
		if !r.keeps && !r.fails {
			continue
		}
		t.Run(r.name+", "+r.what, func(t *testing.T) {
			if r.missing != "" {
				t.Skip(r.missing)
			}
			if err := r.run(t.Context(), w, load.KeepAlive, do); err != nil {
				t.Fatal(err)
			}
			done = append(done, r)
			seen := r.modes[load.KeepAlive]
			if len(seen.took) != rollTimes || len(seen.during) == 0 || len(seen.between) == 0 {
				t.Errorf("%d rolls, %d answers meanwhile, %d between", len(seen.took), len(seen.during), len(seen.between))
			}
			switch n := seen.failed(); {
			case r.keeps && n > 0 && keepsAll:
				t.Errorf("%d of %d requests failed: %s", n, seen.Total(), strings.Join(seen.Errors, "; "))
			case r.fails && n == 0:
				t.Errorf("no request failed: this test sees nothing")
			}
			t.Logf("%d requests, %d failed; P99 %v in rolls, %v between", seen.Total(), seen.failed(), rank(seen.during, 99), rank(seen.between, 99))
		})
	}
	if len(done) > 0 {
		checkPage(t, rollsPage(t.Context(), done, do).Text(), byUsher, byBare, "9 times")
	}
}

// TestRollWatch: which answers came during a roll.
func TestRollWatch(t *testing.T) {
	var w rollWatch
	began := time.Now()
	at := func(ms int) time.Time { return began.Add(time.Duration(ms) * time.Millisecond) }
	answer := func(from, to int) { w.each(&load.Exchange{Began: at(from), Ended: at(to)}, load.Answered) }
	answer(0, 90)
	w.from = at(100)
	answer(10, 110)
	answer(120, 130)
	w.to = at(140)
	answer(20, 150)
	answer(135, 160)
	answer(145, 155)
	w.each(&load.Exchange{Began: at(100), Ended: at(120)}, load.Failed)
	if len(w.during) != 4 || len(w.between) != 2 {
		t.Errorf("during a roll %v, else %v", w.during, w.between)
	}
	select {
	case <-w.await(1):
		t.Error("a process has answered that did not")
	default:
	}
}

func TestEdit(t *testing.T) {
	if got, err := edit("a b a", []change{{"a", "c"}}); got != "c b c" || err != nil {
		t.Errorf("edit: %q, %v", got, err)
	}
	if _, err := edit("a b", []change{{"c", "d"}}); err == nil || !strings.Contains(err.Error(), `"c"`) {
		t.Errorf("what is not there was changed: %v", err)
	}
}
