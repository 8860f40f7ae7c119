// Reverseproxy passes requests on to $BACKEND. A stop answers those that are
// under way, however long the backend takes.
package main

import (
	"cmp"
	"context"
	"log"
	"net/http"
	"net/http/httputil"
	"net/url"
	"os"

	"github.com/seed-235859eb/usher"
)

func main() {
	backend, err := url.Parse(cmp.Or(os.Getenv("BACKEND"), "http://localhost:9090"))
	if err != nil {
		log.Fatal(err)
	}
	proxy := &httputil.ReverseProxy{
		Rewrite: func(r *httputil.ProxyRequest) {
			r.SetURL(backend)
			r.SetXForwarded()
		},
	}

	srv := usher.Wrap(&http.Server{Addr: cmp.Or(os.Getenv("ADDR"), ":8080"), Handler: proxy}, usher.Options{})
	if err := srv.Run(context.Background()); err != nil {
		log.Fatal(err)
	}
}
