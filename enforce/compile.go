package enforce

import (
	"net/netip"
	"slices"

	"go4.org/netipx"

	"github.com/palisade/palisade/fsm"
)

// Compile returns what the kernel of a node must treat: the reference for Compiler, in the plainest
// way. It looks at every block and every VM, and subtracts every guard from every target.
func Compile(v *fsm.View, l Local) map[Element]struct{} {
	held := make(map[Element]struct{})
	answers := false
	for b := range v.Blocks("") {
		if !l.inForce(b) {
			continue
		}
		var targets []identity
		switch t := b.Target; {
		case t.VM != "":
			targets = append(targets, plainIdentity(v, l, t.VM))
		case t.Account != "":
			for vm := range v.VMs("") {
				if vm.Owner == t.Account {
					targets = append(targets, plainIdentity(v, l, vm.ID))
				}
			}
		case t.Prefix.IsValid():
			whole := carved(v, l, t.Prefix)
			targets = append(targets, identity{prefixes: whole, once: whole})
			for vm := range v.VMs("") {
				for _, a := range visitedIn(vm, t.Prefix) {
					targets = append(targets, identity{visited: carved(v, l, a)})
				}
			}
		}
		for _, id := range targets {
			for _, e := range l.treat(b, id) {
				held[e] = struct{}{}
				t, _ := e.Treatment.Terms()
				answers = answers || t.Answers()
			}
		}
	}
	if answers {
		g := newGuards(v, l)
		for guest := range l.NICs.All() {
			for _, e := range l.answering(g, guest, "") {
				held[e] = struct{}{}
			}
		}
		for port := range l.Bridges.All() {
			for _, e := range l.answering(g, "", port) {
				held[e] = struct{}{}
			}
		}
	}
	return held
}

func plainIdentity(v *fsm.View, l Local, vm string) (id identity) {
	if _, guarded := v.GuardedVMs()[vm]; guarded {
		return id
	}
	tapOf := make(map[fsm.MAC]string)
	for _, e := range elementsOfVM(v, l, vm) {
		switch {
		case e.Prefix != netip.Prefix{}:
			id.prefixes = append(id.prefixes, carved(v, l, e.Prefix)...)
		case e.Tap != "" && !guardedLink(v, l, e):
			id.links = append(id.links, e)
			id.once = append(id.once, e)
			for _, n := range l.NICs.Get(vm) {
				if n.Tap == e.Tap {
					tapOf[n.MAC] = n.Tap
				}
			}
		case e.MAC != fsm.MAC{} && e.MAC[0]&1 == 0 && !guardedLink(v, l, e):
			id.links = append(id.links, e)
			if tapOf[e.MAC] == "" { // taps come first
				id.once = append(id.once, e)
			}
		}
	}
	id.visited = id.prefixes
	if len(id.once) == 0 {
		id.once = id.prefixes
	}
	return id
}

func guardedLink(v *fsm.View, l Local, e Element) bool {
	if _, ok := v.GuardedMACs()[e.MAC]; ok {
		return true
	}
	for vm := range v.GuardedVMs() {
		if slices.Contains(elementsOfVM(v, l, vm), e) {
			return true
		}
	}
	return false
}

func carved(v *fsm.View, l Local, p netip.Prefix) []Element {
	var list []Element
	for _, left := range carve(v, l, p) {
		list = append(list, Element{Prefix: left})
	}
	return list
}

func carve(v *fsm.View, l Local, p netip.Prefix) []netip.Prefix {
	if p = plain(p); p.Bits() <= 0 {
		return nil
	}
	var b netipx.IPSetBuilder
	b.AddPrefix(p)
	for g := range guardedPrefixes(v, l) {
		b.RemovePrefix(g)
	}
	for vm := range v.GuardedVMs() {
		for _, e := range elementsOfVM(v, l, vm) {
			if g := plain(e.Prefix); g.Bits() > 0 {
				b.RemovePrefix(g)
			}
		}
	}
	left, _ := b.IPSet() // the only error is that of a prefix that is not valid
	return left.Prefixes()
}
