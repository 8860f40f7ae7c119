package usher

import (
	"os"
	"os/exec"
	"path"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
)

// TestArchitecture: the files and functions that docs/architecture.md walks
// through are there. A file without a directory is in that of the one before it
// in the same line, or else in the root.
func TestArchitecture(t *testing.T) {
	page, err := os.ReadFile("docs/architecture.md")
	if err != nil {
		t.Fatal(err)
	}
	step := regexp.MustCompile("`([a-z0-9_/]+\\.go)` ((?:[A-Za-z]+(?:, )?)+)")
	steps := 0
	for line := range strings.Lines(string(page)) {
		dir := ""
		for _, m := range step.FindAllStringSubmatch(line, -1) {
			name := m[1]
			if d := path.Dir(name); d != "." {
				dir = d
			} else if _, err := os.Stat(path.Join(dir, name)); err == nil {
				name = path.Join(dir, name)
			}
			src, err := os.ReadFile(name)
			if err != nil {
				t.Error(err)
				continue
			}
			for f := range strings.SplitSeq(m[2], ", ") {
				steps++
				if !regexp.MustCompile(`(?m)^func (\([^)]*\) )?` + f + `\(`).Match(src) {
					t.Errorf("%s has no function %s", name, f)
				}
			}
		}
	}
	if steps < 50 {
		t.Errorf("found %d steps", steps)
	}
}

// TestPrograms builds the Go programs in the README and in docs/.
func TestPrograms(t *testing.T) {
	pages, err := filepath.Glob("docs/*.md")
	if err != nil {
		t.Fatal(err)
	}
	block := regexp.MustCompile("(?s)```go\n(package main\n.*?)```")
	built := 0
	for _, page := range append(pages, "README.md") {
		text, err := os.ReadFile(page)
		if err != nil {
			t.Fatal(err)
		}
		for _, m := range block.FindAllSubmatch(text, -1) {
			built++
			file := filepath.Join(t.TempDir(), "main.go")
			if err := os.WriteFile(file, m[1], 0o600); err != nil {
				t.Fatal(err)
			}
			if out, err := exec.Command("go", "vet", file).CombinedOutput(); err != nil {
				t.Errorf("%s: %v\n%s\n%s", page, err, m[1], out)
			}
		}
	}
	if built == 0 {
		t.Error("README has no program")
	}
}
