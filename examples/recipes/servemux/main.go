// Servemux serves with the mux of net/http.
package main

import (
	"cmp"
	"context"
	"io"
	"log"
	"net/http"
	"os"

	"github.com/seed-235859eb/usher"
)

func main() {
	mux := http.NewServeMux()
	mux.HandleFunc("/{$}", hello)

	srv := usher.Wrap(&http.Server{Addr: cmp.Or(os.Getenv("ADDR"), ":8080"), Handler: mux}, usher.Options{})
	mux.Handle("GET /readyz", srv.Ready())
	if err := srv.Run(context.Background()); err != nil { // until SIGTERM or SIGINT
		log.Fatal(err)
	}
}

func hello(w http.ResponseWriter, r *http.Request) { io.WriteString(w, "hello\n") }
