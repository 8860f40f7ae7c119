package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"os"
	"os/signal"
	"runtime"
	"runtime/debug"
	"strconv"
	"syscall"

	"github.com/seed-235859eb/usher"
	"github.com/seed-235859eb/usher/bench/usage"
)

// childEnv, set to usher or bare, makes this program a server that can tell
// its use of memory exactly.
const childEnv = "USHER_COST_CHILD"

// A footprint is the memory that a server uses after garbage collection.
type footprint struct {
	Heap  int64 // bytes of live objects
	Stack int64 // bytes of goroutine stacks
	RSS   int64 // resident, after all that is free went back to the system
}

// serveChild serves until SIGTERM. Its argument is usher's Slots.
func serveChild(kind string, args []string) error {
	slots := 0
	if len(args) > 0 {
		var err error
		if slots, err = strconv.Atoi(args[0]); err != nil {
			return fmt.Errorf("slots: %w", err)
		}
	}
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	l, err := usher.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return err
	}
	mux := http.NewServeMux()
	mux.HandleFunc("/", answerOK)
	mux.HandleFunc("/footprint", answerFootprint)
	s, err := newServer(kind, slots, mux)
	if err != nil {
		return errors.Join(err, l.Close())
	}
	slog.New(slog.NewTextHandler(os.Stderr, nil)).Info("listening", "addr", l.Addr().String())
	served := make(chan error, 1)
	go func() { served <- s.Serve(l) }()
	select {
	case err := <-served:
		return err
	case <-ctx.Done():
		err := s.Close()
		<-served // ErrServerClosed
		return err
	}
}

// A server is what usher.Server and http.Server have in common.
type server interface {
	Serve(net.Listener) error
	Shutdown(context.Context) error
	Close() error
}

// The kinds of server.
const (
	bareKind  = "bare"
	usherKind = "usher"
)

// newServer returns a server with all options at their defaults but usher's
// Slots.
func newServer(kind string, slots int, h http.Handler) (server, error) {
	srv := &http.Server{Handler: h}
	switch kind {
	case bareKind:
		return srv, nil
	case usherKind:
		return usher.Wrap(srv, usher.Options{
			Fairness: usher.FairnessOptions{Slots: slots},
			Logger:   slog.New(slog.DiscardHandler),
		}), nil
	}
	return nil, fmt.Errorf("unknown kind of server: %q", kind)
}

func answerOK(w http.ResponseWriter, r *http.Request) {
	io.Copy(io.Discard, r.Body)
	io.WriteString(w, "ok")
}

func answerFootprint(w http.ResponseWriter, r *http.Request) {
	// The first collection moves what sync.Pools hold to their victim caches,
	// the next drops it.
	runtime.GC()
	runtime.GC()
	debug.FreeOSMemory()
	var m runtime.MemStats
	runtime.ReadMemStats(&m)
	rss, err := usage.ResidentSize(os.Getpid())
	if err != nil {
		http.Error(w, err.Error(), http.StatusInternalServerError)
		return
	}
	json.NewEncoder(w).Encode(footprint{Heap: int64(m.HeapAlloc), Stack: int64(m.StackInuse), RSS: rss})
}
