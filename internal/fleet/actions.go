package fleet

import "time"

// An Action is something for the caller to do, or news for it to pass on. They
// are to be taken in order.
type Action interface{ action() }

// Spawn starts the process of a worker. It is answered by [Fleet.Spawned], then
// [Fleet.Ready], or by [Fleet.SpawnFailed]. Orders for the worker may follow
// before any of these.
type Spawn struct {
	ID               ID
	Seat, Generation int
}

// StopWorker tells a worker to finish its requests and exit.
type StopWorker struct {
	ID    ID
	Level Level

	// Final means that the sockets are about to close for good, as the whole
	// fleet stops. If it is not set somebody else goes on with the socket. A
	// worker that stops already is told again if it becomes final.
	Final bool

	// Why is what made it so, in a word or a few: "restart", "scale", or what
	// [Fleet.Stop] or [Fleet.Leaving] was told.
	Why string
}

// Dump asks a worker for a dump of its goroutines, which ends it: SIGQUIT. A
// Kill follows unless it exits in time.
type Dump struct {
	ID  ID
	Why string
}

// Kill ends a worker by SIGKILL.
type Kill struct {
	ID  ID
	Why string
}

// Live says who gets new connections. It is emitted whenever any of it changes,
// and once more when the fleet begins to stop, but not after that.
//
// It comes after the WorkerReady that made it so, and before an order to stop
// that does: the seat of a worker is taken out before the worker leaves it to
// nobody.
type Live struct {
	Seats   []int // new connections should go to these
	Orphans []int // each worker in To must accept from these too, and from no others but its own
	To      []ID  // all that serve
}

// OpenSeat opens the socket of a seat that [Fleet.Scale] adds, which is the next
// one. It comes before the first Spawn for it. There is none for the seats that
// a fleet starts with, or adopts: their sockets must be open before.
type OpenSeat struct{ Seat int }

// ShutSeat stops new handshakes on a seat that will be closed, beside the Live
// that steers away from it.
type ShutSeat struct{ Seat int }

// CloseSeat closes the socket of a seat, which is always the last one. It has no
// workers any more.
type CloseSeat struct{ Seat int }

// NewGeneration takes a hold on the program as it is now. It comes before the
// first Spawn of the generation.
type NewGeneration struct{ Generation int }

// DropGeneration lets go of it: nobody will be spawned from it any more. Workers
// of it may still run.
type DropGeneration struct{ Generation int }

// CanaryCheck asks whether the first worker of a generation does well. It must
// be answered by [Fleet.Verdict] once, even if the worker is gone meanwhile.
type CanaryCheck struct {
	Generation int
	ID         ID
}

// WorkerReady is news of a worker that serves from now on.
type WorkerReady struct {
	ID               ID
	Seat, Generation int
}

// WorkerGone is news of a worker that has exited or could not be started.
type WorkerGone struct {
	WorkerExit

	// RespawnIn is when the seat's next worker will be started. It is negative
	// if none is needed.
	RespawnIn time.Duration
}

// AllReady is news: each seat serves, and no restart or change of scale is under
// way. It comes for the first time, and again after each of these.
type AllReady struct{}

// RestartDone answers calls of [Fleet.Restart]. Err is nil if all seats serve
// with the generation, or a later one, and no worker of an older one exists any
// more. Otherwise it is a [*RestartError].
type RestartDone struct {
	Tickets    []int
	Generation int
	Err        error
}

// Over is the last action: no worker is left, and none will be started. Err is
// nil after a Stop in which all finished, or else a [*StopError] or
// [*GiveUpError].
type Over struct{ Err error }

func (Spawn) action()          {}
func (StopWorker) action()     {}
func (Dump) action()           {}
func (Kill) action()           {}
func (Live) action()           {}
func (OpenSeat) action()       {}
func (ShutSeat) action()       {}
func (CloseSeat) action()      {}
func (NewGeneration) action()  {}
func (DropGeneration) action() {}
func (CanaryCheck) action()    {}
func (WorkerReady) action()    {}
func (WorkerGone) action()     {}
func (AllReady) action()       {}
func (RestartDone) action()    {}
func (Over) action()           {}
