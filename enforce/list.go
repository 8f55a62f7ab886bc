package enforce

import (
	"crypto/sha256"
	"iter"
	"maps"
	"math/rand/v2"
	"net/netip"
	"slices"

	"go4.org/netipx"

	"github.com/palisade/palisade/fsm"
)

// ListElement is a prefix that a kernel drops packets of because a list that is held names it.
type ListElement struct {
	Direction fsm.Direction
	Prefix    netip.Prefix
}

// Lists is what the kernel of a node must drop because of lists: every prefix of every list that is held,
// without what is guarded. Where a guard lies in a prefix, the prefixes around the guard stand for it.
//
// It holds no element: it answers from the contents in the view, which every node has anyway. It is
// immutable and safe for concurrent use. The zero value is empty.
type Lists struct {
	index  uint64
	held   []heldList // by direction and name
	holds  []listHold // by id of the block
	guards *guards
}

// listHold is one block on a list.
type listHold struct {
	id        string
	direction fsm.Direction
	set       fsm.PrefixSet
}

// heldList is one list in the direction in which it is held; in both if it is held in each.
type heldList struct {
	direction fsm.Direction
	name      string
	set       fsm.PrefixSet
}

// TouchesLists says whether CompileLists may give something else for the other Local: of the guests here,
// lists mind the guarded ones alone.
func (l Local) TouchesLists(v *fsm.View, o Local) bool {
	if !slices.Equal(l.Guards, o.Guards) || !maps.Equal(l.Started, o.Started) || !slices.Equal(l.Missing, o.Missing) || l.PagePort != o.PagePort {
		return true
	}
	guarded := v.GuardedVMs()
	for vm := range changed(l.NICs, o.NICs, fsm.SameNICs) {
		if _, ok := guarded[vm]; ok {
			return true
		}
	}
	return false
}

// CompileLists returns what is to be dropped because of lists, as of a view, on a node.
func CompileLists(v *fsm.View, l Local) *Lists {
	c := &Lists{index: v.Index()}
	for b := range v.HeldLists() {
		_, set, ok := v.List(b.Target.List)
		if !ok || !l.inForce(b) {
			continue
		}
		c.holds = append(c.holds, listHold{b.ID, b.Direction, set})
		i := slices.IndexFunc(c.held, func(h heldList) bool { return h.name == b.Target.List })
		switch {
		case i < 0:
			c.held = append(c.held, heldList{b.Direction, b.Target.List, set})
		case c.held[i].direction != b.Direction:
			c.held[i].direction = fsm.Both
		}
	}
	if len(c.held) == 0 {
		return c
	}
	c.guards = newGuards(v, l)
	slices.SortFunc(c.held, func(a, b heldList) int {
		return slices.Compare([]string{string(a.direction), a.name}, []string{string(b.direction), b.name})
	})
	return c
}

// Index is the log index of the view.
func (c *Lists) Index() uint64 { return c.index }

// Empty says that no list is held.
func (c *Lists) Empty() bool { return len(c.held) == 0 }

// Hash is equal for what drops the same. The cost is that of the number of lists and guards.
func (c *Lists) Hash() [sha256.Size]byte {
	h := sha256.New() // its Write never fails
	for _, l := range c.held {
		h.Write([]byte(string(l.direction) + " " + l.set.Hash() + "\n"))
	}
	if c.guards != nil {
		for _, r := range c.guards.ranges {
			if slices.ContainsFunc(r.Prefixes(), c.names) { // others take nothing away
				h.Write([]byte(r.String() + "\n"))
			}
		}
	}
	return [sha256.Size]byte(h.Sum(nil))
}

// Holding walks the ids of the blocks because of which packets from an address (d is Out), or to it (In), are dropped,
// guards left aside.
func (c *Lists) Holding(a netip.Addr, d fsm.Direction) iter.Seq[string] {
	return func(yield func(string) bool) {
		for _, h := range c.holds {
			if h.direction != fsm.Both && h.direction != d {
				continue
			}
			if _, ok := h.set.Covering(netip.PrefixFrom(a, a.BitLen())); ok && !yield(h.id) {
				return
			}
		}
	}
}

