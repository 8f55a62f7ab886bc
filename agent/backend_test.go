package agent

import (
	"context"
	"log/slog"
	"testing"
	"time"

	"github.com/palisade/palisade/fsm"
)

// TestAReportCoversLists: the node's enforced index and the receipts of blocks on lists wait for the tables of
// lists, those of other blocks do not.
func TestAReportCoversLists(t *testing.T) {
	b := newListBench(t, 0)
	r := &rooms{store: b.store, enforcer: b.enforcer, lists: b.lists, sources: newSourceBed(&fakeSourceKernel{}).enforcer}
	close(b.caughtUp)
	gate := make(chan struct{})
	b.bench.run()
	b.run()
	b.guard()
	b.put("drop", "192.0.2.0/24")
	before := b.index
	b.enforced(before)
	b.kernel.set(func() { b.kernel.gate = gate })
	on := b.hold("drop")
	plain := b.block("203.0.113.9/32")
	ask := func(q fsm.Query) fsm.Report {
		t.Helper()
		ctx, cancel := context.WithTimeout(t.Context(), 5*time.Second)
		defer cancel()
		_, rep := r.standing(ctx, slog.New(slog.DiscardHandler), q)
		return rep
	}
	got := ask(fsm.Query{WaitIndex: b.index, Blocks: []string{plain.ID}})
	if got.EnforcedBlocks != b.index || got.Enforced != before || !got.Blocks[plain.ID].Enforced {
		t.Errorf("while a list loads: %+v", got)
	}
	if got := ask(fsm.Query{Blocks: []string{on.ID}}); got.Blocks[on.ID].Enforced {
		t.Errorf("the block on the list has a receipt: %+v", got)
	}
	b.kernel.set(func() { b.kernel.gate = nil })
	close(gate)
	if got := ask(fsm.Query{WaitIndex: b.index, Blocks: []string{on.ID}}); got.Enforced != b.index || !got.Blocks[on.ID].Enforced {
		t.Errorf("afterwards: %+v", got)
	}
}
