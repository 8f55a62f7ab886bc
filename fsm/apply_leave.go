package fsm

import (
	"fmt"
	"slices"
)

// leaveOp applies what is about leaving the fleet and going on without what was lost, false for every other op.
func (a *applier) leaveOp(op Op) (r Result, ok bool) {
	r = Result{Index: a.index}
	switch op := op.(type) {
	case DrainNode:
		r.Node, r.Err = a.drainNode(op)
	case RetireNode:
		r.Node, r.Err = a.retireNode(op)
	case BeginEpoch:
		r.Fleet, r.Err = a.beginEpoch(&op)
	case SettleEpoch:
		r.Fleet, r.Err = a.settleEpoch(op)
	default:
		return r, false
	}
	return r, true
}

func (a *applier) drainNode(op DrainNode) (*Node, *Error) {
	was, refused := a.member(op.ID)
	if refused != nil {
		return nil, refused
	}
	state, event := NodeDrained, EventNodeDrained
	if op.Undo {
		state, event = NodeActive, EventNodeUndrained
	}
	if was.State == state {
		return was, nil
	}
	if !op.Undo && !a.otherActive(op.ID) {
		return nil, &Error{CodeConflict, "id", "no other node is left that could be a voter: node " + op.ID + " keeps its duty until another joins or is undrained"}
	}
	is := *was
	is.State = state
	return a.changeNode(was, &is, event), nil
}

// otherActive says whether a member that is not drained is left beside the one given.
func (s *state) otherActive(id string) bool {
	for n := range s.members() {
		if n.ID != id && n.State == NodeActive {
			return true
		}
	}
	return false
}

func (a *applier) retireNode(op RetireNode) (*Node, *Error) {
	was, refused := a.member(op.ID)
	switch {
	case refused != nil:
		return nil, refused
	case !a.otherActive(op.ID):
		return nil, &Error{CodeConflict, "id", "no other node is left that could be a voter: the fleet would end with node " + op.ID}
	case was.State != NodeDrained && !op.Force:
		return nil, &Error{CodeConflict, "id", fmt.Sprintf("node %s is in service; drain it first, or use force if it is gone for good", op.ID)}
	}
	return a.retire(was), nil
}

func (a *applier) retire(was *Node) *Node {
	is := *was
	is.State = NodeRetired
	is.RetiredAt = fromNanos(a.time)
	a.changeNode(was, &is, EventNodeRetired)
	for _, vm := range slices.Collect(a.places.under(groupKey(is.ID))) {
		a.lose(vm, is.ID)
	}
	return &is
}

// lose says of a VM that nobody can tell any more what became of it on a node. What holds it goes on holding it.
func (a *applier) lose(was *VM, node string) {
	vm := *was
	event := EventVMLost
	if vm.Node == node {
		vm.State, vm.Destination, vm.NICs = VMLost, "", withoutTaps(was.NICs)
	} else { // it was in flight to the node
		vm.State, vm.Destination, event = VMRunning, "", EventVMObserved
		if vm.Node == "" {
			vm.State = VMDeclared
		}
	}
	if m := was.Migration; m != nil && m.Phase.Open() {
		vm.Migration = m.in(MigrationAborted, fromNanos(a.time))
		if event == EventVMObserved {
			vm.State = grounded(&vm)
		}
	}
	if equalVMs(was, &vm) {
		return
	}
	vm.Revision = a.index
	a.setVM(was, &vm)
	a.emit(Event{Type: event, VM: &vm})
}

func (a *applier) beginEpoch(op *BeginEpoch) (*Fleet, *Error) {
	f, refused := a.changedFleet()
	if refused != nil {
		return nil, refused
	}
	if refused := a.checkEpoch(f, op); refused != nil {
		return nil, refused
	}
	for t := range a.joinTokens.all() {
		// Nobody knows any more which of them were used.
		a.setJoinToken(t, nil)
		a.emit(Event{Type: EventJoinTokenDeleted, JoinToken: t.public()})
	}
	if op.CA != nil {
		for i := range f.CAs {
			f.CAs[i].State, f.CAs[i].SealedKey = CATrusted, nil
		}
		ca := *op.CA
		ca.State, ca.Index = CACurrent, a.index
		f.CAs = append(f.CAs, ca)
	}
	if op.GossipKeys != nil {
		f.GossipKeys = slices.Clone(op.GossipKeys)
		for i := range f.GossipKeys {
			f.GossipKeys[i].Index = a.index
		}
	}
	f.Epoch = op.Epoch
	f.Since = Epoch{At: fromNanos(a.time), Node: op.Node, Index: a.index, How: op.How, Settled: f.Since.Settled}
	a.lastBlock += EpochBlockGap
	event := EventFleetRecovered
	if op.How == EpochRestored {
		event = EventFleetRestored
	}
	shown := a.putFleet(f, event)
	if op.Admit != nil {
		a.admit(op.Admit, a.index)
	}
	a.serve(op)
	for _, id := range op.Retire {
		if n, refused := a.member(id); refused == nil && id != op.Node {
			a.retire(n)
		}
	}
	return shown, nil
}

func (a *applier) checkEpoch(f *Fleet, op *BeginEpoch) *Error {
	switch {
	case op.Fleet != f.ID:
		return &Error{CodeConflict, "fleet", "this is the fleet " + f.ID + ", not " + quote(op.Fleet)}
	case op.Epoch <= f.Epoch:
		return &Error{CodeConflict, "epoch", fmt.Sprintf("the fleet is at epoch %d already", f.Epoch)}
	case op.How != EpochRecovered && op.How != EpochRestored:
		return &Error{CodeInvalid, "how", quote(string(op.How)) + " is neither recover nor restore"}
	case len(op.GossipKeys) > maxGossipKeys:
		return &Error{CodeInvalid, "gossip_keys", "are too many"}
	}
	if op.CA != nil {
		if refused := checkCA("ca.", op.CA); refused != nil {
			return refused
		}
	}
	for i := range op.GossipKeys {
		if refused := checkGossipKey(fmt.Sprintf("gossip_keys[%d].", i), &op.GossipKeys[i]); refused != nil {
			return refused
		}
	}
	if refused := checkReported(&Membership{Address: op.Address, Gossip: op.Gossip, API: op.API}); refused != nil {
		return refused
	}
	if op.Admit == nil {
		_, refused := a.member(op.Node)
		return refused
	}
	if op.Admit.ID != op.Node {
		return &Error{CodeInvalid, "admit.id", "is not the node that the fleet goes on from"}
	}
	return a.checkMember("admit.", op.Admit)
}

// serve puts the node that the fleet goes on from into service, where it is reached now.
func (a *applier) serve(op *BeginEpoch) {
	was, refused := a.member(op.Node)
	if refused != nil {
		return
	}
	is := *was
	is.State = NodeActive
	is.Address, is.Gossip, is.API = or(op.Address, was.Address), or(op.Gossip, was.Gossip), or(op.API, was.API)
	if !equalNodes(was, &is) {
		a.changeNode(was, &is, EventNodeChanged)
	}
}

func (a *applier) settleEpoch(op SettleEpoch) (*Fleet, *Error) {
	f, refused := a.changedFleet()
	switch {
	case refused != nil:
		return nil, refused
	case op.Epoch != f.Epoch:
		return nil, &Error{CodeConflict, "epoch", fmt.Sprintf("the fleet is at epoch %d, not %d", f.Epoch, op.Epoch)}
	case f.Since.Settled >= f.Epoch:
		return f.public(), nil
	}
	f.Since.Settled = f.Epoch
	return a.putFleet(f, EventFleetSettled), nil
}
