package main

import (
	"fmt"
	"net/http"
	"slices"
	"time"
)

// fast is how long a rejection may take to be of use to a client that has
// somewhere else to go.
const fast = 100 * time.Millisecond

// An outcome is what became of the requests under one load.
type outcome struct {
	offered float64 // requests per second
	length  time.Duration
	late    time.Duration // the latest that a request was sent after it was due

	arrived  int
	good     []time.Duration // latencies of those that were served in time
	rejected int             // and told so
	fast     int             // of those, in less than that
	cpu      time.Duration   // that the server used
	peakRSS  int64           // of the server, in bytes
}

// count notes what became of one request.
func (o *outcome) count(status int, err error, took, timeout time.Duration) {
	o.arrived++
	switch {
	case err != nil || took > timeout:
	case status == http.StatusOK:
		o.good = append(o.good, took)
	case status == http.StatusTooManyRequests || status == http.StatusServiceUnavailable:
		o.rejected++
		if took < fast {
			o.fast++
		}
	}
}

const header = `| load | server | offered/s | goodput/s | of capacity | rejected < 100 ms | rejected later | no answer | P99 of the good | CPU per good answer | peak RSS | sent late by ≤ |
|---:|---|---:|---:|---:|---:|---:|---:|---:|---:|---:|---:|
`

// line makes a line of the table.
func (o *outcome) line(load, capacity float64, server string) string {
	goodput := float64(len(o.good)) / o.length.Seconds()
	share := func(n int) float64 { return 100 * float64(n) / float64(max(o.arrived, 1)) }
	return fmt.Sprintf("| %g× | %s | %.0f | %.0f | %.0f %% | %.0f %% | %.0f %% | %.0f %% | %s | %.1f ms | %d MiB | %v |\n",
		load, server, o.offered, goodput, 100*goodput/capacity,
		share(o.fast), share(o.rejected-o.fast), share(o.arrived-o.rejected-len(o.good)),
		p99(o.good), 1e3*o.cpu.Seconds()/float64(max(len(o.good), 1)), o.peakRSS>>20, o.late.Round(time.Millisecond))
}

func p99(all []time.Duration) string {
	if len(all) == 0 {
		return "–"
	}
	slices.Sort(all)
	return all[(len(all)*99+99)/100-1].Round(time.Millisecond).String()
}
