// Package usher shows connections in and everybody out: it wraps an
// [http.Server] so that it can be stopped without losing a request.
//
// [http.Server.Shutdown] drops each HTTP/1 request that arrives after it was
// called, closes idle connections while their clients are sending, and lets
// the kernel reset what waits in the accept queue. A [Server] goes quiet
// first, and calls it last:
//
//	srv := usher.Wrap(&http.Server{Addr: ":8080", Handler: mux}, usher.Options{})
//	if err := srv.Run(ctx); err != nil {
//		log.Fatal(err)
//	}
//
// # The life of a server
//
//		serving ──▶ lame duck ──▶ gate ──▶ accept queue ──▶ drain ──▶ finish ──▶ stopped
//		        TERM,         Delay     Handshake-       queue      no HTTP/1    no conn-
//		        INT,                    Grace            empty      connection   ection
//		        ctx                                                 left         left
//		                └────────────── GracePeriod is over ──────────▶ hard ──▶ stopped
//
//	  - Lame duck (only with Delay): readiness fails, all else goes on, for load
//	    balancers that learn late.
//	  - Gate: new handshakes are stopped, those under way finish. It is over when
//	    there are none, HandshakeGrace at the latest.
//	  - Accept queue: every connection that the kernel has established is
//	    accepted; then the socket is closed, and new connects are refused.
//	  - Drain: each response that begins says Connection: close, which makes a
//	    GOAWAY over HTTP/2. A connection in the middle of a request is served. One
//	    that is silent is kept for IdleGrace, because only an answer ends an
//	    HTTP/1 connection without a race, and then closed. Handlers of long
//	    responses learn from [Draining] that it is time.
//	  - Finish: Shutdown of net/http sends GOAWAY to HTTP/2 connections; hijacked
//	    connections are waited for; hooks run.
//	  - Hard: the contexts of requests are cancelled with the cause
//	    [ErrShuttingDown], then connections are closed.
//
// A [Report] tells what became of each connection.
//
// # What is promised, and what is not
//
// On Linux, with a TCP socket from [Listen] (Run and ListenAndServe use it),
// one that is Exclusive (see [ListenerOptions]), or a unix socket, each
// connection that its client sees as established is served: [GuaranteeAll].
// Other sockets, which another process may have too, and other systems get
// [GuaranteeQueue], which leaves a window of microseconds, and a listener that
// hides its socket, and Windows, get [GuaranteeNone]. [Report] says which it
// was, and by which [Gate]. No privilege is needed since Linux 5.7. The README
// has a table of what holds where, for older kernels too.
//
// What stops new handshakes on a TCP socket stays with the socket. So it is not
// done to one that systemd, a parent or a sibling may have: it would keep the
// next program's clients out.
//
// A client that sends on an idle connection in the very moment in which
// IdleGrace ends loses that request; see [ShutdownOptions] for how rare that
// is. A client that opens an HTTP/2 stream while the GOAWAY is on its way
// learns from it that the stream was not processed, and may safely send it
// again; net/http sends one GOAWAY, not the two that would avoid this.
//
// A client that has sent part of a request is waited for until GracePeriod is
// over. Set ReadHeaderTimeout and ReadTimeout to bound that.
//
// Functions registered with [http.Server.RegisterOnShutdown] run in the finish
// phase. What must end early should use [Draining].
//
// # Who is served next
//
// With [FairnessOptions].Slots, so many handlers run at a time, and others wait
// in one queue in a fair order; see [Limiter] for the rule. docs/fairness.md in
// the repository explains it with figures.
//
// # Notes by message
//
//   - "new handshakes are not stopped": see [GuaranteeQueue]; the line has the
//     reason. Use [Listen], or set [ListenerOptions].Exclusive.
//   - "new handshakes are dropped, not refused": see [GateFilter].
//   - "Shutdown or Close of the http.Server was called directly": the program
//     calls those of the http.Server that it wrapped; requests are lost.
//   - "accept failed, will try again": the process has no descriptor left; raise
//     its limit or set [ListenerOptions].MaxConns.
//   - "shutdown fell short in phase …": a [ShutdownError]; GracePeriod was over
//     in that phase.
package usher
