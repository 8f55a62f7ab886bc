package enforce

import (
	"fmt"
	"maps"
	"net/netip"
	"slices"
	"testing"
	"time"

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
		switch rapid.IntRange(0, 10).Draw(t, "op") {
		case 0, 1, 2, 3:
			return genBlock().Draw(t, "block")
		case 4, 5:
			return fsm.LiftBlock{ID: fmt.Sprint("b", rapid.IntRange(1, 12).Draw(t, "block"))}
		case 6:
			return fsm.DeclareVM{
				ID: genID("vm").Draw(t, "vm"), Owner: rapid.SampledFrom([]string{"", "acct1", "acct2"}).Draw(t, "owner"),
				Addresses: rapid.SliceOfN(genPrefix(), 0, 2).Draw(t, "declared"),
			}
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
		case 9:
			vm := genID("vm").Draw(t, "guarded vm")
			if rapid.Bool().Draw(t, "put") {
				return fsm.PutGuard{VM: vm}
			}
			return fsm.DeleteGuard{VM: vm}
		default:
			p := genPrefix().Draw(t, "guard")
			if rapid.Bool().Draw(t, "put") {
				return fsm.PutGuard{Prefix: p}
			}
			return fsm.DeleteGuard{Prefix: p}
		}
	})
}

// genBlock is a hold of any kind on any target, now or later.
func genBlock() *rapid.Generator[fsm.AddBlock] {
	return rapid.Custom(func(t *rapid.T) fsm.AddBlock {
		b := fsm.AddBlock{
			Target: rapid.OneOf(
				rapid.Map(genID("vm"), func(id string) fsm.Target { return fsm.Target{VM: id} }),
				rapid.Map(genPrefix(), func(p netip.Prefix) fsm.Target { return fsm.Target{Prefix: p} }),
				rapid.Map(genID("acct"), func(id string) fsm.Target { return fsm.Target{Account: id} }),
			).Draw(t, "target"),
			Kind:      rapid.SampledFrom([]fsm.Kind{fsm.Drop, fsm.Drop, fsm.Reject, fsm.Limit, fsm.Ports, fsm.Redirect}).Draw(t, "kind"),
			Direction: rapid.SampledFrom([]fsm.Direction{fsm.Both, fsm.In, fsm.Out}).Draw(t, "direction"),
			Force:     true,
		}
		switch b.Kind {
		case fsm.Limit:
			b.Rate = rapid.SampledFrom([]fsm.Rate{{Bits: 8_000_000}, {Packets: 100}}).Draw(t, "rate")
		case fsm.Ports:
			for n := range rapid.SampledFrom([]int{1, 2, maxRanges + 1}).Draw(t, "ranges") {
				b.Ports = append(b.Ports, fsm.PortRange{Protocol: 6, First: uint16(10*n + 1), Last: uint16(10*n + 2)})
			}
		case fsm.Redirect:
			b.Direction = fsm.Both
		default:
		}
		if rapid.Bool().Draw(t, "later") {
			b.StartsAt = time.Unix(1_000_000, 0) // further than any history
		}
		return b
	})
}

// genLocal changes one thing of what a node knows of itself.
func genLocal(l Local) *rapid.Generator[Local] {
	return rapid.Custom(func(t *rapid.T) Local {
		l := l
		l.Node = "n1"
		switch rapid.IntRange(0, 9).Draw(t, "local") {
		case 0, 1, 2:
			full := rapid.MapOfN(genID("vm"), genNICs(), 0, 3).Draw(t, "NICs")
			switch id := genID("vm").Draw(t, "guest"); rapid.IntRange(0, 2).Draw(t, "change") {
			case 0:
				l.NICs = l.NICs.Replace(full, fsm.SameNICs)
			case 1:
				l.NICs = l.NICs.With(id, full[id])
			default:
				l.NICs = l.NICs.Without(id)
			}
		case 3, 4:
			l.Started = rapid.MapOfN(genID("b"), rapid.Just(struct{}{}), 0, 3).Draw(t, "started")
		case 5, 6:
			l.Bridges = MapOf(rapid.MapOfN(rapid.SampledFrom([]string{"vnet0", "vnet1", "eth0"}), rapid.Just(hw(0xf1)), 0, 3).Draw(t, "bridges"))
		case 7:
			l.Guards = rapid.SliceOfN(genPrefix(), 0, 1).Draw(t, "guards")
		case 8:
			l.PagePort = rapid.SampledFrom([]uint16{0, 8081}).Draw(t, "page port")
		default:
			l.Missing = rapid.SampledFrom([][]fsm.Kind{nil, {fsm.Reject}}).Draw(t, "missing")
		}
		return l
	})
}

