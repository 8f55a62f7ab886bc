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

// Compiler holds what the kernel of this node must treat, and finds what a change of the state changes
// of it. The cost of an Update is that of the targets it touches, however many blocks there are. It is
// used by one goroutine.
type Compiler struct {
	view   *fsm.View
	local  Local
	guards *guards
	// parts is what each held target needs. Blocks on one target share it.
	parts map[part][]Element
	// refs counts the parts that need an element, so that what one gives up another keeps.
	refs map[Element]int
	// answers counts the references to elements for which the node answers.
	answers int
}

// part is what of a target is compiled by itself: the target, or one VM of an account. One without a
// target is what the node needs to know of a guest or of a port of a bridge, to answer for guests.
type part struct {
	target fsm.Target
	vm     string // of a VM or account target; of a prefix target, what its redirects answer for the VM
	port   string
}

// NewCompiler returns a compiler that holds nothing.
func NewCompiler() *Compiler {
	return &Compiler{parts: make(map[part][]Element), refs: make(map[Element]int)}
}

// Reset compiles everything anew. The delta leads from what the compiler held before. The compiler
// keeps l, which must not change afterwards.
func (c *Compiler) Reset(v *fsm.View, l Local) Delta {
	old := c.refs
	c.view, c.local, c.guards = v, l, newGuards(v, l)
	c.parts, c.refs = make(map[part][]Element, v.CountActive()), make(map[Element]int, v.CountActive())
	c.answers = 0
	for b := range v.Blocks("") {
		if !l.inForce(b) {
			continue
		}
		for p := range c.partsOf(b.Target) {
			if _, done := c.parts[p]; !done {
				c.replace(p, nil)
			}
		}
	}
	c.replaceAll(nil)
	before := make(map[Element]bool, len(old))
	for e := range old {
		before[e] = true
	}
	for e := range c.refs {
		if !before[e] {
			before[e] = false // it may be new
		}
	}
	return c.delta(before)
}

// Update brings the compiler to v, given all events since the view before, and to l. It does what
// Reset does, but looks only at what the events and the difference in l touch; a change of what is
// guarded touches everything. The compiler keeps l, which must not change afterwards.
func (c *Compiler) Update(v *fsm.View, events []fsm.Event, l Local) Delta {
	if c.view == nil || !slices.Equal(l.Guards, c.local.Guards) || l.PagePort != c.local.PagePort || !slices.Equal(l.Missing, c.local.Missing) {
		return c.Reset(v, l)
	}
	moved := changedVMs(events, c.local.NICs, l.NICs)
	if c.touchesGuards(v, events, moved) && !newGuards(v, l).equal(c.guards) {
		return c.Reset(v, l)
	}
	old := c.view
	here := make(map[part]struct{}) // of what may have to be known to answer
	for vm := range changed(c.local.NICs, l.NICs, fsm.SameNICs) {
		here[part{vm: vm}] = struct{}{}
	}
	for port := range changed(c.local.Bridges, l.Bridges, sameMAC) {
		here[part{port: port}] = struct{}{}
	}
	touched := make(map[part]struct{})
	for vm := range moved {
		touched[part{target: fsm.Target{VM: vm}, vm: vm}] = struct{}{}
		for _, view := range []*fsm.View{old, v} {
			known, ok := view.VM(vm)
			if ok && known.Owner != "" {
				touched[part{target: fsm.Target{Account: known.Owner}, vm: vm}] = struct{}{}
			}
			if ok {
				for t := range redirectedAround(view, l, known) {
					touched[part{target: t, vm: vm}] = struct{}{}
				}
			}
		}
	}
	held := make(map[fsm.Target]struct{})
	for _, e := range events {
		if e.Block != nil {
			held[e.Block.Target] = struct{}{}
		}
	}
	for _, pair := range [][2]map[string]struct{}{{l.Started, c.local.Started}, {c.local.Started, l.Started}} {
		for id := range pair[0] {
			b, ok := v.Block(id)
			if _, both := pair[1][id]; ok && !both {
				held[b.Target] = struct{}{}
			}
		}
	}
	c.view, c.local = v, l
	for t := range held {
		for p := range c.partsOf(t) {
			touched[p] = struct{}{}
		}
	}

	before := make(map[Element]bool) // of every element touched: was it held?
	answered := c.answers > 0
	for p := range touched {
		c.replace(p, before)
	}
	for p := range here {
		c.replace(p, before)
	}
	if answered != (c.answers > 0) {
		c.replaceAll(before)
	}
	return c.delta(before)
}

