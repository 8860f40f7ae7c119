// Fx serves from an application of Fx, which catches the signals.
package main

import (
	"cmp"
	"context"
	"errors"
	"io"
	"log"
	"net/http"
	"os"
	"time"

	"github.com/seed-235859eb/usher"
	"go.uber.org/fx"
)

func main() {
	fx.New(
		fx.Provide(newServer),
		fx.Invoke(func(*usher.Server) {}),
		fx.StopTimeout(30*time.Second), // the default, 15 s, is less than GracePeriod
		fx.NopLogger,
	).Run()
}

func newServer(lc fx.Lifecycle, sh fx.Shutdowner) *usher.Server {
	srv := usher.Wrap(&http.Server{Handler: http.HandlerFunc(hello)}, usher.Options{})
	lc.Append(fx.Hook{
		OnStart: func(ctx context.Context) error {
			l, err := usher.Listen("tcp", cmp.Or(os.Getenv("ADDR"), ":8080"))
			if err != nil {
				return err
			}
			go func() {
				if err := srv.Serve(l); !errors.Is(err, http.ErrServerClosed) {
					log.Println(err)
					sh.Shutdown(fx.ExitCode(1))
				}
			}()
			return nil
		},
		OnStop: srv.Shutdown,
	})
	return srv
}

func hello(w http.ResponseWriter, r *http.Request) { io.WriteString(w, "hello\n") }
