package soak

import (
	"os"
	"testing"

	"github.com/palisade/palisade/test/rig"
)

// TestALightStorm is the small one of a fixed seed.
func TestALightStorm(t *testing.T) {
	b, err := rig.Build(t.Context())
	t.Cleanup(func() {
		if err := os.RemoveAll(b.Dir); err != nil {
			t.Error(err)
		}
	})
	if err != nil {
		t.Fatal(err)
	}
	res, err := Light(t.Context(), Options{Binaries: b, Seed: 20, Moves: 90, Progress: func(line string) { t.Log(line) }})
	if err != nil {
		t.Fatal(err)
	}
	for _, f := range res.Figures {
		t.Logf("%s: %g %s", f.Name, f.Value, f.Unit)
	}
	for _, f := range res.Failures {
		t.Error(f)
	}
}
