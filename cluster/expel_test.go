package cluster

import (
	"errors"
	"net/http"
	"strings"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/hashicorp/raft"

	"github.com/palisade/palisade/cluster/internal/peerpb"
	"github.com/palisade/palisade/fsm"
)

// TestNobodyIsTalkedOutOfVoting: a node that does not vote, in hostile hands, says to the voters that others are raft's
// members by now. Without the seal key it is not believed.
func TestNobodyIsTalkedOutOfVoting(t *testing.T) {
	f := realFleet(t, 4).start().ready()
	voters := f.leader().c.voters()
	var plain *node
	for _, n := range f.nodes {
		if !voters[n.id] {
			plain = n
		}
	}
	f.leader().propose(declare("vm", "one"))
	for id := range voters {
		for _, lie := range []*peerpb.Membership{
			{Index: 1 << 40, Members: []string{plain.id}},
			{Index: 1 << 41, Members: []string{plain.id}, Proof: make([]byte, proofBytes)},
			{Index: 1 << 42},
		} {
			if _, err := plain.c.rpc.hello(within(t, 5*time.Second), id, &peerpb.HelloRequest{Node: plain.id, Membership: lie}); err != nil {
				t.Fatal(err)
			}
		}
	}
	for end := time.Now().Add(2 * f.nodes[0].c.timing.Election); time.Now().Before(end); time.Sleep(20 * time.Millisecond) {
		for _, n := range f.nodes {
			if voters[n.id] && n.c.running.Load() == nil {
				t.Fatalf("%s has left raft", n.id)
			}
		}
	}
	f.leader().propose(declare("vm", "two"))
}

// TestOneNodeRefusesNobody: what one node in hostile hands says of others does not end their part. Most nodes are
// believed.
func TestOneNodeRefusesNobody(t *testing.T) {
	f := realFleet(t, 4).start().ready()
	n := f.leader()
	n.c.greet(t.Context())
	lie := http.Header{}
	lie.Set(selfHeader, n.c.contacts.mine.header())
	lie.Set(refusalHeader, refusedCopy)
	var others []string
	for _, m := range f.nodes {
		if m != n {
			others = append(others, m.id)
		}
	}
	for range 10 {
		n.c.contacts.answered(others[0], lie, copyOf(n.id, "so they say").Error())
	}
	if n.c.ended() {
		t.Fatal("one node has talked another out of the fleet")
	}
	n.propose(declare("vm", "one"))
	n.c.contacts.answered(others[1], lie, copyOf(n.id, "so they say").Error())
	n.c.contacts.answered(others[2], lie, copyOf(n.id, "so they say").Error())
	n.refusedAs(t, "copy")
}

// failingOnce fails to tell its last index once, when raft does not run any more.
type failingOnce struct {
	raft.LogStore
	c    func() *Cluster
	done atomic.Bool
}

func (l *failingOnce) LastIndex() (uint64, error) {
	if c := l.c(); c != nil && c.members.encode().GetIndex() > 0 && c.running.Load() == nil && c.follows.Load() == nil && !l.done.Swap(true) {
		return 0, errors.New("a passing error")
	}
	return l.LogStore.LastIndex()
}

// TestUncommittedTailIsNeverFollowed: a node that leaves raft and can't cut its log to what is committed ends, though
// the error passes: as a follower it would apply what was never committed.
func TestUncommittedTailIsNeverFollowed(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var out *node
		f, _ := treeFleet(t, 3, 1, func(w *memWorld, _ *Options) {
			w.wrap = func(d *disk) {
				d.logs = &failingOnce{LogStore: d.logs, c: func() *Cluster {
					if out == nil || w.id != out.id {
						return nil
					}
					return w.c
				}}
			}
		})
		f.start().voting(3, anyNode)
		for _, n := range f.nodes {
			if n.votes() && !n.leads() {
				out = n
			}
		}
		f.leader().propose(fsm.Command{Actor: "test", Op: fsm.DrainNode{ID: out.id}})
		select {
		case err := <-out.ended:
			if err == nil || !strings.Contains(err.Error(), "a passing error") {
				t.Errorf("it ended with %v", err)
			}
		case <-time.After(time.Minute): // virtual
			t.Fatal("it goes on")
		}
		out.ended <- nil
		out.stop()
		f.stopVirtual()
	})
}
