// Package track follows connections from their accept to their end: what each
// one is doing, whether its client could lose anything if it were closed now,
// and how many there are.
//
// A [Set] holds the open connections of one listener. A [Conn] behaves as the
// connection that it wraps. It learns in which [State] it is from its own Reads, and
// from what net/http reports. Others decide what follows: the [Owner] of a Set is
// told of the events that it wants, and the [User] of a Conn is told that its Reads
// wait. An event that nobody wants costs one atomic load.
//
// A connection is quiet if its client can lose nothing when it is closed now. To
// retire a connection is to close it because it is quiet, to cut it is to close it
// whatever it does. Its fate is how it left after a stop had begun.
//
// nethttp.go has what the package takes for granted of net/http's inside. Each
// assumption has a test that fails when a release of Go changes it.
package track
