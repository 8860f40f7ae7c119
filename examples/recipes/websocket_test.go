//go:build unix

package recipes

import (
	"context"
	"testing"

	"github.com/coder/websocket"
)

// TestWebsocket: each connection is told that the server restarts, and until
// then each message comes back.
func TestWebsocket(t *testing.T) {
	p := start(t, "websocket")
	checkReady(t, p.Addr)
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	stopUnderLoad(t, p, func(n *tally) func() bool {
		c, _, err := websocket.Dial(ctx, "ws://"+p.Addr+"/ws", nil)
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { c.CloseNow() })
		const message = "hello"
		return func() bool {
			// A message that meets the goodbye is for the next connection.
			err := c.Write(ctx, websocket.MessageText, []byte(message))
			if err == nil {
				var echo []byte
				if _, echo, err = c.Read(ctx); err == nil && string(echo) == message {
					n.answered.Add(1)
					return true
				}
			} else {
				_, _, err = c.Read(ctx) // why
			}
			if got := websocket.CloseStatus(err); got != websocket.StatusServiceRestart {
				n.lose(err)
			}
			return false
		}
	})
}
