//go:build unix

package deploy

import (
	"testing"

	bootstrapv3 "github.com/envoyproxy/go-control-plane/envoy/config/bootstrap/v3"
	_ "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/http/router/v3"
	_ "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/network/http_connection_manager/v3"
	_ "github.com/envoyproxy/go-control-plane/envoy/extensions/retry/host/previous_hosts/v3"
	"google.golang.org/protobuf/encoding/protojson"
	"sigs.k8s.io/yaml"
)

// TestEnvoy: Envoy's own API knows each field, and allows each value. It is not
// run.
func TestEnvoy(t *testing.T) {
	json, err := yaml.YAMLToJSONStrict([]byte(read(t, "envoy.yaml")))
	if err != nil {
		t.Fatal(err)
	}
	var config bootstrapv3.Bootstrap
	if err := protojson.Unmarshal(json, &config); err != nil {
		t.Fatal(err)
	}
	if err := config.ValidateAll(); err != nil {
		t.Error(err)
	}
	resources := config.GetStaticResources()
	if len(resources.GetListeners()) != 1 || len(resources.GetClusters()) != 1 {
		t.Errorf("%d listeners, %d clusters", len(resources.GetListeners()), len(resources.GetClusters()))
	}
}
