package enforce

import (
	"fmt"
	"maps"
	"net/netip"
	"slices"
	"testing"

	"pgregory.net/rapid"

	"github.com/palisade/palisade/fsm"
)

// Few values of everything, so that blocks, VMs, nodes and guards overlap all the time.
func genPrefix() *rapid.Generator[netip.Prefix] {
	return rapid.Custom(func(t *rapid.T) netip.Prefix {
		if rapid.Bool().Draw(t, "v6") {
			a := netip.AddrFrom16([16]byte{0: 0xfd, 1: 7, 15: rapid.Byte().Draw(t, "last") & 7})
			return netip.PrefixFrom(a, rapid.SampledFrom([]int{128, 127, 126, 64, 16}).Draw(t, "bits")).Masked()
		}
		a := netip.AddrFrom4([4]byte{10, 7, 0, rapid.Byte().Draw(t, "last") & 15})
		return netip.PrefixFrom(a, rapid.SampledFrom([]int{32, 31, 30, 29, 24, 8}).Draw(t, "bits")).Masked()
	})
}

func genAddr() *rapid.Generator[netip.Addr] {
	return rapid.Map(genPrefix(), netip.Prefix.Addr)
}

func genNICs() *rapid.Generator[[]fsm.NIC] {
	one := rapid.Custom(func(t *rapid.T) fsm.NIC {
		return fsm.NIC{
			MAC:       hw(rapid.Byte().Draw(t, "mac") & 3),
			Tap:       rapid.SampledFrom([]string{"", "vnet0", "vnet1", "vnet2"}).Draw(t, "tap"),
			Addresses: rapid.SliceOfN(genAddr(), 0, 2).Draw(t, "addresses"),
		}
	})
	return rapid.SliceOfN(one, 0, 2)
}

func genID(kind string) *rapid.Generator[string] {
	return rapid.Map(rapid.IntRange(1, 3), func(n int) string { return fmt.Sprint(kind, n) })
}

func genOp() *rapid.Generator[fsm.Op] {
	return rapid.Custom(func(t *rapid.T) fsm.Op {
		switch rapid.IntRange(0, 9).Draw(t, "op") {
		case 0, 1:
			return fsm.AddBlock{Target: fsm.Target{VM: genID("vm").Draw(t, "vm")}}
		case 2, 3:
			return fsm.AddBlock{Target: fsm.Target{Prefix: genPrefix().Draw(t, "prefix")}}
		case 4, 5:
			return fsm.LiftBlock{ID: fmt.Sprint("b", rapid.IntRange(1, 12).Draw(t, "block"))}
		case 6:
			return fsm.DeclareVM{ID: genID("vm").Draw(t, "vm"), Addresses: rapid.SliceOfN(genPrefix(), 0, 2).Draw(t, "declared")}
		case 7:
			return fsm.ObserveVM{
				ID: genID("vm").Draw(t, "vm"), Name: "x", Kind: "netns", Node: genID("n").Draw(t, "node"),
				Phase: rapid.SampledFrom([]fsm.Phase{fsm.PhaseRunning, fsm.PhaseIncoming, fsm.PhaseStopped, fsm.PhaseGone}).Draw(t, "phase"),
				NICs:  genNICs().Draw(t, "nics"), Epoch: rapid.Uint64Range(1, 9).Draw(t, "epoch"),
			}
		case 8:
			n := fsm.Node{ID: genID("n").Draw(t, "node"), Addresses: rapid.SliceOfN(genAddr(), 0, 2).Draw(t, "addresses")}
			if rapid.Bool().Draw(t, "has MAC") {
				n.MACs = []fsm.MAC{hw(rapid.Byte().Draw(t, "node mac") & 3)}
			}
			return fsm.PutNode{Node: n}
		default:
			p := genPrefix().Draw(t, "guard")
			if rapid.Bool().Draw(t, "put") {
				return fsm.PutGuard{Prefix: p}
			}
			return fsm.DeleteGuard{Prefix: p}
		}
	})
}

