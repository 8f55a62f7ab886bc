package cluster

import (
	"fmt"
	"testing"
)

func TestFormAndProposeAnywhere(t *testing.T) {
	f := realFleet(t, 3).start().ready()
	var last uint64
	for i, n := range f.nodes {
		id := fmt.Sprintf("vm%d", i)
		res := n.propose(declare(id, "alice"))
		if res.VM == nil || res.VM.ID != id || res.VM.Owner != "alice" || res.Index == 0 {
			t.Errorf("result on %s: %+v", n.id, res)
		}
		if owner(n.store, id) != "alice" {
			t.Errorf("%s does not see its own write", n.id)
		}
		last = res.Index
	}
	f.agree(last)
	for _, n := range f.nodes {
		s := n.c.Status()
		if s.Node != n.id || s.Leader != f.leader().id || !s.Quorum || !s.CaughtUp || s.Term == 0 {
			t.Errorf("status of %s: %+v", n.id, s)
		}
	}
	f.await("all peers alive by gossip", func() bool {
		for _, n := range f.nodes {
			for _, m := range n.c.Members() {
				if !m.Alive || m.LastHeard.IsZero() {
					return false
				}
			}
		}
		return true
	})
}
