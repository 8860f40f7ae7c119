// Package rpc holds tested examples of how handlers of grpc-go, of connect-go and
// of server-sent events end their streams when the server stops.
//
// Unary calls need nothing: each of them is answered, and the client opens the
// next connection elsewhere. A stream that lasts must end by itself:
// [usher.Draining] tells it when, with the context that its handler has. It ends
// with the status Unavailable, by which clients know that they may come back.
package rpc
