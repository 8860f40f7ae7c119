package fairness

import (
	"fmt"
	"io"
	"net"
	"net/http"
	"strings"
	"sync/atomic"
	"testing"
)

// checkIntegrity looks for what a limiter may take away from a handler.
func checkIntegrity(t *testing.T, c Contender) outcome {
	var lost []string
	var sendfile atomic.Bool
	addr := start(t, c, unlimitedQueue(2), func(w http.ResponseWriter, r *http.Request) {
		if r.URL.Path != "/hijack" {
			fmt.Fprintf(w, "%T", w)
			return
		}
		conn, _, err := http.NewResponseController(w).Hijack()
		if err != nil {
			return
		}
		io.WriteString(conn, "HTTP/1.1 204 No Content\r\n\r\n")
		conn.Close()
	}, func(srv *http.Server) {
		srv.ConnState = func(conn net.Conn, _ http.ConnState) {
			// net/http hands a file to the kernel if the connection it has can.
			_, can := conn.(io.ReaderFrom)
			sendfile.Store(can)
		}
	})
	for http2, want := range map[bool]string{false: "*http.response", true: "*http.http2responseWriter"} {
		client := newClient(t, http2)
		_, got, err := do(within(t, patience), client, "GET", "http://"+addr, nil)
		client.CloseIdleConnections()
		if err != nil || got != want {
			lost = append(lost, "ResponseWriter")
		}
	}
	conn := dial(t, addr)
	conn.get("/hijack")
	if resp, err := conn.answer(patience); err != nil || resp.StatusCode != http.StatusNoContent {
		lost = append(lost, "Hijack")
	}
	if !sendfile.Load() {
		lost = append(lost, "sendfile")
	}
	if len(lost) > 0 {
		return outcome{false, "lost: " + strings.Join(lost, ", ")}
	}
	return outcome{true, "nothing is lost"}
}
