package cluster

import (
	"context"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/hashicorp/raft"

	"github.com/palisade/palisade/fsm"
)

// admitLive admits a node to a running fleet, and returns what it is told when it joins.
func (f *fleet) admitLive(p Peer) Roster {
	f.t.Helper()
	hash := [32]byte{byte(len(f.nodes)), 1}
	l := f.leader()
	l.propose(fsm.Command{Actor: "test", Op: fsm.CreateJoinToken{ID: "live-" + p.ID, Hash: hash, TTL: time.Hour}})
	l.propose(fsm.Command{Actor: "test", Op: fsm.AdmitNode{Token: "live-" + p.ID, Hash: hash, Node: fsm.Admission{
		ID: p.ID, Address: p.Address, Gossip: p.Gossip, KeyHash: hash, NotAfter: time.Now().Add(time.Hour),
	}}})
	r, _ := rosterOf(l.store.View())
	return r
}

// retire makes all nodes see another as retired.
func (f *fleet) retire(id string) {
	for _, n := range f.nodes {
		if n.alive() {
			n.c.enforce(retired(n.c.dir.now().roster, id))
		}
	}
}

func retired(r Roster, id string) Roster {
	r.Peers = slices.Clone(r.Peers)
	for i := range r.Peers {
		r.Peers[i].Retired = r.Peers[i].Retired || r.Peers[i].ID == id
	}
	return r
}

func TestFourthNodeJoinsAndLeaves(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f, net := memFleet(t, 3)
		f.start().ready()
		res := f.follower().propose(declare("vm", "before"))
		known := f.admitLive(memPeer(4))
		n := f.addVirtual(net, memPeer(4), newMemStore(), func() Roster { return known })
		n.start()
		f.ready().agree(res.Index)
		if owner(n.store, "vm") != "before" {
			t.Errorf("the new node has %q", owner(n.store, "vm"))
		}
		n.propose(declare("vm", "by the new one"))
		for _, m := range f.nodes {
			f.await("four members on "+m.id, func() bool { return len(m.c.Members()) == 4 })
		}
		if rep, err := f.nodes[0].c.Ask(within(t, time.Second), "n4", fsm.Query{}); err != nil || rep.Node != "n4" {
			t.Errorf("Ask of the new node: %+v, %v", rep, err)
		}
		f.leader().propose(fsm.Command{Actor: "test", Op: fsm.RetireNode{ID: "n4", Force: true}})
		f.await("n4 to be no member", func() bool { return len(f.leader().c.Members()) == 3 })
		if slices.ContainsFunc(f.leader().c.running.Load().servers(), func(s raft.Server) bool { return s.ID == "n4" }) {
			t.Error("a node that has left is a member of raft")
		}
		if _, err := f.leader().c.Ask(within(t, time.Second), "n4", fsm.Query{}); err == nil {
			t.Error("a retired node is asked")
		}
		n.refusedAs(t, "retired")
		f.stopVirtual()
	})
}

// TestDeadVoterIsRemovedForGood: raft has given a follower up that is away; nothing that was held for it stays.
func TestDeadVoterIsRemovedForGood(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f, _ := memFleet(t, 4) // three voters and one to take a dead one's place
		f.start().ready()
		var dead *node
		for _, n := range f.nodes {
			if !n.leads() && f.leader().c.voters()[n.id] {
				dead = n
			}
		}
		dead.crash()
		f.leader().propose(declare("vm", "one")) // raft now holds a call for the dead one
		time.Sleep(3 * time.Second)              // virtual
		f.retire(dead.id)
		f.await("another to vote in its place", func() bool {
			v := f.leader().c.voters()
			return len(v) == 3 && !v[dead.id]
		})
		l := f.leader().c.running.Load()
		l.nudger.mu.Lock()
		_, kept := l.nudger.workers[raft.ServerID(dead.id)]
		l.nudger.mu.Unlock()
		if kept || slices.Contains(l.tap.led(l.raft.CurrentTerm()), raft.ServerID(dead.id)) {
			t.Error("something is kept for a node that was removed")
		}
		if begin := time.Now(); l.tap.awaitBack(raft.ServerID(dead.id), begin, l.raft.CurrentTerm()) || time.Since(begin) > time.Second {
			t.Errorf("a call was held for a removed node, after %s", time.Since(begin))
		}
		f.follower().propose(declare("vm", "two"))
		f.stopVirtual()
	})
}

