package track

import (
	"net"
	"net/http"
	"testing"

	"github.com/seed-235859eb/usher/internal/memnet"
)

// TestOpaque follows connections by what net/http reports alone.
func TestOpaque(t *testing.T) {
	o := &owner{}
	opaque := NewOpaque(o)
	opaque.BeginStop()
	opaque.Want(Left)
	open := func(want int) {
		t.Helper()
		if all, _ := opaque.Open(); all != want {
			t.Errorf("%d open, want %d", all, want)
		}
	}
	_, a := memnet.Pipe()
	_, b := memnet.Pipe()
	if !opaque.Report(a, http.StateNew) || opaque.Report(b, http.StateNew) {
		t.Error("the first connection is not said to be the first, or the second is")
	}
	open(2)
	opaque.Report(a, http.StateActive)
	opaque.Report(a, http.StateIdle)
	opaque.Report(a, http.StateClosed)
	open(1)
	opaque.Report(a, http.StateClosed) // a second time, of one that is gone
	opaque.Report(b, http.StateActive)
	opaque.Report(b, http.StateHijacked)
	open(0)
	opaque.Report(b, http.StateClosed)

	_, c := memnet.Pipe()
	opaque.Report(c, http.StateNew)
	opaque.Each(func(c *Conn, _ State) {
		c.Cut()
		eventually(t, "it is closed", func() bool { return c.State().Closed() })
	})
	opaque.Report(c, http.StateClosed) // net/http notices
	open(0)
	n := opaque.Counts()
	if n.Fates[Served] != 1 || n.Fates[Hijacked] != 1 || n.Fates[Cut] != 1 || n.AcceptedLate != 3 || len(o.take()) != 3 {
		t.Errorf("%+v", n)
	}
}

// unlike is a connection that a map cannot have as its key.
type unlike struct {
	net.Conn
	_ []byte
}

func TestOpaqueThatCannotBeTold(t *testing.T) {
	_, b := memnet.Pipe()
	opaque := NewOpaque(nobody{})
	for state := http.StateNew; state <= http.StateClosed; state++ {
		if opaque.Report(unlike{Conn: b}, state) {
			t.Error("it is followed")
		}
	}
}
