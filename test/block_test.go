package test

import (
	"fmt"
	"net/netip"
	"testing"
	"time"

	"github.com/palisade/palisade/deploy/fleet"
	"github.com/palisade/palisade/httpapi/client"
	"github.com/palisade/palisade/internal/probe"
)

// paths are the places that a guest of node 1 talks to: the same bridge, another node, its own host,
// another host, a routed guest, the outside.
func paths() []string {
	return []string{"guest2", "guest3", "node-1", "node-2", "guest7", fleet.Outside}
}

// TestBlockingAVMCutsEveryPath blocks a bridged and a routed VM through a follower.
func TestBlockingAVMCutsEveryPath(t *testing.T) {
	for name, tt := range map[string]struct{ victim, neighbour string }{
		"bridged": {"guest1", "guest2"},
		"routed":  {"guest7", "guest1"},
	} {
		t.Run(name, func(t *testing.T) {
			l := sharedLab(t)
			f := l.Flows(t)
			var victims, innocents []*probe.Flow
			for _, peer := range paths() {
				if peer != tt.victim {
					victims = append(victims, f.UDP(tt.victim, peer)...)
				}
			}
			innocents = append(innocents, f.UDP(tt.neighbour, "guest3")...)
			innocents = append(innocents, f.UDP(tt.neighbour, "node-1")...)
			innocents = append(innocents, f.UDP("guest4", fleet.Outside)...)
			innocents = append(innocents, f.UDP(fleet.Unmanaged, tt.neighbour)...)
			innocents = append(innocents, f.UDP(fleet.Unmanaged, "node-1")...)
			v4, v6 := l.Ends(t, tt.victim)
			p4, p6 := l.Ends(t, "guest3")
			streams := []*probe.Flow{
				f.TCP(tt.victim, "guest3", v4, p4), f.TCP("guest3", tt.victim, p4, v4), f.TCP(tt.victim, "guest3", v6, p6),
			}
			f.Passing(append(append(victims, innocents...), streams...))

			node, _ := l.follower(t)
			g, err := l.Guest(tt.victim)
			if err != nil {
				t.Fatal(err)
			}
			b, at := l.Block(t, node, client.Target{VM: g.VM})
			checkReceipts(t, l, b)
			rest(200 * time.Millisecond)
			before := records(t, streams)
			rest(800 * time.Millisecond)
			f.Silent(victims, at)
			for i, n := range records(t, streams) {
				if n != before[i] {
					t.Errorf("%s: an established stream goes on: %d records, then %d", streams[i].Name, before[i], n)
				}
			}
			if b, err = l.Clients[node].Block(t.Context(), b.ID); err != nil || b.Counters == nil || b.Counters.Packets == 0 || b.Counters.Bytes == 0 {
				t.Errorf("the block counts nothing of what it dropped: %+v, %v", b, err)
			}
			l.Lift(t, node, b.ID)
			f.Passing(victims)
			f.Lossless(innocents)
		})
	}
}

// TestBlockingAnAddressOrAPrefix blocks addresses and prefixes, of one family at a time: the other
// family and the neighbours go on.
func TestBlockingAnAddressOrAPrefix(t *testing.T) {
	l := sharedLab(t)
	v4, v6 := l.Ends(t, "guest1")
	o4, o6 := l.Ends(t, "guest2")
	wide := func(a netip.Addr, bits int) string { return netip.PrefixFrom(a, bits).Masked().String() }
	covers := func(prefix string, a netip.Addr) bool {
		p, err := netip.ParsePrefix(prefix)
		if err != nil {
			return netip.MustParseAddr(prefix) == a
		}
		return p.Contains(a)
	}
	for _, target := range []string{v4.Addr.String(), v6.Addr.String(), wide(v4.Addr, 31), wide(v6.Addr, 126)} {
		t.Run(target, func(t *testing.T) {
			l := sharedLab(t)
			f := l.Flows(t)
			var victims, innocents []*probe.Flow
			sort := func(addr netip.Addr, fl ...*probe.Flow) {
				if covers(target, addr) {
					victims = append(victims, fl...)
				} else {
					innocents = append(innocents, fl...)
				}
			}
			for _, peer := range []string{"guest3", "node-1", "guest7", fleet.Outside} {
				p4, p6 := l.Ends(t, peer)
				sort(v4.Addr, f.One("guest1", peer, v4, p4), f.One(peer, "guest1", p4, v4))
				sort(v6.Addr, f.One("guest1", peer, v6, p6), f.One(peer, "guest1", p6, v6))
				sort(o4.Addr, f.One("guest2", peer, o4, p4))
				sort(o6.Addr, f.One(peer, "guest2", p6, o6))
			}
			innocents = append(innocents, f.UDP("guest4", "guest5")...)
			f.Passing(append(append([]*probe.Flow{}, victims...), innocents...))
			node, _ := l.follower(t)
			b, at := l.Block(t, node, client.Target{Prefix: target})
			checkReceipts(t, l, b)
			rest(time.Second)
			f.Silent(victims, at)
			l.Lift(t, node, b.ID)
			f.Passing(victims)
			f.Lossless(innocents)
		})
	}
}