// TestReturningVoterFollowsAnUnknownLeader: a voter that was away while the fleet changed knows neither its leader nor
// where that is.
func TestReturningVoterFollowsAnUnknownLeader(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f, net := memFleet(t, 3)
		f.voters = 3
		f.start().ready()
		away := f.follower()
		stale := away.c.dir.now().roster
		away.crash()
		// Two new nodes come, the two old ones go: whoever leads then is a stranger to the one that was away.
		var fresh []*node
		for i := 4; i <= 5; i++ {
			known := f.admitLive(memPeer(i))
			fresh = append(fresh, f.addVirtual(net, memPeer(i), newMemStore(), func() Roster { return known }).start())
		}
		alive := func(ok func(*node) bool) bool {
			return !slices.ContainsFunc(f.nodes, func(n *node) bool { return n.alive() && !ok(n) })
		}
		f.await("the new ones to be filled", func() bool { return alive(func(n *node) bool { return n.status().CaughtUp }) })
		f.retire(away.id) // makes room for one of the new ones among the three voters
		f.await("a new voter", func() bool {
			v := f.leader().c.voters()
			return len(v) == 3 && !v[away.id]
		})
		for _, n := range fresh {
			if f.leader().c.voters()[n.id] {
				f.leader().propose(declare("vm", "new"))
				for !n.leads() {
					if err := f.leader().c.running.Load().raft.LeadershipTransferToServer(raft.ServerID(n.id), raft.ServerAddress(n.id)).Error(); err != nil {
						t.Fatal(err)
					}
					time.Sleep(time.Second) // virtual
				}
			}
		}
		if !slices.Contains(fresh, f.leader()) {
			t.Fatalf("%s leads", f.leader().id)
		}
		// It was only taken for retired: bring it back with what it knew.
		for _, n := range f.nodes {
			if n.alive() {
				r := n.c.dir.now().roster
				r.Peers = slices.Clone(r.Peers)
				for i := range r.Peers {
					r.Peers[i].Retired = false
				}
				n.c.enforce(r)
			}
		}
		f.born.roster = stale
		away.start()
		f.await("it to follow", func() bool { return away.status().CaughtUp && owner(away.store, "vm") == "new" })
		if _, ok := away.c.dir.peer(f.leader().id); !ok {
			t.Error("it does not know where its leader is")
		}
		away.propose(declare("vm", "from the one that was away"))
		f.stopVirtual()
	})
}

// TestStaleStateChangesNoMembers: while the log is replayed, the state knows less than what was known at the end of
// the life before.
func TestStaleStateChangesNoMembers(t *testing.T) {
	d := mustDirectory(t, "n1", Roster{Epoch: 1, Index: 10, Peers: threePeers()})
	for _, c := range []struct {
		r       Roster
		members int
	}{
		{Roster{Epoch: 1, Index: 9, Peers: threePeers()[:1]}, 3},
		{Roster{Epoch: 1, Index: 11, Peers: threePeers()[:2]}, 2},
		{Roster{Epoch: 1, Index: 10, Peers: threePeers()}, 2},
		{Roster{Epoch: 2, Index: 3, Peers: threePeers()}, 3}, // a recovered fleet may begin with a lower index
		{Roster{Epoch: 1, Index: 99, Peers: threePeers()[:1]}, 3},
	} {
		if _, err := d.put(c.r); err != nil || len(d.now().active) != c.members {
			t.Errorf("after epoch %d index %d: %d members, want %d; %v", c.r.Epoch, c.r.Index, len(d.now().active), c.members, err)
		}
	}
}

