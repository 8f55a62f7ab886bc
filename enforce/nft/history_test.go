package nft

import (
	"fmt"
	"maps"
	"net/netip"
	"testing"
	"time"

	"pgregory.net/rapid"

	"github.com/palisade/palisade/enforce"
	"github.com/palisade/palisade/fsm"
)

// TestRandomHolds brings histories of holds of all kinds to the kernel, and wants it to hold, as a new
// process reads it, what the plain model says.
func TestRandomHolds(t *testing.T) {
	rapid.Check(t, func(rt *rapid.T) {
		n := newNetNS(t)
		k := adopted(t, n, func(o *Options) { o.TapSize, o.MaskedSize, o.ExactSize, o.ChunkElements = 2, 2, 4, 5 })
		store, compiler := fsm.NewStore(), enforce.NewCompiler()
		feed := store.Watch(0)
		local := enforce.Local{Node: "n1", PagePort: 8081}
		local.Bridges = enforce.MapOf(map[string]fsm.MAC{"vnet1": {2, 1}, "eth0": {2, 2}})
		for index := uint64(1); index <= 8; index++ {
			var ops []fsm.Op
			for range rapid.IntRange(1, 4).Draw(rt, "ops") {
				ops = append(ops, drawHold(rt))
			}
			if vm := fmt.Sprint("vm", rapid.IntRange(1, 2).Draw(rt, "vm")); rapid.Bool().Draw(rt, "moves") {
				local.NICs = local.NICs.With(vm, []fsm.NIC{{MAC: fsm.MAC{2, 3, vm[2]}, Tap: rapid.SampledFrom([]string{"", "vnet1", "vnet2"}).Draw(rt, "tap"), Addresses: []netip.Addr{netip.MustParseAddr("10.7.0.2")}}})
				ops = append(ops, fsm.DeclareVM{ID: vm, Owner: rapid.SampledFrom([]string{"a1", "a2"}).Draw(rt, "owner")})
			}
			data, err := fsm.MarshalCommand(fsm.Command{Time: time.Unix(int64(index), 0), Actor: "test", Op: fsm.Batch{Ops: ops}})
			if err != nil {
				rt.Fatal(err)
			}
			if _, err := store.ApplyBatch([]fsm.Entry{{Index: index, Data: data}}); err != nil {
				rt.Fatal(err)
			}
			v, events, err := feed.Next(t.Context())
			if err != nil {
				rt.Fatal(err)
			}
			if err := k.Apply(t.Context(), compiler.Update(v, events, local)); err != nil {
				rt.Fatal(err)
			}
			h, err := open(t, n).Adopt(t.Context())
			if want := enforce.Compile(v, local); err != nil || !h.Intact || h.Index != index || !maps.Equal(h.Elements, want) {
				rt.Fatalf("intact %t, index %d, %v; holds\n%v\nwant\n%v", h.Intact, h.Index, err, h.Elements, want)
			}
		}
	})
}

func drawHold(t *rapid.T) fsm.Op {
	if rapid.IntRange(0, 2).Draw(t, "lift") == 0 {
		return fsm.LiftBlock{ID: fmt.Sprint("b", rapid.IntRange(1, 9).Draw(t, "block"))}
	}
	b := fsm.AddBlock{
		Target: rapid.SampledFrom([]fsm.Target{
			{VM: "vm1"}, {VM: "vm2"}, {Account: "a1"}, {Account: "a2"},
			{Prefix: netip.MustParsePrefix("10.7.0.2/32")}, {Prefix: netip.MustParsePrefix("10.7.0.0/29")}, {Prefix: netip.MustParsePrefix("fd07::/64")},
		}).Draw(t, "target"),
		Kind:      rapid.SampledFrom([]fsm.Kind{fsm.Drop, fsm.Reject, fsm.Redirect, fsm.Limit, fsm.Ports}).Draw(t, "kind"),
		Direction: rapid.SampledFrom([]fsm.Direction{fsm.Both, fsm.In, fsm.Out}).Draw(t, "direction"),
		Force:     true,
	}
	switch b.Kind {
	case fsm.Limit:
		b.Rate = fsm.Rate{Bits: 8000}
	case fsm.Ports:
		b.Ports = []fsm.PortRange{{Protocol: 6, First: 25, Last: 25}, {Protocol: 47}}
	case fsm.Redirect:
		b.Direction = fsm.Both
	default:
	}
	return b
}
