package goaway

import "net/http"

// A Door is the way to the HTTP/2 connections over TLS of one http.Server,
// which net/http does not show. It is another one in each release of Go, see
// door_….go, and each has a test that fails when net/http shuts it. Where it
// is shut, HTTP/2 over TLS leaves as net/http has it leave.
type Door struct {
	srv *http.Server
	own bool // what net/http makes of HTTP/2 is its own
	doorState
}

// NewDoor returns the Door of srv, which must not serve yet. It stays shut if
// the user has set TLSNextProto.
func NewDoor(srv *http.Server) *Door {
	return &Door{srv: srv, own: srv.TLSNextProto == nil}
}

// Own reports whether HTTP/2 is net/http's own.
func (d *Door) Own() bool { return d.own }
