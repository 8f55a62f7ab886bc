package fsm

import (
	"slices"
	"strings"
	"testing"
)

// joined is a fleet of n1, n2 and n3.
func joined(tb testing.TB) (*Store, *log) {
	tb.Helper()
	s, l := formed(tb)
	for _, id := range []string{"2", "3"} {
		l.ok(tb, creating("t"+id, ""))
		l.ok(tb, admitting("t"+id, "n"+id))
	}
	return s, l
}

func TestRetiredNodeLosesItsVMsAloud(t *testing.T) {
	s, l := joined(t)
	l.ok(t, running("v1", "n2", 1, "203.0.113.5"))
	l.ok(t, running("v2", "n2", 1, "203.0.113.6"))
	l.ok(t, ObserveVM{ID: "v2", Node: "n2", Phase: PhaseStopped, Epoch: 1})
	l.ok(t, running("v3", "n1", 1, "203.0.113.7"))
	l.ok(t, ObserveVM{ID: "v3", Node: "n2", Phase: PhaseIncoming, Epoch: 2}) // in flight to n2
	l.ok(t, running("v4", "n2", 1, "203.0.113.8"))
	l.ok(t, ObserveVM{ID: "v4", Node: "n3", Phase: PhaseIncoming, Epoch: 2}) // in flight from n2
	held := l.ok(t, onVM("v1")).Block

	l.refusedSaying(t, RetireNode{ID: "n2"}, CodeConflict, "id", "drain it first")
	if n := l.ok(t, DrainNode{ID: "n2"}).Node; n.State != NodeDrained || !n.Member() {
		t.Errorf("drained: %+v", n.Membership)
	}
	l.ok(t, DrainNode{ID: "n2", Undo: true})
	l.ok(t, DrainNode{ID: "n2"})
	retired := l.ok(t, RetireNode{ID: "n2"}).Node
	if retired.State != NodeRetired || retired.RetiredAt.IsZero() || retired.Member() {
		t.Errorf("retired: %+v", retired.Membership)
	}
	state := func(id string) VMState { vm, _ := s.View().VM(id); return vm.State }
	if state("v1") != VMLost || state("v2") != VMLost || state("v3") != VMRunning || state("v4") != VMLost {
		t.Errorf("v1 %s, v2 %s, v3 %s, v4 %s", state("v1"), state("v2"), state("v3"), state("v4"))
	}
	if lost := slices.Collect(s.View().Lost()); len(lost) != 3 || lost[0].Node != "n2" {
		t.Errorf("lost: %+v", lost)
	}
	if vm, _ := s.View().VM("v1"); !slices.Contains(s.View().Holding(vm), held) {
		t.Error("a lost VM is not held any more")
	}
	lines, _ := s.View().AuditSince(0)
	tail := string(slices.Concat(lines[len(lines)-5:]...))
	for _, want := range []string{`"action":"node.retire"`, `"action":"vm.lose"`, `"state":"lost"`} {
		if !strings.Contains(tail, want) {
			t.Errorf("the audit has no %s:\n%s", want, tail)
		}
	}

	// What comes too late from there changes nothing, and neither does a definition left behind elsewhere.
	l.refused(t, running("v1", "n2", 2, "203.0.113.5"), CodeNodeRetired, "node")
	l.refused(t, PutNode{Node{ID: "n2"}}, CodeNodeRetired, "id")
	l.refused(t, ObserveVM{ID: "v1", Node: "n3", Phase: PhaseStopped, Epoch: 2}, CodeStale, "epoch")
	// A flight from the dead that fails leaves it lost.
	l.ok(t, ObserveVM{ID: "v1", Node: "n3", Phase: PhaseIncoming, Epoch: 2})
	l.ok(t, ObserveVM{ID: "v1", Node: "n3", Phase: PhaseGone, Epoch: 2})
	if state("v1") != VMLost {
		t.Errorf("v1 is %s", state("v1"))
	}
	// Where it runs is found again by itself.
	l.ok(t, running("v1", "n3", 3, "203.0.113.5"))
	if vm, _ := s.View().VM("v1"); vm.State != VMRunning || vm.Node != "n3" {
		t.Errorf("found: %+v", vm)
	}
	// The id is used up, and so is the key.
	l.ok(t, creating("t4", ""))
	l.refused(t, admitting("t4", "n2"), CodeNodeRetired, "node.id")
	l.refused(t, creating("t5", "n2"), CodeNodeRetired, "node")
	l.refused(t, RetireNode{ID: "n2"}, CodeNodeRetired, "id")
	l.refused(t, DrainNode{ID: "n2", Undo: true}, CodeNodeRetired, "id")
	l.refused(t, DrainNode{ID: "n9"}, CodeNotFound, "id")
	same := admitting("t4", "n5")
	same.Node.KeyHash = admission("n2").KeyHash
	l.refusedSaying(t, same, CodeConflict, "node.key_hash", "was copied")
	again := admitting("t4", "n5")
	again.Node.Address, again.Node.Gossip = admission("n2").Address, admission("n2").Gossip
	l.ok(t, again) // the machine may come back under another name
}

