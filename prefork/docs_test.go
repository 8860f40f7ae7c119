package prefork

import (
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
)

// ignoresError finds a call whose error is lost, as a statement of its own.
var ignoresError = regexp.MustCompile(`^\s*(//\s*)?(go )?[a-z]+\.(Run|Serve|ServeTLS|ListenAndServe|ListenAndServeTLS|Restart|Upgrade|Scale|Recycle)\(`)

// TestDocsUseErrors: no example that users copy drops an error that says why
// nothing runs.
func TestDocsUseErrors(t *testing.T) {
	files, err := filepath.Glob("../docs/*.md")
	if err != nil {
		t.Fatal(err)
	}
	for _, name := range append(files, "../README.md", "../doc.go", "doc.go", "example_test.go") {
		b, err := os.ReadFile(name)
		if err != nil {
			t.Fatal(err)
		}
		for line := range strings.Lines(string(b)) {
			if ignoresError.MatchString(line) {
				t.Errorf("%s: %s", name, line)
			}
		}
	}
}
