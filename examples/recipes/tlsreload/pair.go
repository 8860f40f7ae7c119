package main

import (
	"crypto/tls"
	"log"
	"os"
	"sync"
	"time"
)

// look is how often handshakes look at the files, at most.
const look = time.Second

// A pair is a certificate and its key, in files that may change.
type pair struct {
	certFile, keyFile string

	mu      sync.Mutex
	cert    *tls.Certificate
	changed [2]time.Time // of the files that cert, or what is wrong, is from
	looked  time.Time
}

// loadPair reads the files. They must be right the first time.
func loadPair(certFile, keyFile string) (*pair, error) {
	p := &pair{certFile: certFile, keyFile: keyFile}
	return p, p.load()
}

// certificate is for GetCertificate of a tls.Config. While the files are wrong,
// or do not fit together because only one has been written, the old pair stays.
func (p *pair) certificate(*tls.ClientHelloInfo) (*tls.Certificate, error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if time.Since(p.looked) > look {
		if err := p.load(); err != nil {
			log.Printf("the old certificate stays: %v", err)
		}
	}
	return p.cert, nil
}

// load reads the files if they have changed. Its caller holds mu.
func (p *pair) load() error {
	p.looked = time.Now()
	var changed [2]time.Time
	for i, name := range []string{p.certFile, p.keyFile} {
		info, err := os.Stat(name)
		if err != nil {
			return err
		}
		changed[i] = info.ModTime()
	}
	if changed == p.changed {
		return nil
	}
	p.changed = changed
	cert, err := tls.LoadX509KeyPair(p.certFile, p.keyFile)
	if err != nil {
		return err
	}
	p.cert = &cert
	return nil
}
