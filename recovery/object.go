package recovery

import (
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"time"

	"github.com/palisade/palisade/fsm"
)

// unguard is what to do about a hold that a guard cuts.
const unguard = "remove the guard after it, if it is not wanted, and block it again"

// vms finds what is held through a VM and would not be, though the hold itself stays: an account that is no longer the
// VM's owner, an address that is not known to be the VM's, a guard on it. A VM that only holds of its own hold, and that to
// does not know, is carried over with those.
func (c *comparison) vms() {
	unheld := c.from.GuardedVMs()
	for vm := range c.from.VMs("") {
		own, owners := open(c.from, fsm.Target{VM: vm.ID}), open(c.from, fsm.Target{Account: vm.Owner})
		holds := slices.Concat(own, owners)
		is, known := c.to.VM(vm.ID)
		if _, guarded := unheld[vm.ID]; guarded || len(holds) == 0 || known && is.Revision > vm.Revision {
			continue // or to is the newer state
		}
		l := Loss{What: fmt.Sprintf("VM %s (%s), held by %s, there ", vm.ID, vm.Name, ids(holds)), Agreed: !active(holds)}
		if !known {
			if len(owners) > 0 {
				l.What, l.ops = l.What+"is not known to be of account "+vm.Owner, c.declare(vm)
				c.out = append(c.out, l)
			}
			continue
		}
		if lacks := vmLacks(vm, is, len(owners) > 0); len(lacks) > 0 {
			lost := l
			lost.What, lost.ops = l.What+strings.Join(lacks, ", "), c.declare(vm)
			if len(lost.ops) == 1 && slices.ContainsFunc(lacks, isMAC) {
				lost.Unkept = "where it is can't be told; block it again when a node has seen it"
			}
			c.out = append(c.out, lost)
		}
		if guard := c.guardOnVM(vm); guard != "" {
			l.What, l.Unkept = l.What+"is "+guard, unguard
			c.out = append(c.out, l)
		}
	}
}

// vmLacks says what a VM has in from and not in to.
func vmLacks(was, is *fsm.VM, byOwner bool) (lacks []string) {
	if byOwner && is.Owner != was.Owner {
		lacks = append(lacks, "is not of account "+was.Owner)
	}
	has := is.AllAddresses()
	for _, p := range was.AllAddresses() {
		if !slices.ContainsFunc(has, func(h netip.Prefix) bool { return h.Bits() <= p.Bits() && h.Overlaps(p) }) {
			lacks = append(lacks, "lacks the address "+p.String())
		}
	}
	for _, n := range was.NICs {
		if n.MAC != (fsm.MAC{}) && !slices.ContainsFunc(is.NICs, func(h fsm.NIC) bool { return h.MAC == n.MAC }) {
			lacks = append(lacks, lacksMAC+n.MAC.String())
		}
	}
	return lacks
}

const lacksMAC = "lacks the hardware address "

func isMAC(lack string) bool { return strings.HasPrefix(lack, lacksMAC) }

// guardOnVM says by what a VM, or one of its addresses, is guarded in to alone, empty if by nothing.
func (c *comparison) guardOnVM(vm *fsm.VM) string {
	if note, guarded := c.to.GuardedVMs()[vm.ID]; guarded {
		return strings.TrimSpace("guarded " + note)
	}
	for _, p := range vm.AllAddresses() {
		if guard := c.guardOn(p); guard != "" {
			return guard
		}
	}
	return ""
}

