package fairness

import (
	"flag"
	"net/http"
	"testing"
	"time"
)

var update = flag.Bool("update", false, "write CONFORMANCE.md")

// A promise is something that a contender keeps or does not.
type promise struct {
	name string // in the table
	// queueing is set if the promise is about requests that wait. Without a
	// limit none do, and keeping it says nothing.
	queueing bool
	check    func(t *testing.T, c Contender) outcome
}

// An outcome says whether a promise was kept, and the figure that tells.
type outcome struct {
	kept   bool
	figure string
}

// promises are all of them, in the order of the table.
var promises = []promise{
	{"at most N handlers at a time, HTTP/1 and HTTP/2", false, checkLimit},
	{"10 keep-alive connections, 5 slots, 200 ms: P99 ≤ 1.15 of the ideal", true, checkSeedCase},
	{"idle keep-alive connections do not keep a newcomer out", true, checkIdle},
	{"an HTTP/2 connection with 100 streams beside 9 HTTP/1 ones: their P99 ≤ 1.5 of the fair", true, checkFlood},
	{"queued HTTP/2 uploads do not block the one that has a slot", true, checkBodyDeadlock},
	{"WriteTimeout does not run in the queue, HTTP/1", true, checkWriteTimeout(overHTTP1)},
	{"WriteTimeout does not run in the queue, HTTP/2", true, checkWriteTimeout(overHTTP2)},
	{"a client that leaves the queue is taken out, its POST unread", true, checkClientLeaves},
	{"a full queue answers at once, with Retry-After", true, checkFullQueue},
	{"a health check passes a full queue", true, checkHealth},
	{"a slow upload costs no slot", true, checkSlowUpload},
	{"ResponseWriter, Hijack and sendfile are net/http's own", false, checkIntegrity},
	{"the handler knows how long its request waited", true, checkQueueWait},
}

// TestConformance holds each contender to each promise, and fails for those
// that usher breaks.
func TestConformance(t *testing.T) {
	if testing.Short() {
		t.Skip("takes half a minute")
	}
	// They run beside each other, see TestMain: most of the time they only wait.
	results := make([][]outcome, len(Contenders))
	t.Run("contender", func(t *testing.T) {
		for i, c := range Contenders {
			results[i] = make([]outcome, len(promises))
			t.Run(c.Name, func(t *testing.T) {
				t.Parallel()
				for j, p := range promises {
					results[i][j] = p.check(t, c)
					if c.Name == Usher.Name && !results[i][j].kept {
						t.Errorf("broken: %s: %s", p.name, results[i][j].figure)
					}
				}
			})
		}
	})
	table := markdown(results)
	t.Logf("\n%s", table)
	if *update && !t.Failed() {
		if err := writeTable(table); err != nil {
			t.Error(err)
		}
	}
}

// Times of the checks. What is measured is compared with what was measured in
// the same run where that is possible.
const (
	patience = 10 * time.Second // with what must happen
	prompt   = time.Second      // what needs no slot must not take longer
	settle   = 100 * time.Millisecond
)

// unlimitedQueue are limits that are not to matter.
func unlimitedQueue(slots int) Limits {
	return Limits{Slots: slots, MaxQueue: 10_000, MaxWait: time.Minute}
}

func ok(w http.ResponseWriter, _ *http.Request) {
	w.Write([]byte("ok"))
}
