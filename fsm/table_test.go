package fsm

import (
	"bytes"
	"maps"
	"math/rand/v2"
	"slices"
	"strconv"
	"sync"
	"testing"
)

// frozenTable is a table and what it must hold for ever.
type frozenTable struct {
	table table[int]
	want  map[string]int
}

func (f *frozenTable) check(t *testing.T) {
	t.Helper()
	keys := slices.Sorted(maps.Keys(f.want))
	values := func(keys []string) (list []int) {
		for _, k := range keys {
			list = append(list, f.want[k])
		}
		return list
	}
	if f.table.n != len(keys) || !slices.Equal(slices.Collect(f.table.all()), values(keys)) {
		t.Fatalf("the table has %d objects, want %d, or others", f.table.n, len(keys))
	}
	if first, ok := f.table.first(); ok != (len(keys) > 0) || ok && first != f.want[keys[0]] {
		t.Fatalf("first is %d, %t", first, ok)
	}
	for _, front := range []string{"", "2", "31", "39", "9", "x"} {
		from, _ := slices.BinarySearch(keys, front)
		if got := slices.Collect(f.table.from([]byte(front))); !slices.Equal(got, values(keys[from:])) {
			t.Fatalf("from %q: %d objects, want %d, or others", front, len(got), len(keys)-from)
		}
		under := slices.DeleteFunc(slices.Clone(keys), func(k string) bool { return !bytes.HasPrefix([]byte(k), []byte(front)) })
		if got := slices.Collect(f.table.under([]byte(front))); !slices.Equal(got, values(under)) {
			t.Fatalf("under %q: %d objects, want %d, or others", front, len(got), len(under))
		}
		v, ok := f.table.get([]byte(front))
		if want, held := f.want[front]; ok != held || v != want {
			t.Fatalf("get %q: %d, %t, want %d, %t", front, v, ok, want, held)
		}
	}
}

// change makes a changed copy.
func (f *frozenTable) change(r *rand.Rand, changes int) *frozenTable {
	g := &frozenTable{f.table, maps.Clone(f.want)}
	for range changes {
		key := strconv.Itoa(r.IntN(2_000))
		if r.IntN(5) < 2 {
			g.table.remove([]byte(key))
			delete(g.want, key)
		} else {
			v := r.Int()
			g.table.put([]byte(key), v)
			g.want[key] = v
		}
	}
	g.table.freeze()
	return g
}

// TestTableCopies changes copies of copies, two of each at the same time, and looks at all of them at
// the end, as the readers of old views do.
func TestTableCopies(t *testing.T) {
	r := rand.New(rand.NewPCG(1, 2))
	all := []*frozenTable{{newTable[int](), map[string]int{}}}
	for range 60 {
		from := all[max(0, len(all)-1-r.IntN(6))]
		var two [2]*frozenTable
		var wg sync.WaitGroup
		for i := range two {
			seed, changes := r.Uint64(), 1+r.IntN(300)
			wg.Go(func() { two[i] = from.change(rand.New(rand.NewPCG(seed, 0)), changes) })
		}
		wg.Wait()
		all = append(all, two[:]...)
	}
	for _, f := range all {
		f.check(t)
	}
	if n := all[len(all)-1].table.n; n < 100 {
		t.Fatalf("the last table has %d objects, which proves little", n)
	}
}
