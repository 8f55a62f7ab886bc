package cluster

import (
	"errors"
	"fmt"
	"slices"
	"strconv"
	"testing"
	"testing/synctest"
	"time"

	"github.com/hashicorp/raft"

	"github.com/palisade/palisade/cluster/internal/peerpb"
	"github.com/palisade/palisade/fsm"
)

// treeFleet is a fleet whose first nodes vote and whose others follow; each serves at most so many followers.
func treeFleet(t testing.TB, voters, followers int, tune ...func(w *memWorld, o *Options)) (*fleet, *memNet) {
	f, net := memFleet(t, voters+followers, append(tune, func(_ *memWorld, o *Options) {
		if o.seams.voters == fsm.DefaultVoters {
			o.seams.voters = 0 // the settings say it
		}
	})...)
	f.voters = voters
	return f, net
}

// split returns the nodes that vote and those that follow, once all do.
func (f *fleet) split() (voters, followers []*node) {
	f.t.Helper()
	f.ready()
	is := f.leader().c.voters()
	f.await("the others to follow", func() bool {
		voters, followers = nil, nil
		for _, n := range f.nodes {
			switch {
			case is[n.id]:
				voters = append(voters, n)
			case n.c.follows.Load() != nil:
				followers = append(followers, n)
			}
		}
		return len(voters)+len(followers) == len(f.nodes)
	})
	return voters, followers
}

// serving makes every node serve so many followers at most.
func serving(most int) func(*memWorld, *Options) {
	return func(_ *memWorld, o *Options) { o.seams.fanOut = most }
}

// cutting makes the log short.
func cutting(threshold, trailing uint64) func(*memWorld, *Options) {
	return func(_ *memWorld, o *Options) {
		o.seams.raft = func(c *raft.Config) { c.SnapshotThreshold, c.TrailingLogs = threshold, trailing }
	}
}

func (n *node) path() []string {
	f := n.c.follows.Load()
	if f == nil {
		return nil
	}
	k := f.know.now()
	if !k.attached {
		return nil
	}
	return k.path
}

func TestFollowersFormATree(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f, _ := treeFleet(t, 3, 30, serving(3))
		f.start()
		_, followers := f.split()
		f.agree(followers[20].propose(declare("vm", "one")).Index)
		time.Sleep(5 * time.Minute) // virtual: those that found a bad place have looked for a better one
		byDepth, children := map[int]int{}, map[string]int{}
		for _, n := range followers {
			p := n.path()
			if len(p) == 0 || slices.Contains(p, n.id) {
				t.Fatalf("path of %s: %v", n.id, p)
			}
			byDepth[len(p)]++
			children[p[len(p)-1]]++
		}
		for id, n := range children {
			if n > 3 {
				t.Errorf("%s serves %d", id, n)
			}
		}
		// The voters serve three each, the leader one, or what it took in before it led; each below serves three.
		if byDepth[1] < 7 || byDepth[1] > 9 || byDepth[2] < 21 || byDepth[3] > 2 || byDepth[4] > 0 {
			t.Errorf("followers by depth: %v", byDepth)
		}
		for _, n := range followers {
			s := n.c.Status()
			if s.Leader != f.leader().id || !s.Quorum || !s.CaughtUp || s.Term != f.leader().c.Status().Term {
				t.Errorf("status of %s: %+v", n.id, s)
			}
		}
		f.stopVirtual()
	})
}

// TestFollowerIsWholeWithoutNetwork: what a follower took is on its disk, and more is not needed.
func TestFollowerIsWholeWithoutNetwork(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f, net := treeFleet(t, 3, 1, cutting(10, 5))
		f.start()
		_, followers := f.split()
		n := followers[0]
		for i := range 40 {
			n.propose(declare(fmt.Sprintf("vm%d", i), "one"))
			if i == 20 {
				time.Sleep(time.Minute) // virtual: its log is cut
			}
		}
		want, index := n.store.View().Hash(), n.store.View().Index()
		if meta, err := n.c.opened.Load().newest(); err != nil || meta == nil || meta.Index < 15 || len(meta.Configuration.Servers) != 3 {
			t.Errorf("its snapshot: %+v, %v", meta, err)
		}
		n.crash()
		net.cut(n.id, true)
		n.start()
		time.Sleep(10 * time.Second) // virtual
		if v := n.store.View(); v.Hash() != want || v.Index() != index {
			t.Errorf("without a network it is at index %d, it was at %d", v.Index(), index)
		}
		if s := n.c.Status(); s.Quorum || s.CaughtUp || s.Leader != "" {
			t.Errorf("without a network it says %+v", s)
		}
		if _, err := n.c.Propose(within(t, 10*time.Second), declare("vm", "two")); !errors.Is(err, fsm.ErrUnavailable) {
			t.Errorf("without a network: %v", err)
		}
		if _, err := n.c.ReadIndex(within(t, 10*time.Second)); !errors.Is(err, fsm.ErrUnavailable) {
			t.Errorf("without a network: %v", err)
		}
		net.cut(n.id, false)
		f.ready().agree(n.propose(declare("vm", "three")).Index)
		f.stopVirtual()
	})
}

