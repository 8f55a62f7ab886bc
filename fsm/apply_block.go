package fsm

import (
	"fmt"
	"reflect"
)

func (a *applier) addBlock(op AddBlock) (*Block, *Error) {
	if op.Reason == "" {
		op.Reason = defaultReason
	}
	if op.Kind == "" {
		op.Kind = Drop
	}
	if op.Direction == "" {
		op.Direction = Both
	}
	if refused := first(checkWord("reason", op.Reason), checkNote("note", op.Note)); refused != nil {
		return nil, refused
	}
	target, refused := a.blockTarget(op.Target)
	if refused != nil {
		return nil, refused
	}
	a.lastBlock++
	b := &Block{
		ID:        FormatBlockID(a.lastBlock),
		Target:    target,
		Kind:      op.Kind,
		Direction: op.Direction,
		Reason:    op.Reason,
		Note:      op.Note,
		Actor:     a.actor,
		State:     BlockActive,
		CreatedAt: fromNanos(a.time),
		Index:     a.index,
		Revision:  a.index,
	}
	a.setBlock(a.lastBlock, nil, b)
	a.emit(Event{Type: EventBlockAdded, Block: b})
	return b, nil
}

// blockTarget resolves and checks what a block is to hold. For a VM nothing is refused because of
// guards: what is guarded is left out when the state is compiled for the kernel.
func (a *applier) blockTarget(t Target) (Target, *Error) {
	switch {
	case t.VM != "" && t.Prefix.IsValid():
		return Target{}, &Error{CodeInvalid, "target", "names both a VM and a prefix; a block holds one target"}
	case t.VM != "":
		vm, refused := a.resolveVM("target.vm", t.VM)
		if refused != nil {
			return Target{}, refused
		}
		return Target{VM: vm.ID}, nil
	case t.Prefix.IsValid():
		if refused := checkPrefix("target.prefix", t.Prefix); refused != nil {
			return Target{}, refused
		}
		return t, a.guardSet().refuse("target.prefix", t.Prefix)
	default:
		return Target{}, &Error{CodeInvalid, "target", "is missing; give a VM or a prefix"}
	}
}

func (a *applier) liftBlock(op LiftBlock) (*Block, *Error) {
	number, ok := ParseBlockID(op.ID)
	if !ok {
		return nil, &Error{CodeInvalid, "id", quote(op.ID) + ` is no block id, which looks like "b17"`}
	}
	was, ok := a.blocks.get(numberKey(number))
	if !ok {
		return nil, &Error{CodeNotFound, "id", "there is no block " + op.ID}
	}
	if was.State != BlockActive {
		return nil, &Error{CodeConflict, "id",
			fmt.Sprintf("block %s was lifted already, by %s at log index %d", op.ID, quote(was.LiftedBy), was.Index)}
	}
	if refused := checkRevision(op.IfRevision, was.Revision); refused != nil {
		return nil, refused
	}
	b := *was
	b.State = BlockLifted
	b.LiftedAt = fromNanos(a.time)
	b.LiftedBy = a.actor
	b.Index = a.index
	b.Revision = a.index
	a.setBlock(number, was, &b)
	a.emit(Event{Type: EventBlockLifted, Block: &b})
	a.forgetLifted()
	return &b, nil
}

// forgetLifted drops the longest lifted blocks beyond what is retained.
func (a *applier) forgetLifted() {
	for a.lifted.n > a.limits.lifted {
		key, b, _ := a.lifted.root().Minimum()
		number, _ := ParseBlockID(b.ID)
		a.lifted.remove(key)
		a.blocks.remove(numberKey(number))
		a.sum.subtract(a.digest(blockRecord(b)))
		a.emit(Event{Type: EventBlockForgotten, Block: b})
	}
}

func equalBlocks(a, b *Block) bool { return reflect.DeepEqual(a, b) }