// changedVMs returns the VMs of which an event or a difference in the local interfaces says something.
func changedVMs(events []fsm.Event, from, to Map[[]fsm.NIC]) map[string]struct{} {
	vms := make(map[string]struct{})
	for _, e := range events {
		if e.VM != nil {
			vms[e.VM.ID] = struct{}{}
		}
	}
	for vm := range changed(from, to, fsm.SameNICs) {
		vms[vm] = struct{}{}
	}
	return vms
}

// touchesGuards says whether what is guarded may have changed. It spares the walk over all guards.
func (c *Compiler) touchesGuards(v *fsm.View, events []fsm.Event, vms map[string]struct{}) bool {
	for vm := range vms {
		if _, guarded := v.GuardedVMs()[vm]; guarded {
			return true
		}
	}
	return slices.ContainsFunc(events, func(e fsm.Event) bool { return e.Node != nil || e.Guard != nil })
}

func sameMAC(a, b fsm.MAC) bool { return a == b }

// redirectedAround walks the prefixes whose redirects may answer for the VM.
func redirectedAround(v *fsm.View, l Local, vm *fsm.VM) iter.Seq[fsm.Target] {
	return func(yield func(fsm.Target) bool) {
		of := func(b *fsm.Block) bool { return b.Kind == fsm.Redirect && b.Target.Prefix.IsValid() }
		for _, b := range v.Holding(vm) {
			if of(b) && !yield(b.Target) {
				return
			}
		}
		for id := range l.Started {
			if b, ok := v.Block(id); ok && of(b) && !yield(b.Target) {
				return
			}
		}
	}
}

// partsOf walks the parts of a target: of an account its VMs now, of a prefix also the VMs in it.
func (c *Compiler) partsOf(t fsm.Target) iter.Seq[part] {
	return func(yield func(part) bool) {
		vms := c.view.VMsOf(t.Account)
		if t.Account == "" {
			if !yield(part{target: t, vm: t.VM}) || !t.Prefix.IsValid() {
				return
			}
			vms = c.view.VMsWithin(t.Prefix)
		}
		for vm := range vms {
			if !yield(part{target: t, vm: vm.ID}) {
				return
			}
		}
	}
}

// replace brings one part up to date, and notes of every element that it touches whether it was held,
// unless before is nil.
func (c *Compiler) replace(p part, before map[Element]bool) {
	var now []Element
	switch {
	case p.target != fsm.Target{}:
		now = c.expand(p)
	case c.answers > 0:
		now = compact(c.local.answering(c.guards, p.vm, p.port))
	}
	note := func(e Element) {
		if _, ok := before[e]; !ok && before != nil {
			before[e] = c.refs[e] > 0
		}
	}
	for _, e := range now {
		note(e)
		c.count(e, 1)
	}
	for _, e := range c.parts[p] {
		note(e)
		c.count(e, -1)
	}
	if len(now) > 0 {
		c.parts[p] = now
	} else {
		delete(c.parts, p)
	}
}

// replaceAll brings up to date what is needed of all guests and ports to answer, which is nothing while
// nobody is answered.
func (c *Compiler) replaceAll(before map[Element]bool) {
	for vm := range c.local.NICs.All() {
		c.replace(part{vm: vm}, before)
	}
	for port := range c.local.Bridges.All() {
		c.replace(part{port: port}, before)
	}
}

func (c *Compiler) count(e Element, by int) {
	if e.Treatment != "" {
		if t, _ := e.Treatment.Terms(); t.Answers() {
			c.answers += by
		}
	}
	if c.refs[e] += by; c.refs[e] == 0 {
		delete(c.refs, e)
	}
}

