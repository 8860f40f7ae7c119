package usher

import (
	"os/exec"
	"slices"
	"strings"
	"testing"
)

// TestDependencies: what the module requires, each user gets too.
func TestDependencies(t *testing.T) {
	allowed := []string{
		"github.com/seed-235859eb/usher",
		"github.com/felixge/httpsnoop", // to see when a response's header is written
		"golang.org/x/net",             // assembles the socket filter
		"golang.org/x/sys",             // attaches it
	}
	imported, err := exec.Command("go", "list", "-deps", "-f", "{{with .Module}}{{.Path}}{{end}}", "./...").Output()
	if err != nil {
		t.Fatal(err)
	}
	for _, m := range strings.Fields(string(imported)) {
		if !slices.Contains(allowed, m) {
			t.Errorf("the module imports %s", m)
		}
	}
	mod, err := exec.Command("go", "mod", "edit", "-print").Output()
	if err != nil {
		t.Fatal(err)
	}
	for _, line := range strings.Split(string(mod), "\n") {
		if name, _, ok := strings.Cut(strings.TrimSpace(strings.TrimPrefix(line, "require ")), " v"); ok && !slices.Contains(allowed, name) {
			t.Errorf("go.mod requires %s", name)
		}
	}
	deps, err := exec.Command("go", "list", "-deps", ".").Output()
	if err != nil {
		t.Fatal(err)
	}
	if strings.Contains(string(deps), "usher/prefork") {
		t.Error("usher imports prefork")
	}
}
