package prefork

import (
	"context"
	"strings"
	"testing"
	"time"
)

func TestOptionsOutOfRange(t *testing.T) {
	for _, tt := range []struct {
		opts Options
		want string
	}{
		{Options{Workers: -1}, "Options.Workers is -1"},
		{Options{Workers: 1 << 20}, "Options.Workers is 1048576"},
		{Options{BootTimeout: -1}, "Options.BootTimeout is -1ns"},
		{Options{FirstBootTimeout: -1}, "Options.FirstBootTimeout is -1ns"},
		{Options{HeartbeatTimeout: -1}, "Options.HeartbeatTimeout is -1ns"},
		{Options{HeartbeatTimeout: 1}, "Options.HeartbeatTimeout is 1ns"},
		{Options{StopTimeout: -1}, "Options.StopTimeout is -1ns"},
		{Options{Probation: -1}, "Options.Probation is -1ns"},
		{Options{Canary: -1}, "Options.Canary is -1ns"},
		{Options{CrashWindow: -1}, "Options.CrashWindow is -1ns"},
		{Options{MaxSurge: -1}, "Options.MaxSurge is -1"},
		{Options{MaxCrashes: -1}, "Options.MaxCrashes is -1"},
		{Options{Recycle: RecycleOptions{Requests: -1}}, "Options.Recycle.Requests is -1"},
		{Options{Recycle: RecycleOptions{Age: -1}}, "Options.Recycle.Age is -1ns"},
		{Options{Recycle: RecycleOptions{Memory: -1}}, "Options.Recycle.Memory is -1"},
		{Options{CanaryCheck: func(context.Context, WorkerStats) error { return nil }}, "Options.Canary is zero"},
		{Options{Listen: []Endpoint{{Network: "udp", Addr: ":1"}}}, `Options.Listen[0].Network is "udp"`},
		{Options{Addr: ":1", Listen: []Endpoint{{Network: "udp", Addr: ":1"}}}, `Options.Listen[0].Network is "udp"`},
		{Options{Listen: []Endpoint{{}}}, "Options.Listen[0].Addr is empty"},
		{Options{Listen: []Endpoint{{Name: "a", Addr: ":1"}, {Name: "a", Addr: ":2"}}}, `Options.Listen[1].Name is "a"`},
		{Options{}, "Options.Addr and Options.Listen are empty"},
	} {
		err := Run(t.Context(), tt.opts, func(context.Context, *Worker) error {
			t.Errorf("%+v: the function runs", tt.opts)
			return nil
		})
		if err == nil || !strings.Contains(err.Error(), tt.want) {
			t.Errorf("want an error with %q, got %v", tt.want, err)
		}
	}
	if err := Run(t.Context(), Options{Addr: ":0"}, nil); err == nil {
		t.Error("no error without a function")
	}
}

func TestDefaults(t *testing.T) {
	o := Options{Workers: 3}.withDefaults()
	if o.MaxCrashes != 15 || o.CrashWindow != time.Minute || o.HeartbeatTimeout != 30*time.Second || o.beatInterval() != time.Second {
		t.Errorf("%+v", o)
	}
}
