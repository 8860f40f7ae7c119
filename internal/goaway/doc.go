// Package goaway has HTTP/2 connections leave without a refused stream.
//
// net/http ends an HTTP/2 connection with one GOAWAY. A stream that the client
// opens while that is on its way is dropped, and a request whose body cannot be
// sent twice is lost. So this package comes first: a GOAWAY that names the
// highest stream there can be, which refuses nothing and has the client open no
// more, and a PING. Streams that come before the client's acknowledgement were
// on their way; behind it come none, and net/http's GOAWAY refuses nothing
// either.
//
// Frames of its own are put between those that net/http writes, so all bytes of
// a connection are followed from the first on, in both directions: nine bytes
// of each frame, and a counter.
package goaway
