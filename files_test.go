package usher

import (
	"bytes"
	"fmt"
	"go/ast"
	"go/importer"
	"go/parser"
	"go/token"
	"go/types"
	"io"
	"math/bits"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
)

// maxUpward is how many references from a file of this package to another point
// up, in the order of files in which the fewest do.
const maxUpward = 10

// TestFilesPointDown: a reader who goes through the files from the bottom up
// meets few names that have not been explained yet. Run it with -v to see which.
func TestFilesPointDown(t *testing.T) {
	refs := fileReferences(t)
	order := bottomUp(refs)
	total, upward := 0, 0
	for i, from := range order {
		total += len(refs[from])
		for _, to := range order[i+1:] {
			if names := refs[from][to]; names != nil {
				upward++
				t.Logf("%s refers up to %s: %s", from, to, strings.Join(names, ", "))
			}
		}
	}
	t.Logf("%d files, %d references, %d upward; from the bottom up: %s", len(order), total, upward, strings.Join(order, " "))
	if upward > maxUpward {
		t.Errorf("%d references between files point up, want at most %d", upward, maxUpward)
	}
}

// fileReferences returns which names of which file each file of this package
// uses: those of the package, methods, and fields. The type of a method's
// receiver, and the fields of that type, are no references: a type's methods may
// stand in several files.
func fileReferences(t *testing.T) map[string]map[string][]string {
	t.Helper()
	list := func(args ...string) string {
		out, err := exec.Command("go", append([]string{"list"}, args...)...).Output()
		if err != nil {
			t.Fatal(err)
		}
		return strings.TrimSpace(string(out))
	}
	exports := make(map[string]string)
	for line := range strings.Lines(list("-export", "-deps", "-f", "{{.ImportPath}} {{.Export}}", ".")) {
		path, file, _ := strings.Cut(strings.TrimSpace(line), " ")
		exports[path] = file
	}
	fset := token.NewFileSet()
	var files []*ast.File
	for name := range strings.FieldsSeq(list("-f", `{{join .GoFiles " "}}`, ".")) {
		f, err := parser.ParseFile(fset, name, nil, parser.SkipObjectResolution)
		if err != nil {
			t.Fatal(err)
		}
		files = append(files, f)
	}
	imports := importer.ForCompiler(fset, "gc", func(path string) (io.ReadCloser, error) {
		b, err := os.ReadFile(exports[path])
		return io.NopCloser(bytes.NewReader(b)), err
	})
	info := types.Info{Defs: make(map[*ast.Ident]types.Object), Uses: make(map[*ast.Ident]types.Object)}
	pkg, err := (&types.Config{Importer: imports}).Check(".", fset, files, &info)
	if err != nil {
		t.Fatal(err)
	}

	fileOf := func(p token.Pos) string { return filepath.Base(fset.Position(p).Filename) }
	refs := make(map[string]map[string][]string)
	for _, f := range files {
		from := fileOf(f.Pos())
		refs[from] = make(map[string][]string)
		for _, d := range f.Decls {
			own := "" // the file of the receiver's type
			ast.Inspect(d, func(n ast.Node) bool {
				if fn, ok := n.(*ast.FuncDecl); ok && fn.Recv != nil {
					own = fileOf(receiverOf(info.Defs[fn.Name].(*types.Func)).Pos())
				}
				id, ok := n.(*ast.Ident)
				if !ok {
					return true
				}
				obj := info.Uses[id]
				if obj == nil || obj.Pkg() != pkg {
					return true
				}
				to := fileOf(obj.Pos())
				switch obj := obj.(type) {
				case *types.Var:
					if obj.IsField() && to == own || !obj.IsField() && obj.Parent() != pkg.Scope() {
						return true
					}
				case *types.TypeName:
					if fn, ok := d.(*ast.FuncDecl); ok && fn.Recv != nil && fn.Recv.Pos() <= id.Pos() && id.Pos() < fn.Recv.End() {
						return true
					}
				}
				if from != to && !slices.Contains(refs[from][to], obj.Name()) {
					refs[from][to] = append(refs[from][to], obj.Name())
				}
				return true
			})
		}
	}
	for _, to := range refs {
		for _, names := range to {
			slices.Sort(names)
		}
	}
	return refs
}

// receiverOf returns the type that m is a method of.
func receiverOf(m *types.Func) types.Object {
	t := m.Signature().Recv().Type()
	if p, ok := t.(*types.Pointer); ok {
		t = p.Elem()
	}
	return t.(*types.Named).Obj()
}

// bottomUp returns the files in an order in which the fewest references point
// from an earlier one to a later one.
func bottomUp(refs map[string]map[string][]string) []string {
	left := make(map[string]bool)
	for f := range refs {
		left[f] = true
	}
	// Who refers to none of the others comes first, whom none refers to last.
	var bottom, top []string
	for changed := true; changed; {
		changed = false
		for _, f := range sorted(left) {
			out, in := 0, 0
			for g := range left {
				if g != f && refs[f][g] != nil {
					out++
				}
				if g != f && refs[g][f] != nil {
					in++
				}
			}
			switch {
			case out == 0:
				bottom = append(bottom, f)
			case in == 0:
				top = append(top, f)
			default:
				continue
			}
			delete(left, f)
			changed = true
		}
	}
	slices.Reverse(top)

	// Of the rest, the best order of each set of files follows from those of the
	// sets that have one file less.
	rest := sorted(left)
	if len(rest) > 24 {
		panic(fmt.Sprintf("%d files refer to each other", len(rest)))
	}
	usedBy := make([]uint32, len(rest))
	for i, f := range rest {
		for j, g := range rest {
			if refs[g][f] != nil {
				usedBy[i] |= 1 << j
			}
		}
	}
	fewest := make([]uint16, 1<<len(rest))
	last := make([]uint8, 1<<len(rest))
	for set := uint32(1); set < 1<<len(rest); set++ {
		fewest[set] = 1 << 15
		for s := set; s != 0; s &= s - 1 {
			i := bits.TrailingZeros32(s)
			below := set &^ (1 << i)
			if n := fewest[below] + uint16(bits.OnesCount32(usedBy[i]&below)); n < fewest[set] {
				fewest[set], last[set] = n, uint8(i)
			}
		}
	}
	middle := make([]string, len(rest))
	for set := uint32(1)<<len(rest) - 1; set != 0; set &^= 1 << last[set] {
		middle[bits.OnesCount32(set)-1] = rest[last[set]]
	}
	return slices.Concat(bottom, middle, top)
}

func sorted(set map[string]bool) []string {
	var names []string
	for n := range set {
		names = append(names, n)
	}
	slices.Sort(names)
	return names
}
