package fairqueue

import (
	"math"
	"math/bits"
	"time"
)

// Patience estimates how long clients wait, from those that were seen to leave
// and those that were seen to stay. Like a [Queue] it has no clock: times are
// the caller's, since any moment. Its zero value is ready for use.
//
// It is the estimate of Kaplan and Meier. Of the requests whose clients were
// there at an age, some were left at it: that part of them, for each age up to
// the one asked for, says how many stay so long. A client that got its answer
// says that it stayed until then, and nothing about later. What was seen counts
// half after patienceHalfLife.
type Patience struct {
	ages [patienceBuckets]struct{ left, stayed float64 } // how many were last seen at that age
	left float64                                         // the sum of ages[].left
	at   time.Duration                                   // when all of that was last made to count less
}

const (
	// Ages are told apart by a quarter of each power of two microseconds, up to
	// a minute.
	patienceBuckets  = 4 * 24
	patienceHalfLife = time.Second

	// patienceDoubt is a number of clients that are taken to have stayed, at
	// each age: one that leaves among a few says little.
	patienceDoubt = 4
	// patienceForgotten is how many must have left for an estimate.
	patienceForgotten = 0.1

	// The following were chosen by TestOverloadRules. A slot is not given to a
	// client that stays for its answer with less than chanceLate, and a newcomer
	// is turned away with less than chanceNone: to lose one that would have
	// been served is worse than to tell one late.
	chanceLate = 0.9
	chanceNone = 0.25
	// A service may take longer than the mean, and a wait than it seems now.
	serviceMargin = 1.5
	waitMargin    = 2
)

// bucket returns the index of an age in Patience.ages.
func bucket(age time.Duration) int {
	us := uint64(max(age.Microseconds(), 4))
	octave := bits.Len64(us) - 3 // 0 for 4 to 7 µs
	return min(4*octave+int(us>>octave&3), patienceBuckets-1)
}

// Saw notes that a client was there until its request was of that age, and
// whether it left then.
func (p *Patience) Saw(now, age time.Duration, left bool) {
	p.fade(now)
	a := &p.ages[bucket(age)]
	if left {
		a.left++
		p.left++
	} else {
		a.stayed++
	}
}

// Chance returns the part of the clients of requests of one age that will still
// be there at another: 1 if none is known to leave.
func (p *Patience) Chance(now, age, until time.Duration) float64 {
	if !p.Known() {
		return 1
	}
	p.fade(now)
	there, chance := float64(patienceDoubt), 1.0
	for i, last := patienceBuckets-1, bucket(until); i >= bucket(age); i-- {
		a := p.ages[i]
		there += a.left + a.stayed
		if i <= last {
			chance *= 1 - a.left/there
		}
	}
	return chance
}

// Late reports whether a client whose request is of that age may well have left
// when it is answered, if it begins now and takes service.
func (p *Patience) Late(now, age, service time.Duration) bool {
	return p.Chance(now, age, age+margin(service)) < chanceLate
}

// Hopeless reports whether the client of a request that has come just now has
// hardly a chance to be answered, if it begins after wait and takes service.
func (p *Patience) Hopeless(now, wait, service time.Duration) bool {
	return p.Chance(now, 0, waitMargin*wait+margin(service)) < chanceNone
}

func margin(service time.Duration) time.Duration {
	return time.Duration(serviceMargin * float64(service))
}

// Known reports whether any client is known to have left of late. If not, all
// chances are 1.
func (p *Patience) Known() bool { return p.left >= patienceForgotten }

// fade makes what was seen count less.
func (p *Patience) fade(now time.Duration) {
	past := now - p.at
	if past < patienceHalfLife/10 {
		return
	}
	p.at = now
	keep := math.Exp2(-past.Seconds() / patienceHalfLife.Seconds())
	p.left = 0
	for i := range p.ages {
		a := &p.ages[i]
		a.left *= keep
		a.stayed *= keep
		p.left += a.left
	}
}
