// Connect serves a service of connect-go over HTTP/1 and HTTP/2, for clients of
// Connect, gRPC and gRPC-Web.
package main

import (
	"cmp"
	"context"
	"log"
	"net/http"
	"os"

	"connectrpc.com/connect"
	"github.com/seed-235859eb/usher"
	"google.golang.org/protobuf/types/known/wrapperspb"
)

func main() {
	mux := http.NewServeMux()
	// As the generated NewEchoServiceHandler has it.
	mux.Handle("/echo.v1.EchoService/Echo", connect.NewUnaryHandler("/echo.v1.EchoService/Echo", echo))

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

func echo(_ context.Context, r *connect.Request[wrapperspb.StringValue]) (*connect.Response[wrapperspb.StringValue], error) {
	return connect.NewResponse(r.Msg), nil
}
