// Package goaway has HTTP/2 connections leave without a refused stream.
//
// net/http ends an HTTP/2 connection with one GOAWAY. A stream that the client opens
// while that GOAWAY is on its way is dropped. If the body of its request cannot be
// sent twice, the request is lost.
//
// So this package acts first. It sends a GOAWAY that names the highest stream number
// there can be, and a PING. That GOAWAY refuses nothing, and the client opens no more
// streams. The streams that arrive before the client's answer to the PING were on
// their way. After the answer none arrive, and the GOAWAY of net/http refuses
// nothing, either.
//
// The package puts frames of its own between those that net/http writes. To know where
// a frame ends it follows all bytes of a connection, in both directions. That costs
// nine bytes of each frame, and a counter.
package goaway
