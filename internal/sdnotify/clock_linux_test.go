package sdnotify

import (
	"fmt"
	"testing"

	"golang.org/x/sys/unix"
)

func TestReloading(t *testing.T) {
	m := newManager(t, socketPath(t))
	n := newNotifier(t, m.name)
	now := func() int64 {
		var ts unix.Timespec
		if err := unix.ClockGettime(unix.CLOCK_MONOTONIC, &ts); err != nil {
			t.Fatal(err)
		}
		return ts.Nano() / 1000
	}
	from := now()
	if err := n.Reloading("new workers"); err != nil {
		t.Fatal(err)
	}
	to := now()
	got := m.next()
	m.empty()
	const format = "RELOADING=1\nMONOTONIC_USEC=%d\nSTATUS=new workers"
	var usec int64
	if _, err := fmt.Sscanf(got, format, &usec); err != nil || got != fmt.Sprintf(format, usec) {
		t.Errorf("datagram %q, want %q: %v", got, format, err)
	}
	if usec < from || usec > to {
		t.Errorf("MONOTONIC_USEC=%d, want %d to %d", usec, from, to)
	}
}
