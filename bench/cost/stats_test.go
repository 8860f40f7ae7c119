package main

import (
	"math"
	"slices"
	"testing"
	"time"
)

func TestQuantile(t *testing.T) {
	values := []float64{1, 2, 3, 4, 5}
	for _, tt := range []struct{ q, want float64 }{{0, 1}, {0.25, 2}, {0.5, 3}, {0.75, 4}, {0.875, 4.5}, {1, 5}} {
		if got := quantile(values, tt.q); got != tt.want {
			t.Errorf("quantile(%v, %v) = %v, want %v", values, tt.q, got, tt.want)
		}
	}
	if got := quantile(nil, 0.5); !math.IsNaN(got) {
		t.Errorf("quantile of nothing = %v, want NaN", got)
	}
}

func TestSpread(t *testing.T) {
	var values []float64
	for i := range 101 {
		values = append(values, float64(100-i))
	}
	s := spreadOf(values)
	want := spread{min: 0, q1: 25, median: 50, q3: 75, max: 100, lo: s.lo, hi: s.hi}
	if s != want || math.Abs(s.lo-40.2) > 0.1 || math.Abs(s.hi-59.8) > 0.1 {
		t.Errorf("spread of 0 to 100: %+v", s)
	}
	if values[0] != 100 {
		t.Error("spreadOf has sorted its argument")
	}
	if s := spreadOf([]float64{7}); s.lo != 7 || s.hi != 7 {
		t.Errorf("spread of one value: %+v", s)
	}
}

func TestRatios(t *testing.T) {
	slow := sample{units: 100, took: time.Second, cpuTimes: cpuTimes{cpu: 200 * time.Microsecond}}
	fast := sample{units: 200, took: time.Second, cpuTimes: cpuTimes{cpu: 200 * time.Microsecond}}
	a, b := []sample{fast, fast, fast}, []sample{slow, slow, slow}
	if got := paired(a, b, sample.rate); !slices.Equal(got, []float64{2, 2, 2}) {
		t.Errorf("throughput ratios are %v, want 2", got)
	}
	if ratio, lo, hi := ratioOfSums(a, b, sample.cost); ratio != 0.5 || lo != 0.5 || hi != 0.5 {
		t.Errorf("CPU ratio is %v, %v to %v, want 0.5", ratio, lo, hi)
	}
}

func TestVerdicts(t *testing.T) {
	for _, tt := range []struct {
		figure, lo, hi float64
		want           string
	}{
		{1.00, 0.99, 1.01, "met"},
		{1.01, 1.00, 1.03, "met, but not beyond the noise"},
		{1.03, 1.01, 1.04, "missed, but not beyond the noise"},
		{1.04, 1.03, 1.05, "MISSED"},
	} {
		if got := atMost(1.02, tt.figure, tt.lo, tt.hi); got != tt.want {
			t.Errorf("atMost(1.02, %v, %v, %v) = %q, want %q", tt.figure, tt.lo, tt.hi, got, tt.want)
		}
		if got := atLeast(-1.02, -tt.figure, -tt.hi, -tt.lo); got != tt.want {
			t.Errorf("atLeast(-1.02, %v, %v, %v) = %q, want %q", -tt.figure, -tt.hi, -tt.lo, got, tt.want)
		}
	}
}

// TestOrders checks that no server has an advantage from its place.
func TestOrders(t *testing.T) {
	for n := 2; n <= 6; n++ {
		all := orders(n)
		places, follows := map[[2]int]int{}, map[[2]int]int{}
		for _, order := range all {
			for at, i := range order {
				places[[2]int{at, i}]++
				if at > 0 {
					follows[[2]int{order[at-1], i}]++
				}
			}
		}
		for pair, times := range places {
			if times != len(all)/n {
				t.Errorf("%d servers: %d comes in place %d %d times", n, pair[1], pair[0], times)
			}
		}
		for pair, times := range follows {
			if times != len(all)/n || pair[0] == pair[1] {
				t.Errorf("%d servers: %d follows %d %d times", n, pair[1], pair[0], times)
			}
		}
		if len(follows) != n*(n-1) {
			t.Errorf("%d servers: %d pairs, want %d", n, len(follows), n*(n-1))
		}
	}
}