// declare returns the ops that make to know a VM as from does: its owner, its addresses, its interfaces, and where it was seen, where it
// counts as stopped if that node is no member there. The interfaces of a VM whose node was retired, or that was seen elsewhere
// meanwhile, can't be told; their addresses are declared then. The time before which it is not to be blocked is
// a matter of its own, see promises.
func (c *comparison) declare(vm *fsm.VM) []fsm.Op {
	d := fsm.DeclareVM{ID: vm.ID, Name: vm.Name, Owner: vm.Owner, Addresses: vm.Declared, SourceGuard: vm.SourceGuard}
	is, known := c.to.VM(vm.ID)
	if known {
		d.DoNotBlockUntil, d.SourceGuard = is.DoNotBlockUntil, fsm.SourceInherit // what is set stays
	}
	n, listed := c.to.Node(vm.Node)
	switch {
	case vm.Epoch == 0:
		return []fsm.Op{d}
	case listed && n.State == fsm.NodeRetired || vm.State == fsm.VMLost, known && (is.Epoch > vm.Epoch || is.Epoch == vm.Epoch && is.Node != vm.Node):
		d.Addresses = vm.AllAddresses()
		return []fsm.Op{d}
	}
	o := fsm.ObserveVM{ID: vm.ID, Name: vm.Name, Kind: vm.Kind, Node: vm.Node, Phase: fsm.PhaseRunning, NICs: vm.NICs, Epoch: vm.Epoch}
	if !listed || vm.State == fsm.VMStopped {
		o.Phase = fsm.PhaseStopped
	}
	return []fsm.Op{d, o}
}

// lists finds the lists that to lacks, wholly or in part, or does not load any more, and those that a guard cuts.
func (c *comparison) lists() {
	for list := range c.from.Lists("") {
		_, was, _ := c.from.List(list.Name)
		there, is, known := c.to.List(list.Name)
		if known && there.Revision > list.Revision {
			continue // to is the newer state
		}
		blocks := open(c.from, fsm.Target{List: list.Name})
		l := Loss{What: fmt.Sprintf("list %s, there ", list.Name), Agreed: !active(blocks)}
		if len(blocks) > 0 {
			l.What = fmt.Sprintf("list %s, held by %s, there ", list.Name, ids(blocks))
		}
		missing := uncovered(was, is)
		if lacks := listLacks(list, there, len(missing)); len(lacks) > 0 {
			lost := l
			lost.What, lost.ops = l.What+strings.Join(lacks, ", "), refill(list, missing)
			lost.Agreed = l.Agreed || len(missing) == 0
			c.out = append(c.out, lost)
		}
		if guard := c.guardIn(was); guard != "" && len(blocks) > 0 {
			l.What, l.Unkept = l.What+"has a part that is "+guard, unguard
			c.out = append(c.out, l)
		}
	}
}

// uncovered returns the prefixes of was that nothing in is covers.
func uncovered(was, is fsm.PrefixSet) (out []netip.Prefix) {
	if was.Hash() == is.Hash() {
		return nil
	}
	for p := range was.All() {
		if _, covered := is.Covering(p); !covered {
			out = append(out, p)
		}
	}
	return out
}

// listLacks says what a list has in from and not in to, where it is nil if it is not known.
func listLacks(was, there *fsm.List, missing int) (lacks []string) {
	if there == nil {
		return []string{fmt.Sprintf("is not known, with %d prefixes", missing)}
	}
	if missing > 0 {
		lacks = append(lacks, fmt.Sprintf("lacks %d prefixes", missing))
	}
	if was.Source != (fsm.ListSource{}) && was.Source != there.Source {
		lacks = append(lacks, "is not loaded from "+was.Source.URL)
	}
	return lacks
}

// refill returns the ops that put prefixes into a list, which they make if need be.
func refill(list *fsm.List, missing []netip.Prefix) []fsm.Op {
	ops := []fsm.Op{fsm.DescribeList{Name: list.Name, Owner: &list.Owner, Note: &list.Note, Source: &list.Source}}
	for part := range slices.Chunk(missing, fsm.MaxListPatch) {
		var packed []byte
		for _, p := range part {
			packed = fsm.AppendPacked(packed, p)
		}
		ops = append(ops, fsm.PatchList{Name: list.Name, Add: packed, Force: true})
	}
	return ops
}

