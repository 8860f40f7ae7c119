// Gin serves with an engine of gin. In place of its Run, which makes an
// http.Server that nobody can stop, the engine is the handler of one.
package main

import (
	"cmp"
	"context"
	"log"
	"net/http"
	"os"

	"github.com/gin-gonic/gin"
	"github.com/seed-235859eb/usher"
)

func main() {
	gin.SetMode(gin.ReleaseMode)
	engine := gin.New()
	engine.Use(gin.Recovery())
	engine.GET("/", hello)
	engine.POST("/", hello)

	srv := usher.Wrap(&http.Server{Addr: cmp.Or(os.Getenv("ADDR"), ":8080"), Handler: engine.Handler()}, usher.Options{})
	engine.GET("/readyz", gin.WrapH(srv.Ready()))
	if err := srv.Run(context.Background()); err != nil {
		log.Fatal(err)
	}
}

func hello(c *gin.Context) { c.String(http.StatusOK, "hello\n") }
