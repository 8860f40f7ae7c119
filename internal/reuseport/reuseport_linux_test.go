package reuseport

import (
	"net"
	"runtime"
	"testing"
)

func open(t *testing.T, network, address string, n int) *Group {
	t.Helper()
	g, err := Open(network, address, n)
	if err != nil {
		if address == "[::1]:0" {
			t.Skip(err)
		}
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := g.Close(); err != nil {
			t.Error(err)
		}
	})
	return g
}

// dial makes n connections and returns how many of them arrived at each seat.
func dial(t *testing.T, g *Group, n int) []int {
	t.Helper()
	before := queued(t, g)
	for range n {
		c, err := net.Dial(g.Addr().Network(), g.Addr().String())
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { c.Close() })
	}
	// A dial returns when the client's end is established, which may be
	// before the other end is in the accept queue.
	for {
		arrived := queued(t, g)
		sum := 0
		for i := range arrived {
			arrived[i] -= before[i]
			sum += arrived[i]
		}
		if sum >= n {
			return arrived
		}
		if err := t.Context().Err(); err != nil {
			t.Fatal(err)
		}
		runtime.Gosched()
	}
}

func queued(t *testing.T, g *Group) []int {
	t.Helper()
	counts := make([]int, len(g.FDs()))
	for i := range counts {
		n, err := g.Queued(i)
		if err != nil {
			t.Fatal(err)
		}
		counts[i] = n
	}
	return counts
}

var addresses = []string{"127.0.0.1:0", "[::1]:0"}

// TestSeatOrder: the number of a seat is the number the kernel has for it.
func TestSeatOrder(t *testing.T) {
	for _, address := range addresses {
		t.Run(address, func(t *testing.T) {
			g := open(t, "tcp", address, 4)
			for seat := range 4 {
				if err := g.Steer([]int{seat}); err != nil {
					t.Fatal(err)
				}
				if got := dial(t, g, 20); got[seat] != 20 {
					t.Errorf("steered to seat %d, arrived %v", seat, got)
				}
			}
		})
	}
}
