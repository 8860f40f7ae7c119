// Package track follows connections from their accept to their end: what each
// one is doing, whether its client could lose anything if it were closed now,
// and how many there are.
//
// A [Set] holds the open connections of one listener. A [Conn] behaves as the
// connection that it wraps, and learns from its own Reads, and from what
// net/http reports, in which [State] it is. What follows from that is for
// others to decide: the [Owner] of a Set is told of the events that it wants,
// and the [User] of a connection that its Reads wait. An event that nobody
// wants costs a load.
//
// Of this module the package imports goaway alone, for HTTP/2. What it takes for granted of
// net/http's inside stands in nethttp.go, each with a test that fails when a
// release of Go changes it.
package track
