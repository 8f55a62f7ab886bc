package enforce

import (
	"cmp"
	"fmt"
	"iter"
	"net/netip"
	"slices"

	"github.com/palisade/palisade/fsm"
)

const (
	protocolTCP = 6
	portHTTP    = 80
)

// Explain says what the node does with a packet that comes by, and which blocks make it do so. It
// looks at the view and at what the node knows of itself, like Compile; a property test compares it with the kernel.
//
// Only what is given of the packet can match. An address that is a VM's is taken to be used by that VM: then the VM
// is held by its interfaces, if it is on this node, and else by its addresses. It costs lookups by the
// two addresses, however many blocks there are, and two searches in each list that is held.
func Explain(v *fsm.View, l Local, p fsm.Packet) fsm.Explanation {
	e := explainer{view: v, local: l, packet: p, guards: newGuards(v, l)}
	if p.Src.IsValid() {
		e.end(p.Src.Unmap(), fsm.Out)
	}
	if p.Dst.IsValid() {
		e.end(p.Dst.Unmap(), fsm.In)
	}
	slices.SortStableFunc(e.holds, func(a, b explained) int { return cmp.Compare(a.rank, b.rank) })
	out := fsm.Explanation{Verdict: fsm.VerdictPass, Why: "no hold treats it", Guards: e.exempt}
	for i, h := range e.holds {
		if i == 0 && h.Treats {
			out.Verdict, out.Why = h.verdict, fmt.Sprintf("block %s on %s: %s", h.Block, h.target, h.why)
		}
		out.Holds = append(out.Holds, h.ExplainedHold)
	}
	return out
}

type explainer struct {
	view    *fsm.View
	local   Local
	packet  fsm.Packet
	guards  *guards
	guarded bool // the address of the end that is looked at
	holds   []explained
	exempt  []string
}

// explained is a hold with what it makes of the packet.
type explained struct {
	fsm.ExplainedHold
	target  fsm.Target
	verdict fsm.Verdict
	why     string
	rank    int // in the order of the rules in the kernel
}

// visited says that the packet is for a VM that is known, whose node can answer.
func (e *explainer) visited() bool {
	for range e.view.VMsWithin(netip.PrefixFrom(e.packet.Dst, e.packet.Dst.BitLen())) {
		return true
	}
	return false
}

// end finds what holds one end of the packet, seen from which it goes in a direction.
func (e *explainer) end(addr netip.Addr, d fsm.Direction) {
	single := netip.PrefixFrom(addr, addr.BitLen())
	guarded := e.guards.addresses.Contains(addr)
	e.guarded = guarded
	if guarded {
		e.sayGuards(addr)
	}
	for vm := range e.vmsAt(single) {
		if note, ok := e.guards.vms[vm.ID]; ok {
			if e.heldVM(vm) {
				e.say("VM " + vm.ID + ": " + cmp.Or(note, "guard"))
			}
			continue
		}
		here, known := e.links(vm)
		for b := range e.onVM(vm) {
			// Interfaces are held although the address is guarded. What counts packets is bound to the interfaces
			// alone, if any is known.
			counts := e.local.kindOf(b) == fsm.Limit && known
			if here || !guarded && !counts {
				e.add(b, d, addr.String()+" of VM "+vm.ID)
			}
		}
	}
	if guarded {
		return
	}
	for bits := addr.BitLen(); bits > 0; bits-- {
		p, _ := addr.Prefix(bits) // the only errors are those of bits out of range
		for b := range e.view.OpenOn(fsm.Target{Prefix: p}) {
			e.add(b, d, p.String())
		}
	}
	for b := range e.view.HeldLists() {
		if _, set, ok := e.view.List(b.Target.List); ok {
			if p, ok := set.Covering(single); ok {
				e.add(b, d, p.String()+" in list "+b.Target.List)
			}
		}
	}
}

// vmsAt walks the VMs that have an address: by the log, or by this node's own hypervisor.
func (e *explainer) vmsAt(single netip.Prefix) iter.Seq[*fsm.VM] {
	return func(yield func(*fsm.VM) bool) {
		seen := map[string]bool{}
		for vm := range e.view.VMsWithin(single) {
			seen[vm.ID] = true
			if !yield(vm) {
				return
			}
		}
		for id, nics := range e.local.NICs.All() {
			vm, ok := e.view.VM(id)
			has := slices.ContainsFunc(nics, func(n fsm.NIC) bool { return slices.Contains(n.Addresses, single.Addr()) })
			if ok && has && !seen[id] && !yield(vm) {
				return
			}
		}
	}
}

// onVM walks the blocks on a VM or its account.
func (e *explainer) onVM(vm *fsm.VM) iter.Seq[*fsm.Block] {
	return func(yield func(*fsm.Block) bool) {
		for b := range e.view.OpenOn(fsm.Target{VM: vm.ID}) {
			if !yield(b) {
				return
			}
		}
		if vm.Owner == "" {
			return
		}
		for b := range e.view.OpenOn(fsm.Target{Account: vm.Owner}) {
			if !yield(b) {
				return
			}
		}
	}
}

