package fairness

import (
	"crypto/sha256"
	"time"
)

// Work keeps a CPU busy for some rounds of the same size.
func Work(rounds int) {
	var block [1024]byte
	for range rounds {
		sum := sha256.Sum256(block[:])
		copy(block[:], sum[:])
	}
}

// WorkFor returns the rounds of [Work] that take d on a CPU that nobody else
// uses.
func WorkFor(d time.Duration) int {
	const sample = 200
	fastest := time.Duration(1 << 62)
	for range 200 {
		began := time.Now()
		Work(sample)
		fastest = min(fastest, time.Since(began))
	}
	return max(1, int(d*sample/fastest))
}
