// Package browser checks the page that every node serves, in Chromium, against a fleet of real agents with guests whose
// packets are counted.
package browser

import (
	"fmt"
	"os"
	"path/filepath"
	"testing"

	"github.com/palisade/palisade/deploy/fleet"
	"github.com/palisade/palisade/test/rig"
)

// password is that of every user of the tests.
const password = "correct horse battery staple"

var shared = rig.NewShared(func() fleet.Options { return fleet.Options{Prefix: "palweb"} })

func TestMain(m *testing.M) { os.Exit(shared.Main(m)) }

// lab is the fleet of the tests, ready and blocking nothing, with a user for each scope: its name is the scope.
func lab(t *testing.T) *rig.Rig {
	t.Helper()
	l := shared.Get(t)
	users(t, l)
	return l
}

// users makes them on a fleet.
func users(t *testing.T, l *rig.Rig) {
	t.Helper()
	for _, scope := range []string{"admin", "operator", "viewer"} {
		body := map[string]string{"scope": scope, "password": password}
		if err := l.Call(t.Context(), "node-1", "PUT", "/v1/users/"+scope, body, nil); err != nil {
			t.Fatal(err)
		}
	}
}

// keep is where the run leaves its screenshots: bin/screenshots, or what the environment says.
func keep(t *testing.T, name string) string {
	t.Helper()
	dir := os.Getenv("PALISADE_SCREENSHOTS")
	if dir == "" {
		dir = filepath.Join("..", "..", "bin", "screenshots")
	}
	if err := os.MkdirAll(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	return filepath.Join(dir, name)
}

// axe is the source of axe-core, which npm has put beside the tools that build the page.
func axe(t *testing.T) string {
	t.Helper()
	b, err := os.ReadFile(filepath.Join("..", "..", "web", "ui", "node_modules", "axe-core", "axe.min.js"))
	if err != nil {
		t.Fatal(fmt.Errorf("axe-core is not there; `make web` brings it: %w", err))
	}
	return string(b)
}