func (e *explainer) heldVM(vm *fsm.VM) bool {
	for b := range e.onVM(vm) {
		if e.local.inForce(b) {
			return true
		}
	}
	return false
}

// links says whether the VM has an interface on this node by which it can be held, and whether one is
// known at all.
func (e *explainer) links(vm *fsm.VM) (here, known bool) {
	for _, n := range e.local.NICs.Get(vm.ID) {
		here = here || e.guards.allowsTap(n.Tap) || e.guards.allows(n.MAC)
	}
	known = here || slices.ContainsFunc(vm.NICs, func(n fsm.NIC) bool { return e.guards.allows(n.MAC) })
	return here, known
}

// The ranks of what is done, the strictest first.
const (
	rankDrop = iota
	rankPorts
	rankReject
	rankSilence  // what a redirected target sends
	rankRedirect // a visitor's request
	rankUnasked  // what else comes to a redirected target
	rankLimit
	rankIdle // ports of others
)

// add notes a block whose target is an end of the packet, which goes in a direction as seen from it.
func (e *explainer) add(b *fsm.Block, d fsm.Direction, by string) {
	if !e.local.inForce(b) || b.Direction == fsm.In && d == fsm.Out || b.Direction == fsm.Out && d == fsm.In {
		return
	}
	if slices.ContainsFunc(e.holds, func(h explained) bool { return h.Block == b.ID && h.Direction == d }) {
		return
	}
	kind := e.local.kindOf(b)
	if b.Target.List != "" {
		kind = fsm.Drop
	}
	h := explained{
		ExplainedHold: fsm.ExplainedHold{
			Block: b.ID, Kind: kind, Direction: d, By: by, Treats: true, Started: b.State == fsm.BlockPending, Since: b.Since(),
		},
		target: b.Target,
	}
	if h.Started {
		h.Since = b.StartsAt
	}
	http := e.packet.Protocol == protocolTCP && e.packet.DstPort == portHTTP && !e.guarded && (!b.Target.Prefix.IsValid() || e.visited())
	switch {
	case kind == fsm.Drop && b.Kind != fsm.Drop:
		h.rank, h.verdict, h.why = rankDrop, fsm.VerdictDrop, fmt.Sprintf("everything is dropped, because this node can't %s", b.Kind)
	case kind == fsm.Drop:
		h.rank, h.verdict, h.why = rankDrop, fsm.VerdictDrop, "everything is dropped"
	case kind == fsm.Ports && e.toPorts(b):
		h.rank, h.verdict, h.why = rankPorts, fsm.VerdictDrop, "this protocol and port is dropped"
	case kind == fsm.Ports:
		h.rank, h.Treats = rankIdle, false
	case kind == fsm.Reject:
		h.rank, h.verdict, h.why = rankReject, fsm.VerdictReject, "everything is answered with a reset or ICMP"
	case kind == fsm.Redirect && d == fsm.Out:
		h.rank, h.verdict, h.why = rankSilence, fsm.VerdictDrop, "what a redirected target sends is dropped"
	case kind == fsm.Redirect && http:
		h.rank, h.verdict, h.why = rankRedirect, fsm.VerdictRedirect, "HTTP requests are answered by the node"
	case kind == fsm.Redirect:
		h.rank, h.verdict, h.why = rankUnasked, fsm.VerdictDrop, "what is no HTTP request to a redirected target is dropped"
	default:
		h.rank, h.verdict, h.why = rankLimit, fsm.VerdictLimit, "what exceeds the rate is dropped"
	}
	e.holds = append(e.holds, h)
}

func (e *explainer) toPorts(b *fsm.Block) bool {
	return slices.ContainsFunc(b.Ports, func(r fsm.PortRange) bool {
		whole := r.First == 0 && r.Last == 0
		return r.Protocol == e.packet.Protocol && (whole || r.First <= e.packet.DstPort && e.packet.DstPort <= r.Last)
	})
}

func (e *explainer) say(guard string) {
	if !slices.Contains(e.exempt, guard) {
		e.exempt = append(e.exempt, guard)
	}
}

func (e *explainer) sayGuards(addr netip.Addr) {
	before := len(e.exempt)
	for _, g := range e.view.GuardedPrefixes() {
		if plain(g.Prefix).Contains(addr) {
			e.say(g.Prefix.String() + ": " + g.Why)
		}
	}
	for _, g := range e.local.Guards {
		if plain(g).Contains(addr) {
			e.say(g.String() + ": guard of this node")
		}
	}
	if len(e.exempt) == before {
		e.say(addr.String() + ": address of a guarded VM")
	}
}
