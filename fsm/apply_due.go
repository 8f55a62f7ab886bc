package fsm

import (
	"fmt"
	"time"
)

// patchBlock changes the times, the note or the confirmation of a block that is not over. An end that has passed
// is left to FireBlock, which comes when a majority of the clocks has reached it: the state time may be ahead of that.
func (a *applier) patchBlock(op PatchBlock) (*Block, *Error) {
	number, was, refused := a.openBlock(op.ID, op.IfRevision)
	if refused != nil {
		return nil, refused
	}
	b, now := *was, fromNanos(a.time)
	if op.Note != nil {
		if refused := checkNote(*op.Note); refused != nil {
			return nil, refused
		}
		b.Note = *op.Note
	}
	if op.Confirm {
		b.ConfirmBy = time.Time{}
	}
	if op.StartsAt != nil {
		if refused := a.moveStart(&b, op.StartsAt.UTC(), now); refused != nil {
			return nil, refused
		}
	}
	if op.EndsAt != nil {
		b.EndsAt = op.EndsAt.UTC()
		if op.EndsAt.IsZero() {
			b.EndsAt = time.Time{}
		}
	}
	if was.State == BlockPending && !b.EndsAt.IsZero() && !b.EndsAt.After(b.StartsAt) {
		return nil, &Error{CodeInvalid, "ends_at", fmt.Sprintf("%s is not after the start, %s", stamp(b.EndsAt), stamp(b.StartsAt))}
	}
	if equalBlocks(was, &b) {
		return was, nil
	}
	b.Revision = a.index
	event := EventBlockChanged
	if was.State != b.State {
		b.Index, event = a.index, EventBlockStarted
	}
	a.setBlock(number, was, &b)
	a.emit(Event{Type: event, Block: &b})
	return &b, nil
}

// moveStart gives a pending block another start; the time to confirm it moves along.
func (a *applier) moveStart(b *Block, start, now time.Time) *Error {
	if b.State != BlockPending {
		return &Error{CodeConflict, "starts_at", fmt.Sprintf("block %s has started, at %s", b.ID, stamp(b.Since()))}
	}
	if start.Before(now) {
		start = now
	}
	if refused := a.checkUnpaid(b, start); refused != nil {
		return refused
	}
	a.shiftStart(b, start)
	if start.Equal(now) {
		b.State, b.StartedAt = BlockActive, now
	}
	return nil
}

func (a *applier) shiftStart(b *Block, start time.Time) {
	if !b.ConfirmBy.IsZero() {
		b.ConfirmBy = start.Add(b.ConfirmBy.Sub(b.StartsAt))
	}
	b.StartsAt = start
}

// fireBlock does what is due. The revision makes it happen once, the time never early.
func (a *applier) fireBlock(op FireBlock) (*Block, *Error) {
	number, was, refused := a.openBlock(op.ID, 0)
	if refused != nil {
		return nil, refused
	}
	if op.Revision != was.Revision {
		return nil, &Error{CodeRevision, "revision",
			fmt.Sprintf("revision %d was expected, block %s is at revision %d", op.Revision, was.ID, was.Revision)}
	}
	at, due := op.At.UTC(), was.Due()
	if due.IsZero() || at.Before(due) {
		return nil, &Error{CodeConflict, "at", fmt.Sprintf("nothing is due for block %s at %s", was.ID, stamp(at))}
	}
	if was.State == BlockActive {
		by := ByDueTime
		if due.Equal(was.ConfirmBy) {
			by = ByNoConfirmation
		}
		return a.endBlock(number, was, BlockEnded, by, at), nil
	}
	b := *was
	b.State, b.StartedAt = BlockActive, at
	b.Index, b.Revision = a.index, a.index
	a.setBlock(number, was, &b)
	a.emit(Event{Type: EventBlockStarted, Block: &b})
	return &b, nil
}

// doNotBlockUntil is the time before which ReasonUnpaid can't hold the target, and who says so.
func (s *state) doNotBlockUntil(t Target) (until time.Time, who string) {
	later := func(at time.Time, by string) {
		if at.After(until) {
			until, who = at, by
		}
	}
	account := func(id string) {
		if acct, ok := s.accounts.get([]byte(id)); ok && id != "" {
			later(acct.DoNotBlockUntil, "account "+id)
		}
	}
	switch {
	case t.VM != "":
		if vm, ok := s.vms.get([]byte(t.VM)); ok {
			later(vm.DoNotBlockUntil, "VM "+vm.ID)
			account(vm.Owner)
		}
	case t.Account != "":
		account(t.Account)
		for vm := range s.owners.under(groupKey(t.Account)) {
			later(vm.DoNotBlockUntil, "VM "+vm.ID)
		}
	}
	return until, who
}

// checkUnpaid refuses a block of ReasonUnpaid that would start before it may.
func (a *applier) checkUnpaid(b *Block, start time.Time) *Error {
	if b.Reason != ReasonUnpaid {
		return nil
	}
	until, who := a.doNotBlockUntil(b.Target)
	if !start.Before(until) {
		return nil
	}
	return &Error{CodeNotYet, "reason", fmt.Sprintf("%s is not to be blocked for the reason %s before %s; the block would start at %s",
		who, ReasonUnpaid, stamp(until), stamp(start))}
}

// postpone moves the start of what is pending for ReasonUnpaid on a target.
func (a *applier) postpone(t Target) {
	until, _ := a.doNotBlockUntil(t)
	if until.IsZero() {
		return
	}
	var early []*Block
	for b := range a.pending.under(targetKey(t)) {
		if b.Reason == ReasonUnpaid && b.StartsAt.Before(until) {
			early = append(early, b)
		}
	}
	for _, was := range early {
		number, _ := ParseBlockID(was.ID)
		b := *was
		length := b.EndsAt.Sub(b.StartsAt)
		a.shiftStart(&b, until)
		if !b.EndsAt.IsZero() && !b.EndsAt.After(until) {
			b.EndsAt = until.Add(length) // as long as it was agreed
		}
		b.Revision = a.index
		a.setBlock(number, was, &b)
		a.emit(Event{Type: EventBlockChanged, Block: &b})
	}
}
