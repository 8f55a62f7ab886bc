package enforce

import (
	"iter"
	"maps"
	"net/netip"
	"slices"

	"go4.org/netipx"

	"github.com/palisade/palisade/fsm"
)

// guards is what must never be in a kernel, as of one view and one node.
type guards struct {
	addresses *netipx.IPSet
	ranges    []netipx.IPRange // of addresses, sorted, for lookups
	macs      map[fsm.MAC]string
	// Of guarded VMs. Their addresses are among the addresses above.
	vms    map[string]string
	vmMACs map[fsm.MAC]struct{}
	vmTaps map[string]struct{}
}

func newGuards(v *fsm.View, l Local) *guards {
	g := &guards{macs: v.GuardedMACs(), vms: v.GuardedVMs(), vmMACs: make(map[fsm.MAC]struct{}), vmTaps: make(map[string]struct{})}
	var b netipx.IPSetBuilder
	for p := range guardedPrefixes(v, l) {
		b.AddPrefix(p)
	}
	for id := range g.vms {
		for _, e := range elementsOfVM(v, l, id) {
			switch {
			case e.Tap != "":
				g.vmTaps[e.Tap] = struct{}{}
			case e.Prefix.IsValid():
				b.AddPrefix(plain(e.Prefix))
			default:
				g.vmMACs[e.MAC] = struct{}{}
			}
		}
	}
	g.addresses, _ = b.IPSet() // the only error is that of a prefix that is not valid
	g.ranges = g.addresses.Ranges()
	return g
}

func guardedPrefixes(v *fsm.View, l Local) iter.Seq[netip.Prefix] {
	return func(yield func(netip.Prefix) bool) {
		for _, g := range v.GuardedPrefixes() {
			if p := plain(g.Prefix); p.IsValid() && !yield(p) {
				return
			}
		}
		for _, g := range l.Guards {
			if p := plain(g); p.IsValid() && !yield(p) {
				return
			}
		}
	}
}

func (g *guards) equal(o *guards) bool {
	return g.addresses.Equal(o.addresses) && maps.Equal(g.macs, o.macs) && maps.Equal(g.vms, o.vms) &&
		maps.Equal(g.vmMACs, o.vmMACs) && maps.Equal(g.vmTaps, o.vmTaps)
}

// without appends to list the part of p that is not guarded.
func (g *guards) without(list []Element, p netip.Prefix) []Element {
	if p = plain(p); p.Bits() <= 0 {
		return list
	}
	r := netipx.RangeOfPrefix(p)
	i, _ := slices.BinarySearchFunc(g.ranges, r.From(), func(g netipx.IPRange, a netip.Addr) int {
		return g.To().Compare(a)
	})
	if i == len(g.ranges) || !g.ranges[i].Overlaps(r) {
		return append(list, Element{Prefix: p})
	}
	if g.ranges[i].Contains(r.From()) && g.ranges[i].Contains(r.To()) {
		return list
	}
	var b netipx.IPSetBuilder
	b.AddPrefix(p)
	b.RemoveSet(g.addresses)
	left, _ := b.IPSet()
	for _, part := range left.Prefixes() {
		list = append(list, Element{Prefix: part})
	}
	return list
}

// plain gives the prefix as packets carry it: no IPv4 in IPv6, no zone, no host bits. It is the zero
// Prefix for one that is not valid.
func plain(p netip.Prefix) netip.Prefix {
	if a := p.Addr(); a.Is4In6() && p.Bits() >= 96 {
		p = netip.PrefixFrom(a.Unmap(), p.Bits()-96)
	}
	return p.Masked()
}

// allows says whether a hardware address may be in a kernel: not that of a node or of a
// guarded VM, and one that a single interface has. To drop broadcast would cut off everyone.
func (g *guards) allows(m fsm.MAC) bool {
	const group = 1
	_, guarded := g.macs[m]
	_, ofVM := g.vmMACs[m]
	return !guarded && !ofVM && m != fsm.MAC{} && m[0]&group == 0
}

// allowsTap says whether a tap may be in a kernel: not that of a guarded VM.
func (g *guards) allowsTap(tap string) bool {
	_, guarded := g.vmTaps[tap]
	return !guarded && tap != "" && len(tap) <= maxTapBytes
}
