package main

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"

	"github.com/seed-235859eb/usher/bench/report"
)

// plotsDir is where plots are, beside RESULTS.md.
const plotsDir = "results"

// resultsHead begins RESULTS.md.
const resultsHead = `# Results

What the commands of this module have measured, last time. Each part has the
command that makes it again, its date, and what it was made with. Every figure
is of one small machine that clients and servers share: compare those of one
table, not of two.

`

// writeResults writes RESULTS.md and its plots to dir, from the pages in out.
func writeResults(out, dir string) error {
	var names []string
	for _, e := range experiments {
		names = append(names, e.name)
	}
	// What other commands leave there.
	names = append(names, "cost", "cost-slots")

	var contents, body strings.Builder
	plots := make(map[string]string)
	for _, name := range names {
		p, err := report.Load(filepath.Join(out, name+".json"))
		if errors.Is(err, fs.ErrNotExist) {
			continue
		}
		if err != nil {
			return err
		}
		text, files := p.Markdown(plotsDir)
		fmt.Fprintf(&contents, "- [%s](#%s)\n", p.Title, anchor(p.Title))
		body.WriteString("\n" + strings.TrimRight(text, "\n") + "\n")
		for name, svg := range files {
			plots[name] = svg
		}
	}
	if body.Len() == 0 {
		return fmt.Errorf("there is no page in %s: make an experiment first", out)
	}
	if err := os.MkdirAll(filepath.Join(dir, plotsDir), 0o777); err != nil {
		return err
	}
	// Plots that no longer are shown go.
	old, err := filepath.Glob(filepath.Join(dir, plotsDir, "*.svg"))
	if err != nil {
		return err
	}
	for _, file := range old {
		if plots[filepath.Base(file)] == "" {
			if err := os.Remove(file); err != nil {
				return err
			}
		}
	}
	for name, svg := range plots {
		if err := os.WriteFile(filepath.Join(dir, plotsDir, name), []byte(svg), 0o666); err != nil {
			return err
		}
	}
	text := resultsHead + contents.String() + body.String()
	return os.WriteFile(filepath.Join(dir, "RESULTS.md"), []byte(text), 0o666)
}

// anchor returns the name that GitHub gives to a heading.
func anchor(title string) string {
	return strings.Map(func(r rune) rune {
		switch {
		case r == ' ':
			return '-'
		case r == '-' || r == '_' || r >= 'a' && r <= 'z' || r >= '0' && r <= '9':
			return r
		}
		return -1
	}, strings.ToLower(title))
}
