// Package prefork runs an HTTP service as several worker processes under a
// master that holds the sockets, and replaces workers, their code and the master
// itself without a client noticing.
//
//	func main() {
//		err := prefork.Run(context.Background(), prefork.Options{Workers: 4, Addr: ":8080"},
//			func(ctx context.Context, w *prefork.Worker) error {
//				srv := usher.Wrap(&http.Server{Handler: mux()}, usher.Options{})
//				return srv.Run(ctx, w.Listener())
//			})
//		if err != nil {
//			log.Fatal(err)
//		}
//	}
//
// It is for crash isolation, for replacing workers that hang, for new code
// without a dropped request, for garbage collection apart, and for machines with
// very many cores. It is not for throughput on a few cores, where one process
// is as fast and costs less memory: docs/prefork.md has figures.
//
// # How it works
//
// The same program is master and worker: the master starts it again, with the
// sockets and an environment variable that says so. So main runs up to [Run] in
// each process, and should do little before.
//
// For a TCP address the master opens one SO_REUSEPORT socket for each seat and
// keeps all open. A worker that dies takes with it only the requests that ran in
// it: who waits in its accept queue is served by its siblings, at once, and then
// by its successor, and the kernel is told not to send it anybody new. Systems
// whose SO_REUSEPORT does not balance, unix sockets, sockets from systemd and
// listeners that the program made have one socket that all workers share.
//
// Workers tell the master once a second how they do. One that makes no progress
// for [Options.HeartbeatTimeout] is replaced; it gets SIGQUIT, so that its
// goroutines can be read in the log and in [Hooks.WorkerExit], and SIGKILL. One
// that ends unasked is started again, at once and then with growing pauses. When
// the master dies, its workers notice at once, stop as gracefully as ever, and
// leave.
//
// # Signals to the master
//
//	TERM          stop; again: without delays; a third: at once
//	INT           the same, without delays from the start
//	HUP, USR1     phased restart: new workers from the program's file as it is now
//	USR2          upgrade: the master, too
//	TTIN, TTOU    a worker more, a worker fewer
//	QUIT          dump of the master's goroutines; it ends, and the workers drain
//
// SIGTERM that comes several times within a second counts once. TERM to a worker
// asks the master for a successor, and stops the worker once that serves. A
// group's or a terminal's signals, which come to all, mean what they mean to the
// master.
//
// # Restarts
//
// A phased restart starts the new worker of a seat first, and tells the old one
// to stop when the new one serves; both accept from the same socket meanwhile.
// The first new worker must live through [Options.Probation], or pass
// [Options.Canary], before the next seat is touched, and its predecessor serves
// beside it until then: code that dies at once leaves all who served before.
// Three failures take everything back to the old code, from a file that the
// master has held open (on Linux; elsewhere from what is in its place). A restart
// that reports success has left no process of an older generation.
//
// # Notes
//
//   - "gave up: …": too many crashes, or no worker was ready within
//     [Options.FirstBootTimeout] of the start. The last worker's end and output are in the error. Sockets are closed, Run
//     returns, and a service manager should start the program anew.
//   - "trial run of …": the program's file does not come as far as Run, perhaps
//     because it opens what the running master holds. Listeners that main makes
//     before Run are such; endpoints of [Options], also those with an Open
//     function, are not.
//   - "address … is not free": another program listens there. Without this check,
//     two of the same user would share the connections. Workers that a killed
//     master has left behind are told to leave and waited for (Linux).
//   - A client of HTTP/2, or behind a proxy with a pool, stays with the worker
//     that it has met. Few, long-lived connections spread unevenly over workers:
//     have fewer workers then.
//   - Limits are per worker: a limiter with 16 slots in 4 workers runs 64.
//   - A stop signal that comes in the milliseconds in which the master is being
//     replaced, before this package is initialized in the new program, ends it as
//     if it had died: workers drain, and the exit status is the signal's. One that
//     comes later waits for Run.
//   - go run puts the program where it will not be when a restart needs it: build
//     first.
package prefork
