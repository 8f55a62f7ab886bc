// Package browser checks the page that every node serves, in Chromium, against a fleet of real agents with guests whose
// packets are counted.
package browser

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/palisade/palisade/deploy/fleet"
	"github.com/palisade/palisade/httpapi/client"
	"github.com/palisade/palisade/test/rig"
)

// password is that of every user of the tests.
const password = "correct horse battery staple"

var shared = rig.NewShared(func() fleet.Options { return fleet.Options{Prefix: "palweb"} })

func TestMain(m *testing.M) { os.Exit(shared.Main(m)) }

// lab is the fleet of the tests, ready and blocking nothing, with a user for each scope: its name is the scope.
func lab(t *testing.T) *rig.Rig {
	t.Helper()
	l := shared.Get(t, func(r *rig.Rig) { heal(t, r) })
	heal(t, l)
	users(t, l)
	return l
}

func users(t *testing.T, l *rig.Rig) {
	t.Helper()
	for _, scope := range []string{"admin", "operator", "viewer"} {
		body := map[string]string{"scope": scope, "password": password}
		if err := l.Call(t.Context(), "node-1", "PUT", "/v1/users/"+scope, body, nil); err != nil {
			t.Fatal(err)
		}
	}
}

// heal starts what is down, heals what is cut, and lifts what is blocked.
func heal(t *testing.T, l *rig.Rig) {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	for _, n := range l.Nodes() {
		if err := l.HealNode(ctx, n.Name); err != nil {
			t.Error(err)
		}
		if !n.Agent.Alive() {
			if err := l.StartAgent(ctx, n.Name); err != nil {
				t.Error(err)
			}
		}
	}
	if err := l.AwaitReady(ctx); err != nil {
		t.Fatal(err)
	}
	for _, state := range []string{"active", "pending"} {
		for b, err := range l.Clients["node-1"].Blocks(ctx, client.BlockFilter{State: state}) {
			if err != nil {
				t.Fatal(err)
			}
			if _, err := l.Clients["node-1"].LiftBlock(ctx, b.ID, client.Write{Wait: true}); err != nil {
				t.Error(err)
			}
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
