// Websocket echoes messages. When the server drains each connection gets the
// status 1012, service restart, at a time of its own, so that clients do not all
// connect again at once.
package main

import (
	"cmp"
	"context"
	"io"
	"log"
	"math/rand/v2"
	"net/http"
	"os"
	"time"

	"github.com/coder/websocket"
	"github.com/seed-235859eb/usher"
)

// spread is how long the goodbyes take, all in all.
const spread = 2 * time.Second

func main() {
	mux := http.NewServeMux()
	mux.HandleFunc("GET /ws", serve)

	srv := usher.Wrap(&http.Server{Addr: cmp.Or(os.Getenv("ADDR"), ":8080"), Handler: mux}, usher.Options{})
	mux.Handle("GET /readyz", srv.Ready())
	if err := srv.Run(context.Background()); err != nil {
		log.Fatal(err)
	}
}

func serve(w http.ResponseWriter, r *http.Request) {
	c, err := websocket.Accept(w, r, nil)
	if err != nil {
		return // it has been answered
	}
	defer c.CloseNow()
	ctx, cancel := context.WithCancel(r.Context())
	defer cancel()
	go sayGoodbye(ctx, c, usher.Draining(r.Context()))
	for echo(ctx, c) == nil {
	}
}

// sayGoodbye closes the connection some time after draining.
func sayGoodbye(ctx context.Context, c *websocket.Conn, draining <-chan struct{}) {
	select {
	case <-draining:
	case <-ctx.Done():
		return
	}
	select {
	case <-time.After(rand.N(spread)):
	case <-ctx.Done():
	}
	c.Close(websocket.StatusServiceRestart, "restart")
}

// echo sends one message back.
func echo(ctx context.Context, c *websocket.Conn) error {
	kind, r, err := c.Reader(ctx)
	if err != nil {
		return err
	}
	w, err := c.Writer(ctx, kind)
	if err != nil {
		return err
	}
	if _, err := io.Copy(w, r); err != nil {
		return err
	}
	return w.Close()
}
