package track

import (
	"net"
	"net/http"
	"reflect"
	"sync"

	"github.com/seed-235859eb/usher/internal/goaway"
)

// Opaque follows connections that somebody else reads, because a listener
// speaks TLS itself or hides the connections it wraps. Only what net/http
// reports of them is known.
type Opaque struct {
	*Set

	mu    sync.Mutex
	conns map[net.Conn]*Conn
}

// NewOpaque returns an Opaque whose Set is owner's.
func NewOpaque(owner Owner) *Opaque {
	return &Opaque{Set: NewSet(owner), conns: make(map[net.Conn]*Conn)}
}

// Report notes what the ConnState callback of net/http said of nc, and reports
// whether it is the first connection. One that cannot be told from others, a
// struct with a slice in it, is not followed.
func (o *Opaque) Report(nc net.Conn, state http.ConnState) (first bool) {
	plain, _ := goaway.Plain(nc)
	if !reflect.ValueOf(plain).Comparable() {
		return false
	}
	o.mu.Lock()
	c := o.conns[plain]
	switch state {
	case http.StateNew:
		c = o.addOpaque(nc)
		o.conns[plain] = c
		first = o.Counts().Accepted == 1
	case http.StateHijacked, http.StateClosed:
		delete(o.conns, plain)
	}
	o.mu.Unlock()
	if c == nil {
		return false
	}
	c.Report(nc, state)
	if state == http.StateHijacked || state == http.StateClosed {
		o.remove(c) // whoever closes a hijacked one will not tell
	}
	return first
}