// TestBlocksOnOneTargetAreIndependent lifts one of two holds: the target stays blocked.
func TestBlocksOnOneTargetAreIndependent(t *testing.T) {
	l := sharedLab(t)
	f := l.Flows(t)
	victims := f.UDP("guest1", "guest3")
	f.Passing(victims)
	first, _ := l.Block(t, "node-1", client.Target{VM: "guest1"})
	v4, _ := l.Ends(t, "guest1")
	second, at := l.Block(t, "node-2", client.Target{Prefix: v4.Addr.String()})
	third, _ := l.Block(t, "node-3", client.Target{VM: "guest1"})
	l.Lift(t, "node-3", first.ID)
	rest(500 * time.Millisecond)
	f.Silent(victims, at)
	l.Lift(t, "node-1", third.ID) // now only the IPv4 address is held
	f.Passing(victims[2:])
	rest(300 * time.Millisecond)
	f.Silent(victims[:2], at)
	l.Lift(t, "node-2", second.ID)
	f.Passing(victims)
}

// checkReceipts checks that every node of the fleet confirmed, with an index that covers the block.
func checkReceipts(t *testing.T, l *lab, b client.Block) {
	t.Helper()
	nodes := map[string]bool{}
	for _, r := range b.Receipts {
		nodes[r.Node] = r.Index >= b.Index && !r.At.IsZero()
	}
	for _, n := range l.Nodes() {
		if !nodes[n.Name] {
			t.Errorf("no receipt of %s for %s: %+v, unconfirmed %+v", n.Name, b.ID, b.Receipts, b.Unconfirmed)
		}
	}
}

func records(t *testing.T, streams []*probe.Flow) []uint64 {
	t.Helper()
	var out []uint64
	for _, s := range streams {
		r, err := s.Report()
		if err != nil {
			t.Fatal(err)
		}
		out = append(out, r.Records)
	}
	return out
}

// TestAnIdleFleetIsQuiet keeps loops from proposing the same thing for ever.
func TestAnIdleFleetIsQuiet(t *testing.T) {
	l := sharedLab(t)
	index := func() (out []string) {
		for _, n := range l.Nodes() {
			st, err := l.Clients[n.Name].Status(t.Context())
			if err != nil {
				t.Fatal(err)
			}
			out = append(out, fmt.Sprintf("%s %d %s", n.Name, st.Index, st.StateHash))
		}
		return out
	}
	for began := time.Now(); ; {
		before := index()
		rest(12 * time.Second) // two rounds of the registrar, a rescan of the inventory
		after := index()
		if fmt.Sprint(before) == fmt.Sprint(after) {
			break
		}
		if time.Since(began) > time.Minute { // a fleet that has just been formed has things to say first
			t.Fatalf("the log of an idle fleet grows:\n%v\n%v", before, after)
		}
	}
	var hashes []string
	for _, n := range l.Nodes() {
		st, err := l.Clients[n.Name].Status(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		hashes = append(hashes, st.StateHash)
	}
	if hashes[0] != hashes[1] || hashes[1] != hashes[2] {
		t.Errorf("state hashes at one index differ: %v", hashes)
	}
}