// promises finds the times before which a VM or an account is not to be blocked, and to would block.
func (c *comparison) promises() {
	lost := func(what string, until time.Time, op fsm.Op) {
		c.out = append(c.out, Loss{What: fmt.Sprintf("%s is not to be blocked for %s before %s", what, fsm.ReasonUnpaid, stamp(until)), Agreed: true, ops: []fsm.Op{op}})
	}
	for vm := range c.from.VMs("") {
		is, known := c.to.VM(vm.ID)
		if vm.DoNotBlockUntil.IsZero() || known && (is.Revision > vm.Revision || !is.DoNotBlockUntil.Before(vm.DoNotBlockUntil)) {
			continue
		}
		op, _ := c.declare(vm)[0].(fsm.DeclareVM)
		op.DoNotBlockUntil = vm.DoNotBlockUntil
		lost("VM "+vm.ID, vm.DoNotBlockUntil, op)
	}
	for a := range c.from.Accounts("") {
		is, known := c.to.Account(a.ID)
		if a.DoNotBlockUntil.IsZero() || known && (is.Revision > a.Revision || !is.DoNotBlockUntil.Before(a.DoNotBlockUntil)) {
			continue
		}
		lost("account "+a.ID, a.DoNotBlockUntil, fsm.PutAccount{ID: a.ID, DoNotBlockUntil: a.DoNotBlockUntil, Note: a.Note})
	}
}

// guards finds those that to lacks.
func (c *comparison) guards() {
	there := guardsOf(c.to)
	for g := range c.from.Guards() {
		if there[guardKey{g.Prefix, g.VM}] {
			continue
		}
		l := Loss{What: guardText(g) + ": it could be blocked", Agreed: true}
		if vm, known := c.from.VM(g.VM); known {
			if _, has := c.to.VM(vm.ID); !has {
				l.ops = c.declare(vm)
			}
		}
		l.ops = append(l.ops, fsm.PutGuard{Prefix: g.Prefix, VM: g.VM, Note: g.Note})
		c.out = append(c.out, l)
	}
}

// guardKey is what a guard stands for.
type guardKey struct {
	prefix netip.Prefix
	vm     string
}

func guardsOf(v *fsm.View) map[guardKey]bool {
	out := map[guardKey]bool{}
	for g := range v.Guards() {
		out[guardKey{g.Prefix, g.VM}] = true
	}
	return out
}

func guardText(g *fsm.Guard) string {
	what := "VM " + g.VM
	if g.VM == "" {
		what = g.Prefix.String()
	}
	if g.Note == "" {
		return "guard of " + what
	}
	return fmt.Sprintf("guard of %s (%s)", what, g.Note)
}

// newlyGuarded returns what to guards and from does not.
func newlyGuarded(from, to *fsm.View) (out []fsm.GuardedPrefix) {
	before := map[netip.Prefix]bool{}
	for _, g := range from.GuardedPrefixes() {
		before[g.Prefix] = true
	}
	for _, g := range to.GuardedPrefixes() {
		if !before[g.Prefix] {
			out = append(out, g)
		}
	}
	return out
}

// guardOn says by what a part of the prefix is guarded in to alone, empty if by nothing.
func (c *comparison) guardOn(p netip.Prefix) string {
	for _, g := range c.guarded {
		if p.IsValid() && g.Prefix.Overlaps(p) {
			return guardedBy(g)
		}
	}
	return ""
}

// guardIn is guardOn for a list.
func (c *comparison) guardIn(set fsm.PrefixSet) string {
	for _, g := range c.guarded {
		if set.Overlaps(g.Prefix) {
			return guardedBy(g)
		}
	}
	return ""
}

func guardedBy(g fsm.GuardedPrefix) string { return fmt.Sprintf("guarded (%s: %s)", g.Prefix, g.Why) }

// open returns the holds on exactly this target that are in force or have yet to start.
func open(v *fsm.View, t fsm.Target) (out []*fsm.Block) {
	for b := range v.OpenOn(t) {
		out = append(out, b)
	}
	return out
}

// active says whether one of the holds is in force.
func active(blocks []*fsm.Block) bool {
	return slices.ContainsFunc(blocks, func(b *fsm.Block) bool { return b.State == fsm.BlockActive })
}

func ids(blocks []*fsm.Block) string {
	var out []string
	for _, b := range blocks {
		if !slices.Contains(out, b.ID) {
			out = append(out, b.ID)
		}
	}
	return strings.Join(out, ", ")
}
