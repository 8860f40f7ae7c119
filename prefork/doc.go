// Package prefork runs an HTTP service as several worker processes and a master,
// which holds the sockets. Workers, their code and the master itself can be replaced
// without a client noticing.
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
// It is for crash isolation, for replacing workers that hang, for new code without a
// dropped request, for separate garbage collection, and for machines with very many
// cores. It is not for throughput on a few cores: one process is as fast there and
// needs less memory. docs/prefork.md has figures.
//
// # Terms
//
//   - A seat is a place for one worker: a number from 0 on, with a socket of its own.
//     While a worker is replaced its seat has two.
//   - A generation is the workers that were started from one version of the program.
//     The first is 1; each restart begins the next.
//   - The fleet is all workers of a master.
//   - A worker is ready when it has told the master that it serves.
//   - A crash is an exit that nobody asked for.
//
// # How it works
//
// The same program is master and worker. The master starts it again, with the
// sockets and an environment variable that says so. So main runs up to [Run] in each
// process, and should do little before.
//
// For a TCP address the master opens one SO_REUSEPORT socket for each seat and keeps
// all open. A worker that dies takes with it only the requests that ran in it. The
// connections in its accept queue are served by its siblings at once, and then by
// its successor; the kernel is told to send no new ones there. There is one socket
// that all workers share on systems whose SO_REUSEPORT does not balance, and for unix
// sockets, sockets from systemd and listeners that the program made.
//
// Each worker sends the master a heartbeat once a second. A worker that makes no
// progress for [Options.HeartbeatTimeout] is replaced. It gets SIGQUIT, so that its
// goroutines can be read in the log and in [Hooks.WorkerExit], and then SIGKILL. A
// worker that crashes is started again: at once, and then with growing pauses. When
// the master dies, its workers notice at once, and stop gracefully.
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
// SIGTERM that comes several times within a second counts once. TERM to a worker asks
// the master for a successor, and stops the worker when that serves. A signal that
// comes to all processes, from a terminal or to a group, means what it means to the
// master.
//
// # Restarts
//
// A phased restart starts the new worker of a seat, and tells the old one to stop when
// the new one serves. Both accept from the same socket meanwhile. The first new
// worker must live through [Options.Probation], or pass [Options.Canary]. Until then
// its predecessor serves beside it and no other seat is touched, so new code that
// dies at once costs no worker of the old code. After three failures all seats go
// back to the old code: on Linux from a file that the master has held open, elsewhere
// from the file that is in its place. A restart that reports success has left no
// process of an older generation.
//
// # Notes
//
//   - "gave up: …": too many crashes, or no worker was ready within
//     [Options.FirstBootTimeout] of the start. The error has the end of the last
//     worker and its output. The sockets are closed, Run returns, and a service
//     manager should start the program anew.
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
