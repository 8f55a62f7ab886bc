package agent

import (
	"testing"
	"time"
)

func TestGarbageIsInProportion(t *testing.T) {
	for alive, want := range map[uint64][2]int{ // idle, busy
		0: {100, 300}, 10 << 20: {100, 300}, 32 << 20: {100, 300}, 60 << 20: {100, 150}, 96 << 20: {100, 100}, 1 << 30: {100, 100},
	} {
		if idle, busy := gcPercent(alive, false), gcPercent(alive, true); idle != want[0] || busy != want[1] {
			t.Errorf("with %d MiB alive: %d %% and %d %%, want %v", alive>>20, idle, busy, want)
		}
	}
}

// TestMoreGarbageUnderLoad, and not back and forth with each look.
func TestMoreGarbageUnderLoad(t *testing.T) {
	m := memory{busy: true}
	allocated := uint64(0)
	for i, c := range []struct {
		mib           uint64 // a second
		percent       int
		changed, idle bool
	}{
		{20, 300, true, false}, {1, 100, true, true}, {7, 100, false, false}, {8, 300, true, false}, {200, 300, false, false},
		{2, 300, false, false}, {1, 100, true, true}, {3, 100, false, false},
	} {
		allocated += 3 * c.mib << 20
		changed, idle := m.look(10<<20, allocated, 3*time.Second)
		if changed != c.changed || idle != c.idle || m.percent != c.percent {
			t.Errorf("%d: %d MiB/s: %d %%, changed %t, idle %t, want %+v", i, c.mib, m.percent, changed, idle, c)
		}
	}
}
