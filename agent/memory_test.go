package agent

import "testing"

func TestGarbageIsInProportion(t *testing.T) {
	for alive, want := range map[uint64]int{0: 300, 10 << 20: 300, 32 << 20: 300, 60 << 20: 150, 96 << 20: 100, 1 << 30: 100} {
		if got := gcPercent(alive); got != want {
			t.Errorf("with %d MiB alive: %d %%, want %d %%", alive>>20, got, want)
		}
	}
}