func TestFollowerCatchesUpByLogAndBySnapshot(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f, _ := treeFleet(t, 3, 2, cutting(20, 5))
		f.start()
		_, followers := f.split()
		n := followers[1]
		for round, writes := range []int{3, 60, 1, 90} {
			n.crash()
			for i := range writes {
				f.leader().propose(declare(fmt.Sprintf("vm%d", i), strconv.Itoa(round)))
			}
			time.Sleep(2 * time.Minute) // virtual: the others cut their logs
			last := f.leader().propose(declare("last", strconv.Itoa(round))).Index
			begin := time.Now()
			n.start()
			f.agree(last)
			if took := time.Since(begin); took > 2*time.Second {
				t.Errorf("round %d: it had the latest entry after %s", round, took)
			}
			f.ready()
		}
		// And a new one.
		n.crash()
		_, w := n.opts(n)
		*w.(*memWorld).store = *newMemStore()
		n.start()
		f.ready().agree(f.leader().store.View().Index())
		f.stopVirtual()
	})
}

// TestFollowerIsNeverCaughtUpEarly is TestCaughtUpIsNeverEarly for one that follows another follower.
func TestFollowerIsNeverCaughtUpEarly(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f, net := treeFleet(t, 3, 4, serving(1))
		f.start()
		_, followers := f.split()
		for round := range 12 {
			n := followers[round%4]
			f.leader().propose(declare("vm", "one"))
			var back func()
			if round%3 == 0 {
				n.crash()
				back = func() { n.start() }
			} else {
				net.cut(n.id, true)
				back = func() { net.cut(n.id, false) }
			}
			// Just before it returns, or long before; its source may know of it or not.
			time.Sleep(time.Duration(round%5) * time.Second) // virtual
			last := f.leader().propose(declare("vm", strconv.Itoa(round))).Index
			time.Sleep(time.Duration(round%4) * 700 * time.Millisecond) // virtual
			away := round%5*1000+round%4*700 > 1300
			back()
			for s := n.status(); !s.CaughtUp || !s.Quorum; s = n.status() {
				time.Sleep(time.Millisecond) // virtual
			}
			if index := n.store.View().Index(); index < last && (away || round%3 == 0) {
				t.Errorf("round %d: it says that it is caught up at index %d, the fleet had committed %d", round, index, last)
			}
			f.ready()
		}
		f.stopVirtual()
	})
}

// TestInnerNodesOfTheTreeDie: whoever followed a dead node goes on elsewhere, loses nothing and applies nothing
// twice.
func TestInnerNodesOfTheTreeDie(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f, net := treeFleet(t, 3, 24, serving(3))
		f.start()
		_, followers := f.split()
		for round := range 12 {
			counts := map[string]int{}
			for _, n := range followers {
				if p := n.path(); len(p) > 0 {
					counts[p[len(p)-1]]++
				}
			}
			var inner *node
			for _, n := range followers {
				if counts[n.id] > 0 && (inner == nil || counts[n.id] > counts[inner.id]) {
					inner = n
				}
			}
			heal := func() { inner.start() }
			if round%2 == 0 {
				inner.crash()
			} else { // silence: its connections just stay
				net.cut(inner.id, true)
				heal = func() { net.cut(inner.id, false) }
			}
			last := uint64(0)
			for i := range 5 {
				last = f.leader().propose(declare(fmt.Sprintf("vm%d", i), strconv.Itoa(round))).Index
			}
			begin := time.Now()
			for _, n := range f.nodes {
				for n != inner && n.store.View().Index() < last {
					time.Sleep(time.Millisecond) // virtual
				}
			}
			if took := time.Since(begin); took > 4*time.Second {
				t.Errorf("round %d: the followers of a dead node with %d of them went on after %s", round, counts[inner.id], took)
			}
			heal()
			f.ready().agree(last)
		}
		f.stopVirtual()
	})
}

// TestSlowFollowerHoldsUpNobody: one that takes nothing is cut off in the end; nobody else notices.
func TestSlowFollowerHoldsUpNobody(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f, _ := treeFleet(t, 3, 3)
		f.start()
		_, followers := f.split()
		slow := &stuckStream{ended: make(chan struct{})}
		src := followers[0]
		go func() {
			defer close(slow.ended)
			_ = src.c.onFollow(within(t, time.Minute), &peerpb.FollowUp{Node: "slow"}, slow)
		}()
		begin := time.Now()
		for i := range 300 {
			f.leader().propose(declare(fmt.Sprintf("vm%d", i), "one"))
		}
		f.agree(f.leader().store.View().Index())
		if took := time.Since(begin); took > time.Second {
			t.Errorf("with a slow follower 300 writes took %s everywhere", took)
		}
		<-slow.ended
		if n := src.c.source.followers(); n > 2 {
			t.Errorf("%d followers are served", n)
		}
		f.stopVirtual()
	})
}

// stuckStream takes its first message and no other.
type stuckStream struct {
	said  int
	ended chan struct{}
}

func (s *stuckStream) say(*peerpb.FollowDown) error {
	if s.said++; s.said == 1 {
		return nil
	}
	time.Sleep(takeTime)
	return errors.New("not taken")
}

func (s *stuckStream) next() (*peerpb.FollowUp, error) {
	<-s.ended
	return nil, errCut
}
