package fsm

import (
	"bytes"
	"cmp"
	"fmt"
	"net/netip"
	"slices"
	"strings"
)

func (a *applier) declareVM(op DeclareVM) (*VM, *Error) {
	if refused := first(
		checkID("id", op.ID),
		checkText("name", op.Name, MaxNameBytes),
		checkText("owner", op.Owner, MaxNameBytes),
		checkCount("addresses", len(op.Addresses), MaxVMAddresses),
		checkSourceGuard(op.SourceGuard),
	); refused != nil {
		return nil, refused
	}
	for _, p := range op.Addresses {
		if refused := checkPrefix("addresses", p); refused != nil {
			return nil, refused
		}
		if isLinkLocal(p) {
			continue // nobody can block it; it tells a source guard what the VM may use
		}
		if refused := a.guardSet().fixed.refuse("addresses", p); refused != nil {
			return nil, refused
		}
	}
	was, known := a.vms.get([]byte(op.ID))
	vm := &VM{ID: op.ID, State: VMDeclared}
	if known {
		*vm = *was
	}
	if refused := checkRevision(op.IfRevision, vm.Revision); refused != nil {
		return nil, refused
	}
	if op.Name != "" {
		vm.Name = op.Name
	}
	vm.Owner = op.Owner
	vm.DoNotBlockUntil = utc(op.DoNotBlockUntil)
	vm.Declared = sortedSet(op.Addresses, comparePrefix)
	switch op.SourceGuard {
	case SourceInherit: // what is set stays
	case SourceReset:
		vm.SourceGuard = SourceInherit
	default:
		vm.SourceGuard = op.SourceGuard
	}
	if known && equalVMs(was, vm) {
		return was, nil
	}
	if refused := a.checkGuarding(was, vm); refused != nil {
		return nil, refused
	}
	vm.Revision = a.index
	a.setVM(was, vm)
	a.emit(Event{Type: EventVMDeclared, VM: vm})
	a.postpone(Target{VM: vm.ID})
	if vm.Owner != "" {
		a.postpone(Target{Account: vm.Owner})
	}
	return vm, nil
}

// checkGuarding refuses a guarded VM an address that is held: the guard would lift the hold.
func (a *applier) checkGuarding(was, is *VM) *Error {
	if _, guarded := a.guards.get(vmGuardKey(is.ID)); !guarded {
		return nil
	}
	for _, p := range is.Declared {
		if was != nil && slices.Contains(was.Declared, p) {
			continue
		}
		if b := a.openWithin(p); b != nil {
			return &Error{CodeGuardConflict, "addresses",
				fmt.Sprintf("block %s on %s is inside %s, and VM %s is guarded; lift it first", b.ID, b.Target, p, is.ID)}
		}
	}
	return nil
}

func (a *applier) observeVM(op ObserveVM) (*VM, *Error) {
	if refused := checkObservation(op); refused != nil {
		return nil, refused
	}
	if n, ok := a.nodes.get([]byte(op.Node)); ok && !n.Member() {
		return nil, &Error{CodeNodeRetired, "node", "node " + op.Node + " was retired"}
	}
	was, known := a.vms.get([]byte(op.ID))
	if !known {
		if op.Phase == PhaseGone {
			return nil, &Error{CodeNotFound, "id", "there is no VM " + op.ID}
		}
		was = &VM{ID: op.ID, State: VMDeclared}
	}
	if op.Migration == MigrationSettled {
		return a.settleMigration(was, op)
	}
	if refused := checkFresh(was, op); refused != nil {
		return nil, refused
	}
	vm := *was
	vm.Name = cmp.Or(cleanName(op.Name), vm.Name)
	vm.Kind = cmp.Or(op.Kind, vm.Kind)
	vm.Epoch = op.Epoch
	place(&vm, op, op.Epoch > was.Epoch)
	if n, ok := a.nodes.get([]byte(vm.Node)); ok && !n.Member() && vm.State != VMMigrating {
		vm.State = VMLost // its flight from a node that was retired has failed
	}
	vm.Migration = migrate(was, &vm, op, fromNanos(a.time))
	if known && equalVMs(was, &vm) {
		return was, nil
	}
	vm.Revision = a.index
	if known {
		a.setVM(was, &vm)
	} else {
		a.setVM(nil, &vm)
	}
	event := Event{Type: EventVMObserved, VM: &vm}
	switch {
	case vm.State == VMMigrating && vm.Destination != was.Destination:
		event.Type = EventVMMigrating
	case was.Node != "" && vm.Node != was.Node:
		event.Type = EventVMMoved
	case !sameMigration(vm.Migration, was.Migration):
		event.Type = EventVMMigration
	}
	a.emit(event)
	return &vm, nil
}

