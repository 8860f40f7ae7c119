package prefork

import (
	"fmt"
	"strings"
	"testing"
)

// TestOutputKeepsTheEnd of what a worker says, and the beginning of a dump.
func TestOutputKeepsTheEnd(t *testing.T) {
	var o output
	for i := range 10_000 {
		fmt.Fprintf(&o, "line %d\n", i)
	}
	if s := o.String(); !strings.HasSuffix(s, "line 9999\n") || len(s) > outputSize {
		t.Errorf("%d bytes that end in %q", len(s), s[max(0, len(s)-30):])
	}
	fmt.Fprint(&o, "a last word\npanic: no way\n\ngoroutine 1 [running]:\nmain.main()\n")
	for i := range 10_000 {
		fmt.Fprintf(&o, "goroutine %d [select]:\n", i)
	}
	fmt.Fprintln(&o, "the end")
	s := o.String()
	// The last word may be why: Go 1.27 dumps more than the end has room for.
	if !strings.Contains(s, "\nline 9999\na last word\npanic: no way\n\ngoroutine 1 [running]:\nmain.main()\ngoroutine 0 ") {
		t.Errorf("%d bytes, without the panic and the word before", len(s))
	}
	if n := strings.Count(s, "\n...\n"); n != 1 {
		t.Errorf("%d gaps, want one", n)
	}
	if !strings.HasSuffix(s, "the end\n") {
		t.Errorf("ends with %q", s[len(s)-30:])
	}
	if len(s) > outputSize+2*tailSize+len("\n...\n") {
		t.Errorf("%d bytes", len(s))
	}
}

func TestOutputShortDump(t *testing.T) {
	var o output
	fmt.Fprint(&o, "before\nSIGQUIT: quit\nPC=1\n")
	fmt.Fprint(&o, "goroutine 0\n")
	if s := o.String(); s != "before\nSIGQUIT: quit\nPC=1\ngoroutine 0\n" {
		t.Errorf("%q", s)
	}
	o = output{}
	fmt.Fprint(&o, "no panic: here\n")
	if len(o.dump) > 0 {
		t.Error("a word in the middle of a line begins a dump")
	}
}
