// Grpc serves with grpc-go's own transport. Drain of the listener comes before
// GracefulStop, which would close it at once and reset who waits to be
// accepted.
package main

import (
	"cmp"
	"context"
	"log"
	"os"
	"os/signal"
	"syscall"
	"time"

	"github.com/seed-235859eb/usher"
	"google.golang.org/grpc"
	"google.golang.org/grpc/health"
	"google.golang.org/grpc/health/grpc_health_v1"
)

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	socket, err := usher.Listen("tcp", cmp.Or(os.Getenv("ADDR"), ":8080"))
	if err != nil {
		log.Fatal(err)
	}
	l, err := usher.NewListener(socket, usher.ListenerOptions{})
	if err != nil {
		log.Fatal(err)
	}

	srv := grpc.NewServer()
	grpc_health_v1.RegisterHealthServer(srv, health.NewServer())
	served := make(chan error, 1)
	go func() { served <- srv.Serve(l) }()

	select {
	case err := <-served:
		log.Fatal(err)
	case <-ctx.Done():
	}
	ctx, cancel := context.WithTimeout(context.Background(), 25*time.Second)
	defer cancel()
	if _, err := l.Drain(ctx); err != nil {
		log.Print(err)
	}
	context.AfterFunc(ctx, srv.Stop) // calls that take too long are cut
	srv.GracefulStop()
}