// delta is the difference between what was held and what is.
func (c *Compiler) delta(before map[Element]bool) Delta {
	d := Delta{Index: c.view.Index()}
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

// expand returns what all blocks in force on a part need of it, each element once.
func (c *Compiler) expand(p part) []Element {
	var list []Element
	var id *identity
	for b := range c.view.OpenOn(p.target) {
		if !c.local.inForce(b) {
			continue
		}
		if id == nil {
			known := c.identify(p)
			id = &known
		}
		list = append(list, c.local.treat(b, *id)...)
	}
	return compact(list)
}

// identify returns how packets of a part are known. A VM that has left the account is not known.
func (c *Compiler) identify(p part) (id identity) {
	switch vm, known := c.view.VM(p.vm); {
	case p.target.List != "":
		return id // lists have tables of their own
	case p.vm == "":
		id.prefixes = c.guards.without(nil, p.target.Prefix)
		id.once = id.prefixes
		return id
	case p.target.Prefix.IsValid():
		if known {
			for _, a := range visitedIn(vm, p.target.Prefix) {
				id.visited = c.guards.without(id.visited, a)
			}
		}
		return id
	case p.target.Account != "" && (!known || vm.Owner != p.target.Account):
		return id
	}
	if _, guarded := c.guards.vms[p.vm]; guarded {
		return id
	}
	for _, e := range elementsOfVM(c.view, c.local, p.vm) {
		switch {
		case e.Prefix.IsValid():
			id.prefixes = c.guards.without(id.prefixes, e.Prefix)
		case c.guards.allowsTap(e.Tap) || c.guards.allows(e.MAC):
			id.links = append(id.links, e)
		}
	}
	id.visited = id.prefixes
	id.once = c.once(p.vm)
	if len(id.once) == 0 {
		id.once = id.prefixes
	}
	return id
}

// visitedIn returns what a VM has of a prefix.
func visitedIn(vm *fsm.VM, p netip.Prefix) []netip.Prefix {
	var list []netip.Prefix
	for _, a := range vm.AllAddresses() {
		switch {
		case !a.Overlaps(p):
		case a.Bits() < p.Bits():
			list = append(list, p)
		default:
			list = append(list, a)
		}
	}
	return list
}

// once returns for each interface of a VM its tap here, else its hardware address.
func (c *Compiler) once(id string) []Element {
	var list []Element
	bound := make(map[fsm.MAC]bool)
	put := func(n fsm.NIC) {
		if c.guards.allows(n.MAC) && !bound[n.MAC] {
			list = append(list, Element{MAC: n.MAC})
		}
	}
	for _, n := range c.local.NICs.Get(id) {
		if c.guards.allowsTap(n.Tap) {
			list = append(list, Element{Tap: n.Tap})
			bound[n.MAC] = true
		}
	}
	for _, n := range c.local.NICs.Get(id) {
		put(n)
	}
	if vm, ok := c.view.VM(id); ok {
		for _, n := range vm.NICs {
			put(n)
		}
	}
	return list
}

// elementsOfVM returns all that is known of a VM, unguarded and with repeats: hardware addresses and
// addresses from the state and from this node, declared prefixes, and the taps on this node. A tap in
// the state names an interface of the node that reported it, here it could be anyone's.
func elementsOfVM(v *fsm.View, l Local, id string) []Element {
	var list []Element
	nics := l.NICs.Get(id)
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

// ElementsOf returns the elements that are held for a block, sorted; none if it is not in force here.
// Other blocks may hold them too.
func (c *Compiler) ElementsOf(blockID string) []Element {
	if c.view == nil {
		return nil
	}
	b, ok := c.view.Block(blockID)
	if !ok || !c.local.inForce(b) {
		return nil
	}
	var list []Element
	for p := range c.partsOf(b.Target) {
		list = append(list, c.local.treat(b, c.identify(p))...)
	}
	return compact(list)
}
