// Tlsreload serves TLS with the certificate in $CERT and the key in $KEY, and
// takes new ones when those files have changed, without a restart.
package main

import (
	"cmp"
	"context"
	"crypto/tls"
	"io"
	"log"
	"net/http"
	"os"

	"github.com/seed-235859eb/usher"
)

func main() {
	pair, err := loadPair(cmp.Or(os.Getenv("CERT"), "cert.pem"), cmp.Or(os.Getenv("KEY"), "key.pem"))
	if err != nil {
		log.Fatal(err)
	}
	srv := usher.Wrap(&http.Server{
		Addr:      cmp.Or(os.Getenv("ADDR"), ":8443"),
		Handler:   http.HandlerFunc(hello),
		TLSConfig: &tls.Config{GetCertificate: pair.certificate},
	}, usher.Options{})
	if err := srv.Run(context.Background()); err != nil {
		log.Fatal(err)
	}
}

func hello(w http.ResponseWriter, r *http.Request) { io.WriteString(w, "hello\n") }
