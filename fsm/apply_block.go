package fsm

import (
	"fmt"
	"reflect"
	"time"
)

// addBlock checks everything before it changes anything.
func (a *applier) addBlock(op AddBlock) (*Block, *Error) {
	b, refused := a.newBlock(op)
	if refused != nil {
		return nil, refused
	}
	if refused := first(a.checkUnpaid(b, a.startOf(b)), a.checkTouched(op, b)); refused != nil {
		return nil, refused
	}
	a.lastBlock++
	b.ID = FormatBlockID(a.lastBlock)
	a.setBlock(a.lastBlock, nil, b)
	a.emit(Event{Type: EventBlockAdded, Block: b})
	return b, nil
}

// newBlock makes the block without its id.
func (a *applier) newBlock(op AddBlock) (*Block, *Error) {
	b := &Block{
		Kind: op.Kind, Direction: op.Direction, Rate: op.Rate, RedirectTo: op.RedirectTo,
		Reason: op.Reason, Note: op.Note, Actor: a.actor, State: BlockActive,
		CreatedAt: fromNanos(a.time), Index: a.index, Revision: a.index,
	}
	if b.Reason == "" {
		b.Reason = ReasonManual
	}
	if b.Kind == "" {
		b.Kind = Drop
	}
	if b.Direction == "" {
		b.Direction = Both
	}
	var refused *Error
	if refused = first(checkWord("reason", b.Reason), checkNote(b.Note)); refused != nil {
		return nil, refused
	}
	if b.Target, refused = a.blockTarget(op.Target); refused != nil {
		return nil, refused
	}
	if b.Ports, refused = checkParameters(b, op.Ports); refused != nil {
		return nil, refused
	}
	if refused = a.setTimes(b, op); refused != nil {
		return nil, refused
	}
	return b, nil
}

// setTimes sets when the block starts and ends, counted from the state time.
func (a *applier) setTimes(b *Block, op AddBlock) *Error {
	start := fromNanos(a.time)
	if op.StartsAt.After(start) {
		b.State, b.StartsAt = BlockPending, op.StartsAt.UTC()
		start = b.StartsAt
	}
	switch {
	case op.Duration < 0:
		return &Error{CodeInvalid, "duration", "is negative"}
	case op.Duration > 0 && !op.EndsAt.IsZero():
		return &Error{CodeInvalid, "duration", "is given together with ends_at; give one of them"}
	case op.Duration > 0:
		b.EndsAt = start.Add(op.Duration)
	case !op.EndsAt.IsZero() && !op.EndsAt.After(start):
		return &Error{CodeInvalid, "ends_at",
			fmt.Sprintf("%s is not after the start, %s", stamp(op.EndsAt), stamp(start))}
	case !op.EndsAt.IsZero():
		b.EndsAt = op.EndsAt.UTC()
	}
	switch {
	case op.ConfirmWithin < 0:
		return &Error{CodeInvalid, "confirm_within", "is negative"}
	case op.ConfirmWithin > MaxConfirmWithin:
		return &Error{CodeInvalid, "confirm_within", "is more than 30 days"}
	case op.ConfirmWithin > 0:
		b.ConfirmBy = start.Add(op.ConfirmWithin)
	}
	return nil
}

// stamp is a time for people, to the millisecond.
func stamp(t time.Time) string { return t.UTC().Format("2006-01-02T15:04:05.999Z07:00") }

// startOf is when a block that is not over starts or started.
func (a *applier) startOf(b *Block) time.Time {
	if b.State == BlockPending {
		return b.StartsAt
	}
	return fromNanos(a.time)
}

// blockTarget resolves and checks what a block is to hold. For a VM or an account nothing is refused
// because of the guards of addresses: what is guarded is left out when the state is compiled for the
// kernel.
func (a *applier) blockTarget(t Target) (Target, *Error) {
	if given := t.given(); given != 1 {
		detail := "is missing; give a VM, a prefix, an account or a list"
		if given > 1 {
			detail = "names more than one thing; a block holds one VM, prefix, account or list"
		}
		return Target{}, &Error{CodeInvalid, "target", detail}
	}
	switch {
	case t.VM != "":
		vm, refused := a.resolveVM("target.vm", t.VM)
		if refused != nil {
			return Target{}, refused
		}
		if g, ok := a.guards.get(vmGuardKey(vm.ID)); ok {
			return Target{}, &Error{CodeGuardConflict, "target.vm",
				fmt.Sprintf("VM %s can never be blocked (%s)", vm.ID, oneLine(whoGuards(g.Note)))}
		}
		return Target{VM: vm.ID}, nil
	case t.Account != "":
		return t, checkText("target.account", t.Account, MaxNameBytes)
	case t.List != "":
		if _, ok := a.lists.get([]byte(t.List)); !ok {
			return Target{}, &Error{CodeNotFound, "target.list", "there is no list " + quote(t.List)}
		}
		return t, nil
	}
	if refused := checkPrefix("target.prefix", t.Prefix); refused != nil {
		return Target{}, refused
	}
	return t, a.guardSet().all.refuse("target.prefix", t.Prefix)
}

