package prefork_test

import (
	"context"
	"fmt"
	"log"
	"net/http"

	"github.com/seed-235859eb/usher"
	"github.com/seed-235859eb/usher/prefork"
)

// The same program is master and worker.
func ExampleRun() {
	err := prefork.Run(context.Background(), prefork.Options{
		Workers: 4,
		Addr:    ":8080",
	}, func(ctx context.Context, w *prefork.Worker) error {
		mux := http.NewServeMux()
		mux.HandleFunc("/", func(rw http.ResponseWriter, r *http.Request) {
			fmt.Fprintf(rw, "hello from seat %d, generation %d\n", w.Seat(), w.Generation())
		})
		srv := usher.Wrap(&http.Server{Handler: mux}, usher.Options{})
		return srv.Run(ctx, w.Listener())
	})
	if err != nil {
		log.Fatal(err)
	}
}

// Two addresses, told apart by name, and a server for each.
func ExampleWorker_Listeners() {
	opts := prefork.Options{
		Workers: 2,
		Listen: []prefork.Endpoint{
			{Name: "web", Addr: ":8080"},
			{Name: "admin", Network: "unix", Addr: "/run/app/admin.sock"},
		},
	}
	err := prefork.Run(context.Background(), opts, func(ctx context.Context, w *prefork.Worker) error {
		web := usher.Wrap(&http.Server{Handler: http.NotFoundHandler()}, usher.Options{})
		admin := usher.Wrap(&http.Server{Handler: http.DefaultServeMux}, usher.Options{})
		done := make(chan error, 1)
		go func() { done <- admin.Run(ctx, w.Listeners()["admin"]) }()
		if err := web.Run(ctx, w.Listeners()["web"]); err != nil {
			return err
		}
		return <-done
	})
	if err != nil {
		log.Fatal(err)
	}
}

// A restart that waits for its result, asked for by the program itself.
func ExampleMaster_Restart() {
	var master *prefork.Master
	opts := prefork.Options{
		Workers: 4,
		Addr:    ":8080",
		Hooks: prefork.Hooks{
			MasterStart: func(ctx context.Context, m *prefork.Master) { master = m },
		},
	}
	_ = opts // for Run

	deploy := func(ctx context.Context) error {
		if err := master.Restart(ctx); err != nil {
			return fmt.Errorf("the old code still serves: %w", err)
		}
		return nil // and no process of the old code is left
	}
	_ = deploy
}
