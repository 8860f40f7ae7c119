// Package limit bounds how many handlers run at once, and decides fairly which
// request is next.
//
// A request holds its slot, or waits for one, with a lease. It takes a free slot at
// once. Otherwise its flow waits in a [fairqueue.Queue]. A slot is not held while a
// handler waits for its client: a read of the body that has to wait gives the slot
// back.
//
// The deadlines of a waiting request, and whether its client has left, are asked of
// its connection. So it makes no difference to which flow the request belongs, or
// how many Limiters it goes through.
//
// The caller decides which requests need a slot, what flow they belong to, and how a
// request is answered that is not served.
package limit