// names says whether a list that is held names some of p.
func (c *Lists) names(p netip.Prefix) bool {
	return slices.ContainsFunc(c.held, func(l heldList) bool { return l.set.Overlaps(p) })
}

// Contains says whether the element is to be dropped. It costs two searches for each list.
func (c *Lists) Contains(e ListElement) bool {
	if c.guards == nil || c.guards.overlaps(e.Prefix) {
		return false
	}
	for _, l := range c.held {
		if l.direction != e.Direction {
			continue
		}
		around, ok := l.set.Covering(e.Prefix)
		// Of a prefix around a guard, the pieces are those whose wider neighbour still overlaps it.
		if ok && (around == e.Prefix || c.guards.overlaps(wider(e.Prefix))) {
			return true
		}
	}
	return false
}

func wider(p netip.Prefix) netip.Prefix {
	return netip.PrefixFrom(p.Addr(), p.Bits()-1).Masked()
}

// All walks the elements. One that several lists name comes several times.
func (c *Lists) All() iter.Seq[ListElement] {
	return func(yield func(ListElement) bool) {
		for _, l := range c.held {
			for p := range l.set.All() {
				if !c.guards.carve(p, func(p netip.Prefix) bool { return yield(ListElement{l.direction, p}) }) {
					return
				}
			}
		}
	}
}

// Some walks about n elements, one at a random place of each n-th part of all. The seed says which.
func (c *Lists) Some(n int, seed uint64) iter.Seq[ListElement] {
	return func(yield func(ListElement) bool) {
		total := 0
		for _, l := range c.held {
			total += l.set.Len()
		}
		random := rand.New(rand.NewPCG(seed, 0))
		step := max(total/n, 1)
		for part := 0; part < total; part += step {
			place := part + random.IntN(min(step, total-part))
			for _, l := range c.held {
				if place >= l.set.Len() {
					place -= l.set.Len()
					continue
				}
				if !c.guards.carve(l.set.At(place), func(p netip.Prefix) bool { return yield(ListElement{l.direction, p}) }) {
					return
				}
				break
			}
		}
	}
}

// ListChanges walks what leads from one to the other: elements, and whether they are added; each once, in no
// order. Its cost is that of what differs, however long the lists are.
func ListChanges(from, to *Lists) iter.Seq2[ListElement, bool] {
	return func(yield func(ListElement, bool) bool) {
		c := changer{from: from, to: to, yield: yield}
		c.now = &Lists{held: slices.Clone(from.held), guards: from.guards}
		if c.now.guards == nil {
			c.now.guards = to.guards
		}
		if to.guards != nil && c.now.guards != to.guards && !c.changeGuards() {
			return
		}
		// One list after the other, so that what one gives up is kept for those that still name it.
		for _, l := range slices.Concat(to.held, from.held) {
			if !c.change(l.direction, l.name, to.find(l.direction, l.name)) {
				return
			}
		}
	}
}

// changer goes from one content to another in steps.
type changer struct {
	from, to, now *Lists
	yield         func(ListElement, bool) bool
	// seen is what the change of the guards has yielded; nil if they did not change.
	seen map[ListElement]bool
}

// tell yields a change unless an earlier or a later step makes it none.
func (c *changer) tell(e ListElement, added bool) bool {
	switch {
	case added && c.from.Contains(e), !added && c.to.Contains(e):
		return true
	case c.seen != nil && (c.seen[e] || added && !c.to.Contains(e) || !added && !c.from.Contains(e)):
		return true
	}
	return c.yield(e, added)
}

func (c *Lists) find(d fsm.Direction, name string) fsm.PrefixSet {
	for _, l := range c.held {
		if l.direction == d && l.name == name {
			return l.set
		}
	}
	return fsm.PrefixSet{}
}

