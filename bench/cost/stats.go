package main

import (
	"fmt"
	"math"
	"math/rand/v2"
	"slices"
)

// quantile returns the value below which the fraction q of sorted lies.
func quantile(sorted []float64, q float64) float64 {
	if len(sorted) == 0 {
		return math.NaN()
	}
	at := q * float64(len(sorted)-1)
	i := int(at)
	if i+1 == len(sorted) {
		return sorted[i]
	}
	frac := at - float64(i)
	return sorted[i]*(1-frac) + sorted[i+1]*frac
}

func median(values []float64) float64 {
	return quantile(slices.Sorted(slices.Values(values)), 0.5)
}

// A spread describes a set of values.
type spread struct {
	min, q1, median, q3, max float64
	lo, hi                   float64 // about 95 % sure to hold the true median
}

func spreadOf(values []float64) spread {
	v := slices.Sorted(slices.Values(values))
	// Which of n values is the median's neighbour is a matter of n tosses of
	// a coin.
	half := 0.98 / math.Sqrt(float64(max(1, len(v))))
	return spread{
		min: quantile(v, 0), q1: quantile(v, 0.25), median: quantile(v, 0.5), q3: quantile(v, 0.75), max: quantile(v, 1),
		lo: quantile(v, max(0, 0.5-half)), hi: quantile(v, min(1, 0.5+half)),
	}
}

// paired returns f of each sample of a, divided by f of the sample of b in the
// same round.
func paired(a, b []sample, f func(sample) float64) []float64 {
	ratios := make([]float64, min(len(a), len(b)))
	for i := range ratios {
		ratios[i] = f(a[i]) / f(b[i])
	}
	return ratios
}

// sum adds samples up.
func sum(samples []sample) (total sample) {
	for _, s := range samples {
		total = total.plus(s)
	}
	return total
}

// resamples is how many times ratioOfSums draws.
const resamples = 1000

// ratioOfSums returns f of all samples of a together, divided by f of those of
// b, and between what it lies, 95 % sure: so many draws of as many rounds, with
// replacement, come to that.
func ratioOfSums(a, b []sample, f func(sample) float64) (ratio, lo, hi float64) {
	rng := rand.New(rand.NewPCG(1, 2)) // the same samples give the same result
	drawn := make([]float64, resamples)
	for i := range drawn {
		var ours, theirs sample
		for range a {
			k := rng.IntN(len(a))
			ours, theirs = ours.plus(a[k]), theirs.plus(b[k])
		}
		drawn[i] = f(ours) / f(theirs)
	}
	slices.Sort(drawn)
	return f(sum(a)) / f(sum(b)), quantile(drawn, 0.025), quantile(drawn, 0.975)
}

// String gives the median, where it lies, and the five numbers.
func (s spread) String() string {
	return fmt.Sprintf("%.4f (95%%: %.4f to %.4f)\t%.3f\t%.3f\t%.3f\t%.3f", s.median, s.lo, s.hi, s.min, s.q1, s.q3, s.max)
}
