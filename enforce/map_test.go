package enforce

import (
	"maps"
	"slices"
	"strconv"
	"testing"

	"pgregory.net/rapid"
)

// TestMapIsAMap changes a Map and a map alike. No copy changes by what is done to another.
func TestMapIsAMap(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		equal := func(a, b int) bool { return a == b }
		is, want := Map[int]{}, map[string]int{}
		for range rapid.IntRange(1, 20).Draw(t, "steps") {
			name, v := strconv.Itoa(rapid.IntRange(0, 600).Draw(t, "name")), rapid.IntRange(0, 3).Draw(t, "value")
			before, wanted := is, maps.Clone(want)
			switch rapid.IntRange(0, 2).Draw(t, "step") {
			case 0:
				is, want[name] = is.With(name, v), v
			case 1:
				is = is.Without(name)
				delete(want, name)
			default:
				want = rapid.MapOfN(rapid.Map(rapid.IntRange(0, 600), strconv.Itoa), rapid.IntRange(0, 3), 0, 20).Draw(t, "full")
				is = is.Replace(want, equal)
			}
			if got := maps.Collect(is.All()); !maps.Equal(got, want) {
				t.Fatalf("is %v, want %v", got, want)
			}
			if got := maps.Collect(before.All()); !maps.Equal(got, wanted) {
				t.Fatalf("the one before is now %v, was %v", got, wanted)
			}
			if got, ok := is.Lookup(name); ok != (want[name] == got && slices.Contains(slices.Collect(maps.Keys(want)), name)) {
				t.Fatalf("lookup of %s: %v, %v", name, got, ok)
			}
			differ := map[string]bool{}
			for n := range changed(before, is, equal) {
				differ[n] = true
			}
			for _, n := range slices.Concat(slices.Collect(maps.Keys(want)), slices.Collect(maps.Keys(wanted))) {
				a, was := wanted[n]
				b, now := want[n]
				if differ[n] != (was != now || a != b) {
					t.Fatalf("%s differs: %v; %v before, %v now", n, differ[n], wanted, want)
				}
			}
		}
	})
}