// change gives one list another content.
func (c *changer) change(d fsm.Direction, name string, set fsm.PrefixSet) bool {
	i := slices.IndexFunc(c.now.held, func(l heldList) bool { return l.direction == d && l.name == name })
	if i < 0 {
		i = len(c.now.held)
		c.now.held = append(c.now.held, heldList{direction: d, name: name})
	}
	was := &Lists{held: slices.Clone(c.now.held), guards: c.now.guards}
	c.now.held[i].set = set
	for p, added := range fsm.Diff(was.held[i].set, set) {
		without := c.now // what must not have the element, or nothing changes
		if added {
			without = was
		}
		ok := c.now.guards.carve(p, func(p netip.Prefix) bool {
			e := ListElement{d, p}
			return without.Contains(e) || c.tell(e, added)
		})
		if !ok {
			return false
		}
	}
	return true
}

// changeGuards gives the lists other guards.
func (c *changer) changeGuards() bool {
	was := c.now
	c.now = &Lists{held: was.held, guards: c.to.guards}
	changed := was.guards.difference(c.to.guards)
	if len(changed) == 0 {
		return true
	}
	c.seen = make(map[ListElement]bool)
	look := func(d fsm.Direction, p netip.Prefix) bool {
		for _, side := range []struct {
			here, there *Lists
			added       bool
		}{{c.now, was, true}, {was, c.now, false}} {
			ok := side.here.guards.carve(p, func(p netip.Prefix) bool {
				e := ListElement{d, p}
				if side.there.Contains(e) {
					return true
				}
				ok := c.tell(e, side.added)
				c.seen[e] = c.seen[e] || c.to.Contains(e) == side.added
				return ok
			})
			if !ok {
				return false
			}
		}
		return true
	}
	for _, g := range changed {
		for _, l := range was.held {
			if around, ok := l.set.Covering(g); ok {
				if !look(l.direction, around) {
					return false
				}
				continue
			}
			for p := range l.set.Within(g) {
				if !look(l.direction, p) {
					return false
				}
			}
		}
	}
	return true
}

// difference returns what only one of the two guards.
func (g *guards) difference(o *guards) []netip.Prefix {
	var b netipx.IPSetBuilder
	b.AddSet(g.addresses)
	b.RemoveSet(o.addresses)
	only, _ := b.IPSet() // the only error is that of a prefix that is not valid
	var c netipx.IPSetBuilder
	c.AddSet(o.addresses)
	c.RemoveSet(g.addresses)
	others, _ := c.IPSet()
	return slices.Concat(only.Prefixes(), others.Prefixes())
}

// around returns the first guarded range that ends at or after the beginning of p.
func (g *guards) around(p netip.Prefix) (netipx.IPRange, bool) {
	i, _ := slices.BinarySearchFunc(g.ranges, p.Addr(), func(r netipx.IPRange, a netip.Addr) int { return r.To().Compare(a) })
	if i == len(g.ranges) {
		return netipx.IPRange{}, false
	}
	return g.ranges[i], true
}

// overlaps says whether some of p is guarded.
func (g *guards) overlaps(p netip.Prefix) bool {
	r, ok := g.around(p)
	return ok && r.From().BitLen() == p.Addr().BitLen() && (p.Contains(r.From()) || r.From().Compare(p.Addr()) <= 0)
}

// carve yields, in order, the prefixes of what is not guarded of p. It says whether yield never said no.
func (g *guards) carve(p netip.Prefix, yield func(netip.Prefix) bool) bool {
	if !g.overlaps(p) {
		return yield(p)
	}
	if r, _ := g.around(p); r.Contains(p.Addr()) && r.Contains(netipx.PrefixLastIP(p)) {
		return true
	}
	low, high := netip.PrefixFrom(p.Addr(), p.Bits()+1), netip.PrefixFrom(netipx.PrefixLastIP(p), p.Bits()+1).Masked()
	return g.carve(low, yield) && g.carve(high, yield)
}
