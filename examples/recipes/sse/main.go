// Sse sends server-sent events. When the server drains each stream ends as a
// whole response, and its client, told by retry: how long to wait, connects to
// another server.
package main

import (
	"cmp"
	"context"
	"fmt"
	"log"
	"math/rand/v2"
	"net/http"
	"os"
	"time"

	"github.com/seed-235859eb/usher"
)

func main() {
	mux := http.NewServeMux()
	mux.HandleFunc("GET /events", events)

	srv := usher.Wrap(&http.Server{Addr: cmp.Or(os.Getenv("ADDR"), ":8080"), Handler: mux}, usher.Options{})
	mux.Handle("GET /readyz", srv.Ready())
	if err := srv.Run(context.Background()); err != nil {
		log.Fatal(err)
	}
}

func events(w http.ResponseWriter, r *http.Request) {
	w.Header().Set("Content-Type", "text/event-stream")
	w.Header().Set("Cache-Control", "no-store")
	rc := http.NewResponseController(w)
	// Clients that all wait for the same time would come back all at once.
	fmt.Fprintf(w, "retry: %d\n\n", 500+rand.IntN(2000))

	tick := time.NewTicker(100 * time.Millisecond)
	defer tick.Stop()
	for n := 1; ; n++ {
		fmt.Fprintf(w, "id: %d\ndata: %s\n\n", n, time.Now().Format(time.RFC3339Nano))
		if rc.Flush() != nil {
			return
		}
		select {
		case <-tick.C:
		case <-usher.Draining(r.Context()):
			return
		case <-r.Context().Done():
			return
		}
	}
}
