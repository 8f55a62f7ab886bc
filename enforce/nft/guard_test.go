package nft

import (
	"net/netip"
	"testing"
	"time"

	"github.com/palisade/palisade/enforce"
	"github.com/palisade/palisade/fsm"
)

// TestGuard blocks everything around the node, first, and then lets the node register: it must be
// reached again, and only it.
func TestGuard(t *testing.T) {
	b := newTestbed(t)
	k := adopted(t, b.host.ns)
	store, compiler := fsm.NewStore(), enforce.NewCompiler()
	index := uint64(0)
	commit := func(ops ...fsm.Op) {
		t.Helper()
		index++
		data, err := fsm.MarshalCommand(fsm.Command{Time: time.Unix(1, 0), Actor: "test", Op: fsm.Batch{Ops: ops}})
		if err != nil {
			t.Fatal(err)
		}
		results, err := store.ApplyBatch([]fsm.Entry{{Index: index, Data: data}})
		if err != nil {
			t.Fatal(err)
		}
		for _, r := range results[0].Items {
			if r.Err != nil {
				t.Fatal(r.Err)
			}
		}
		if err := k.Apply(t.Context(), compiler.Reset(store.View(), enforce.Local{})); err != nil {
			t.Fatal(err)
		}
	}
	commit(fsm.AddBlock{Target: fsm.Target{Prefix: netip.MustParsePrefix("10.7.0.0/24")}},
		fsm.AddBlock{Target: fsm.Target{Prefix: netip.MustParsePrefix("fd07::/64")}})
	management := b.flow(b.outside, b.host, false)
	management.send(20)
	time.Sleep(20 * time.Millisecond)
	if n := b.host.received(management.id); n != 0 {
		t.Errorf("the whole network is blocked, and %d packets reached the node", n)
	}
	host, err := fsm.ParseMAC("52:54:00:00:07:01")
	if err != nil {
		t.Fatal(err)
	}
	commit(fsm.PutNode{Node: fsm.Node{ID: "n1", Addresses: []netip.Addr{b.host.v4, b.host.v6}, MACs: []fsm.MAC{host}}})
	b.check(t, "the node guarded", b.blocked, b.innocent)
	// A guest that claims the node's addresses and hardware address takes nothing from the node.
	commit(fsm.ObserveVM{ID: "evil", Kind: "netns", Node: "n1", Phase: fsm.PhaseRunning, Epoch: 1,
		NICs: []fsm.NIC{{MAC: host, Addresses: []netip.Addr{b.host.v4, b.host.v6}}}},
		fsm.AddBlock{Target: fsm.Target{VM: "evil"}})
	b.check(t, "a thief blocked", b.blocked, b.innocent)
}
