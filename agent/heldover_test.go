package agent

import (
	"net/netip"
	"strings"
	"testing"

	"github.com/palisade/palisade/enforce"
	"github.com/palisade/palisade/fsm"
)

// formed makes the state of a bench that of a fleet.
func (b *bench) formed() {
	b.apply(fsm.FormFleet{
		ID: "f1", CA: fsm.CA{ID: "c1", Certificate: []byte("der"), SealedKey: []byte("sealed")}, GossipKey: fsm.GossipKey{ID: "g1", SealedKey: []byte("sealed")},
		Node: fsm.Admission{ID: "n1", Address: "192.0.2.1:7701", Gossip: "192.0.2.1:7702", KeyHash: [32]byte{1}},
	})
}

// TestARecoveredFleetUnblocksNothing: what a kernel holds from the lost time stays, until somebody says that it may go.
func TestARecoveredFleetUnblocksNothing(t *testing.T) {
	b := newBench(t, 900, "203.0.113.5/32", "203.0.113.6/32", "198.51.100.1/32")
	b.kernel.held[enforce.Element{Tap: "tap7"}] = struct{}{}
	b.formed()
	known := b.block("198.51.100.1/32")
	b.index = 1_000_000 // an epoch begins beyond all indexes of the time before
	b.apply(fsm.BeginEpoch{Fleet: "f1", Epoch: 2, How: fsm.EpochRecovered, Node: "n1"})
	b.run()
	close(b.caughtUp)
	b.waitEnforced(b.index)
	problem := func() string { _, p := b.enforcer.Standing(); return p }
	if p := problem(); !strings.Contains(p, "2 elements from before epoch 2") || !strings.Contains(p, "203.0.113.5") || !strings.Contains(p, "palisade settle") {
		t.Errorf("problem %q", p)
	}
	if b.kernel.index != 900 {
		t.Errorf("the kernel stands for %d: the next start would not know from when it is", b.kernel.index)
	}
	if _, held := b.kernel.held[enforce.Element{Tap: "tap7"}]; held {
		t.Error("an interface is held whose name may be another guest's")
	}
	// What the state knows can be lifted, and what it comes to know is its own.
	b.apply(fsm.LiftBlock{ID: known.ID})
	again := b.block("203.0.113.6/32")
	b.waitEnforced(b.index)
	if b.kernel.holds("198.51.100.1/32") || !b.kernel.holds("203.0.113.5/32") {
		t.Error("a lift did not arrive, or an unknown hold is gone")
	}
	if p := problem(); !strings.Contains(p, "1 elements") {
		t.Errorf("problem %q", p)
	}
	b.apply(fsm.LiftBlock{ID: again.ID})
	b.waitEnforced(b.index)
	if b.kernel.holds("203.0.113.6/32") {
		t.Error("what was blocked anew can't be lifted")
	}
	b.apply(fsm.SettleEpoch{Epoch: 2})
	b.waitEnforced(b.index)
	if b.kernel.holds("203.0.113.5/32") || problem() != "" || b.kernel.index != b.index {
		t.Errorf("after it was settled: index %d, problem %q", b.kernel.index, problem())
	}
}

// TestAKernelOfThisEpochIsNotHeldOver: a restart within the epoch removes what was lifted meanwhile, as ever.
func TestAKernelOfThisEpochIsNotHeldOver(t *testing.T) {
	b := newBench(t, 1_000_002, "203.0.113.5/32")
	b.formed()
	b.index = 1_000_000
	b.apply(fsm.BeginEpoch{Fleet: "f1", Epoch: 2, How: fsm.EpochRecovered, Node: "n1"})
	b.block("198.51.100.1/32")
	b.block("198.51.100.2/32")
	b.run()
	close(b.caughtUp)
	b.waitEnforced(b.index)
	if b.kernel.holds("203.0.113.5/32") {
		t.Error("a leftover of this epoch is held")
	}
	el := enforce.Element{Prefix: netip.MustParsePrefix("198.51.100.1/32")}
	if _, held := b.kernel.held[el]; !held {
		t.Error("a block is not held")
	}
}
