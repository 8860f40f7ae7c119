// Admin has a second server for probes, metrics and profiles, on a port that the
// public does not see. It answers until the first one has drained.
package main

import (
	"cmp"
	"context"
	"encoding/json"
	"io"
	"log"
	"net/http"
	"net/http/pprof"
	"os"

	"github.com/seed-235859eb/usher"
)

func main() {
	public := http.NewServeMux()
	public.HandleFunc("/", hello)
	srv := usher.Wrap(&http.Server{Addr: cmp.Or(os.Getenv("ADDR"), ":8080"), Handler: public}, usher.Options{})

	private := http.NewServeMux()
	private.Handle("GET /readyz", srv.Ready())
	private.HandleFunc("GET /stats", func(w http.ResponseWriter, r *http.Request) { json.NewEncoder(w).Encode(srv.Stats()) })
	private.HandleFunc("GET /debug/pprof/", pprof.Index)
	admin := usher.Wrap(&http.Server{Addr: cmp.Or(os.Getenv("ADMIN_ADDR"), "localhost:8081"), Handler: private}, usher.Options{})

	if err := usher.RunAll(context.Background(), srv, admin); err != nil { // the last one stops last
		log.Fatal(err)
	}
}

func hello(w http.ResponseWriter, r *http.Request) { io.WriteString(w, "hello\n") }
