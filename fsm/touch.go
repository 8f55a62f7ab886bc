package fsm

import (
	"cmp"
	"fmt"
	"iter"
	"math"
	"net/netip"
	"slices"
	"strconv"
	"time"
)

// Account returns what is set for an account.
func (v *View) Account(id string) (*Account, bool) { return v.accounts.get([]byte(id)) }

// Accounts walks the accounts for which something is set, by id, after the one given ("" for all).
func (v *View) Accounts(after string) iter.Seq[*Account] {
	return func(yield func(*Account) bool) {
		for a := range v.accounts.from([]byte(after)) {
			if a.ID != after && !yield(a) {
				return
			}
		}
	}
}

// Settings returns the fleet's settings.
func (v *View) Settings() Settings { return v.currentSettings() }

// VMsOf walks the VMs of an account, by id.
func (v *View) VMsOf(owner string) iter.Seq[*VM] { return v.vmsOf(owner) }

func (s *state) vmsOf(owner string) iter.Seq[*VM] {
	if owner == "" {
		return func(func(*VM) bool) {}
	}
	return s.owners.under(groupKey(owner))
}

// VMsWithin walks the VMs that have an address inside the prefix or a declared prefix around it, each
// once, in no order.
func (v *View) VMsWithin(p netip.Prefix) iter.Seq[*VM] { return v.vmsWithin(p) }

func (s *state) vmsWithin(p netip.Prefix) iter.Seq[*VM] {
	return func(yield func(*VM) bool) {
		seen := map[string]bool{}
		once := func(vm *VM) bool {
			if seen[vm.ID] {
				return true
			}
			seen[vm.ID] = true
			return yield(vm)
		}
		for wide := range s.vmLengths.around(p) {
			for at := range s.addresses.under(prefixKey(wide)) {
				if !once(at.vm) {
					return
				}
			}
		}
		for at := range s.addresses.from(prefixKey(p)) {
			if !p.Contains(at.prefix.Addr()) || !once(at.vm) {
				return
			}
		}
	}
}

// Due walks the blocks that start or end by themselves, by the time of Block.Due.
func (v *View) Due() iter.Seq[*Block] { return v.due.all() }

// DueAfter is Due from the place of one block on, that block left out.
func (v *View) DueAfter(due time.Time, id string) iter.Seq[*Block] {
	number, _ := ParseBlockID(id)
	return func(yield func(*Block) bool) {
		for b := range v.due.from(dueKey(due, number)) {
			if (b.ID != id || !b.Due().Equal(due)) && !yield(b) {
				return
			}
		}
	}
}

// CountDue counts the blocks in Due.
func (v *View) CountDue() int { return v.due.n }

// CountPending counts the pending blocks.
func (v *View) CountPending() int { return v.pending.n }

// Impact is what a block on a target would touch.
type Impact struct {
	VMs       []string // ids, sorted, at most 1,000 of them; guarded VMs are left out
	CountVMs  int
	Nodes     []string // ids of the nodes on which those VMs run or arrive, sorted
	Addresses uint64   // of a prefix or a list; IPv6 in /64 networks
	// Guards stand against the target, or are cut out of it.
	Guards []GuardedPrefix
	// Overlaps are active and pending blocks that hold the same target, or a part of it, at most 1,000.
	Overlaps []*Block
}

const mostImpact = 1000 // listed of each sort

