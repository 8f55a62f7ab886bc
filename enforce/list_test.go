package enforce

import (
	"fmt"
	"maps"
	"net/netip"
	"slices"
	"testing"
	"time"

	"go4.org/netipx"
	"pgregory.net/rapid"

	"github.com/palisade/palisade/fsm"
)

// fleet applies ops to a store.
type listFleet struct {
	store *fsm.Store
	index uint64
}

func (f *listFleet) do(t *rapid.T, op fsm.Op) fsm.Result {
	f.index++
	data, err := fsm.MarshalCommand(fsm.Command{Time: time.Unix(1_700_000_000, 0), Actor: "test", Op: op})
	if err != nil {
		t.Fatal(err)
	}
	r, err := f.store.ApplyBatch([]fsm.Entry{{Index: f.index, Data: data}})
	if err != nil {
		t.Fatal(err)
	}
	return r[0]
}

func packList(list []netip.Prefix) []byte {
	var b fsm.PrefixSetBuilder
	for _, p := range list {
		b.Add(p)
	}
	s, _ := b.Set()
	return slices.Concat(slices.Collect(s.Packed(1 << 20))...)
}

// slowElements is what must be dropped, in the plainest way.
func slowElements(v *fsm.View, l Local) map[ListElement]bool {
	directions := map[string]fsm.Direction{}
	for b := range v.HeldLists() {
		if d, ok := directions[b.Target.List]; ok && d != b.Direction {
			directions[b.Target.List] = fsm.Both
		} else {
			directions[b.Target.List] = b.Direction
		}
	}
	all := map[ListElement]bool{}
	for name, d := range directions {
		_, set, _ := v.List(name)
		for p := range set.All() {
			for _, piece := range carve(v, l, p) {
				all[ListElement{d, piece}] = true
			}
		}
	}
	return all
}

func TestListsAgainstModel(t *testing.T) {
	address := rapid.Custom(func(t *rapid.T) netip.Prefix {
		if rapid.IntRange(0, 3).Draw(t, "family") == 0 {
			a := netip.AddrFrom16([16]byte{0x20, 1, 15: byte(rapid.IntRange(0, 63).Draw(t, "a"))})
			p, _ := a.Prefix(rapid.SampledFrom([]int{120, 122, 126, 128}).Draw(t, "bits"))
			return p
		}
		a := netip.AddrFrom4([4]byte{10, 0, 0, byte(rapid.IntRange(0, 63).Draw(t, "a"))})
		p, _ := a.Prefix(rapid.SampledFrom([]int{24, 26, 30, 31, 32, 32}).Draw(t, "bits"))
		return p
	})
	several := rapid.SliceOfN(address, 0, 12)
	name := rapid.SampledFrom([]string{"l1", "l2", "l3"})
	rapid.Check(t, func(t *rapid.T) {
		f := &listFleet{store: fsm.NewStore()}
		local := Local{}
		was, held := &Lists{}, map[ListElement]bool{}
		t.Repeat(map[string]func(*rapid.T){
			"put": func(t *rapid.T) {
				id := fmt.Sprint("u", f.index)
				f.do(t, fsm.BeginList{Upload: id, Name: name.Draw(t, "name")})
				if list := several.Draw(t, "list"); len(list) > 0 {
					f.do(t, fsm.AddListChunk{Upload: id, Prefixes: packList(list)})
				}
				f.do(t, fsm.CommitList{Upload: id})
			},
			"patch": func(t *rapid.T) {
				f.do(t, fsm.PatchList{Name: name.Draw(t, "name"), Add: packList(several.Draw(t, "add")), Remove: packList(several.Draw(t, "remove"))})
			},
			"hold": func(t *rapid.T) {
				d := rapid.SampledFrom([]fsm.Direction{fsm.In, fsm.Out, fsm.Both}).Draw(t, "direction")
				f.do(t, fsm.AddBlock{Target: fsm.Target{List: name.Draw(t, "name")}, Direction: d, Force: true})
			},
			"lift": func(t *rapid.T) {
				if ids := slices.Collect(f.store.View().HeldLists()); len(ids) > 0 {
					f.do(t, fsm.LiftBlock{ID: rapid.SampledFrom(ids).Draw(t, "block").ID})
				}
			},
			"guard": func(t *rapid.T) { f.do(t, fsm.PutGuard{Prefix: address.Draw(t, "guard")}) },
			"unguard": func(t *rapid.T) {
				for g := range f.store.View().Guards() {
					f.do(t, fsm.DeleteGuard{Prefix: g.Prefix})
					return
				}
			},
			"local guard": func(t *rapid.T) { local.Guards = several.Draw(t, "guards") },
			"compare": func(t *rapid.T) {
				v := f.store.View()
				is, want := CompileLists(v, local), slowElements(v, local)
				changes := map[ListElement]bool{}
				for e, added := range ListChanges(was, is) {
					if _, twice := changes[e]; twice || held[e] == added {
						t.Fatalf("%v is added (%t) and was there already (%t), or changes twice", e, added, held[e])
					}
					changes[e] = added
				}
				for e, added := range changes {
					if held[e] = added; !added {
						delete(held, e)
					}
				}
				if !maps.Equal(held, want) {
					t.Fatalf("the changes lead to\n%v\nwant\n%v", held, want)
				}
				all := map[ListElement]bool{}
				for e := range is.All() {
					all[e] = true
					if !is.Contains(e) {
						t.Fatalf("%v is in All and not contained", e)
					}
				}
				if !maps.Equal(all, want) {
					t.Fatalf("All gives\n%v\nwant\n%v", all, want)
				}
				for range 20 {
					e := ListElement{fsm.Both, address.Draw(t, "asked")}
					if is.Contains(e) != want[e] {
						t.Fatalf("Contains(%v) = %t", e, !want[e])
					}
				}
				for e := range is.Some(5, f.index) {
					if !want[e] {
						t.Fatalf("Some gives %v", e)
					}
				}
				was = is
			},
		})
	})
}

func TestSomeOfAllIsSpread(t *testing.T) {
	var b fsm.PrefixSetBuilder
	for i := range 1000 {
		b.Add(netip.PrefixFrom(netip.AddrFrom4([4]byte{10, byte(i >> 8), byte(i), 0}), 24))
	}
	set, _ := b.Set()
	none := &netipx.IPSet{}
	l := &Lists{held: []heldList{{fsm.Both, "a", set}, {fsm.Both, "b", set}}, guards: &guards{addresses: none}}
	n := 0
	for range l.Some(100, 7) {
		n++
	}
	if n != 100 {
		t.Errorf("%d of 2,000 elements, want 100", n)
	}
}
