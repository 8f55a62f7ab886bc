package qemu

import (
	"testing"

	"github.com/palisade/palisade/test/soak"
)

// TestALiveStorm is the small storm of live migrations, of a fixed seed; make soak makes the long one.
func TestALiveStorm(t *testing.T) {
	l := sharedLab(t)
	b, err := shared.Binaries()
	if err != nil {
		t.Fatal(err)
	}
	res, err := soak.QEMUOn(t.Context(), l.Rig, soak.Options{Binaries: b, Seed: 1, Moves: 5, Progress: func(line string) { t.Log(line) }})
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
