package recovery

import (
	"cmp"
	"fmt"
	"iter"
	"net/netip"
	"slices"

	"github.com/palisade/palisade/enforce"
	"github.com/palisade/palisade/fsm"
)

// thing is what of an element packets are told by.
type thing struct {
	mac    fsm.MAC
	prefix netip.Prefix
}

// KernelLosses returns what a kernel holds, to would not, and from does not explain. from may be nil. Interfaces of guests are
// left out: what they are of is held by its addresses too.
func KernelLosses(kernel iter.Seq[enforce.Element], from, to *fsm.View, local enforce.Local) []Loss {
	explained := newHolds(from, local)
	kept := newHolds(to, local)
	var out []Loss
	for e := range kernel {
		t, ok := e.Treatment.Terms()
		if e.Tap != "" || e.MAC == (fsm.MAC{}) && !e.Prefix.IsValid() || ok && helps(t.Kind) {
			continue
		}
		if kept.has(e, t) || explained.has(e, t) {
			continue
		}
		l := Loss{Element: e}
		l.ops, l.Unkept = keepElement(e, t, ok, from, to)
		out = append(out, l)
	}
	slices.SortFunc(out, func(a, b Loss) int { return a.Element.Compare(b.Element) })
	return out
}

// helps is of kinds that hold nothing.
func helps(k fsm.Kind) bool { return k == enforce.Page || k == enforce.Bridge || k == enforce.Here }

// holds are what a view makes a node's kernel hold, whatever the blocks are called.
type holds struct {
	things map[thing]map[string]bool // by the effect
	wide   map[int]bool              // lengths of prefixes that are dropped whole
}

func newHolds(v *fsm.View, local enforce.Local) holds {
	h := holds{things: map[thing]map[string]bool{}, wide: map[int]bool{}}
	if v == nil {
		return h
	}
	for _, e := range enforce.NewCompiler().Reset(v, local).Add {
		t, _ := e.Treatment.Terms()
		at := thing{e.MAC, e.Prefix}
		if h.things[at] == nil {
			h.things[at] = map[string]bool{}
		}
		h.things[at][effect(t)] = true
		if e.Prefix.IsValid() && e.Treatment == "" {
			h.wide[e.Prefix.Bits()] = true
		}
	}
	return h
}

// effect is what terms do, without the block that they are of.
func effect(t enforce.Terms) string {
	t.Hold = ""
	return fmt.Sprint(t)
}

func dropAll() string { return effect(enforce.Terms{Kind: fsm.Drop, Direction: fsm.Both}) }

func (h *holds) has(e enforce.Element, t enforce.Terms) bool {
	at := h.things[thing{e.MAC, e.Prefix}]
	if at[effect(t)] || at[dropAll()] {
		return true
	}
	if e.Prefix.IsValid() {
		for bits := range h.wide {
			if bits >= e.Prefix.Bits() {
				continue
			}
			if p, err := e.Prefix.Addr().Prefix(bits); err == nil && h.things[thing{prefix: p}][dropAll()] {
				return true
			}
		}
	}
	return false
}

func keepElement(e enforce.Element, t enforce.Terms, known bool, views ...*fsm.View) ([]fsm.Op, string) {
	if !known {
		return nil, "this version of palisade does not know what the kernel does with it"
	}
	op := fsm.AddBlock{Kind: t.Kind, Direction: cmp.Or(t.Direction, fsm.Both), Rate: t.Rate, Ports: t.Ports, Force: true,
		Note: "carried over from a kernel that held it when the fleet was restored"}
	if e.Prefix.IsValid() {
		op.Target = fsm.Target{Prefix: e.Prefix}
		return []fsm.Op{op}, ""
	}
	for _, v := range views {
		if v == nil {
			continue
		}
		for vm := range v.VMs("") {
			if slices.ContainsFunc(vm.NICs, func(n fsm.NIC) bool { return n.MAC == e.MAC }) {
				op.Target = fsm.Target{VM: vm.ID}
				return []fsm.Op{op}, ""
			}
		}
	}
	return nil, "no VM is known to have this hardware address; block the VM once it is seen"
}