func TestTheFleetKeepsOneInService(t *testing.T) {
	_, l := joined(t)
	l.ok(t, RetireNode{ID: "n3", Force: true})
	l.ok(t, DrainNode{ID: "n2"})
	l.refusedSaying(t, DrainNode{ID: "n1"}, CodeConflict, "id", "no other node")
	l.refusedSaying(t, RetireNode{ID: "n1", Force: true}, CodeConflict, "id", "would end")
	l.ok(t, RetireNode{ID: "n2"})
	l.refused(t, RetireNode{ID: "n1", Force: true}, CodeConflict, "id")
}

func TestANewEpochMeansNothingOld(t *testing.T) {
	s, l := joined(t)
	l.ok(t, creating("t9", ""))
	old := l.ok(t, onPrefix("198.51.100.7/32")).Block
	l.refused(t, BeginEpoch{Fleet: "f2", Epoch: 2, How: EpochRecovered, Node: "n2"}, CodeConflict, "fleet")
	l.refused(t, BeginEpoch{Fleet: "f1", Epoch: 1, How: EpochRecovered, Node: "n2"}, CodeConflict, "epoch")
	l.refused(t, BeginEpoch{Fleet: "f1", Epoch: 2, How: EpochRecovered, Node: "n7"}, CodeNotFound, "id")
	l.ok(t, DrainNode{ID: "n2"})
	f := l.ok(t, BeginEpoch{Fleet: "f1", Epoch: 2, How: EpochRecovered, Node: "n2", Address: "192.0.2.99:7701", Retire: []string{"n3"}}).Fleet
	if f.Epoch != 2 || f.Since.Node != "n2" || f.Since.How != EpochRecovered || f.Since.Settled != 0 || f.Since.At.IsZero() {
		t.Errorf("fleet %+v", f)
	}
	if n, _ := s.View().Node("n2"); n.State != NodeActive || n.Address != "192.0.2.99:7701" || n.Gossip != admission("n2").Gossip {
		t.Errorf("n2: %+v", n.Membership)
	}
	if n, _ := s.View().Node("n3"); n.State != NodeRetired {
		t.Errorf("n3: %+v", n.Membership)
	}
	if _, known := s.View().JoinToken("t9"); known {
		t.Error("a join token outlived the epoch")
	}
	if _, held := s.View().Block(old.ID); !held {
		t.Error("a block did not outlive the epoch")
	}
	was, _ := ParseBlockID(old.ID)
	if b := l.ok(t, onPrefix("198.51.100.8/32")).Block; b.ID != FormatBlockID(was+EpochBlockGap+1) {
		t.Errorf("the first block after %s is %s", old.ID, b.ID)
	}
	l.refused(t, SettleEpoch{1}, CodeConflict, "epoch")
	if f := l.ok(t, SettleEpoch{2}).Fleet; f.Since.Settled != 2 {
		t.Errorf("settled: %+v", f.Since)
	}
	// The secrets of the authority are lost: another one signs, and the old one is still believed.
	ca := nextCA("c2")
	ca.Cross = nil
	f = l.ok(t, BeginEpoch{
		Fleet: "f1", Epoch: 3, How: EpochRestored, Node: "n4", Admit: &Admission{ID: "n4", Address: "n4:7701", Gossip: "192.0.2.4:7702", KeyHash: [32]byte{44}},
		CA: &ca, GossipKeys: []GossipKey{{ID: "g1", SealedKey: []byte("again"), State: GossipKeyPrimary}},
	}).Fleet
	if len(f.CAs) != 2 || f.CAs[0].State != CATrusted || f.CAs[1].State != CACurrent || f.Since.Settled != 2 {
		t.Errorf("fleet %+v", f)
	}
	kept, _ := s.View().Fleet()
	if kept.CAs[0].SealedKey != nil || string(kept.GossipKeys[0].SealedKey) != "again" {
		t.Errorf("fleet %+v", kept)
	}
	if n, ok := s.View().Node("n4"); !ok || n.Serial == 0 || n.State != NodeActive {
		t.Errorf("n4: %+v", n)
	}
}
