// Package usher stops an [http.Server] without losing a request, and seats
// requests fairly while it runs.
//
// [http.Server.Shutdown] loses requests in three ways. It drops each HTTP/1
// request that arrives after the call. It closes idle connections while their
// clients are sending. It closes the listening socket, and the kernel then
// resets each connection in the accept queue. A [Server] first waits until
// nothing of that can happen, and calls Shutdown last:
//
//	srv := usher.Wrap(&http.Server{Addr: ":8080", Handler: mux}, usher.Options{})
//	if err := srv.Run(ctx); err != nil {
//		log.Fatal(err)
//	}
//
// # Terms
//
//   - A request is lost if its connection was established and no whole response
//     came back. A connection is refused if its connect fails: nothing is lost, a
//     router or client can try elsewhere.
//   - The accept queue holds the connections that the kernel has established and
//     nobody has accepted yet.
//   - A gate is what keeps new connections from being established; see [Gate].
//   - A connection is silent if nothing of a request has arrived on it, or nothing
//     since its last response.
//   - A newcomer is a connection that waits for a place at MaxConns.
//   - A slot is the right to run one handler. A flow is what slots are shared
//     between: a connection, unless FlowKey says otherwise.
//
// # The life of a server
//
//		serving ──▶ lame duck ──▶ gate ──▶ accept queue ──▶ drain ──▶ finish ──▶ stopped
//		        TERM,         Delay     Handshake-       queue      no HTTP/1    no conn-
//		        INT,                    Grace            empty      connection   ection
//		        ctx                                                 left         left
//		                └────────────── GracePeriod is over ──────────▶ hard ──▶ stopped
//
//	  - Lame duck (only with Delay): readiness fails, everything else goes on. It
//	    is for load balancers that learn late of a stop.
//	  - Gate: no new handshake begins. Those under way finish. The phase ends when
//	    none is left, or after HandshakeGrace.
//	  - Accept queue: every connection in the queue is accepted. Then the socket
//	    is closed, and new connects are refused.
//	  - Drain: connections leave. Each response that begins now is its
//	    connection's last: it says Connection: close. A silent connection is kept
//	    for IdleGrace, because only an answer ends an HTTP/1 connection without a
//	    race, and is then closed. HTTP/2 connections get the first of two GOAWAY
//	    frames. Handlers of long responses learn from [Draining] that it is time
//	    to end; StreamGrace bounds those that do not.
//	  - Finish: Shutdown of net/http sends its GOAWAY to HTTP/2 connections.
//	    Hijacked connections are waited for. Then the hooks run.
//	  - Hard: the contexts of requests are cancelled with the cause
//	    [ErrShuttingDown]. Then connections are closed.
//
// A [Report] tells what became of each connection.
//
// # What is promised, and what is not
//
// [GuaranteeAll] means that each connection that its client sees as established
// is served. It holds on Linux for TCP sockets from [Listen], which Run and
// ListenAndServe use, for those that are Exclusive (see [ListenerOptions]), and
// for unix sockets. It needs no privilege since Linux 5.7.
//
// [GuaranteeQueue] leaves a window of microseconds. It holds for sockets that
// another process may have, too, and on most other systems.
//
// [GuaranteeNone] holds for listeners that hide their socket, and on Windows.
//
// The [Report] says which guarantee held, and by which [Gate].
// docs/guarantees.md in the repository has a table of all cases.
//
// A gate stays with its TCP socket for good. So usher puts none on a socket that
// systemd, a parent or a sibling may have: the next program would get no clients.
//
// These requests may be lost, or must be sent again:
//
//   - One that is sent on an idle connection in the moment in which IdleGrace
//     ends is lost. [ShutdownOptions] says how rare that is.
//   - An HTTP/2 stream that the client opens while net/http's GOAWAY is on its way
//     is refused, and may safely be sent again. usher's own GOAWAY comes first and
//     refuses nothing: the client acknowledges it, and opens no stream after that.
//     There is no such first step if the user has set TLSNextProto, and over TLS
//     with a release of Go that usher does not know yet (1.28 and later):
//     [Report].HTTP2OneStep counts these. A client that does not acknowledge
//     within a second is not waited for.
//
// A client that has sent a part of a request is waited for until GracePeriod is
// over. Set ReadHeaderTimeout and ReadTimeout to bound that.
//
// Functions registered with [http.Server.RegisterOnShutdown] run in the finish
// phase. What must end early should use [Draining].
//
// # Who is served next
//
// With [FairnessOptions].Slots, at most that many handlers run at once. Other
// requests wait in one queue, in a fair order; see [Limiter] for the rule, and
// docs/fairness.md in the repository for figures.
//
// # Notes by message
//
//   - "the http.Server was told to serve directly": the program calls Serve or
//     ListenAndServe of the http.Server. Call those of the [Server].
//   - "Shutdown or Close of the http.Server was called directly": requests are
//     lost. Call those of the [Server].
//   - "new handshakes are not stopped": see [GuaranteeQueue]; the line has the
//     reason. Use [Listen], or set [ListenerOptions].Exclusive.
//   - "new handshakes were dropped, not refused": see [GateFilter].
//   - "accept failed, will try again": the process has no descriptor left. Raise
//     its limit, or set [ListenerOptions].MaxConns.
//   - "requests are turned away": see MaxQueue and MaxWait of [FairnessOptions].
//   - "still stopping": what a stop waits for, after a second and then at doubling
//     intervals. It names the oldest requests.
//   - "shutdown fell short in phase …": a [ShutdownError]. GracePeriod was over
//     in that phase.
package usher
