//go:build unix

package recipes

import (
	"context"
	"errors"
	"net/http"
	"strings"
	"syscall"
	"testing"

	"connectrpc.com/connect"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/health/grpc_health_v1"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/types/known/wrapperspb"
)

func TestConnect(t *testing.T) {
	for _, version := range []string{"HTTP/1", "HTTP/2"} {
		t.Run(version, func(t *testing.T) {
			p := start(t, "connect")
			checkReady(t, p.Addr)
			stopUnderLoad(t, p, func(n *tally) func() bool {
				protocols := new(http.Protocols)
				protocols.SetHTTP1(version == "HTTP/1")
				protocols.SetUnencryptedHTTP2(version == "HTTP/2")
				httpClient := &http.Client{Transport: &http.Transport{Protocols: protocols}, Timeout: patience}
				t.Cleanup(httpClient.CloseIdleConnections)
				client := connect.NewClient[wrapperspb.StringValue, wrapperspb.StringValue](httpClient, "http://"+p.Addr+"/echo.v1.EchoService/Echo")
				return func() bool {
					resp, err := client.CallUnary(context.Background(), connect.NewRequest(wrapperspb.String("hello")))
					switch {
					case err == nil && resp.Msg.Value == "hello":
						n.answered.Add(1)
						return true
					case errors.Is(err, syscall.ECONNREFUSED):
						n.refused.Add(1)
					default:
						n.lose(err)
					}
					return false
				}
			})
		})
	}
}

// TestGRPC: over grpc-go's own transport and over net/http's, on connections
// that stay and on new ones.
func TestGRPC(t *testing.T) {
	for _, program := range []string{"grpc", "grpchttp"} {
		for _, fresh := range []bool{false, true} {
			name := program + ", a connection for all calls"
			if fresh {
				name = program + ", a connection for each call"
			}
			t.Run(name, func(t *testing.T) {
				p := start(t, program)
				stopUnderLoad(t, p, func(n *tally) func() bool {
					dial := func() *grpc.ClientConn {
						conn, err := grpc.NewClient("passthrough:///"+p.Addr, grpc.WithTransportCredentials(insecure.NewCredentials()))
						if err != nil {
							t.Fatal(err)
						}
						return conn
					}
					conn := dial()
					return func() bool {
						if check(n, conn) {
							if fresh {
								conn.Close()
								conn = dial()
							}
							return true
						}
						conn.Close()
						return false
					}
				})
			})
		}
	}
}

// check makes a call, and reports whether it was answered.
func check(n *tally, conn *grpc.ClientConn) bool {
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	_, err := grpc_health_v1.NewHealthClient(conn).Check(ctx, &grpc_health_v1.HealthCheckRequest{})
	switch {
	case err == nil:
		n.answered.Add(1)
		return true
	case status.Code(err) == codes.Unavailable && strings.Contains(err.Error(), syscall.ECONNREFUSED.Error()):
		n.refused.Add(1)
	default:
		n.lose(err)
	}
	return false
}