// Impact says what a block on the target would touch. The target is as in AddBlock; the error is the
// refusal of a target that can't be resolved. It costs a walk over what is touched.
func (v *View) Impact(t Target) (Impact, *Error) {
	if t.VM != "" && t.given() == 1 {
		vm, refused := v.ResolveVM("target.vm", t.VM)
		if refused != nil {
			return Impact{}, refused
		}
		t.VM = vm.ID
	}
	var i Impact
	nodes := map[string]bool{}
	overlaps := map[string]*Block{}
	for vm := range v.touched(t) {
		i.CountVMs++
		if len(i.VMs) < mostImpact {
			i.VMs = append(i.VMs, vm.ID)
		}
		for _, n := range []string{vm.Node, vm.Destination} {
			if n != "" {
				nodes[n] = true
			}
		}
		if len(overlaps) < mostImpact {
			for _, b := range v.Holding(vm) {
				overlaps[b.ID] = b
			}
		}
	}
	slices.Sort(i.VMs)
	for n := range nodes {
		i.Nodes = append(i.Nodes, n)
	}
	slices.Sort(i.Nodes)
	for b := range v.openOn(t) {
		overlaps[b.ID] = b
	}
	i.Guards = v.guardsOf(t)
	if t.List != "" {
		set, _ := v.contents.get([]byte(t.List))
		i.Addresses = set.Addresses(math.MaxUint64)
	}
	if t.Prefix.IsValid() {
		i.Addresses = addresses(t.Prefix)
		for wide := range v.lengths.around(t.Prefix) {
			for b := range v.active.under(targetKey(Target{Prefix: wide})) {
				overlaps[b.ID] = b
			}
		}
		v.activeWithin(t.Prefix, func(b *Block) bool { overlaps[b.ID] = b; return len(overlaps) < mostImpact })
	}
	for _, b := range overlaps {
		i.Overlaps = append(i.Overlaps, b)
	}
	slices.SortFunc(i.Overlaps, func(a, b *Block) int { return cmp.Compare(blockNumber(a), blockNumber(b)) })
	i.Overlaps = i.Overlaps[:min(len(i.Overlaps), mostImpact)]
	return i, nil
}

// guardsOf returns what is guarded of a prefix, or of the addresses of the VMs that the target names, guarded
// VMs among them.
func (v *View) guardsOf(t Target) []GuardedPrefix {
	var named []netip.Prefix
	vms := v.VMsOf(t.Account)
	if vm, ok := v.VM(t.VM); ok {
		vms = func(yield func(*VM) bool) { yield(vm) }
	}
	for vm := range vms {
		named = append(named, vm.AllAddresses()...)
	}
	if t.Prefix.IsValid() {
		named = append(named, t.Prefix)
	}
	var guards []GuardedPrefix
	for _, g := range v.guardSet().list {
		if slices.ContainsFunc(named, g.Prefix.Overlaps) && !slices.Contains(guards, g) && len(guards) < mostImpact {
			guards = append(guards, g)
		}
	}
	return guards
}

func blockNumber(b *Block) uint64 {
	n, _ := ParseBlockID(b.ID)
	return n
}

// addresses counts the addresses of a prefix, of IPv6 the /64 networks, and at least one.
func addresses(p netip.Prefix) uint64 {
	width := 32
	if p.Addr().Is6() {
		width = 64
	}
	return 1 << max(width-p.Bits(), 0)
}

// touched walks the VMs that a block on the target holds, guarded ones left out, each once.
func (s *state) touched(t Target) iter.Seq[*VM] {
	switch {
	case t.VM != "":
		return s.unguarded(func(yield func(*VM) bool) {
			if vm, ok := s.vms.get([]byte(t.VM)); ok {
				yield(vm)
			}
		})
	case t.Account != "":
		return s.unguarded(s.vmsOf(t.Account))
	case t.Prefix.IsValid():
		return s.unguarded(s.vmsWithin(t.Prefix))
	case t.List != "":
		set, _ := s.contents.get([]byte(t.List))
		return s.unguarded(s.vmsListed(set))
	}
	return func(func(*VM) bool) {}
}

// unguarded leaves the VMs out that can never be blocked.
func (s *state) unguarded(all iter.Seq[*VM]) iter.Seq[*VM] {
	return func(yield func(*VM) bool) {
		for vm := range all {
			if _, guarded := s.guards.get(vmGuardKey(vm.ID)); !guarded && !yield(vm) {
				return
			}
		}
	}
}

