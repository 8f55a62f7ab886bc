package agent

import (
	"os"
	"path/filepath"
	"strconv"
	"testing"
	"time"

	"github.com/palisade/palisade/fsm"
)

// apply applies one op on the nodes named.
func (f *auditFleet) apply(op fsm.Op, names ...string) {
	f.t.Helper()
	f.index++
	data, err := fsm.MarshalCommand(fsm.Command{Actor: "token:a", Time: time.Now(), Op: op})
	if err != nil {
		f.t.Fatal(err)
	}
	for _, name := range names {
		res, err := f.nodes[name].store.ApplyBatch([]fsm.Entry{{Index: f.index, Data: data}})
		if err != nil || res[0].Err != nil {
			f.t.Fatal(err, res[0].Err)
		}
	}
}

// TestAuditOfALostTime: a node has records that the fleet gave up when it was recovered: more than the fleet has had since, as
// many, or fewer. They are kept beside, and the node's audit becomes the fleet's.
func TestAuditOfALostTime(t *testing.T) {
	for _, lost := range []int{7, 4, 1} {
		t.Run(strconv.Itoa(lost), func(t *testing.T) { auditOfALostTime(t, lost) })
	}
}

func auditOfALostTime(t *testing.T, lost int) {
	t.Helper()
	f := newAuditFleet(t, "n1", "n2")
	f.apply(fsm.FormFleet{
		ID: "f1", CA: fsm.CA{ID: "c1", Certificate: []byte("der"), SealedKey: []byte("sealed")}, GossipKey: fsm.GossipKey{ID: "g1", SealedKey: []byte("sealed")},
		Node: fsm.Admission{ID: "n1", Address: "192.0.2.1:7701", Gossip: "192.0.2.1:7702", KeyHash: [32]byte{1}},
	}, "n1", "n2")
	f.record(20, "n1", "n2")
	at := f.index
	f.record(lost, "n2") // n2 and others went on
	n1, n2 := f.nodes["n1"], f.nodes["n2"]
	for _, a := range []*auditor{n1, n2} {
		if err := a.write(t.Context()); err != nil {
			t.Fatal(err)
		}
	}
	f.index = at + fsm.EpochIndexGap
	f.apply(fsm.BeginEpoch{Fleet: "f1", Epoch: 2, How: fsm.EpochRecovered, Node: "n1"}, "n1")
	f.record(3, "n1")
	if err := n1.write(t.Context()); err != nil {
		t.Fatal(err)
	}
	f.restore("n2", "n1")
	// Twice: the first time settles it.
	for range 2 {
		if err := n2.write(t.Context()); err != nil {
			t.Fatal(err)
		}
	}
	check, err := n2.Verify(t.Context())
	if err != nil || check.Problem != "" || len(check.Gaps) != 0 || check.First != 1 || check.Chain != n1.store.View().AuditHead() {
		t.Errorf("%+v, %v", check, err)
	}
	aside, err := filepath.Glob(n2.opts.Dir + auditAside + "*")
	if err != nil || len(aside) != 1 {
		t.Fatalf("set aside: %v, %v", aside, err)
	}
	if files, err := os.ReadDir(aside[0]); err != nil || len(files) == 0 {
		t.Errorf("what was given up is not kept: %v", err)
	}
	// Another audit without a new epoch is still an error.
	f.record(2, "n2")
	if err := n2.write(t.Context()); err != nil {
		t.Fatal(err)
	}
	f.restore("n2", "n1")
	if err := n2.write(t.Context()); err == nil {
		t.Error("another audit within the epoch was taken")
	}
	for _, a := range []*auditor{n1, n2} {
		if a.disk != nil {
			if err := a.disk.Close(); err != nil {
				t.Error(err)
			}
		}
	}
}
