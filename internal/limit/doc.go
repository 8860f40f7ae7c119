// Package limit bounds how many handlers run at once, and decides fairly which
// request is next.
//
// A request that runs holds a slot by a lease. It takes a free slot at once;
// otherwise its flow waits in a [fairqueue.Queue]. A slot is not held while a
// handler waits for its client: a read of the body that has to wait gives it
// back. What a request waits with, its deadlines and whether its client has
// left, is asked of its connection, so that it does not matter to which flow
// the request belongs, or how many Limiters it goes through.
//
// Which requests pass, what flow they belong to, and how those are answered
// that are not served, is for the caller to say.
package limit
