package fsm

import (
	"go/ast"
	"go/parser"
	"go/token"
	"io/fs"
	"os"
	"strconv"
	"strings"
	"testing"
)

// TestThePackageIsPure keeps clocks, goroutines, chance, I/O and logging out of the state machine:
// whatever is decided with one of them differs from node to node.
func TestThePackageIsPure(t *testing.T) {
	forbidden := map[string]bool{
		"math/rand": true, "math/rand/v2": true, "crypto/rand": true, "os": true, "os/exec": true, "syscall": true,
		"net/http": true, "log": true, "log/slog": true, "runtime": true, "hash/maphash": true, "unsafe": true,
	}
	clock := map[string]bool{
		"Now": true, "Since": true, "Until": true, "After": true, "AfterFunc": true, "Tick": true, "Sleep": true,
		"NewTimer": true, "NewTicker": true, "Local": true,
	}
	names, err := fs.Glob(os.DirFS("."), "*.go")
	if err != nil {
		t.Fatal(err)
	}
	checked := 0
	for _, name := range names {
		if strings.HasSuffix(name, "_test.go") {
			continue
		}
		checked++
		set := token.NewFileSet()
		file, err := parser.ParseFile(set, name, nil, parser.SkipObjectResolution)
		if err != nil {
			t.Fatal(err)
		}
		at := func(n ast.Node) token.Position { return set.Position(n.Pos()) }
		for _, imported := range file.Imports {
			path, err := strconv.Unquote(imported.Path.Value)
			if err != nil || forbidden[path] || strings.HasPrefix(path, "golang.org/x/sys") {
				t.Errorf("%s: imports %s", at(imported), path)
			}
			if strings.Contains(path, "palisade/") && path != "github.com/palisade/palisade/fsm/internal/fsmpb" {
				t.Errorf("%s: imports %s: the state machine imports nothing of ours", at(imported), path)
			}
		}
		ast.Inspect(file, func(n ast.Node) bool {
			switch n := n.(type) {
			case *ast.GoStmt:
				t.Errorf("%s: starts a goroutine", at(n))
			case *ast.SelectorExpr:
				if pkg, ok := n.X.(*ast.Ident); ok && pkg.Name == "time" && clock[n.Sel.Name] {
					t.Errorf("%s: uses time.%s", at(n), n.Sel.Name)
				}
			case *ast.FuncDecl:
				if n.Name.Name == "init" && n.Recv == nil {
					t.Errorf("%s: has an init function", at(n))
				}
			}
			return true
		})
	}
	if checked < 10 {
		t.Errorf("only %d files were checked", checked)
	}
}
