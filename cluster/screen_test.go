package cluster

import (
	"errors"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/palisade/palisade/fsm"
)

// retire asks for a node's retirement on another and returns the refusal, nil for none.
func (n *node) retire(id string) *fsm.Error {
	n.t.Helper()
	return n.refusal(fsm.RetireNode{ID: id, Force: true})
}

// refusal proposes an op and returns why it was refused, nil if it was not.
func (n *node) refusal(op fsm.Op) *fsm.Error {
	n.t.Helper()
	res, err := n.c.Propose(within(n.t, 20*time.Second), fsm.Command{Actor: "test", Op: op})
	if err != nil {
		n.t.Errorf("%T: %v", op, err)
	}
	return res.Err
}

// TestRetirementKeepsTheQuorum: what would leave too few to decide is refused, by whichever node it is asked; what
// would not is done, and the fleet goes on.
func TestRetirementKeepsTheQuorum(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f, _ := treeFleet(t, 3, 0)
		f.start().voting(3, anyNode)
		l := f.leader()
		var others []*node
		for _, n := range f.nodes {
			if n != l {
				others = append(others, n)
			}
		}
		if err := others[0].retire(l.id); err == nil || !strings.Contains(err.Detail, "leads the fleet") {
			t.Errorf("the leader's retirement: %v", err)
		}
		others[0].crash()
		if err := l.retire(others[1].id); err == nil || err.Code != fsm.CodeConflict || !strings.Contains(err.Detail, "one of 3 voters, and of the others 1 answer") {
			t.Errorf("the retirement of one of two voters that are left: %v", err)
		}
		f.agree(others[1].propose(declare("vm", "still")).Index)
		if err := others[1].retire(others[0].id); err != nil {
			t.Errorf("the retirement of a dead voter: %v", err)
		}
		f.await("its vote to be gone", func() bool { return len(l.c.voters()) == 2 })
		f.agree(others[1].propose(declare("vm", "then")).Index)
		f.stopVirtual()
	})
}

// TestTwoRetirementsAtOnce: each alone leaves a majority, both together don't.
func TestTwoRetirementsAtOnce(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f, _ := treeFleet(t, 3, 0)
		f.start().voting(3, anyNode)
		l := f.leader()
		refused := make(chan *fsm.Error, 2)
		asked := 0
		for _, n := range f.nodes {
			if n != l {
				asked++
				go func() {
					refused <- l.retire(n.id)
				}()
			}
		}
		no := 0
		for range asked {
			if err := <-refused; err != nil {
				no++
			}
		}
		if no != 1 {
			t.Errorf("%d of two retirements were refused", no)
		}
		l.propose(declare("vm", "still"))
		both := fsm.Batch{}
		for _, n := range f.nodes {
			both.Ops = append(both.Ops, fsm.RetireNode{ID: n.id, Force: true})
		}
		if l.refusal(both) == nil {
			t.Error("all at once were retired")
		}
		l.propose(declare("vm", "still"))
		for _, n := range f.nodes {
			if is, _ := l.store.View().Node(n.id); is.State == fsm.NodeRetired {
				if _, told := errors.AsType[*RefusedError](n.outcome()); !told {
					t.Errorf("%s was retired and not told so", n.id)
				}
			}
		}
		f.stopVirtual()
	})
}

// TestNobodyProposesABeginning: what a fleet begins with is never taken from a caller.
func TestNobodyProposesABeginning(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f, _ := treeFleet(t, 3, 0)
		f.start().voting(3, anyNode)
		v := f.follower().store.View()
		own, _ := v.Fleet()
		for _, op := range []fsm.Op{
			fsm.BeginEpoch{Fleet: own.ID, Epoch: own.Epoch + 1, How: fsm.EpochRecovered, Node: "n1"},
			fsm.Batch{Ops: []fsm.Op{fsm.BeginEpoch{Fleet: own.ID, Epoch: own.Epoch + 1, How: fsm.EpochRecovered, Node: "n1"}}},
		} {
			if err := f.follower().refusal(op); err == nil || err.Code != fsm.CodeConflict {
				t.Errorf("%T: %v", op, err)
			}
		}
		f.stopVirtual()
	})
}
