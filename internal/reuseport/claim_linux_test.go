package reuseport

import (
	"errors"
	"fmt"
	"net"
	"syscall"
	"testing"
)

// TestOpenAtTheSameTime: of those who open an address in the same moment, one
// gets it.
func TestOpenAtTheSameTime(t *testing.T) {
	for _, host := range []string{"127.0.0.1", "[::]", ""} {
		t.Run(host, func(t *testing.T) {
			free := open(t, "tcp", host+":0", 1)
			address := fmt.Sprintf("%s:%d", host, free.Addr().(*net.TCPAddr).Port)
			free.Close()
			for range 200 {
				const rivals = 4
				groups := make(chan *Group, rivals)
				begin := make(chan struct{})
				for range rivals {
					go func() {
						<-begin
						g, err := Open("tcp", address, 2)
						if err != nil && !errors.Is(err, syscall.EADDRINUSE) {
							t.Error(err)
						}
						groups <- g
					}()
				}
				close(begin)
				var winners []*Group
				for range rivals {
					if g := <-groups; g != nil {
						winners = append(winners, g)
					}
				}
				for _, g := range winners {
					g.Close()
				}
				if len(winners) != 1 {
					t.Fatalf("%d of %d opened it", len(winners), rivals)
				}
			}
		})
	}
}
