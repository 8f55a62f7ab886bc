package fsm

import (
	"cmp"
	"fmt"
	"iter"
	"net/netip"
	"slices"
	"strings"
	"time"
)

// View is the state at one log index. It is immutable and safe for any number of goroutines; objects
// it returns must not be changed.
type View struct {
	state
	restored   uint64        // how many times the store was restored
	superseded chan struct{} // closed once a newer View is current
}

// Index is the log index of the last entry applied.
func (v *View) Index() uint64 { return v.index }

// Time is the state time: the latest leader's stamp applied.
func (v *View) Time() time.Time { return fromNanos(v.time) }

// Node returns a node by id.
func (v *View) Node(id string) (*Node, bool) { return v.nodes.get([]byte(id)) }

// Nodes walks all nodes by id.
func (v *View) Nodes() iter.Seq[*Node] { return v.nodes.all() }

// VM returns a VM by id.
func (v *View) VM(id string) (*VM, bool) { return v.vms.get([]byte(id)) }

// ResolveVM returns the VM that ref names: by id, else by unique name. The error has CodeNotFound or
// CodeAmbiguous, the field given, and lists the ids that share the name.
func (v *View) ResolveVM(field, ref string) (*VM, *Error) { return v.resolveVM(field, ref) }

func (s *state) resolveVM(field, ref string) (*VM, *Error) {
	if vm, ok := s.vms.get([]byte(ref)); ok {
		return vm, nil
	}
	named := s.namedBy(ref)
	switch len(named) {
	case 0:
		return nil, &Error{CodeNotFound, field, "no VM has the id or name " + quote(ref)}
	case 1:
		return named[0], nil
	}
	const most = 10 // enough to choose from
	var ids []string
	for _, vm := range named[:min(most, len(named))] {
		ids = append(ids, vm.ID)
	}
	if len(named) > most {
		ids = append(ids, fmt.Sprintf("and %d more", len(named)-most))
	}
	return nil, &Error{CodeAmbiguous, field,
		fmt.Sprintf("%d VMs have the name %s; use an id: %s", len(named), quote(ref), strings.Join(ids, ", "))}
}

// VMs walks all VMs by id, starting after the id given ("" for all).
func (v *View) VMs(after string) iter.Seq[*VM] {
	return func(yield func(*VM) bool) {
		for vm := range v.vms.from([]byte(after)) {
			if vm.ID != after && !yield(vm) {
				return
			}
		}
	}
}

// VMsOn walks the VMs whose Node or Destination is the node.
func (v *View) VMsOn(node string) iter.Seq[*VM] { return v.places.under(groupKey(node)) }

// VMsWithHardware walks the VMs that have an interface whose hardware address ends in the same five
// bytes, by id. Hypervisors give the host's side of an interface the guest's address with another
// first byte.
func (v *View) VMsWithHardware(m MAC) iter.Seq[*VM] { return v.hardware.under(hardwareKey(m, "")) }

// CountVMs counts the VMs, declared or observed. Like the other counts it walks nothing.
func (v *View) CountVMs() int { return v.vms.n }

// CountBlocks counts the retained blocks, whatever their state.
func (v *View) CountBlocks() int { return v.blocks.n }

// CountActive counts the active blocks.
func (v *View) CountActive() int { return v.active.n }

// Block returns a retained block by id.
func (v *View) Block(id string) (*Block, bool) { return v.block(id) }

// Blocks walks all retained blocks, whatever their state, in the order of their creation, after the id given ("" for all).
// It walks none after what is no block id.
func (v *View) Blocks(after string) iter.Seq[*Block] {
	if after == "" {
		return v.blocks.all()
	}
	number, ok := ParseBlockID(after)
	if !ok || number+1 == 0 {
		return func(func(*Block) bool) {}
	}
	return v.blocks.from(numberKey(number + 1))
}

// ActiveOn walks the active blocks on exactly this target, in the order of their creation.
func (v *View) ActiveOn(t Target) iter.Seq[*Block] {
	if t.given() != 1 {
		return func(func(*Block) bool) {}
	}
	return v.active.under(targetKey(t))
}

// Holding returns the active blocks that hold the VM: on the VM itself, on its account, on a list that names one
// of its addresses, or on a prefix that covers one of them or that one of its declared prefixes covers. In the order of their creation.
// It costs lookups by the VM's addresses and the prefix lengths in use, however many blocks there are.
func (v *View) Holding(vm *VM) []*Block {
	blocks := slices.Collect(v.ActiveOn(Target{VM: vm.ID}))
	if vm.Owner != "" {
		blocks = slices.AppendSeq(blocks, v.ActiveOn(Target{Account: vm.Owner}))
	}
	collect := func(b *Block) bool { blocks = append(blocks, b); return true }
	seen := make(map[netip.Prefix]bool)
	all := vm.AllAddresses()
	blocks = append(blocks, v.listsHolding(all)...)
	for _, p := range all {
		for wide := range v.lengths.around(p) {
			if !seen[wide] {
				seen[wide] = true
				v.ActiveOn(Target{Prefix: wide})(collect)
			}
		}
		if !p.IsSingleIP() {
			v.activeWithin(p, collect)
		}
	}
	slices.SortFunc(blocks, func(a, b *Block) int { return cmp.Compare(blockNumber(a), blockNumber(b)) })
	return slices.Compact(blocks)
}

// Guards walks the operators' guards: those of prefixes, by prefix, then those of VMs, by id.
func (v *View) Guards() iter.Seq[*Guard] { return v.guards.all() }
