package fsm

import (
	"cmp"
	"fmt"
	"net/netip"
	"slices"
	"sync"
)

// GuardedPrefix is a prefix that can't be blocked and why.
type GuardedPrefix struct {
	Prefix netip.Prefix
	Why    string // "address of node n1", "gateway of node n1", "loopback", "guard: NOTE", "guard"
}

// BuiltinGuards are guarded on every fleet: they name no single machine, so a block on them would hit
// everyone. Loopback, unspecified, link-local, multicast and broadcast, of both families.
func BuiltinGuards() []GuardedPrefix {
	return []GuardedPrefix{
		{netip.MustParsePrefix("0.0.0.0/8"), "unspecified"},
		{netip.MustParsePrefix("127.0.0.0/8"), "loopback"},
		{netip.MustParsePrefix("169.254.0.0/16"), "link-local"},
		{netip.MustParsePrefix("224.0.0.0/4"), "multicast"},
		{netip.MustParsePrefix("255.255.255.255/32"), "broadcast"},
		{netip.MustParsePrefix("::/128"), "unspecified"},
		{netip.MustParsePrefix("::1/128"), "loopback"},
		{netip.MustParsePrefix("fe80::/10"), "link-local"},
		{netip.MustParsePrefix("ff00::/8"), "multicast"},
	}
}

// guardSet is everything that is guarded while the nodes and guards stay as they are. It is built at
// first use, by the writer or by a reader; whoever changes a node or guard starts a new one.
type guardSet struct {
	once  sync.Once
	list  []GuardedPrefix // built-in, by node, by guard
	fixed guardIndex      // of the list, without the addresses of guarded VMs
	all   guardIndex
	macs  map[MAC]string
	vms   map[string]string // notes of the guards by VM id
}

// guardIndex finds guarded prefixes.
type guardIndex struct {
	sorted  []GuardedPrefix // by prefix
	lengths prefixLengths
}

// guardSet returns the built set of the state.
func (s *state) guardSet() *guardSet {
	s.guarded.once.Do(func() { s.guarded.build(s) })
	return s.guarded
}

func (g *guardSet) build(s *state) {
	g.list = BuiltinGuards()
	g.macs, g.vms = make(map[MAC]string), make(map[string]string)
	single := func(addrs []netip.Addr, why string) {
		for _, a := range addrs {
			g.list = append(g.list, GuardedPrefix{netip.PrefixFrom(a, a.BitLen()), why})
		}
	}
	for n := range s.nodes.all() {
		single(n.Addresses, "address of node "+n.ID)
		single(n.Gateways, "gateway of node "+n.ID)
		for _, p := range n.Guards {
			g.list = append(g.list, GuardedPrefix{p, "guard of node " + n.ID})
		}
		for _, m := range n.MACs {
			if _, ok := g.macs[m]; !ok {
				g.macs[m] = "interface of node " + n.ID
			}
		}
	}
	for w := range s.guards.all() {
		if w.VM == "" {
			g.list = append(g.list, GuardedPrefix{w.Prefix, whoGuards(w.Note)})
		} else {
			g.vms[w.VM] = w.Note
		}
	}
	g.fixed = newGuardIndex(g.list)
	for w := range s.guards.under([]byte{'v'}) {
		vm, ok := s.vms.get([]byte(w.VM))
		if !ok {
			continue
		}
		for _, p := range vm.AllAddresses() {
			g.list = append(g.list, GuardedPrefix{p, "address of guarded VM " + vm.ID})
		}
		for _, n := range vm.NICs {
			if _, ok := g.macs[n.MAC]; !ok && n.MAC != (MAC{}) {
				g.macs[n.MAC] = "interface of guarded VM " + vm.ID
			}
		}
	}
	g.all = newGuardIndex(g.list)
}

func newGuardIndex(list []GuardedPrefix) guardIndex {
	g := guardIndex{sorted: slices.Clone(list)}
	slices.SortFunc(g.sorted, func(a, b GuardedPrefix) int {
		return cmp.Or(comparePrefix(a.Prefix, b.Prefix), cmp.Compare(a.Why, b.Why))
	})
	for i := range g.sorted {
		g.lengths.add(g.sorted[i].Prefix)
	}
	return g
}

// overlap finds a guarded prefix that is equal to p, around it or inside it.
func (g *guardIndex) overlap(p netip.Prefix) (GuardedPrefix, bool) {
	at := func(p netip.Prefix) (int, bool) {
		return slices.BinarySearchFunc(g.sorted, p, func(e GuardedPrefix, p netip.Prefix) int {
			return comparePrefix(e.Prefix, p)
		})
	}
	for wide := range g.lengths.around(p) {
		if i, ok := at(wide); ok {
			return g.sorted[i], true
		}
	}
	// What is inside begins at or after p's own address, so the first one decides.
	if i, _ := at(p); i < len(g.sorted) && p.Contains(g.sorted[i].Prefix.Addr()) {
		return g.sorted[i], true
	}
	return GuardedPrefix{}, false
}

// refuse returns the refusal of a prefix that overlaps with a guarded one, nil if none does.
func (g *guardIndex) refuse(field string, p netip.Prefix) *Error {
	hit, ok := g.overlap(p)
	if !ok {
		return nil
	}
	return &Error{CodeGuardConflict, field,
		fmt.Sprintf("%s overlaps %s, which can never be blocked (%s)", p, hit.Prefix, oneLine(hit.Why))}
}

// whoGuards says that an operator did, with the note, if there is one.
func whoGuards(note string) string {
	if note == "" {
		return "guard"
	}
	return "guard: " + note
}

// GuardedPrefixes returns every prefix that can't be blocked, with who says so: built-in, of the
// nodes, set by operators, and the addresses of guarded VMs. Computed once for each View in which they changed, so it costs nothing
// to ask again; the result is shared and must not be changed.
func (v *View) GuardedPrefixes() []GuardedPrefix { return slices.Clip(v.guardSet().list) }

// GuardedMACs returns the MACs of all nodes and of guarded VMs, with whose they are. The result is shared and must not
// be changed.
func (v *View) GuardedMACs() map[MAC]string { return v.guardSet().macs }