func genLocal() *rapid.Generator[Local] {
	return rapid.Custom(func(t *rapid.T) Local {
		return Local{
			Node:   "n1",
			NICs:   rapid.MapOfN(genID("vm"), genNICs(), 0, 3).Draw(t, "local"),
			Guards: rapid.SliceOfN(genPrefix(), 0, 1).Draw(t, "local guards"),
		}
	})
}

// TestIncremental checks, over random histories, that Update gives what Reset and the reference give,
// that its deltas lead from each state to the next, that lifting never uncovers what another block
// holds, and that nothing guarded is ever held.
func TestIncremental(t *testing.T) {
	rapid.Check(t, func(rt *rapid.T) {
		f := newFleet(t)
		c := NewCompiler()
		var l Local
		mirror := make(map[Element]struct{})
		for range rapid.IntRange(1, 25).Draw(rt, "steps") {
			var ops []fsm.Op
			for range rapid.IntRange(0, 3).Draw(rt, "ops") {
				ops = append(ops, genOp().Draw(rt, "op"))
			}
			if rapid.Bool().Draw(rt, "local changes") {
				l = genLocal().Draw(rt, "local")
			}
			v, events := f.store.View(), []fsm.Event(nil)
			if len(ops) > 0 {
				f.apply(ops...)
				v, events = f.next()
			}
			d := c.Update(v, events, l)
			follow(rt, mirror, d)
			checkState(rt, mirror, c, v, l)
		}
	})
}

// follow applies a delta strictly.
func follow(t *rapid.T, held map[Element]struct{}, d Delta) {
	for _, list := range [][]Element{d.Add, d.Remove} {
		if !slices.IsSortedFunc(list, Element.Compare) {
			t.Fatalf("not sorted: %v", list)
		}
	}
	for _, e := range d.Remove {
		if _, ok := held[e]; !ok {
			t.Fatalf("removes %v, which was not held", e)
		}
		delete(held, e)
	}
	for _, e := range d.Add {
		if _, ok := held[e]; ok {
			t.Fatalf("adds %v, which was held or is in both lists", e)
		}
		held[e] = struct{}{}
	}
}

func checkState(t *rapid.T, held map[Element]struct{}, c *Compiler, v *fsm.View, l Local) {
	if want := Compile(v, l); !maps.Equal(held, want) {
		t.Fatalf("held %v, want %v", keys(held), keys(want))
	}
	fresh := NewCompiler()
	if d := fresh.Reset(v, l); len(d.Add) != len(held) || fresh.Len() != c.Len() {
		t.Fatalf("a fresh compiler holds %v, want %v", d.Add, keys(held))
	}
	for e := range held {
		for g := range guardedPrefixes(v, l) {
			if e.Prefix.IsValid() && e.Prefix.Overlaps(g) {
				t.Fatalf("%v is held and overlaps the guarded %v", e, g)
			}
		}
		if _, ok := v.GuardedMACs()[e.MAC]; ok {
			t.Fatalf("%v is held and guarded", e)
		}
	}
	// What any active block needs is held, whatever was lifted before.
	for b := range v.Blocks("") {
		for _, e := range c.ElementsOf(b.ID) {
			if _, ok := held[e]; !ok {
				t.Fatalf("block %s needs %v, which is not held", b.ID, e)
			}
		}
		if p := b.Target.Prefix; b.State == fsm.BlockActive && p.IsValid() {
			checkCovered(t, held, v, l, p)
		}
	}
}

// checkCovered checks every fourth-last-bits address of a small prefix: dropped unless guarded.
func checkCovered(t *rapid.T, held map[Element]struct{}, v *fsm.View, l Local, p netip.Prefix) {
	a := p.Addr()
	for range 8 {
		covered := false
		for e := range held {
			covered = covered || e.Prefix.IsValid() && e.Prefix.Contains(a)
		}
		for g := range guardedPrefixes(v, l) {
			covered = covered || g.Contains(a)
		}
		if !covered {
			t.Fatalf("%v of the blocked %v is not dropped", a, p)
		}
		if a = a.Next(); !p.Contains(a) {
			return
		}
	}
}