// checkTouched refuses what is wider than the settings allow, unless it is forced or has to be confirmed.
func (a *applier) checkTouched(op AddBlock, b *Block) *Error {
	if op.Force || op.ConfirmWithin > 0 || b.Target.VM != "" {
		return nil
	}
	most := a.currentSettings()
	tooMany := func(n uint64, what string, allowed uint64) *Error {
		return &Error{CodeTooMany, "target", fmt.Sprintf(
			"%s touches %s %s, at most %d are allowed without confirmation; give confirm_within, and confirm it in that time, or force",
			b.Target, atLeast(n, allowed), what, allowed)}
	}
	switch n := a.countTouched(b.Target, most); {
	case n.addresses > most.MaxAddresses:
		return tooMany(n.addresses, "addresses", most.MaxAddresses)
	case n.vms > most.MaxVMs:
		return tooMany(math.MaxUint64, "VMs", most.MaxVMs)
	}
	return nil
}

// checkWidened refuses a new content of a list that is held if its blocks touched no more than the settings
// allow, and would with that content. What was wide before was forced, or has to be confirmed.
func (s *state) checkWidened(name string, set PrefixSet) *Error {
	var holder *Block
	for b := range s.openOn(Target{List: name}) {
		holder = b
		break
	}
	if holder == nil {
		return nil
	}
	most := s.currentSettings()
	was, _ := s.contents.get([]byte(name))
	wider := func(what string, allowed uint64, count func(PrefixSet) uint64) *Error {
		if count(set) <= allowed || count(was) > allowed {
			return nil
		}
		return &Error{CodeTooMany, "prefixes", fmt.Sprintf(
			"block %s holds list %s and would touch more than %d %s, which is what is allowed without force", holder.ID, quote(name), allowed, what)}
	}
	return first(
		wider("addresses", most.MaxAddresses, func(p PrefixSet) uint64 { return p.Addresses(most.MaxAddresses) }),
		wider("VMs", most.MaxVMs, func(p PrefixSet) (n uint64) {
			for range s.unguarded(s.vmsListed(p)) {
				if n++; n > most.MaxVMs {
					break
				}
			}
			return n
		}),
	)
}

// Widened is the refusal of a new content of a list, see CommitList; nil if it is not refused.
func (v *View) Widened(name string, set PrefixSet) *Error { return v.checkWidened(name, set) }

// touches is how much a block on a target would touch. Of VMs no more are counted than one more than is allowed, and
// more addresses of a list than that are math.MaxUint64.
type touches struct{ vms, addresses uint64 }

// countTouched counts what a block on the target would touch. For a list that is a walk over its entries, or over the
// addresses of all VMs, so it is remembered until something changes that it depends on: a bulk request may have
// thousands of blocks on one list.
func (a *applier) countTouched(t Target, most Settings) (n touches) {
	if n, ok := a.listed[t.List]; ok && t.List != "" {
		return n
	}
	for range a.touched(t) {
		if n.vms++; n.vms > most.MaxVMs {
			break
		}
	}
	if t.Prefix.IsValid() {
		n.addresses = addresses(t.Prefix)
	}
	if t.List != "" {
		set, _ := a.contents.get([]byte(t.List))
		if n.addresses = set.Addresses(most.MaxAddresses); n.addresses > most.MaxAddresses {
			n.addresses = math.MaxUint64
		}
		if a.listed == nil {
			a.listed = map[string]touches{}
		}
		a.listed[t.List] = n
	}
	return n
}

func atLeast(n, allowed uint64) string {
	if n == math.MaxUint64 {
		return fmt.Sprintf("more than %d", allowed)
	}
	return strconv.FormatUint(n, 10)
}

// openOn walks the active and pending blocks on exactly this target.
func (s *state) openOn(t Target) iter.Seq[*Block] {
	return func(yield func(*Block) bool) {
		if t.given() != 1 {
			return
		}
		for _, in := range []*table[*Block]{&s.active, &s.pending} {
			for b := range in.under(targetKey(t)) {
				if !yield(b) {
					return
				}
			}
		}
	}
}

// OpenOn walks the active and pending blocks on exactly this target.
func (v *View) OpenOn(t Target) iter.Seq[*Block] { return v.openOn(t) }

// GuardedVMs returns the VMs that can never be blocked, by id, with the notes of their guards. The
// result is shared and must not be changed.
func (v *View) GuardedVMs() map[string]string { return v.guardSet().vms }