// TestNodeMovesToAnotherAddress: the others can't reach it before it has told the fleet.
func TestNodeMovesToAnotherAddress(t *testing.T) {
	t.Parallel()
	f := realFleet(t, 3).start().ready()
	n := f.follower()
	n.stop()
	f.leader().propose(declare("vm", "one"))
	bind := freePort(f.t)
	was := n.opts
	n.opts = func(n *node) (Options, world) {
		o, _ := was(n)
		o.Bind = bind
		return o, &realWorld{opts: o}
	}
	n.start()
	res, err := n.c.Propose(within(t, 30*time.Second), fsm.Command{Actor: "node:" + n.id, Op: fsm.PutNode{
		Node: fsm.Node{ID: n.id, Name: n.id, Membership: fsm.Membership{Address: bind}},
	}})
	if err != nil || res.Err != nil {
		t.Fatalf("a node that moved can't say so: %v, %v", err, res.Err)
	}
	f.ready()
	for _, m := range f.nodes {
		f.await(m.id+" to know the new address", func() bool { p, _ := m.c.dir.peer(n.id); return p.Address == bind })
		if rep, err := m.c.Ask(within(t, 5*time.Second), n.id, fsm.Query{}); err != nil || rep.Node != n.id {
			t.Errorf("%s asked it: %v", m.id, err)
		}
	}
	f.leader().propose(declare("vm", "two"))
	f.await("it to follow", func() bool { return owner(n.store, "vm") == "two" })
	// The next life of another node begins with the new address, from its own disk alone.
	other := f.nodes[0]
	if other == n {
		other = f.nodes[1]
	}
	f.await("the new address to be on its disk", func() bool {
		r, err := loadRoster(other.c.identity.file(rosterFile))
		return err == nil && slices.ContainsFunc(r.Peers, func(p Peer) bool { return p.ID == n.id && p.Address == bind })
	})
}

// TestRetiredNodeIsCutOff: its open connections end at once, and it gets no new ones.
func TestRetiredNodeIsCutOff(t *testing.T) {
	t.Parallel()
	f := realFleet(t, 3).start().ready()
	f.await("everybody to be alive", func() bool {
		return !slices.ContainsFunc(f.leader().c.Members(), func(m fsm.Member) bool { return !m.Alive })
	})
	gone, here := f.follower(), f.leader()
	if _, err := gone.c.Ask(within(t, 5*time.Second), here.id, fsm.Query{}); err != nil {
		t.Fatal(err)
	}
	here.propose(fsm.Command{Actor: "test", Op: fsm.RetireNode{ID: gone.id, Force: true}})
	for _, n := range f.nodes {
		f.await(n.id+" to know", func() bool {
			_, member := n.c.dir.peer(gone.id)
			return !member || n == gone
		})
	}
	port := func(n *node) *port { return n.c.world.(*realWorld).port }
	for _, n := range f.nodes {
		if n == gone {
			continue
		}
		p := port(n)
		f.await(n.id+" to have cut its connections", func() bool {
			p.mu.Lock()
			defer p.mu.Unlock()
			for c := range p.conns {
				if c.member.Node == gone.id {
					return false
				}
			}
			return true
		})
	}
	if _, err := gone.c.Ask(within(t, 5*time.Second), here.id, fsm.Query{}); err == nil {
		t.Error("a retired node is answered")
	}
	if _, err := gone.c.Propose(within(t, 3*time.Second), declare("vm", "from the retired one")); err == nil {
		t.Error("a retired node writes")
	}
	gone.refusedAs(t, "retired")
	f.await("raft to drop it", func() bool { return !f.leader().c.voters()[gone.id] })
	here.propose(declare("vm", "from a member"))
}

// TestFollowerMayNotSpeakRaft: a node that does not vote can't write into a voter's log, whatever term it claims.
func TestFollowerMayNotSpeakRaft(t *testing.T) {
	t.Parallel()
	f := realFleet(t, 4).start().ready()
	voters := f.leader().c.voters()
	var plain *node
	for _, n := range f.nodes {
		if !voters[n.id] {
			plain = n
		}
	}
	to := f.leader()
	rw := plain.c.world.(*realWorld)
	trans := raft.NewNetworkTransport(&streamLayer{connQueue: newConnQueue(peerAddr(plain.id)), port: rw.port}, 1, time.Second, nil)
	defer func() { _ = trans.Close() }()
	req := &raft.AppendEntriesRequest{RPCHeader: raft.RPCHeader{ProtocolVersion: 3, ID: []byte(plain.id), Addr: []byte(plain.id)}, Term: 1000}
	if err := trans.AppendEntries(raft.ServerID(to.id), raft.ServerAddress(to.id), req, &raft.AppendEntriesResponse{}); err == nil {
		t.Error("a node that does not vote was heard as a leader")
	}
	if term := to.c.Status().Term; term >= 1000 {
		t.Errorf("it has moved the term to %d", term)
	}
	// With the seal key, which only voters get, it may.
	if err := plain.c.identity.putSealKey(f.born.seal); err != nil {
		t.Fatal(err)
	}
	req.Term = 1
	if err := trans.AppendEntries(raft.ServerID(to.id), raft.ServerAddress(to.id), req, &raft.AppendEntriesResponse{}); err != nil {
		t.Errorf("a node with the seal key: %v", err)
	}
}