// TestIncremental checks, over random histories, that Update gives what Reset and the reference give,
// that its deltas lead from each state to the next, that lifting never uncovers what another block
// holds, and that nothing guarded is ever held.
func TestIncremental(t *testing.T) {
	rapid.Check(t, func(rt *rapid.T) {
		f := newFleet(t)
		c := NewCompiler()
		l := Local{PagePort: 8081}
		mirror := make(map[Element]struct{})
		for range rapid.IntRange(1, 25).Draw(rt, "steps") {
			var ops []fsm.Op
			for range rapid.IntRange(0, 3).Draw(rt, "ops") {
				ops = append(ops, genOp().Draw(rt, "op"))
			}
			if rapid.Bool().Draw(rt, "local changes") {
				l = genLocal(l).Draw(rt, "local")
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
		checkTreatment(t, held, e)
		for id := range v.GuardedVMs() {
			for _, g := range elementsOfVM(v, l, id) {
				if bare := (Element{Tap: e.Tap, MAC: e.MAC}); bare != (Element{}) && bare == g && !e.helps() {
					t.Fatalf("%v is held and of the guarded VM %s", e, id)
				}
				if g.Prefix.IsValid() && e.Prefix.IsValid() && e.Prefix.Overlaps(plain(g.Prefix)) {
					t.Fatalf("%v is held and overlaps %v of the guarded VM %s", e, g, id)
				}
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
		if p := b.Target.Prefix; l.inForce(b) && p.IsValid() {
			checkCovered(t, c.ElementsOf(b.ID), v, l, p)
		}
	}
}

// helps says that an element holds nothing.
func (e Element) helps() bool {
	t, _ := e.Treatment.Terms()
	return t.Kind == Bridge || t.Kind == Here
}

// checkTreatment checks that a treatment can be read again, and that the chain that an element is sent
// to is there.
func checkTreatment(t *rapid.T, held map[Element]struct{}, e Element) {
	terms, ok := e.Treatment.Terms()
	if !ok || len(e.Treatment) > 255 {
		t.Fatalf("the treatment of %v is not known or has %d bytes", e, len(e.Treatment))
	}
	if _, there := held[Element{Treatment: e.Treatment}]; terms.Chained() && !there {
		t.Fatalf("%v is sent to a chain that is not there", e)
	}
}

// checkCovered checks the first addresses of a held prefix: among what is held for the block, or guarded.
func checkCovered(t *rapid.T, held []Element, v *fsm.View, l Local, p netip.Prefix) {
	a := p.Addr()
	for range 8 {
		covered := slices.ContainsFunc(held, func(e Element) bool { return e.Prefix.IsValid() && e.Prefix.Contains(a) })
		for g := range guardedPrefixes(v, l) {
			covered = covered || g.Contains(a)
		}
		for id := range v.GuardedVMs() {
			for _, e := range elementsOfVM(v, l, id) {
				covered = covered || e.Prefix.IsValid() && plain(e.Prefix).Contains(a)
			}
		}
		if !covered {
			t.Fatalf("%v of the held %v is not treated", a, p)
		}
		if a = a.Next(); !p.Contains(a) {
			return
		}
	}
}
