package report

import (
	"math"
	"strconv"
	"strings"
)

// A scale maps values to places on a drawing.
type scale struct {
	lo, hi   float64 // values at both ends
	from, to float64 // where these are
	log      bool
}

// at returns the place of v, at an end if it lies beyond that.
func (s scale) at(v float64) float64 {
	v = min(max(v, s.lo), s.hi)
	part := (v - s.lo) / (s.hi - s.lo)
	if s.log {
		part = math.Log(v/s.lo) / math.Log(s.hi/s.lo)
	}
	return s.from + part*(s.to-s.from)
}

// steps are the first digits of round numbers.
var steps = []float64{1, 2, 5, 10}

// roundUp returns the least 1, 2, or 5 times a power of ten that is not less
// than v, which is positive.
func roundUp(v float64) float64 {
	// The power's own rounding must not make 1000 out of 100.
	exp := int(math.Floor(math.Log10(v) + 1e-12))
	for _, s := range steps {
		if r := power(s, exp); r >= v*(1-1e-12) {
			return r
		}
	}
	return power(1, exp+1)
}

// power returns s times ten to the exp, as near as that can be.
func power(s float64, exp int) float64 {
	f, _ := strconv.ParseFloat(strconv.FormatFloat(s, 'f', -1, 64)+"e"+strconv.Itoa(exp), 64)
	return f
}

// linearScale returns one that holds both values, and its ticks, at most about
// n of them, on round numbers. If tight, it ends where the values do.
func linearScale(lo, hi float64, n int, tight bool) (scale, []float64) {
	if !(hi > lo) {
		hi = lo + max(1, math.Abs(lo))
	}
	step := roundUp((hi - lo) / float64(max(n, 1)))
	if !tight {
		lo = math.Floor(lo/step+1e-9) * step
		hi = math.Ceil(hi/step-1e-9) * step
	}
	var ticks []float64
	for i := math.Ceil(lo/step - 1e-9); i*step <= hi+step*1e-9; i++ {
		ticks = append(ticks, i*step)
	}
	return scale{lo: lo, hi: hi}, ticks
}

// logScale is linearScale for a logarithmic one. Both values are positive.
func logScale(lo, hi float64, n int, tight bool) (scale, []float64) {
	if !(hi > lo) {
		hi = 10 * lo
	}
	first, last := int(math.Floor(math.Log10(lo)+1e-12)), int(math.Ceil(math.Log10(hi)-1e-12))
	const slack = 1e-9
	// ticksOf returns those between lo and hi, and if the scale need not be
	// tight, one at each end beyond these.
	ticksOf := func(every int, firsts ...float64) (ticks []float64) {
		for exp := first; exp <= last+every-1; exp += every {
			for _, f := range firsts {
				v := power(f, exp)
				switch {
				case v < lo*(1-slack) && tight, v > hi*(1+slack) && tight:
				case v <= lo*(1+slack):
					ticks = append(ticks[:0], v)
				case len(ticks) == 0 || ticks[len(ticks)-1] < hi*(1-slack):
					ticks = append(ticks, v)
				}
			}
		}
		return ticks
	}
	// The most ticks that there is place for.
	ticks := ticksOf(1, 1, 2, 5)
	if len(ticks) > n {
		ticks = ticksOf(1, 1, 3)
	}
	for every := 1; len(ticks) > max(n, 2); every++ {
		ticks = ticksOf(every, 1)
	}
	if !tight {
		lo, hi = min(lo, ticks[0]), max(hi, ticks[len(ticks)-1])
	}
	return scale{lo: lo, hi: hi, log: true}, ticks
}

// formatTick writes a round number.
func formatTick(v float64) string {
	// A multiple of a step such as 0.1 is not quite what it should be.
	return group(strconv.FormatFloat(math.Round(v*1e9)/1e9, 'f', -1, 64))
}

// formatValue writes three digits, or all before the point.
func formatValue(v float64) string {
	if v == 0 {
		return "0"
	}
	decimals := max(0, 2-int(math.Floor(math.Log10(math.Abs(v)))))
	s := strconv.FormatFloat(v, 'f', min(decimals, 9), 64)
	if strings.Contains(s, ".") {
		s = strings.TrimRight(strings.TrimRight(s, "0"), ".")
	}
	return group(s)
}

// group separates thousands.
func group(s string) string {
	sign := ""
	if strings.HasPrefix(s, "-") {
		sign, s = "−", s[1:]
	}
	whole, rest, _ := strings.Cut(s, ".")
	if rest != "" {
		rest = "." + rest
	}
	for i := len(whole) - 3; i > 0; i -= 3 {
		whole = whole[:i] + "," + whole[i:]
	}
	if whole == "0" && rest == "" {
		sign = ""
	}
	return sign + whole + rest
}

// withUnit writes a value with its unit.
func withUnit(value, unit string) string {
	if unit == "" {
		return value
	}
	return value + "\u00a0" + unit
}

// isNumber says whether v can be drawn.
func isNumber(v float64) bool { return !math.IsNaN(v) && !math.IsInf(v, 0) }
