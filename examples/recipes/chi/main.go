// Chi serves with a router of go-chi.
package main

import (
	"cmp"
	"context"
	"io"
	"log"
	"net/http"
	"os"

	"github.com/go-chi/chi/v5"
	"github.com/go-chi/chi/v5/middleware"
	"github.com/seed-235859eb/usher"
)

func main() {
	r := chi.NewRouter()
	r.Use(middleware.RequestID, middleware.Recoverer)
	r.Get("/", hello)
	r.Post("/", hello)

	srv := usher.Wrap(&http.Server{Addr: cmp.Or(os.Getenv("ADDR"), ":8080"), Handler: r}, usher.Options{})
	r.Method(http.MethodGet, "/readyz", srv.Ready())
	if err := srv.Run(context.Background()); err != nil {
		log.Fatal(err)
	}
}

func hello(w http.ResponseWriter, r *http.Request) { io.WriteString(w, "hello\n") }
