package usher

import (
	"context"
	"fmt"
	"net/http"
	"sync/atomic"
	"testing"
	"time"
)

// TestRegisterOnShutdownRunsOnce: the functions of both servers, however the
// stop begins and ends.
func TestRegisterOnShutdownRunsOnce(t *testing.T) {
	over, cancel := context.WithCancel(context.Background())
	cancel()
	for _, tt := range []struct {
		name  string
		busy  bool // a request outlasts the stop
		grace time.Duration
		stop  func(*testServer)
	}{
		{"Shutdown", false, 30 * time.Second, func(ts *testServer) { ts.Shutdown(context.Background()) }},
		{"Shutdown twice", false, 30 * time.Second, func(ts *testServer) {
			ts.Shutdown(context.Background())
			ts.Shutdown(context.Background())
		}},
		// Not Shutdown of the http.Server after ours has called it: net/http runs
		// the functions in each call. TestBypassAtAnyTime has it before that.
		{"the http.Server first", false, 30 * time.Second, func(ts *testServer) {
			ts.http.Shutdown(context.Background())
			<-ts.done
			ts.Shutdown(context.Background())
		}},
		{"past GracePeriod", true, 300 * time.Millisecond, func(ts *testServer) { ts.Shutdown(context.Background()) }},
		{"a context that is over", true, 30 * time.Second, func(ts *testServer) {
			ts.Shutdown(over)
			<-ts.done
		}},
		{"Close after Shutdown", true, 30 * time.Second, func(ts *testServer) {
			ts.shutdown()
			ts.awaitPhase(PhaseDrain)
			ts.Close()
		}},
		{"third signal", true, 30 * time.Second, func(ts *testServer) {
			ts.shutdown()
			ts.endNow("test")
			<-ts.done
		}},
	} {
		run(t, allModes, func(t *testing.T, m mode) {
			for _, hijack := range []bool{false, true} {
				if hijack && (m.http2() || !tt.busy) {
					continue
				}
				t.Run(fmt.Sprintf("%s/hijack=%v", tt.name, hijack), func(t *testing.T) {
					t.Parallel()
					opts := quickly()
					opts.Shutdown.GracePeriod = tt.grace
					opts.Shutdown.IdleGrace = tt.grace / 10
					begun, release := make(chan struct{}), make(chan struct{})
					ts := startServer(t, m, opts, func(w http.ResponseWriter, r *http.Request) {
						if hijack {
							if _, _, err := http.NewResponseController(w).Hijack(); err != nil {
								t.Error(err)
							}
						}
						close(begun)
						<-release
					})
					defer close(release)
					var shut, drained atomic.Int32
					ts.http.RegisterOnShutdown(func() { shut.Add(1) })
					ts.RegisterOnShutdown(func() { drained.Add(1) })
					ts.awaitPhase(PhaseServing)
					if tt.busy {
						client := ts.client()
						go ts.get(client, "/")
						<-begun
					}
					tt.stop(ts)
					eventually(t, "functions of RegisterOnShutdown have run", func() bool { return shut.Load() > 0 && drained.Load() > 0 })
					if n, d := shut.Load(), drained.Load(); n != 1 || d != 1 {
						t.Errorf("those of the http.Server ran %d times, ours %d times", n, d)
					}
				})
			}
		})
	}
}
