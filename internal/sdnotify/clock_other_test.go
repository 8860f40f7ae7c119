//go:build unix && !linux

package sdnotify

import "testing"

func TestReloading(t *testing.T) {
	m := newManager(t, socketPath(t))
	n := newNotifier(t, m.name)
	if err := n.Reloading("new workers"); err != nil {
		t.Fatal(err)
	}
	if got, want := m.next(), "RELOADING=1\nSTATUS=new workers"; got != want {
		t.Errorf("datagram %q, want %q", got, want)
	}
	m.empty()
}
