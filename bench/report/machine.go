package report

import (
	"context"
	"fmt"
	"os/exec"
	"runtime"
	"runtime/debug"
	"slices"
	"strings"

	"github.com/seed-235859eb/usher/bench/usage"
)

// usherModule is the module that this one measures.
const usherModule = "github.com/seed-235859eb/usher"

// Machine says what the figures were taken on.
func Machine() string {
	return fmt.Sprintf("%s/%s, kernel %s, %d CPUs", runtime.GOOS, runtime.GOARCH, usage.Kernel(), runtime.NumCPU())
}

// Versions returns that of Go, usher's commit, and the versions of the modules
// with which this program was built. If any are named, it tells of no others.
func Versions(ctx context.Context, modules ...string) []string {
	versions := []string{runtime.Version()}
	info, ok := debug.ReadBuildInfo()
	if !ok {
		return versions
	}
	for _, m := range info.Deps {
		switch {
		case m.Path == usherModule:
			// It is replaced with the checkout, and has no version.
			versions = append(versions, "usher "+Revision(ctx, "."))
		case len(modules) == 0 || slices.Contains(modules, m.Path):
			versions = append(versions, m.Path+" "+m.Version)
		}
	}
	return versions
}

// Revision says what is checked out in dir.
func Revision(ctx context.Context, dir string) string {
	git := func(args ...string) (string, error) {
		cmd := exec.CommandContext(ctx, "git", append([]string{"--no-optional-locks", "-C", dir}, args...)...)
		out, err := cmd.Output()
		return strings.TrimSpace(string(out)), err
	}
	commit, err := git("rev-parse", "--short=12", "HEAD")
	if err != nil {
		return "of unknown revision"
	}
	if changed, err := git("status", "--porcelain", "--", ":/*.go", ":/go.mod"); err != nil || changed != "" {
		commit += " with changes"
	}
	return commit
}