// given counts the fields that are set.
func (t Target) given() (n int) {
	for _, set := range []bool{t.VM != "", t.Prefix.IsValid(), t.Account != "", t.List != ""} {
		if set {
			n++
		}
	}
	return n
}

func (a *applier) liftBlock(op LiftBlock) (*Block, *Error) {
	number, was, refused := a.openBlock(op.ID, op.IfRevision)
	if refused != nil {
		return nil, refused
	}
	return a.endBlock(number, was, BlockLifted, a.actor, fromNanos(a.time)), nil
}

// liftReason lifts what one reason holds on one target.
func (a *applier) liftReason(op LiftReason) ([]Result, *Error) {
	if refused := checkWord("reason", op.Reason); refused != nil {
		return nil, refused
	}
	if op.Reason == "" {
		return nil, &Error{CodeInvalid, "reason", "is missing; lifting by target needs the reason that is to be lifted"}
	}
	t := op.Target
	if t.given() != 1 {
		return nil, &Error{CodeInvalid, "target", "give exactly one VM, prefix, account or list"}
	}
	if t.VM != "" {
		vm, refused := a.resolveVM("target.vm", t.VM)
		if refused != nil {
			return nil, refused
		}
		t.VM = vm.ID
	}
	var open []*Block
	for b := range a.openOn(t) {
		if b.Reason == op.Reason {
			open = append(open, b)
		}
	}
	if len(open) == 0 {
		return nil, &Error{CodeNotFound, "reason",
			fmt.Sprintf("nothing holds %s for the reason %s", quote(t.String()), quote(op.Reason))}
	}
	if len(open) > MaxBatchOps {
		return nil, &Error{CodeInvalid, "target",
			fmt.Sprintf("%d blocks would be lifted, at most %d are in one step; lift them by id", len(open), MaxBatchOps)}
	}
	items := make([]Result, len(open))
	for i, b := range open {
		number, _ := ParseBlockID(b.ID)
		items[i] = Result{Index: a.index, Block: a.endBlock(number, b, BlockLifted, a.actor, fromNanos(a.time))}
	}
	return items, nil
}

// openBlock finds a block that is not over, at a revision if one is given.
func (a *applier) openBlock(id string, revision uint64) (number uint64, b *Block, refused *Error) {
	number, ok := ParseBlockID(id)
	if !ok {
		return 0, nil, &Error{CodeInvalid, "id", quote(id) + ` is no block id, which looks like "b17"`}
	}
	b, ok = a.blocks.get(numberKey(number))
	if !ok {
		return 0, nil, &Error{CodeNotFound, "id", "there is no block " + id}
	}
	if b.State == BlockLifted {
		return 0, nil, &Error{CodeConflict, "id",
			fmt.Sprintf("block %s was lifted already, by %s at log index %d", id, quote(b.LiftedBy), b.Index)}
	}
	if b.State == BlockEnded {
		return 0, nil, &Error{CodeConflict, "id",
			fmt.Sprintf("block %s ended by itself (%s) at %s", id, b.LiftedBy, stamp(b.LiftedAt))}
	}
	return number, b, checkRevision(revision, b.Revision)
}

func (a *applier) endBlock(number uint64, was *Block, state BlockState, by string, at time.Time) *Block {
	b := *was
	b.State, b.LiftedBy, b.LiftedAt = state, by, at
	b.Index, b.Revision = a.index, a.index
	a.setBlock(number, was, &b)
	event := EventBlockLifted
	if state == BlockEnded {
		event = EventBlockEnded
	}
	a.emit(Event{Type: event, Block: &b})
	a.forgetOver()
	return &b
}

// forgetOver drops the blocks that have been over for longest, beyond what is retained.
func (a *applier) forgetOver() {
	for a.over.n > a.limits.over {
		b, _ := a.over.first()
		number, _ := ParseBlockID(b.ID)
		a.unindexBlock(number, b)
		a.blocks.remove(numberKey(number))
		a.sum.subtract(a.digest(blockRecord(b)))
		a.emit(Event{Type: EventBlockForgotten, Block: b})
	}
}

func equalBlocks(a, b *Block) bool { return reflect.DeepEqual(a, b) }
