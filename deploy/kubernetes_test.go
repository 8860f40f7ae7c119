//go:build unix

package deploy

import (
	"net/http"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/seed-235859eb/usher/internal/process"
	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"
	policyv1 "k8s.io/api/policy/v1"
	"sigs.k8s.io/yaml"
)

// TestKubernetes: the manifests have no field that Kubernetes does not know,
// belong together, and their container stops as they want it to.
func TestKubernetes(t *testing.T) {
	documents := strings.Split(read(t, "kubernetes.yaml"), "\n---\n")
	var (
		deployment appsv1.Deployment
		service    corev1.Service
		budget     policyv1.PodDisruptionBudget
	)
	objects := []any{&deployment, &service, &budget}
	if len(documents) != len(objects) {
		t.Fatalf("%d documents", len(documents))
	}
	for i, text := range documents {
		if err := yaml.UnmarshalStrict([]byte(text), objects[i]); err != nil {
			t.Fatal(err)
		}
	}
	if deployment.Kind != "Deployment" || service.Kind != "Service" || budget.Kind != "PodDisruptionBudget" {
		t.Errorf("kinds are %s, %s and %s", deployment.Kind, service.Kind, budget.Kind)
	}
	pod := deployment.Spec.Template
	for _, selector := range []map[string]string{deployment.Spec.Selector.MatchLabels, service.Spec.Selector, budget.Spec.Selector.MatchLabels} {
		if len(selector) != 1 || selector["app"] != pod.Labels["app"] {
			t.Errorf("%v does not select %v", selector, pod.Labels)
		}
	}
	container := pod.Spec.Containers[0]
	if got := service.Spec.Ports[0].TargetPort.StrVal; got != container.Ports[0].Name {
		t.Errorf("the service's port is %s", got)
	}
	grace := duration(t, container.Args, "-grace")
	kill := time.Duration(*pod.Spec.TerminationGracePeriodSeconds) * time.Second
	if delay := duration(t, container.Args, "-delay"); delay <= 0 || grace <= delay || kill <= grace {
		t.Errorf("-delay %v, -grace %v, killed after %v", delay, grace, kill)
	}

	// The last of two equal flags counts.
	args := append(slices.Clone(container.Args), "-addr", "127.0.0.1:0", "-delay", "1s")
	p := start(t, process.Spec{Path: buildServer(t), Args: args})
	url := "http://" + p.Addr
	ready, live := url+container.ReadinessProbe.HTTPGet.Path, url+container.LivenessProbe.HTTPGet.Path
	if r, l := get(t, ready), get(t, live); r != http.StatusOK || l != http.StatusOK {
		t.Errorf("ready: %d, live: %d", r, l)
	}
	p.Signal(syscall.SIGTERM)
	if _, err := p.Await(t.Context(), stopping, 1); err != nil {
		t.Fatal(err)
	}
	if r := get(t, ready); r != http.StatusServiceUnavailable {
		t.Errorf("during -delay, ready: %d", r)
	}
	// On connections that were not there before.
	if r, l := get(t, url), get(t, live); r != http.StatusOK || l != http.StatusOK {
		t.Errorf("during -delay: %d, live: %d", r, l)
	}
	if err := p.Stop(); err != nil {
		t.Error(err)
	}
}

// duration returns the value of a flag.
func duration(t *testing.T, args []string, name string) time.Duration {
	t.Helper()
	i := slices.Index(args, name)
	if i < 0 {
		t.Fatalf("there is no %s in %v", name, args)
	}
	d, err := time.ParseDuration(args[i+1])
	if err != nil {
		t.Fatal(err)
	}
	return d
}
