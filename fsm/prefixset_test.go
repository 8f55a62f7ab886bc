package fsm

import (
	"encoding/binary"
	"math/rand/v2"
	"net/netip"
	"runtime"
	"slices"
	"testing"

	"pgregory.net/rapid"
)

// slowSet is a set of prefixes as a sorted slice without nested ones.
type slowSet []netip.Prefix

func slowly(list []netip.Prefix) slowSet {
	list = slices.Clone(list)
	slices.SortFunc(list, comparePrefix)
	var out slowSet
	for _, p := range list {
		// What lies in another comes after it, and before anything else does.
		if len(out) == 0 || !out[len(out)-1].Overlaps(p) {
			out = append(out, p)
		}
	}
	return out
}

func (s slowSet) patch(add, remove []netip.Prefix) slowSet {
	left := slices.Clone(s)
	for _, r := range remove {
		var next slowSet
		for _, p := range left {
			next = append(next, without(p, r)...)
		}
		left = next
	}
	return slowly(append(left, add...))
}

// without halves p until no half overlaps r.
func without(p, r netip.Prefix) []netip.Prefix {
	switch {
	case !p.Overlaps(r):
		return []netip.Prefix{p}
	case r.Bits() <= p.Bits():
		return nil
	}
	low, high := halves(p)
	return append(without(low, r), without(high, r)...)
}

// crowded draws prefixes that often repeat, nest and adjoin.
func crowded(families ...int) *rapid.Generator[netip.Prefix] {
	return rapid.Custom(func(t *rapid.T) netip.Prefix {
		if rapid.SampledFrom(families).Draw(t, "family") == 4 {
			var b [4]byte
			binary.BigEndian.PutUint32(b[:], 10<<24|uint32(rapid.IntRange(0, 8191).Draw(t, "address")))
			p, _ := netip.AddrFrom4(b).Prefix(rapid.SampledFrom([]int{20, 24, 28, 31, 32, 32, 32}).Draw(t, "bits"))
			return p
		}
		b := [16]byte{0x20, 0x01}
		binary.BigEndian.PutUint16(b[14:], uint16(rapid.IntRange(0, 4095).Draw(t, "address")))
		p, _ := netip.AddrFrom16(b).Prefix(rapid.SampledFrom([]int{116, 120, 127, 128, 128}).Draw(t, "bits"))
		return p
	})
}

// many are addresses enough for some blocks.
func many(n int, seed uint64) []netip.Prefix {
	r := rand.New(rand.NewPCG(seed, 0))
	var list []netip.Prefix
	for range n {
		a := [4]byte{10, 0, byte(r.UintN(32)), byte(r.Uint32())}
		list = append(list, netip.PrefixFrom(netip.AddrFrom4(a), 32))
	}
	return list
}

func setOf(list []netip.Prefix) PrefixSet {
	var b PrefixSetBuilder
	for _, p := range list {
		b.Add(p)
	}
	s, _ := b.Set()
	return s
}

func same(t *rapid.T, what string, got PrefixSet, want slowSet) {
	if list := slices.Collect(got.All()); !slices.Equal(list, want) {
		t.Fatalf("%s:\n got %v\nwant %v", what, list, want)
	}
	if got.Len() != len(want) {
		t.Fatalf("%s: Len is %d, want %d", what, got.Len(), len(want))
	}
	if h := setOf(want).Hash(); got.Hash() != h {
		t.Fatalf("%s: the hash of a set depends on how it was made", what)
	}
}

func TestPrefixSetIsASet(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		draw := func(name string, most int) []netip.Prefix {
			return rapid.SliceOfN(crowded(4, 6), 0, most).Draw(t, name)
		}
		list := append(draw("list", 200), many(rapid.IntRange(0, 4000).Draw(t, "many"), rapid.Uint64().Draw(t, "seed"))...)
		s, want := setOf(list), slowly(list)
		same(t, "built", s, want)
		for range rapid.IntRange(1, 4).Draw(t, "patches") {
			add, remove := draw("add", 30), draw("remove", 30)
			was, wasList := s, slices.Collect(s.All())
			s = s.Patch(setOf(add), setOf(remove))
			want = want.patch(add, remove)
			same(t, "patched", s, want)
			if !slices.Equal(slices.Collect(was.All()), wasList) {
				t.Fatal("a patch changed the set that it was made from")
			}
			left := slices.Clone(wasList)
			for p, added := range Diff(was, s) {
				if added {
					left = append(left, p)
				} else if i := slices.Index(left, p); i >= 0 {
					left = slices.Delete(left, i, i+1)
				} else {
					t.Fatalf("the difference removes %s, which is not there", p)
				}
			}
			slices.SortFunc(left, comparePrefix)
			if !slices.Equal(left, want) {
				t.Fatal("the difference does not lead from the old set to the new")
			}
		}
		for _, p := range draw("asked", 30) {
			i := slices.IndexFunc(want, func(o netip.Prefix) bool { return o.Bits() <= p.Bits() && o.Overlaps(p) })
			around, ok := s.Covering(p)
			if ok != (i >= 0) || ok && around != want[i] {
				t.Fatalf("Covering(%s) = %s, %t", p, around, ok)
			}
			if s.Contains(p) != slices.Contains(want, p) {
				t.Fatalf("Contains(%s) = %t", p, s.Contains(p))
			}
			var inside []netip.Prefix
			for _, o := range want {
				if o.Bits() >= p.Bits() && o.Overlaps(p) {
					inside = append(inside, o)
				}
			}
			if got := slices.Collect(s.Within(p)); !slices.Equal(got, inside) {
				t.Fatalf("Within(%s) = %v, want %v", p, got, inside)
			}
		}
		var again PrefixSet
		for part := range s.Packed(rapid.IntRange(1, 400).Draw(t, "part")) {
			longer, err := again.appendPacked(part)
			if err != nil {
				t.Fatal(err)
			}
			if again.Len() > 0 && again.Hash() != setOf(want[:again.Len()]).Hash() {
				t.Fatal("an addition changed the set that it was made from")
			}
			again = longer
		}
		same(t, "packed and read back", again, want)
	})
}

