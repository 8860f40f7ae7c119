//go:build unix

package recipes

import (
	"crypto/tls"
	"crypto/x509"
	"encoding/pem"
	"net"
	"os"
	"path/filepath"
	"regexp"
	"testing"
	"time"

	"github.com/seed-235859eb/usher/internal/process"
	"github.com/seed-235859eb/usher/internal/selfsigned"
	"github.com/seed-235859eb/usher/internal/traffic"
)

var (
	// stopping is written when a stop begins.
	stopping = regexp.MustCompile(`usher: stopping`)
	stays    = regexp.MustCompile(`the old certificate stays`)
)

// TestTLSReload: a new pair is taken, a broken one is not.
func TestTLSReload(t *testing.T) {
	dir := t.TempDir()
	certFile, keyFile := filepath.Join(dir, "cert.pem"), filepath.Join(dir, "key.pem")
	env := []string{"CERT=" + certFile, "KEY=" + keyFile}
	write := func(name string, kind string, der []byte) {
		t.Helper()
		if err := os.WriteFile(name+".new", pem.EncodeToMemory(&pem.Block{Type: kind, Bytes: der}), 0o600); err != nil {
			t.Fatal(err)
		}
		if err := os.Rename(name+".new", name); err != nil {
			t.Fatal(err)
		}
	}
	install := func(name string) {
		t.Helper()
		cert, err := selfsigned.Certificate(name)
		if err != nil {
			t.Fatal(err)
		}
		key, err := x509.MarshalPKCS8PrivateKey(cert.PrivateKey)
		if err != nil {
			t.Fatal(err)
		}
		write(certFile, "CERTIFICATE", cert.Certificate[0])
		write(keyFile, "PRIVATE KEY", key)
	}
	install("first.test")
	p := start(t, "tlsreload", env...)
	if got := commonName(t, p.Addr); got != "first.test" {
		t.Fatalf("the certificate is that of %s", got)
	}
	install("second.test")
	for commonName(t, p.Addr) != "second.test" {
		time.Sleep(10 * time.Millisecond) // the program looks once a second
	}
	write(certFile, "CERTIFICATE", []byte("nonsense"))
	for len(p.Matches(stays)) == 0 {
		if got := commonName(t, p.Addr); got != "second.test" {
			t.Fatalf("the certificate is that of %s", got)
		}
	}
	if got := commonName(t, p.Addr); got != "second.test" {
		t.Errorf("with a broken file the certificate is that of %s", got)
	}
	if err := p.Stop(); err != nil {
		t.Error(err)
	}

	install("third.test")
	stopUnderHTTP(t, func(t *testing.T) *process.Process { return start(t, "tlsreload", env...) }, traffic.Config{TLS: true})
}

// commonName returns what the certificate of a server says.
func commonName(t *testing.T, addr string) string {
	t.Helper()
	c, err := tls.DialWithDialer(&net.Dialer{Timeout: patience}, "tcp", addr, &tls.Config{InsecureSkipVerify: true})
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	return c.ConnectionState().PeerCertificates[0].Subject.CommonName
}
