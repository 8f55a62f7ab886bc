package enforce

import (
	"iter"
	"maps"
	"net/netip"
	"slices"

	"github.com/palisade/palisade/fsm"
)

// maxTapBytes is the longest name of a network interface (IFNAMSIZ without its end).
const maxTapBytes = 15

// Compiler holds what the kernel of this node must drop, and finds what a change of the state changes
// of it. The cost of an Update is that of the targets it touches, however many blocks there are. It is
// used by one goroutine.
type Compiler struct {
	view   *fsm.View
	local  Local
	guards *guards
	// parts is what each blocked target needs. Blocks on one target share it.
	parts map[fsm.Target][]Element
	// refs counts the targets that need an element, so that what one gives up another keeps.
	refs map[Element]int
}

// NewCompiler returns a compiler that holds nothing.
func NewCompiler() *Compiler {
	return &Compiler{parts: make(map[fsm.Target][]Element), refs: make(map[Element]int)}
}

// Reset compiles everything anew. The delta leads from what the compiler held before. The compiler
// keeps l, which must not change afterwards.
func (c *Compiler) Reset(v *fsm.View, l Local) Delta {
	old := c.refs
	c.view, c.local, c.guards = v, l, newGuards(v, l)
	c.parts, c.refs = make(map[fsm.Target][]Element, v.CountActive()), make(map[Element]int, v.CountActive())
	for b := range v.Blocks("") {
		if b.State != fsm.BlockActive {
			continue
		}
		if _, done := c.parts[b.Target]; done {
			continue
		}
		part := c.expand(b.Target)
		c.parts[b.Target] = part
		for _, e := range part {
			c.refs[e]++
		}
	}
	d := Delta{Index: v.Index()}
	for e := range c.refs {
		if old[e] == 0 {
			d.Add = append(d.Add, e)
		}
	}
	for e := range old {
		if c.refs[e] == 0 {
			d.Remove = append(d.Remove, e)
		}
	}
	sortElements(d.Add)
	sortElements(d.Remove)
	return d
}

// Update brings the compiler to v, given all events since the view before, and to l. It does what
// Reset does, but looks only at what the events and the difference in l touch; a change of what is
// guarded touches everything. The compiler keeps l, which must not change afterwards.
func (c *Compiler) Update(v *fsm.View, events []fsm.Event, l Local) Delta {
	if c.view == nil || !slices.Equal(l.Guards, c.local.Guards) {
		return c.Reset(v, l)
	}
	touched := make(map[fsm.Target]struct{})
	for _, e := range events {
		switch {
		case e.Block != nil:
			touched[e.Block.Target] = struct{}{}
		case e.VM != nil:
			touched[fsm.Target{VM: e.VM.ID}] = struct{}{}
		case (e.Node != nil || e.Guard != nil) && !newGuards(v, l).equal(c.guards):
			return c.Reset(v, l)
		}
	}
	for vm, nics := range l.NICs {
		if !sameNICs(nics, c.local.NICs[vm]) {
			touched[fsm.Target{VM: vm}] = struct{}{}
		}
	}
	for vm := range c.local.NICs {
		if _, ok := l.NICs[vm]; !ok {
			touched[fsm.Target{VM: vm}] = struct{}{}
		}
	}
	c.view, c.local = v, l

	before := make(map[Element]bool) // of every element touched: was it held?
	for t := range touched {
		c.replace(t, before)
	}
	d := Delta{Index: v.Index()}
	for e, was := range before {
		switch is := c.refs[e] > 0; {
		case is && !was:
			d.Add = append(d.Add, e)
		case was && !is:
			d.Remove = append(d.Remove, e)
		}
	}
	sortElements(d.Add)
	sortElements(d.Remove)
	return d
}

func sameNICs(a, b []fsm.NIC) bool {
	return slices.EqualFunc(a, b, func(a, b fsm.NIC) bool {
		return a.MAC == b.MAC && a.Tap == b.Tap && slices.Equal(a.Addresses, b.Addresses)
	})
}

// replace brings the part of one target up to date.
func (c *Compiler) replace(t fsm.Target, before map[Element]bool) {
	var part []Element
	blocked := active(c.view, t)
	if blocked {
		part = c.expand(t)
	}
	note := func(e Element) {
		if _, ok := before[e]; !ok {
			before[e] = c.refs[e] > 0
		}
	}
	for _, e := range part {
		note(e)
		c.refs[e]++
	}
	for _, e := range c.parts[t] {
		note(e)
		if c.refs[e]--; c.refs[e] == 0 {
			delete(c.refs, e)
		}
	}
	if blocked {
		c.parts[t] = part
	} else {
		delete(c.parts, t)
	}
}

func active(v *fsm.View, t fsm.Target) bool {
	for range v.ActiveOn(t) {
		return true
	}
	return false
}

// expand returns what must be dropped for a target, each element once.
func (c *Compiler) expand(t fsm.Target) []Element {
	if t.VM == "" {
		return c.guards.without(nil, t.Prefix)
	}
	var list []Element
	for _, e := range elementsOfVM(c.view, c.local, t.VM) {
		switch {
		case e.Prefix.IsValid():
			list = c.guards.without(list, e.Prefix)
		case e.Tap != "" || c.guards.allows(e.MAC):
			list = append(list, e)
		}
	}
	sortElements(list)
	return slices.Compact(list)
}

// elementsOfVM returns all that is known of a VM, unguarded and with repeats: hardware addresses and
// addresses from the state and from this node, declared prefixes, and the taps on this node. A tap in
// the state names an interface of the node that reported it, here it could be anyone's.
func elementsOfVM(v *fsm.View, l Local, id string) []Element {
	var list []Element
	nics := l.NICs[id]
	for _, n := range nics {
		if n.Tap != "" && len(n.Tap) <= maxTapBytes {
			list = append(list, Element{Tap: n.Tap})
		}
	}
	if vm, ok := v.VM(id); ok {
		nics = slices.Concat(nics, vm.NICs)
		for _, p := range vm.Declared {
			list = append(list, Element{Prefix: p})
		}
	}
	for _, n := range nics {
		list = append(list, Element{MAC: n.MAC})
		for _, a := range n.Addresses {
			a = a.WithZone("")
			list = append(list, Element{Prefix: netip.PrefixFrom(a, a.BitLen())})
		}
	}
	return list
}

// Elements walks everything that is held, in no order.
func (c *Compiler) Elements() iter.Seq[Element] { return maps.Keys(c.refs) }

// Holds says whether an element is held for any block.
func (c *Compiler) Holds(e Element) bool { return c.refs[e] > 0 }

// Len counts the elements that are held.
func (c *Compiler) Len() int { return len(c.refs) }

// ElementsOf returns the elements that are held for a block, sorted; none if it is not active. Other
// blocks may hold them too. The result must not be changed.
func (c *Compiler) ElementsOf(blockID string) []Element {
	if c.view == nil {
		return nil
	}
	b, ok := c.view.Block(blockID)
	if !ok || b.State != fsm.BlockActive {
		return nil
	}
	return c.parts[b.Target]
}
