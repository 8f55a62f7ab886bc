package nft

import (
	"context"
	"maps"
	"net/netip"
	"slices"
	"sync/atomic"
	"testing"
	"time"

	"pgregory.net/rapid"

	"github.com/palisade/palisade/enforce"
	"github.com/palisade/palisade/fsm"
)

// countedContext ends after some looks at it: in the middle of whatever it is given to.
type countedContext struct {
	context.Context

	left atomic.Int64
}

func (c *countedContext) Err() error {
	if c.left.Add(-1) < 0 {
		return context.Canceled
	}
	return nil
}

// TestListsAgainstModel changes lists, holds and guards, ends processes and interrupts them, and compares
// what rules look into with what is to be dropped.
func TestListsAgainstModel(t *testing.T) {
	n := newNetNS(t)
	address := rapid.Custom(func(t *rapid.T) netip.Prefix {
		a := netip.AddrFrom4([4]byte{10, 0, 0, byte(rapid.IntRange(0, 63).Draw(t, "a"))})
		bits := rapid.SampledFrom([]int{24, 28, 30, 32, 32, 32}).Draw(t, "bits")
		if rapid.IntRange(0, 3).Draw(t, "family") == 0 {
			a, bits = netip.AddrFrom16([16]byte{0x20, 1, 15: a.As4()[3]}), bits+96
		}
		p, _ := a.Prefix(bits)
		return p
	})
	several := rapid.SliceOfN(address, 0, 20)
	name := rapid.SampledFrom([]string{"l1", "l2"})
	rapid.Check(t, func(rt *rapid.T) {
		_, _ = n.try("", "nft", "flush", "ruleset")
		s := newListState(rt)
		open := func() *Lists {
			return openLists(t, n, func(o *Options) { o.ChunkElements = rapid.SampledFrom([]int{3, 7, 1000}).Draw(rt, "chunk") })
		}
		k := open()
		var guards []netip.Prefix
		was := map[enforce.ListElement]bool{} // known to be in force
		before := &enforce.Lists{}            // the last content that was brought whole
		exact := func(rt *rapid.T) {
			c := s.change(guards...)
			if err := k.Bring(t.Context(), c); err != nil {
				rt.Fatal(err)
			}
			want := elementsOf(c.Lists)
			for f, got := range inKernel(rt, n) {
				if !maps.Equal(got, want) {
					rt.Fatalf("%s: the kernel has\n%v\nwant\n%v", f, got, want)
				}
			}
			was, before = want, c.Lists
		}
		rt.Repeat(map[string]func(*rapid.T){
			"put": func(rt *rapid.T) { s.put(name.Draw(rt, "name"), several.Draw(rt, "list")) },
			"hold": func(rt *rapid.T) {
				d := rapid.SampledFrom([]fsm.Direction{fsm.In, fsm.Out, fsm.Both}).Draw(rt, "direction")
				s.do(fsm.AddBlock{Target: fsm.Target{List: name.Draw(rt, "name")}, Direction: d, Force: true})
			},
			"lift": func(rt *rapid.T) {
				if all := slices.Collect(s.store.View().HeldLists()); len(all) > 0 {
					s.do(fsm.LiftBlock{ID: rapid.SampledFrom(all).Draw(rt, "block").ID})
				}
			},
			"guard": func(rt *rapid.T) { guards = several.Draw(rt, "guards") },
			"bring": exact,
			"only add": func(rt *rapid.T) {
				c := s.change(guards...)
				c.Remove = false
				if err := k.Bring(t.Context(), c); err != nil {
					rt.Fatal(err)
				}
				for f, got := range inKernel(rt, n) {
					for e := range maps.Keys(was) {
						if !got[e] {
							rt.Fatalf("%s: %v went", f, e)
						}
					}
					for e := range c.Lists.All() {
						if !got[e] {
							rt.Fatalf("%s: %v did not come", f, e)
						}
					}
				}
				maps.Copy(was, elementsOf(c.Lists))
			},
			"restart": func(rt *rapid.T) {
				_ = k.Close()
				k = open()
			},
			"interrupt": func(rt *rapid.T) {
				c := s.change(guards...)
				ctx := &countedContext{Context: t.Context()}
				ctx.left.Store(rapid.Int64Range(0, 60).Draw(rt, "looks"))
				if k.Bring(ctx, c) == nil {
					was, before = elementsOf(c.Lists), c.Lists
					return
				}
				marker, all := inKernelLoosely(rt, n)
				for f, got := range all {
					for _, l := range []*enforce.Lists{before, c.Lists} {
						if marker.hash == l.Hash() && !maps.Equal(got, elementsOf(l)) {
							rt.Fatalf("%s: the marker claims a content that is not there", f)
						}
					}
					for e := range maps.Keys(was) {
						if c.Lists.Contains(e) && !got[e] {
							rt.Fatalf("%s: %v is in both contents and went", f, e)
						}
					}
				}
				maps.DeleteFunc(was, func(e enforce.ListElement, _ bool) bool { return !c.Lists.Contains(e) })
			},
		})
		exact(rt)
		_ = k.Close()
	})
}

// inKernelLoosely is inKernel where a change was interrupted.
func inKernelLoosely(t interface{ Fatal(args ...any) }, n netNS) (listMarker, map[family]map[enforce.ListElement]bool) {
	w, err := dial(n.fd, 4<<20, 10*time.Second)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = w.close() }()
	in, err := w.readLists(context.Background(), listTables(), "palisade_lists")
	if err != nil {
		t.Fatal(err)
	}
	if !in.ruled {
		t.Fatal("rules look into something else")
	}
	return in.marker, dumpLists(t, w, in)
}
