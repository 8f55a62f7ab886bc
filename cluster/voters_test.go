package cluster

import (
	"fmt"
	"strconv"
	"testing"
	"testing/synctest"
	"time"

	"github.com/palisade/palisade/fsm"
)

// set changes the fleet's settings.
func (f *fleet) set(change func(s *fsm.Settings)) {
	f.t.Helper()
	l := f.leader()
	s := l.store.View().Settings()
	change(&s)
	l.propose(fsm.Command{Actor: "test", Op: fsm.PutSettings{Settings: s}})
}

// voting waits until so many vote, all of them nodes that pass, and everybody else follows.
func (f *fleet) voting(n int, may func(n *node) bool) {
	f.t.Helper()
	f.await(fmt.Sprintf("%d voters", n), func() bool {
		for _, l := range f.nodes {
			if !l.alive() || !l.leads() || len(l.c.voters()) != n || len(l.c.running.Load().servers()) != n {
				continue
			}
			is := l.c.voters()
			for _, m := range f.nodes {
				if is[m.id] && !may(m) || may(m) && m.alive() && is[m.id] == (m.c.follows.Load() != nil) {
					return false
				}
			}
			return true
		}
		return false
	})
	f.voters = n
}

func anyNode(*node) bool { return true }

func other(than *node) func(*node) bool { return func(n *node) bool { return n != than } }

func TestVotersFollowTheSettings(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f, _ := treeFleet(t, 3, 4, cutting(15, 5))
		f.start().voting(3, anyNode)
		for i := range 40 {
			f.nodes[i%7].propose(declare(fmt.Sprintf("vm%d", i), "one"))
		}
		time.Sleep(time.Minute) // virtual: the logs are cut
		for round, n := range []int{5, 3, 7, 1, 3} {
			f.set(func(s *fsm.Settings) { s.Voters = uint32(n) })
			f.voting(n, anyNode)
			f.ready()
			for i := range 10 {
				f.nodes[i%7].propose(declare(fmt.Sprintf("vm%d", i), strconv.Itoa(round)))
			}
			f.agree(f.leader().propose(declare("last", strconv.Itoa(round))).Index)
			for _, m := range f.nodes { // all know who votes
				f.await("everybody to know", func() bool { return len(m.c.voters()) == n })
			}
		}
		f.stopVirtual()
	})
}

// TestDeadVoterIsReplaced: after the time that is set, not before; when it comes back it follows.
func TestDeadVoterIsReplaced(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f, net := treeFleet(t, 3, 2)
		f.start().voting(3, anyNode)
		f.set(func(s *fsm.Settings) { s.ReplaceVoterAfter = time.Minute })
		for round := range 4 {
			var victim *node
			for id := range f.leader().c.voters() {
				if n := f.byID(id); !n.leads() || round == 2 {
					victim = n
				}
			}
			// Written where nobody else sees it, as far as it can.
			if round%2 == 0 {
				victim.crash()
			} else {
				net.cut(victim.id, true)
			}
			begin := time.Now()
			time.Sleep(50 * time.Second) // virtual
			if !f.leader().c.voters()[victim.id] {
				t.Errorf("round %d: replaced early", round)
			}
			f.leader().propose(declare("vm", strconv.Itoa(round)))
			f.voting(3, other(victim))
			if took := time.Since(begin); took < 55*time.Second || took > 75*time.Second {
				t.Errorf("round %d: a dead voter was replaced after %s", round, took)
			}
			last := f.leader().propose(declare("vm", fmt.Sprint("then ", round))).Index
			if round%2 == 0 {
				victim.start()
			} else {
				net.cut(victim.id, false)
			}
			f.await("it to follow", func() bool { return victim.c.follows.Load() != nil })
			f.ready().agree(last)
			if round == 3 { // and so it does from its own disk
				victim.crash()
				victim.start()
				f.ready().agree(last)
			}
		}
		f.stopVirtual()
	})
}

// TestMuteVoterIsReplaced: it is seen alive, by gossip, but raft does not reach it.
func TestMuteVoterIsReplaced(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f, net := treeFleet(t, 3, 1)
		f.start().voting(3, anyNode)
		f.set(func(s *fsm.Settings) { s.ReplaceVoterAfter = time.Minute })
		var mute *node
		for id := range f.leader().c.voters() {
			if n := f.byID(id); !n.leads() {
				mute = n
			}
		}
		net.cut(mute.id, true)
		seen := make(chan struct{})
		go func() {
			for {
				select {
				case <-seen:
					return
				case <-time.After(100 * time.Millisecond): // virtual
				}
				for _, n := range f.nodes {
					n.c.ears.hear(mute.id)
				}
			}
		}()
		time.Sleep(50 * time.Second) // virtual
		f.voting(3, other(mute))
		close(seen)
		net.cut(mute.id, false)
		f.ready().agree(f.leader().propose(declare("vm", "one")).Index)
		f.stopVirtual()
	})
}

func (f *fleet) byID(id string) *node {
	for _, n := range f.nodes {
		if n.id == id {
			return n
		}
	}
	return nil
}

func TestDrainedNodesDontVote(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f, _ := treeFleet(t, 3, 1)
		f.start().voting(3, anyNode)
		for range 3 { // the leader each time
			l := f.leader()
			l.propose(fsm.Command{Actor: "test", Op: fsm.DrainNode{ID: l.id}})
			failed := make(chan error, 1)
			go func() { // writes go on, with a key they are repeated through the change
				_, err := f.nodes[0].c.Propose(within(t, 20*time.Second), fsm.Command{Actor: "test", Key: l.id, Op: fsm.DeclareVM{ID: "vm", Owner: l.id}})
				failed <- err
			}()
			f.voting(3, other(l))
			if err := <-failed; err != nil {
				t.Errorf("a write while the leader was drained: %v", err)
			}
			f.ready().agree(f.leader().propose(declare("vm", l.id)).Index)
			f.leader().propose(fsm.Command{Actor: "test", Op: fsm.DrainNode{ID: l.id, Undo: true}})
		}
		f.stopVirtual()
	})
}

// TestNoStepWithoutNeed: a quiet fleet changes no member of raft.
func TestNoStepWithoutNeed(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f, _ := treeFleet(t, 3, 3)
		f.start().voting(3, anyNode)
		time.Sleep(time.Minute) // virtual
		was := f.leader().c.members.encode().GetIndex()
		f.nodes[0].crash()
		time.Sleep(4 * time.Minute) // virtual, less than ReplaceVoterAfter
		f.nodes[0].start()
		f.ready()
		time.Sleep(10 * time.Minute) // virtual
		if is := f.leader().c.members.encode().GetIndex(); is != was {
			t.Errorf("the members changed at index %d, last known was %d", is, was)
		}
		f.stopVirtual()
	})
}
