package fsm

import (
	"bytes"
	"fmt"
	"net/netip"
	"slices"
)

func (a *applier) putNode(op PutNode) (*Node, *Error) {
	n := op.Node
	if refused := first(
		checkID("id", n.ID),
		checkText("name", n.Name, MaxNameBytes),
		checkText("version", n.Version, MaxNameBytes),
		checkReported(&n.Membership),
		checkCount("addresses", len(n.Addresses), MaxNodeAddresses),
		checkCount("gateways", len(n.Gateways), MaxNodeAddresses),
		checkCount("macs", len(n.MACs), MaxNodeAddresses),
		checkCount("guards", len(n.Guards), MaxNodeAddresses),
	); refused != nil {
		return nil, refused
	}
	for i, p := range n.Guards {
		if refused := checkPrefix(fmt.Sprintf("guards[%d]", i), p); refused != nil {
			return nil, refused
		}
	}
	var refused *Error
	if n.Addresses, refused = cleanAddrs("addresses", n.Addresses); refused != nil {
		return nil, refused
	}
	if n.Gateways, refused = cleanAddrs("gateways", n.Gateways); refused != nil {
		return nil, refused
	}
	n.MACs = sortedSet(n.MACs, func(a, b MAC) int { return bytes.Compare(a[:], b[:]) })
	n.Guards = sortedSet(n.Guards, comparePrefix)

	was, known := a.nodes.get([]byte(n.ID))
	if a.fleet != nil {
		if was, refused = a.member(n.ID); refused != nil {
			return nil, refused
		}
	}
	if !known {
		n.reported(&Membership{})
		return a.changeNode(nil, &n, EventNodeChanged), nil
	}
	if n.Generation != 0 && n.Generation < was.Generation {
		return nil, &Error{CodeStale, "generation", fmt.Sprintf(
			"node %s was started %d times, the report is of its start %d: it is late, or of a copy", n.ID, was.Generation, n.Generation)}
	}
	n.reported(&was.Membership)
	n.Revision = was.Revision
	if equalNodes(was, &n) {
		return was, nil
	}
	return a.changeNode(was, &n, EventNodeChanged), nil
}

func (a *applier) putGuard(op PutGuard) (*Guard, *Error) {
	if refused := checkNote(op.Note); refused != nil {
		return nil, refused
	}
	g := &Guard{Note: op.Note, Actor: a.actor, Revision: a.index}
	key, refused := a.guarding(op.Prefix, op.VM, g)
	if refused != nil {
		return nil, refused
	}
	if refused := a.checkUnheld(g); refused != nil {
		return nil, refused
	}
	was, known := a.guards.get(key)
	if known && was.Note == op.Note {
		return was, nil
	}
	a.setGuard(was, g)
	a.emit(Event{Type: EventGuardAdded, Guard: g})
	return g, nil
}

// guarding resolves and checks what a guard stands for, and returns its key.
func (a *applier) guarding(prefix netip.Prefix, vm string, g *Guard) ([]byte, *Error) {
	switch {
	case vm != "" && prefix.IsValid():
		return nil, &Error{CodeInvalid, "vm", "is given together with a prefix; a guard is of one of them"}
	case vm != "":
		if _, ok := a.guards.get(vmGuardKey(vm)); ok { // also of a VM that is gone
			g.VM = vm
			break
		}
		known, refused := a.resolveVM("vm", vm)
		if refused != nil {
			return nil, refused
		}
		g.VM = known.ID
	default:
		if refused := checkPrefix("prefix", prefix); refused != nil {
			return nil, refused
		}
		g.Prefix = prefix
	}
	return guardKey(g), nil
}

// checkUnheld refuses a guard of what is held: it would be lifted by nobody.
func (a *applier) checkUnheld(g *Guard) *Error {
	within := []netip.Prefix{g.Prefix}
	field := "prefix"
	if g.VM != "" {
		field = "vm"
		for b := range a.openOn(Target{VM: g.VM}) {
			return &Error{CodeConflict, field, fmt.Sprintf("block %s holds VM %s; lift it first", b.ID, g.VM)}
		}
		within = nil
		if vm, ok := a.vms.get([]byte(g.VM)); ok {
			within = vm.AllAddresses()
		}
	}
	for _, p := range within {
		if b := a.openWithin(p); b != nil {
			return &Error{CodeConflict, field, fmt.Sprintf("block %s on %s is inside %s; lift it first", b.ID, b.Target, p)}
		}
	}
	return nil
}

// openWithin returns an active or pending block on a prefix inside p, p itself included, nil if there is none.
func (s *state) openWithin(p netip.Prefix) *Block {
	for _, in := range []*table[*Block]{&s.active, &s.pending} {
		if b := blockWithin(in, p); b != nil {
			return b
		}
	}
	return nil
}

// deleteGuard returns the guard as it was.
func (a *applier) deleteGuard(op DeleteGuard) (*Guard, *Error) {
	var g Guard
	key, refused := a.guarding(op.Prefix, op.VM, &g)
	if refused != nil {
		return nil, refused
	}
	was, ok := a.guards.get(key)
	if !ok {
		field, name := "prefix", op.Prefix.String()
		if op.VM != "" {
			field, name = "vm", "of VM "+g.VM
		}
		return nil, &Error{CodeNotFound, field, "there is no guard " + name}
	}
	a.setGuard(was, nil)
	a.emit(Event{Type: EventGuardRemoved, Guard: was})
	return was, nil
}

// cleanAddrs brings addresses to the one form they are kept in: no zone, no IPv4 in IPv6, sorted,
// without repeats.
func cleanAddrs(field string, in []netip.Addr) ([]netip.Addr, *Error) {
	for i, a := range in {
		if !a.IsValid() {
			return nil, &Error{CodeInvalid, fmt.Sprintf("%s[%d]", field, i), "is no address"}
		}
	}
	return cleanAddrsLoose(in), nil
}

// cleanAddrsLoose drops what is no address.
func cleanAddrsLoose(in []netip.Addr) []netip.Addr {
	out := make([]netip.Addr, 0, len(in))
	for _, a := range in {
		if a.IsValid() {
			out = append(out, a.Unmap().WithZone(""))
		}
	}
	return sortedSet(out, netip.Addr.Compare)
}

// sortedSet returns a sorted copy without repeats, nil if it is empty.
func sortedSet[T comparable](in []T, compare func(a, b T) int) []T {
	if len(in) == 0 {
		return nil
	}
	out := slices.Clone(in)
	slices.SortFunc(out, compare)
	return slices.Clip(slices.Compact(out))
}

func equalNodes(a, b *Node) bool {
	return a.Membership == b.Membership && a.ID == b.ID && a.Name == b.Name && a.Version == b.Version && a.Format == b.Format && a.Revision == b.Revision &&
		slices.Equal(a.Addresses, b.Addresses) && slices.Equal(a.Gateways, b.Gateways) &&
		slices.Equal(a.MACs, b.MACs) && slices.Equal(a.Guards, b.Guards)
}