// TestVotersAreEntrusted: every voter gets the seal key, and one that has lost it gets it again.
func TestVotersAreEntrusted(t *testing.T) {
	t.Parallel()
	f := realFleet(t, 4).start().ready()
	voters := f.leader().c.voters()
	for _, n := range f.nodes {
		if has := n.c.identity.SealKey() != nil; has != voters[n.id] {
			t.Errorf("%s votes: %v, has the seal key: %v", n.id, voters[n.id], has)
		}
	}
	l := f.leader()
	if !voters[l.id] {
		t.Fatal("the leader does not vote")
	}
	l.c.identity.sealKey.Store(nil)
	for _, n := range f.nodes {
		if voters[n.id] && n != l {
			n.crash() // comes back, finds a leader without the key and gives it
			n.start()
			break
		}
	}
	f.await("the leader to have the seal key again", func() bool { return l.c.identity.SealKey() != nil })
	other := f.nodes[3]
	if _, err := other.c.onEntrust(context.Background(), "n1", nil); err == nil {
		t.Error("a key that is none was taken")
	}
	if seal := filepath.Join(filepath.Dir(other.dir()), sealFile); other.c.identity.seal != seal {
		t.Errorf("the seal key would go to %s", other.c.identity.seal)
	}
}

// TestSealKeyGoesWithTheVote: a node that does not vote any more deletes the key, from its disk as well, once a majority
// of the voters has it; when it votes again it has it again.
func TestSealKeyGoesWithTheVote(t *testing.T) {
	f := realFleet(t, 4).start().ready()
	voters := f.leader().c.voters()
	var out *node
	for _, n := range f.nodes {
		if voters[n.id] && !n.leads() {
			out = n
		}
	}
	on := func(n *node) bool { // the disk
		files, err := os.ReadDir(filepath.Dir(n.c.identity.seal))
		if err != nil {
			t.Fatal(err)
		}
		return slices.ContainsFunc(files, func(e os.DirEntry) bool { return strings.Contains(e.Name(), sealFile) })
	}
	if !on(out) {
		t.Fatal("a voter without a seal key")
	}
	if err := os.WriteFile(filepath.Join(filepath.Dir(out.c.identity.seal), "."+sealFile+".123"), f.born.seal, 0o600); err != nil {
		t.Fatal(err)
	}
	drain := func(id string, undo bool) {
		f.leader().propose(fsm.Command{Actor: "test", Op: fsm.DrainNode{ID: id, Undo: undo}})
	}
	drain(out.id, false)
	f.voting(3, other(out))
	f.await("its key to be deleted", func() bool { return out.c.identity.SealKey() == nil && !on(out) })
	var has []*node
	for _, n := range f.nodes {
		if n == out {
			continue
		}
		has = append(has, n)
		if n.c.identity.SealKey() == nil || !on(n) {
			t.Errorf("the voter %s has no seal key", n.id)
		}
	}

	// Not while it may be one of the last that have it.
	if err := out.c.identity.putSealKey(f.born.seal); err != nil {
		t.Fatal(err)
	}
	for _, n := range has {
		n.c.identity.sealKey.Store(nil)
	}
	if has[0].c.identity.sealKey.Store(&f.born.seal); out.c.follows.Load().mayForget(t.Context()) {
		t.Error("it would delete the key that one of three voters has")
	}
	has[1].c.identity.sealKey.Store(&f.born.seal)
	f.await("its key to be deleted again", func() bool { return out.c.identity.SealKey() == nil && !on(out) })

	has[2].c.identity.sealKey.Store(&f.born.seal)
	drain(out.id, true)
	next := has[0]
	if next.leads() {
		next = has[1]
	}
	drain(next.id, false)
	f.voting(3, other(next))
	if out.c.identity.SealKey() == nil || !on(out) {
		t.Error("it votes again without the seal key")
	}
}