func checkObservation(op ObserveVM) *Error {
	if refused := first(
		checkID("id", op.ID),
		checkWord("kind", op.Kind),
		checkID("node", op.Node),
		checkCount("nics", len(op.NICs), MaxNICs),
	); refused != nil {
		return refused
	}
	if op.Phase == "" {
		return &Error{CodeInvalid, "phase", "is missing"}
	}
	if op.Epoch == 0 {
		return &Error{CodeInvalid, "epoch", "is missing; the first claim of a VM has epoch 1"}
	}
	switch op.Migration {
	case "":
	case MigrationArmed:
		if op.Phase != PhaseIncoming {
			return &Error{CodeInvalid, "migration", "is armed of a VM that is not incoming"}
		}
	case MigrationSettled:
		if !ending(op.Phase) {
			return &Error{CodeInvalid, "migration", "is settled of a VM that has not gone"}
		}
	default:
		return &Error{CodeInvalid, "migration", "is none that a node reports: " + quote(string(op.Migration))}
	}
	for i := range op.NICs {
		if refused := checkTap(fmt.Sprintf("nics[%d].tap", i), op.NICs[i].Tap); refused != nil {
			return refused
		}
	}
	return nil
}

// checkFresh refuses what is older than what is known, and the word of a node that neither holds nor
// expects the VM about its end: a definition left behind on an old node must not stop a VM that runs
// elsewhere.
func checkFresh(vm *VM, op ObserveVM) *Error {
	party := op.Node == vm.Node || op.Node == vm.Destination
	stale := func(why string) *Error {
		return &Error{CodeStale, "epoch", fmt.Sprintf("%s; epoch %d was reported by node %s, VM %s is at epoch %d (node %s)",
			why, op.Epoch, op.Node, vm.ID, vm.Epoch, quote(vm.Node))}
	}
	switch {
	case op.Epoch < vm.Epoch, op.Epoch == vm.Epoch && !party:
		return stale("the observation is older than what is known")
	case ending(op.Phase) && !party && (vm.State == VMRunning || vm.State == VMMigrating || vm.State == VMLost):
		return stale("the VM is on another node")
	}
	return nil
}

func ending(p Phase) bool { return p == PhaseStopped || p == PhaseGone }

// place changes where the VM is. claim says that the epoch is new: a claim also ends a flight that
// the node it leaves knows to have failed, where a mere report of that node does not.
func place(vm *VM, op ObserveVM, claim bool) {
	nics := cleanNICs(op.NICs)
	flying := vm.State == VMMigrating
	arriving := flying && op.Node == vm.Destination && op.Node != vm.Node
	leaving := flying && op.Node == vm.Node && !claim
	switch op.Phase {
	case PhaseRunning:
		vm.NICs = nics
		if !leaving {
			vm.Node, vm.Destination, vm.State = op.Node, "", VMRunning
		}
	case PhaseIncoming:
		// The interfaces of the node it runs on stay; the taps at the destination are that node's
		// own business until the VM runs there.
		vm.NICs = joinNICs(vm.NICs, nics)
		if op.Node != vm.Node {
			vm.Destination, vm.State = op.Node, VMMigrating
		}
	case PhaseStopped, PhaseGone:
		switch {
		case leaving: // it is in flight: the destination knows more
		case arriving && !landing(vm, op.Phase):
			vm.Destination, vm.State = "", grounded(vm)
		case op.Phase == PhaseGone && op.Node != vm.Node: // it was never known to be there
		default:
			if len(nics) > 0 {
				vm.NICs = nics
			}
			vm.NICs = withoutTaps(vm.NICs)
			vm.Node, vm.Destination, vm.State = op.Node, "", VMStopped
		}
	}
}

