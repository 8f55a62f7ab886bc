package fsm

import (
	"fmt"
	"time"
)

// MigrationPhase is how far a migration has come.
type MigrationPhase string

// The phases of a migration, in their order; aborted ends one that is arming or armed.
const (
	MigrationArming MigrationPhase = "arming" // announced; the destination's kernel is not known to hold what applies
	MigrationArmed  MigrationPhase = "armed"  // the destination's kernel holds all that applies, read back
	MigrationLive   MigrationPhase = "live"   // the guest runs at the destination
	// MigrationSettled: it has gone from the source, too. A migration whose source is never heard of again stays live.
	MigrationSettled MigrationPhase = "settled"
	MigrationAborted MigrationPhase = "aborted" // it came to nothing; the guest is where it was
)

// Open says that the guest has not arrived yet, and may still.
func (p MigrationPhase) Open() bool { return p == MigrationArming || p == MigrationArmed }

// Migration is the last migration of a VM. It is immutable.
type Migration struct {
	Phase     MigrationPhase
	From, To  string    // ids of nodes; From is empty for a VM that was seen nowhere before
	StartedAt time.Time // state time, UTC
	ChangedAt time.Time // since when it is in this phase
	// Cold: the VM did not run when it began, and is not expected to run at the destination.
	Cold bool
}

func sameMigration(a, b *Migration) bool {
	if a == nil || b == nil {
		return a == b
	}
	return a.Phase == b.Phase && a.From == b.From && a.To == b.To && a.Cold == b.Cold &&
		a.StartedAt.Equal(b.StartedAt) && a.ChangedAt.Equal(b.ChangedAt)
}

// in returns the migration in another phase.
func (m *Migration) in(p MigrationPhase, now time.Time) *Migration {
	if m.Phase == p {
		return m
	}
	next := *m
	next.Phase, next.ChangedAt = p, now
	return &next
}

// migrate says what an observation that leads from one VM to the next makes of its migration. A move that nobody announced
// begins when it is live.
func migrate(was, is *VM, op ObserveVM, now time.Time) *Migration {
	m := was.Migration
	open := m != nil && m.Phase.Open()
	switch {
	case is.State == VMMigrating && open && m.To == is.Destination:
		if op.Node == m.To && op.Migration == MigrationArmed {
			return m.in(MigrationArmed, now)
		}
		return m
	case is.State == VMMigrating:
		phase := MigrationArming
		if op.Migration == MigrationArmed {
			phase = MigrationArmed
		}
		cold := was.State == VMStopped
		if was.State == VMMigrating && m != nil { // to somewhere else, after all
			cold = m.Cold
		}
		return &Migration{Phase: phase, From: is.Node, To: is.Destination, StartedAt: now, ChangedAt: now, Cold: cold}
	case open && is.Node == m.To && is.State == VMRunning:
		return m.in(MigrationLive, now)
	case open && is.Node == m.To && is.State == VMStopped && m.Cold:
		return m.in(MigrationSettled, now) // nothing of it runs anywhere
	case open:
		return m.in(MigrationAborted, now)
	case is.State == VMRunning && was.State == VMRunning && is.Node != was.Node:
		return &Migration{Phase: MigrationLive, From: was.Node, To: is.Node, StartedAt: now, ChangedAt: now}
	}
	return m
}

// landing says of a VM in flight, which its destination reports as stopped or gone, that a migration has brought it
// there although it does not run.
func landing(vm *VM, p Phase) bool {
	return p == PhaseStopped && vm.Migration != nil && vm.Migration.Cold && vm.Migration.Phase.Open()
}

// settleMigration takes the word of the source that the VM has gone from it. The source is no party to the VM any more, so
// that this is all it may say.
func (a *applier) settleMigration(was *VM, op ObserveVM) (*VM, *Error) {
	m := was.Migration
	if m == nil || m.Phase != MigrationLive || m.From != op.Node || op.Epoch != was.Epoch {
		return nil, &Error{CodeStale, "migration", fmt.Sprintf("VM %s is in no migration from node %s at epoch %d that is live", was.ID, op.Node, op.Epoch)}
	}
	vm := *was
	vm.Migration = m.in(MigrationSettled, fromNanos(a.time))
	vm.Revision = a.index
	a.setVM(was, &vm)
	a.emit(Event{Type: EventVMMigration, VM: &vm})
	return &vm, nil
}
