package usher_test

import (
	"context"
	"fmt"
	"io"
	"log"
	"net"
	"net/http"
	"time"

	"github.com/seed-235859eb/usher"
)

// The quickstart: wrap the server, and run it until SIGTERM.
func Example() {
	mux := http.NewServeMux()
	mux.HandleFunc("/", func(w http.ResponseWriter, r *http.Request) {
		fmt.Fprintln(w, "hello")
	})

	srv := usher.Wrap(&http.Server{Addr: ":8080", Handler: mux}, usher.Options{})
	mux.Handle("/readyz", srv.Ready())
	srv.OnShutdown("queue", func(ctx context.Context) error {
		return nil // flush what must not be lost
	})
	if err := srv.Run(context.Background()); err != nil {
		log.Fatal(err)
	}
}

// Shutdown answers whoever is connected.
func ExampleServer_Shutdown() {
	srv := usher.Wrap(&http.Server{
		Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) { fmt.Fprint(w, "served") }),
	}, usher.Options{})
	l, err := usher.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		log.Fatal(err)
	}
	served := make(chan error, 1)
	go func() { served <- srv.Serve(l) }()

	resp, err := http.Get("http://" + l.Addr().String())
	if err != nil {
		log.Fatal(err)
	}
	body, _ := io.ReadAll(resp.Body)
	resp.Body.Close()
	http.DefaultClient.CloseIdleConnections()
	fmt.Println(string(body))

	ctx, cancel := context.WithTimeout(context.Background(), 20*time.Second)
	defer cancel()
	fmt.Println(srv.Shutdown(ctx), <-served)
	// Output:
	// served
	// <nil> http: Server closed
}

// A stream ends when the server drains, long before it would be cut.
func ExampleDraining() {
	http.HandleFunc("/events", func(w http.ResponseWriter, r *http.Request) {
		tick := time.NewTicker(time.Second)
		defer tick.Stop()
		for {
			select {
			case t := <-tick.C:
				fmt.Fprintf(w, "data: %s\n\n", t)
				http.NewResponseController(w).Flush()
			case <-usher.Draining(r.Context()):
				return // the client reconnects, and meets another server
			case <-r.Context().Done():
				return
			}
		}
	})
}

// For a server that is not net/http's, the listener alone keeps the accept
// queue from being lost.
func ExampleListener_Drain() {
	inner, err := usher.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		log.Fatal(err)
	}
	l, err := usher.NewListener(inner, usher.ListenerOptions{})
	if err != nil {
		log.Fatal(err)
	}
	go serveSomehow(l)

	_, err = l.Drain(context.Background()) // accepts what is in the queue
	fmt.Println(err)
	l.Close() // makes Accept return
	// Output: <nil>
}

func serveSomehow(l net.Listener) {
	for {
		c, err := l.Accept()
		if err != nil {
			return
		}
		c.Close()
	}
}

// Sixty-four handlers run at a time; who waits is served in a fair order.
func ExampleFairnessOptions() {
	srv := usher.Wrap(&http.Server{Addr: ":8080"}, usher.Options{
		Fairness: usher.FairnessOptions{
			Slots:   64,
			MaxWait: 10 * time.Second,
			Exempt:  func(r *http.Request) bool { return r.URL.Path == "/healthz" },
		},
	})
	if err := srv.Run(context.Background()); err != nil {
		log.Fatal(err)
	}
}

// The limiter in a chain of handlers, for a server of any kind. Here tenants
// share the slots, whatever number of connections each has.
func ExampleLimiter_Handler() {
	limiter, err := usher.NewLimiter(usher.FairnessOptions{
		Slots:   8,
		FlowKey: func(r *http.Request) string { return r.Header.Get("X-Tenant") },
	})
	if err != nil {
		log.Fatal(err)
	}
	srv := &http.Server{
		Handler:     limiter.Handler(http.DefaultServeMux),
		ConnContext: usher.ConnContext,
	}
	_ = srv
	fmt.Println(limiter.Stats().Slots)
	// Output: 8
}

// A handler may tell how long its request waited for a slot.
func ExampleQueueWait() {
	http.HandleFunc("/", func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("X-Queue-Wait", usher.QueueWait(r.Context()).String())
	})
}