// grounded is what a VM is whose flight has come to nothing.
func grounded(vm *VM) VMState {
	switch {
	case vm.Node == "":
		return VMDeclared
	case vm.Migration != nil && vm.Migration.Cold:
		return VMStopped
	}
	return VMRunning
}

// cleanNICs brings interfaces to one form: sorted, addresses sorted without repeats. What a guest can
// choose is never refused, only bounded: addresses beyond MaxVMAddresses are left out, and so are
// invalid ones. A group MAC becomes zero: no host owns one, and dropping it would hit others.
func cleanNICs(in []NIC) []NIC {
	if len(in) == 0 {
		return nil
	}
	const group = 1 // bit of the first byte: multicast and broadcast
	out := make([]NIC, len(in))
	for i, n := range in {
		if n.MAC[0]&group != 0 {
			n.MAC = MAC{}
		}
		if n.Network != "" && checkWord("network", n.Network) != nil {
			n.Network = NetworkUnknown
		}
		n.Addresses = cleanAddrsLoose(n.Addresses)
		out[i] = n
	}
	slices.SortFunc(out, compareNIC)
	return boundAddresses(out)
}

func boundAddresses(nics []NIC) []NIC {
	room := MaxVMAddresses
	for i := range nics {
		n := min(room, len(nics[i].Addresses))
		nics[i].Addresses = nics[i].Addresses[:n:n]
		if n == 0 {
			nics[i].Addresses = nil
		}
		room -= n
	}
	return nics
}

// joinNICs adds those of more whose MAC is not known yet, without their taps.
func joinNICs(nics, more []NIC) []NIC {
	out := slices.Clone(nics)
	for _, n := range withoutTaps(more) {
		known := slices.ContainsFunc(nics, func(k NIC) bool { return k.MAC == n.MAC })
		if !known && len(out) < MaxNICs {
			out = append(out, n)
		}
	}
	slices.SortFunc(out, compareNIC)
	return boundAddresses(out)
}

// withoutTaps is for a VM that does not run: the host may give the name to another guest's interface.
func withoutTaps(nics []NIC) []NIC {
	out := slices.Clone(nics)
	for i := range out {
		out[i].Tap, out[i].Network = "", ""
	}
	slices.SortFunc(out, compareNIC)
	return out
}

func compareNIC(a, b NIC) int {
	return cmp.Or(bytes.Compare(a.MAC[:], b.MAC[:]), strings.Compare(a.Tap, b.Tap), strings.Compare(a.Network, b.Network),
		slices.CompareFunc(a.Addresses, b.Addresses, netip.Addr.Compare))
}

func equalVMs(a, b *VM) bool {
	return a.ID == b.ID && a.Name == b.Name && a.Kind == b.Kind && a.Owner == b.Owner &&
		a.Node == b.Node && a.Destination == b.Destination && a.State == b.State &&
		a.Epoch == b.Epoch && a.Revision == b.Revision && a.DoNotBlockUntil.Equal(b.DoNotBlockUntil) && a.SourceGuard == b.SourceGuard && sameMigration(a.Migration, b.Migration) &&
		slices.Equal(a.Declared, b.Declared) &&
		slices.EqualFunc(a.NICs, b.NICs, func(x, y NIC) bool {
			return x.MAC == y.MAC && x.Tap == y.Tap && x.Network == y.Network && slices.Equal(x.Addresses, y.Addresses)
		})
}
