// Errgroup runs a server beside something else. The first that fails ends the
// other, and so does SIGTERM.
package main

import (
	"cmp"
	"context"
	"io"
	"log"
	"net/http"
	"os"
	"os/signal"
	"syscall"
	"time"

	"github.com/seed-235859eb/usher"
	"golang.org/x/sync/errgroup"
)

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	group, ctx := errgroup.WithContext(ctx)

	srv := usher.Wrap(&http.Server{Addr: cmp.Or(os.Getenv("ADDR"), ":8080"), Handler: http.HandlerFunc(hello)}, usher.Options{})
	group.Go(func() error { return srv.RunUntil(ctx) }) // ctx ends: the stop begins
	group.Go(func() error { return work(ctx) })
	if err := group.Wait(); err != nil {
		log.Fatal(err)
	}
}

// work does what is to be done now and then.
func work(ctx context.Context) error {
	tick := time.NewTicker(time.Second)
	defer tick.Stop()
	for {
		select {
		case <-tick.C:
		case <-ctx.Done():
			return nil
		}
	}
}

func hello(w http.ResponseWriter, r *http.Request) { io.WriteString(w, "hello\n") }
