package gate

import (
	"context"
	"fmt"
	"strings"
	"time"
)

// Ungated is the result for a socket whose queue will be served though new
// handshakes are not stopped.
func Ungated(reason string) Result {
	return Result{GuaranteeQueue, None, reason}
}

// Await waits, after [Shut] has come to out, for the handshakes under way, which
// look counts, for grace at most. It returns what closing the socket with an
// empty queue will come to.
func Await(ctx context.Context, out Outcome, look func() (Pending, error), grace time.Duration) Result {
	reason := ""
	if out.Refused != nil {
		reason = strings.ReplaceAll(out.Refused.Error(), "\n", "; ")
	}
	switch out.Mechanism {
	case None:
		return Ungated(reason)
	case Name:
		return Result{GuaranteeAll, Name, reason}
	}
	if open := awaitHandshakes(ctx, look, grace); open > 0 {
		// Until these are shut too, the kernel goes on giving us connections.
		return Ungated(fmt.Sprintf("%d other sockets of the SO_REUSEPORT group go on", open))
	}
	if ctx.Err() != nil {
		return Ungated("there was no time to wait for handshakes under way")
	}
	return Result{GuaranteeAll, out.Mechanism, reason}
}

// NextLook is how soon the kernel is asked again for handshakes under way: long
// enough for it to take in a packet that was at its door the last time.
const NextLook = 5 * time.Millisecond

// awaitHandshakes waits until two looks in succession find nothing under way,
// or for grace, which is also what it waits if there is no looking. It returns
// how many other sockets of the group were open to newcomers in the end.
func awaitHandshakes(ctx context.Context, look func() (Pending, error), grace time.Duration) (open int) {
	over := time.NewTimer(grace)
	defer over.Stop()
	next := time.NewTimer(0)
	defer next.Stop()
	for quiet := 0; ; {
		select {
		case <-next.C:
			began := time.Now()
			p, err := look()
			if err != nil {
				continue // and look no more
			}
			if quiet++; p != (Pending{}) {
				quiet = 0
			}
			if open = p.Open; quiet == 2 {
				return 0
			}
			// On a machine with very many connections a look takes its time.
			next.Reset(max(NextLook, time.Since(began)))
		case <-over.C:
			return open
		case <-ctx.Done():
			return open
		}
	}
}
