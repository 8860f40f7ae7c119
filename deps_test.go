package usher

import (
	"os"
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
}

// mayImport says which packages of this module each one may import, tests aside.
// They point down: prefork may use usher, and usher never prefork; what is
// internal knows neither. docs/architecture.md has the picture.
var mayImport = map[string][]string{
	"examples/server": {"prefork", "usher"},
	"prefork": {
		"usher", "internal/asynclog", "internal/fleet", "internal/gate",
		"internal/reuseport", "internal/sdnotify", "internal/supervised",
	},
	"usher": {
		"internal/asynclog", "internal/gate", "internal/goaway", "internal/inflight",
		"internal/limit", "internal/maxconns", "internal/nethttp", "internal/supervised", "internal/track",
	},

	"internal/limit":      {"internal/fairqueue", "internal/track"},
	"internal/maxconns":   {"internal/track"},
	"internal/track":      {"internal/goaway"},
	"internal/reuseport":  {"internal/gate"},
	"internal/supervised": {"internal/gate"},

	"internal/asynclog":  nil,
	"internal/fairqueue": nil,
	"internal/fleet":     nil,
	"internal/gate":      nil,
	"internal/goaway":    nil,
	"internal/inflight":  nil,
	"internal/nethttp":   nil,
	"internal/sdnotify":  nil,

	// For tests alone.
	"internal/leakcheck":  nil,
	"internal/memnet":     nil,
	"internal/process":    nil,
	"internal/selfsigned": nil,
	"internal/traffic":    nil,
}

// TestImports: who may import whom, on each system.
func TestImports(t *testing.T) {
	const module = "github.com/seed-235859eb/usher"
	for _, system := range []string{"linux", "darwin", "windows"} {
		cmd := exec.Command("go", "list", "-f", `{{.ImportPath}} {{join .Imports " "}}`, "./...")
		cmd.Env = append(os.Environ(), "GOOS="+system)
		out, err := cmd.Output()
		if err != nil {
			t.Fatal(err)
		}
		for line := range strings.Lines(string(out)) {
			names := strings.Fields(line)
			for i, n := range names {
				names[i] = strings.TrimPrefix(strings.Replace(n, module, "usher", 1), "usher/")
				if n == names[i] {
					names[i] = "" // not ours
				}
			}
			allowed, known := mayImport[names[0]]
			if !known {
				t.Errorf("%s is a new package: say in mayImport what it may import", names[0])
			}
			for _, n := range names[1:] {
				if n != "" && !slices.Contains(allowed, n) {
					t.Errorf("%s: %s imports %s", system, names[0], n)
				}
			}
		}
	}
}
