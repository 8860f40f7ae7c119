package fairness

import (
	"fmt"
	"os"
	"os/exec"
	"runtime"
	"strings"
	"time"
)

// markdown makes the table of results, by contender and promise.
func markdown(results [][]outcome) string {
	var b strings.Builder
	b.WriteString("| promise |")
	for _, c := range Contenders {
		fmt.Fprintf(&b, " %s |", c.Name)
	}
	b.WriteString("\n|---|" + strings.Repeat("---|", len(Contenders)) + "\n")
	kept := make([]int, len(Contenders))
	for j, p := range promises {
		fmt.Fprintf(&b, "| %s |", p.name)
		for i, c := range Contenders {
			o := results[i][j]
			verdict := "no"
			switch {
			case p.queueing && !c.Limits:
				verdict = "–"
			case o.kept:
				verdict = "**yes**"
				kept[i]++
			}
			fmt.Fprintf(&b, " %s: %s |", verdict, o.figure)
		}
		b.WriteString("\n")
	}
	b.WriteString("| kept |")
	for i := range Contenders {
		fmt.Fprintf(&b, " %d of %d |", kept[i], len(promises))
	}
	b.WriteString("\n")
	return b.String()
}

// writeTable writes CONFORMANCE.md.
func writeTable(table string) error {
	compared, err := versions()
	if err != nil {
		return err
	}
	return os.WriteFile("CONFORMANCE.md", []byte(`# Who keeps which promise

Made by `+"`go test ./fairness -run Conformance -update`"+` on `+time.Now().UTC().Format(time.DateOnly)+`:
`+compared+`.

Every contender runs the same tests, with the same limits as far as it has them.
A dash stands where nothing is limited, so that there is no queue to speak of.
A middleware's health check is a route outside of it; chi's Retry-After is a
constant that its user supplies. HTTP/2 is without TLS.

`+table), 0o666)
}

// versions says what was compared. A test binary does not know by itself.
func versions() (string, error) {
	const format = "{{.Path}}{{if .Replace}} of this checkout{{else}} {{.Version}}{{end}}"
	args := []string{"list", "-m", "-f", format}
	for _, c := range Contenders {
		if c.Module != "" {
			args = append(args, c.Module)
		}
	}
	out, err := exec.Command("go", args...).Output()
	if err != nil {
		return "", fmt.Errorf("versions of the contenders: go list: %w", err)
	}
	modules := strings.ReplaceAll(strings.TrimSpace(string(out)), "\n", ",\n")
	return fmt.Sprintf("%s %s/%s,\n%s", runtime.Version(), runtime.GOOS, runtime.GOARCH, modules), nil
}
