package enforce

import (
	"net/netip"

	"go4.org/netipx"

	"github.com/palisade/palisade/fsm"
)

// Compile returns what the kernel of a node must drop: the reference for Compiler, in the plainest
// way. It subtracts every guard from every target.
func Compile(v *fsm.View, l Local) map[Element]struct{} {
	held := make(map[Element]struct{})
	macs := v.GuardedMACs()
	for b := range v.Blocks("") {
		if b.State != fsm.BlockActive {
			continue
		}
		list := []Element{{Prefix: b.Target.Prefix}}
		if b.Target.VM != "" {
			list = elementsOfVM(v, l, b.Target.VM)
		}
		for _, e := range list {
			switch _, guarded := macs[e.MAC]; {
			case e.Tap != "":
				held[e] = struct{}{}
			case e.Prefix != netip.Prefix{}:
				for _, p := range carve(v, l, e.Prefix) {
					held[Element{Prefix: p}] = struct{}{}
				}
			case e.MAC != fsm.MAC{} && e.MAC[0]&1 == 0 && !guarded:
				held[e] = struct{}{}
			}
		}
	}
	return held
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
	left, _ := b.IPSet() // the only error is that of a prefix that is not valid
	return left.Prefixes()
}
