package enforce

import (
	"slices"

	"github.com/palisade/palisade/fsm"
)

// identity is how packets of a target are known, guards left out: by interface, hardware address,
// address. Each list is without treatments and may have repeats.
type identity struct {
	links    []Element // taps and hardware addresses
	prefixes []Element
	// once names each packet of the target once on its way through this node, for what counts packets:
	// of each interface the tap, else the hardware address; addresses if there is neither.
	once []Element
	// visited are the addresses at which visitors get the page of a redirect: those of VMs that are known.
	// Somewhere is the node of such a VM, which answers; nobody would answer for another address.
	visited []Element
}

func (id identity) all() []Element { return slices.Concat(id.links, id.prefixes) }

// inForce says that a block holds here. A pending block does as soon as this node, on its own, has
// started it.
func (l Local) inForce(b *fsm.Block) bool {
	_, started := l.Started[b.ID]
	return b.State == fsm.BlockActive || b.State == fsm.BlockPending && started
}

// kindOf is what a block does here. What this kernel can't do, or nobody can, is a drop: a hold must
// not be open because it can't be partial.
func (l Local) kindOf(b *fsm.Block) fsm.Kind {
	switch {
	case slices.Contains(l.Missing, b.Kind),
		b.Kind == fsm.Redirect && l.PagePort == 0,
		b.Kind == fsm.Limit && (b.Rate.Bits > 0) == (b.Rate.Packets > 0),
		b.Kind == fsm.Ports && len(b.Ports) == 0:
		return fsm.Drop
	case b.Kind == fsm.Reject, b.Kind == fsm.Redirect, b.Kind == fsm.Limit, b.Kind == fsm.Ports:
		return b.Kind
	default:
		return fsm.Drop
	}
}

// treat returns what one block needs of a target, with repeats.
func (l Local) treat(b *fsm.Block, id identity) []Element {
	var list []Element
	put := func(what []Element, t Terms) {
		text := t.Treatment()
		if len(what) > 0 && t.Chained() {
			list = append(list, Element{Treatment: text})
		}
		for _, e := range what {
			e.Treatment = text
			list = append(list, e)
		}
	}
	kind := l.kindOf(b)
	if kind == fsm.Drop {
		d := fsm.Both
		if b.Direction == fsm.In || b.Direction == fsm.Out {
			d = b.Direction
		}
		put(id.all(), Terms{Kind: fsm.Drop, Direction: d})
		return list
	}
	for _, d := range directions(b.Direction) {
		t := Terms{Kind: kind, Direction: d}
		switch kind {
		case fsm.Limit:
			t.Hold, t.Rate = b.ID, b.Rate
			put(id.once, t)
		case fsm.Ports:
			for ranges := range slices.Chunk(b.Ports, maxRanges) {
				t.Hold, t.Ports = b.ID, ranges
				put(id.all(), t)
			}
		default:
			put(id.all(), t)
		}
		if kind == fsm.Redirect && d == fsm.In {
			put(id.visited, Terms{Kind: Page, Port: l.PagePort})
		}
	}
	return list
}

// answering returns what the kernel must know of one guest here, or of one port of a bridge, to answer
// for a guest.
func (l Local) answering(g *guards, guest, port string) []Element {
	var list []Element
	if mac, ok := l.Bridges.Lookup(port); ok && port != "" && len(port) <= maxTapBytes {
		list = append(list, Element{Tap: port, Treatment: Terms{Kind: Bridge, Bridge: mac}.Treatment()})
	}
	here := Terms{Kind: Here}.Treatment()
	for _, n := range l.NICs.Get(guest) {
		if g.allows(n.MAC) {
			list = append(list, Element{MAC: n.MAC, Treatment: here})
		}
		if g.allowsTap(n.Tap) {
			list = append(list, Element{Tap: n.Tap, Treatment: here})
		}
	}
	return list
}
