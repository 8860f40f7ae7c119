//go:build !unix

package sdnotify

import (
	"errors"
	"strings"
	"testing"
)

func TestNewUnsupported(t *testing.T) {
	env := map[string]string{}
	if n, err := New(vars(env)); n != nil || err != nil {
		t.Errorf("New without NOTIFY_SOCKET = %v, %v", n, err)
	}
	env["NOTIFY_SOCKET"] = "/run/notify"
	n, err := New(vars(env))
	if n != nil || !errors.Is(err, errors.ErrUnsupported) || !strings.Contains(err.Error(), `NOTIFY_SOCKET="/run/notify"`) {
		t.Errorf("New = %v, %v", n, err)
	}
}