// sparse is a set of n addresses in no order that a cutter would like.
func sparse(n int, seed uint64) PrefixSet {
	r := rand.New(rand.NewPCG(seed, 0))
	var b PrefixSetBuilder
	for range n {
		var a [4]byte
		binary.BigEndian.PutUint32(a[:], 0x0b000000+r.Uint32()%0xc0000000)
		b.Add(netip.PrefixFrom(netip.AddrFrom4(a), 32))
	}
	s, _ := b.Set()
	return s
}

// A change must not cost what the whole set costs: nearly all blocks of the old set live on.
func TestPatchSharesBlocks(t *testing.T) {
	s := sparse(200_000, 1)
	p := s.Patch(setOf([]netip.Prefix{netip.MustParsePrefix("77.1.2.3/32")}), setOf([]netip.Prefix{netip.MustParsePrefix("99.0.0.0/16")}))
	known := map[*prefixBlock]bool{}
	for b := range s.eachBlock() {
		known[b] = true
	}
	fresh := 0
	for b := range p.eachBlock() {
		if !known[b] {
			fresh++
		}
	}
	if fresh == 0 || fresh > 5 {
		t.Errorf("a patch of two entries made %d new blocks of %d", fresh, len(p.v4))
	}
	// The same content by another way shares nothing, and compares equal all the same.
	for e := range Diff(setOf(slices.Collect(s.All())), s) {
		t.Fatalf("equal sets differ in %s", e)
	}
}

// Blocks are bounded also where no entry would begin one by itself.
func TestPrefixSetBoundsBlocks(t *testing.T) {
	var b PrefixSetBuilder
	for i := uint32(0); len(b.v4) < 5000; i++ {
		var a [4]byte
		binary.BigEndian.PutUint32(a[:], 10<<24+i)
		if p := netip.PrefixFrom(netip.AddrFrom4(a), 32); !startsBlock(packPrefix(p)) {
			b.Add(p)
		}
	}
	s, _ := b.Set()
	for _, block := range s.v4 {
		if block.len() > maxBlockEntries {
			t.Fatalf("a block has %d entries", block.len())
		}
	}
	list := slices.Collect(s.All())
	for _, i := range []int{0, 1, maxBlockEntries, 3000} {
		one := setOf(list[i : i+1])
		if got, want := s.Patch(PrefixSet{}, one), setOf(slices.Delete(slices.Clone(list), i, i+1)); got.Hash() != want.Hash() {
			t.Errorf("without entry %d: the blocks depend on how the set was made", i)
		}
		if s.Patch(PrefixSet{}, one).Patch(one, PrefixSet{}).Hash() != s.Hash() {
			t.Errorf("entry %d taken out and put back gives another hash", i)
		}
	}
}

func TestPrefixSetIsSmall(t *testing.T) {
	const n = 1_000_000
	var before, after runtime.MemStats
	runtime.GC()
	runtime.ReadMemStats(&before)
	s := sparse(n, 2)
	runtime.GC()
	runtime.GC()
	runtime.ReadMemStats(&after)
	perEntry := float64(after.HeapAlloc-before.HeapAlloc) / float64(s.Len())
	t.Logf("%.2f bytes an entry", perEntry)
	if perEntry > 8 {
		t.Errorf("%.2f bytes an IPv4 entry, want at most 8", perEntry)
	}
	runtime.KeepAlive(s)
}

func FuzzAppendPacked(f *testing.F) {
	f.Add([]byte{32, 10, 0, 0, 1, 24, 10, 0, 1, 0}, []byte{255, 0x20, 1, 15: 0, 16: 1})
	f.Add([]byte{24, 10, 0, 0, 1}, []byte{127, 15: 0, 16: 0})
	f.Fuzz(func(t *testing.T, a, b []byte) {
		s, err := PrefixSet{}.appendPacked(a)
		if err != nil {
			return
		}
		longer, err := s.appendPacked(b)
		if err != nil {
			return
		}
		whole, err := PrefixSet{}.appendPacked(slices.Concat(a, b))
		if err != nil || whole.Hash() != longer.Hash() {
			t.Fatalf("in two parts it is another set (%v)", err)
		}
		var packed []byte
		for p := range longer.All() {
			if checkPrefix("", p) != nil {
				t.Fatalf("%s got in", p)
			}
			packed = AppendPacked(packed, p)
		}
		if !slices.Equal(packed, slices.Concat(a, b)) {
			t.Fatal("what is read is not what was written")
		}
	})
}
