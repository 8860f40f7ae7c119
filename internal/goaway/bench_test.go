package goaway

import (
	"io"
	"testing"
)

// BenchmarkSmall is what a request and its response cost, in the pieces in
// which net/http reads and writes them.
func BenchmarkSmall(b *testing.B) {
	request, response := frame(typeHeaders, 1, make([]byte, 40)...), append(frame(typeHeaders, 1, make([]byte, 30)...), frame(0, 1, 'o', 'k')...)
	c := New(io.Discard, PrefaceLen)
	c.Write(settings)
	b.Run("followed", func(b *testing.B) {
		for b.Loop() {
			c.Came(request[:headerLen])
			c.Came(request[headerLen:])
			c.Write(response)
		}
	})
	b.Run("bare", func(b *testing.B) {
		var w io.Writer = io.Discard
		for b.Loop() {
			w.Write(response)
		}
	})
}

// BenchmarkLarge is what 16 KiB of a body cost.
func BenchmarkLarge(b *testing.B) {
	chunk := frame(0, 1, make([]byte, 16<<10)...)
	c := New(io.Discard, PrefaceLen)
	c.Write(settings)
	b.Run("written", func(b *testing.B) {
		for b.Loop() {
			c.Write(chunk[:4096])
			c.Write(chunk[4096:])
		}
	})
	b.Run("read", func(b *testing.B) {
		for b.Loop() {
			c.Came(chunk[:headerLen])
			c.Came(chunk[headerLen:])
		}
	})
}
