// Echo serves with echo. In place of its Start, it is the handler of an
// http.Server.
package main

import (
	"cmp"
	"context"
	"log"
	"net/http"
	"os"

	"github.com/labstack/echo/v5"
	"github.com/labstack/echo/v5/middleware"
	"github.com/seed-235859eb/usher"
)

func main() {
	e := echo.New()
	e.Use(middleware.Recover())
	e.GET("/", hello)
	e.POST("/", hello)

	srv := usher.Wrap(&http.Server{Addr: cmp.Or(os.Getenv("ADDR"), ":8080"), Handler: e}, usher.Options{})
	e.GET("/readyz", echo.WrapHandler(srv.Ready()))
	if err := srv.Run(context.Background()); err != nil {
		log.Fatal(err)
	}
}

func hello(c *echo.Context) error { return c.String(http.StatusOK, "hello\n") }
