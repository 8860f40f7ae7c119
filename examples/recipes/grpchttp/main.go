// Grpchttp serves grpc-go over net/http's HTTP/2, beside other handlers on the
// same port. Slots and the phases of a stop are then those of the Server.
package main

import (
	"cmp"
	"context"
	"log"
	"net/http"
	"os"

	"github.com/seed-235859eb/usher"
	"google.golang.org/grpc"
	"google.golang.org/grpc/health"
	"google.golang.org/grpc/health/grpc_health_v1"
)

func main() {
	rpc := grpc.NewServer()
	grpc_health_v1.RegisterHealthServer(rpc, health.NewServer())
	mux := http.NewServeMux()
	mux.Handle("POST /grpc.health.v1.Health/", rpc)

	protocols := new(http.Protocols)
	protocols.SetHTTP1(true)
	protocols.SetUnencryptedHTTP2(true)
	srv := usher.Wrap(&http.Server{
		Addr: cmp.Or(os.Getenv("ADDR"), ":8080"), Handler: mux, Protocols: protocols,
	}, usher.Options{})
	mux.Handle("GET /readyz", srv.Ready())
	if err := srv.Run(context.Background()); err != nil {
		log.Fatal(err)
	}
}
