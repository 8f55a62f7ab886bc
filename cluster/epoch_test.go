package cluster

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/palisade/palisade/cluster/internal/peerpb"
	"github.com/palisade/palisade/fsm"
	"github.com/palisade/palisade/pki"
)

func (n *node) dataDir() string { return filepath.Dir(n.dir()) }

// recover makes a dead node go on alone.
func (n *node) recover() Refounded {
	n.t.Helper()
	off, err := ReadOffline(n.dir(), logger(n.t))
	if err != nil {
		n.t.Fatal(err)
	}
	out, err := Refound(context.Background(), RefoundOptions{
		DataDir: n.dataDir(), Actor: "unix:0", How: fsm.EpochRecovered, View: off.State.View(), Index: off.Index, Term: off.Term,
		Node: n.id, Why: "the quorum was lost", Logger: logger(n.t),
	})
	if err != nil {
		n.t.Fatal(err)
	}
	return out
}

// outcome waits for a node's part to end by itself.
func (n *node) outcome() error {
	n.t.Helper()
	select {
	case err := <-n.ended:
		n.mu.Lock()
		n.c = nil
		n.mu.Unlock()
		return err
	case <-time.After(30 * time.Second):
		n.t.Fatalf("%s goes on", n.id)
	}
	return nil
}

// rejoin waits until a node has heard of a new epoch, and starts it again as its agent would.
func (n *node) rejoin(epoch uint64) {
	n.t.Helper()
	err := n.outcome()
	if over, ok := errors.AsType[*SupersededError](err); !ok || over.Epoch != epoch {
		n.t.Fatalf("%s ended with %v", n.id, err)
	}
	n.start()
}

// TestOldMajorityComesBack: the fleet was recovered on one node. Those that were taken for lost come back, with a
// leader of their own and writes of their own, and give all that up.
func TestOldMajorityComesBack(t *testing.T) {
	t.Parallel()
	f := realFleet(t, 3).start().ready()
	survivor := f.follower()
	survivor.propose(declare("vm", "one"))
	f.agree(f.leader().store.View().Index())
	var lost []*node
	for _, n := range f.nodes {
		n.crash()
		if n != survivor {
			lost = append(lost, n)
		}
	}
	found := survivor.recover()
	if found.Epoch != 2 || found.Kept == "" {
		t.Errorf("recovered: %+v", found)
	}
	survivor.start()
	f.await("the survivor to lead", survivor.leads)
	first := survivor.propose(declare("vm", "two")).Index
	if first <= fsm.EpochIndexGap {
		t.Errorf("the new epoch begins with index %d: it may be taken for one of the lost time", first)
	}
	survivor.crash()

	// While it is away they go on as they always did.
	for _, n := range lost {
		n.start()
	}
	old := &fleet{t: t, nodes: lost, born: f.born}
	l := old.leader()
	l.propose(declare("vm", "lost"))
	survivor.start()
	for _, n := range lost {
		n.rejoin(2)
	}
	f.ready()
	after := survivor.propose(declare("vm", "three"))
	f.agree(after.Index)
	for _, n := range lost {
		if got := owner(n.store, "vm"); got != "three" {
			t.Errorf("%s has %q", n.id, got)
		}
		aside := n.c.Status().Aside
		if len(aside) != 1 || !strings.Contains(aside[0].Why, "epoch 2") {
			t.Errorf("%s set aside %+v", n.id, aside)
		}
		f.await("the gate to open", func() bool { return !n.c.running.Load().tap.gated.Load() })
	}
	// From now on it is a fleet like any other: the survivor may go.
	f.await("three voters", func() bool { return len(survivor.c.voters()) == 3 })
	survivor.crash()
	f.ready()
	lost[0].propose(declare("vm", "four"))
	// What was set aside is not touched again by a start.
	lost[1].crash()
	lost[1].start()
	survivor.start()
	f.ready()
	if aside := lost[1].c.Status().Aside; len(aside) != 1 {
		t.Errorf("set aside: %+v", aside)
	}
}

// TestNobodyClaimsAnEpoch: without the authority's signature an epoch is nothing but a number.
func TestNobodyClaimsAnEpoch(t *testing.T) {
	t.Parallel()
	f := realFleet(t, 3).start().ready()
	liar := f.follower()
	liar.crash()
	identity, err := LoadIdentity(liar.dataDir())
	if err != nil {
		t.Fatal(err)
	}
	other, err := pki.NewAuthority(f.born.fleet, time.Now())
	if err != nil {
		t.Fatal(err)
	}
	forged, err := other.SignEpoch(f.born.fleet, 9, liar.id)
	if err != nil {
		t.Fatal(err)
	}
	if err := identity.follow(&epochProof{Epoch: 9, Node: liar.id, Signature: forged}); err != nil {
		t.Fatal(err)
	}
	liar.start()
	f.await("the liar to try", func() bool { return liar.c.opened.Load() != nil })
	for deadline := time.Now().Add(3 * time.Second); time.Now().Before(deadline); time.Sleep(10 * time.Millisecond) {
		for _, n := range f.nodes {
			if n != liar && n.c.ended() {
				t.Fatalf("%s believed it: %v", n.id, n.c.overErr)
			}
		}
	}
	for _, n := range f.nodes {
		if n != liar {
			n.propose(declare("vm", n.id))
		}
	}
	if liar.leads() || liar.c.Status().Quorum {
		t.Error("the liar takes part")
	}
}

// TestRecoverCutShort: a crash between the store and the identity leaves a node that finds out by itself.
func TestRecoverCutShort(t *testing.T) {
	t.Parallel()
	f := realFleet(t, 1).start().ready()
	n := f.nodes[0]
	n.propose(declare("vm", "one"))
	n.crash()
	file := filepath.Join(n.dataDir(), identityDir, fleetFile)
	before, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	n.recover()
	if err := os.WriteFile(file, before, 0o600); err != nil {
		t.Fatal(err)
	}
	n.start()
	f.ready()
	n.propose(declare("vm", "two"))
	if got := n.c.identity.Epoch(); got != 2 {
		t.Errorf("epoch %d", got)
	}
	n.crash()
	n.start()
	f.ready()
	if owner(n.store, "vm") != "two" || len(n.c.Status().Aside) != 1 {
		t.Errorf("%q, %+v", owner(n.store, "vm"), n.c.Status().Aside)
	}
}

func copyTree(t *testing.T, from, to string) {
	t.Helper()
	if err := os.CopyFS(to, os.DirFS(from)); err != nil {
		t.Fatal(err)
	}
	if err := filepath.WalkDir(to, func(path string, d os.DirEntry, err error) error {
		if err != nil || d.IsDir() {
			return err
		}
		return os.Chmod(path, 0o600)
	}); err != nil {
		t.Fatal(err)
	}
}

// clone is a node over a copy of another's data directory, reached elsewhere.
func (f *fleet) clone(n *node, dir string) *node {
	return newNode(f.t, n.id, func(*node) (Options, world) {
		identity, err := LoadIdentity(dir)
		if err != nil {
			f.t.Fatal(err)
		}
		o := Options{
			ID: n.id, Version: "test", Dir: filepath.Join(dir, storeDir), Bind: freePort(f.t), GossipBind: freePort(f.t),
			Identity: identity, Logger: logger(f.t).With("node", n.id+"-clone"),
		}
		return o, &realWorld{opts: o}
	})
}

func (n *node) refusedAs(t *testing.T, what string) {
	t.Helper()
	err := n.outcome()
	if refused, ok := errors.AsType[*RefusedError](err); !ok || !strings.Contains(refused.Why, what) || !strings.Contains(refused.Why, "join under a new id") {
		t.Errorf("it ended with %v, want a refusal with %q", err, what)
	}
}

// TestCopiedNodeIsRefused: of a node that exists twice only the original takes part: while it runs, and later when it
// does not.
func TestCopiedNodeIsRefused(t *testing.T) {
	t.Parallel()
	f := realFleet(t, 3).start().ready()
	n := f.follower()
	n.propose(declare("vm", "one"))
	base := diskDir(t)
	copyTree(t, n.dataDir(), filepath.Join(base, "live"))
	clone := f.clone(n, filepath.Join(base, "live")).start()
	clone.refusedAs(t, "runs elsewhere at this moment")
	// Again and again: its number of starts must not outgrow the original's.
	for range 3 {
		clone.start()
		clone.refusedAs(t, "runs elsewhere at this moment")
	}
	n.propose(declare("vm", "two"))
	if n.c.ended() {
		t.Errorf("the original is out: %v", n.c.overErr)
	}

	// The original is started again; the copy is older then, whether the original runs or not.
	n.stop()
	n.start()
	f.ready()
	f.knowLife(n)
	n.stop()
	clone.start()
	clone.refusedAs(t, "seen before")
	n.start()
	f.ready()
	n.stop()
	clone.start()
	clone.refusedAs(t, "this is its start")
	n.start()
	f.ready()

	// Also when nobody who saw it is left, but the state.
	gen := n.c.identity.Generation()
	f.leader().propose(fsm.Command{Actor: "node:" + n.id, Op: fsm.PutNode{Node: fsm.Node{ID: n.id, Membership: fsm.Membership{Generation: gen}}}})
	for _, n := range f.nodes {
		n.stop()
	}
	for _, other := range f.nodes {
		if other != n {
			other.start()
		}
	}
	f.leader()
	clone.start()
	clone.refusedAs(t, "this is its start")
	n.start()
	f.ready()
	n.propose(declare("vm", "three"))
}

// knowLife waits until all others deal with the present life of a node: whoever was too busy to ask it for a moment does not yet.
func (f *fleet) knowLife(n *node) {
	f.t.Helper()
	f.await(n.id+" to begin", func() bool { return n.c.opened.Load() != nil })
	for _, other := range f.nodes {
		if other != n && other.alive() {
			f.await(other.id+" to know the life of "+n.id, func() bool {
				_, err := n.c.helloTo(f.t.Context(), other.id)
				return err == nil
			})
		}
	}
}

// TestABelievedCopyIsRefusedOnceTheStateKnows: a copy was taken for the node while the original was away, before those that
// took it had read how often the original was started. It must not stay for good.
func TestABelievedCopyIsRefusedOnceTheStateKnows(t *testing.T) {
	t.Parallel()
	f := realFleet(t, 3).start().ready()
	n := f.follower()
	base := filepath.Join(diskDir(t), "copy")
	copyTree(t, n.dataDir(), base)
	n.stop()
	clone := f.clone(n, base).start()
	f.knowLife(clone)
	l := f.leader()
	conn := clone.raftConn(l)
	l.propose(fsm.Command{Actor: "node:" + n.id, Op: fsm.PutNode{Node: fsm.Node{ID: n.id, Membership: fsm.Membership{Generation: 5}}}})
	clone.refusedAs(t, "this is its start")
	if err := conn.SetReadDeadline(time.Now().Add(10 * time.Second)); err != nil {
		t.Fatal(err)
	}
	if _, err := conn.Read(make([]byte, 1)); err == nil || errors.Is(err, os.ErrDeadlineExceeded) {
		t.Errorf("a connection of the copy's stays open: %v", err)
	}
}

// raftConn is a connection for raft to another node that does not end with this one.
func (n *node) raftConn(to *node) net.Conn {
	n.t.Helper()
	p := newPort(n.c.identity, n.c.dir, n.c.timing, logger(n.t))
	p.contacts, p.refusedBy = n.c.contacts, func(string) {}
	n.t.Cleanup(p.close)
	peer, _ := n.c.dir.peer(to.id)
	conn, err := p.dial(n.t.Context(), to.id, peer.Address, alpnRaft)
	if err != nil {
		n.t.Fatal(err)
	}
	return conn
}

// TestABusyNodeIsNotTakenForDead: while something is where the original is reached that does not answer in time, nobody else is
// taken for it; some would, others would not, and both would take part.
func TestABusyNodeIsNotTakenForDead(t *testing.T) {
	t.Parallel()
	f := realFleet(t, 3).start().ready()
	n := f.follower()
	base := filepath.Join(diskDir(t), "copy")
	copyTree(t, n.dataDir(), base)
	p, _ := n.c.dir.peer(n.id)
	n.stop()
	busy, err := net.Listen("tcp", p.Address) // as if it were stopped: the kernel takes connections
	if err != nil {
		t.Fatal(err)
	}
	clone := f.clone(n, base).start()
	f.await("the copy to begin", func() bool { return clone.c.opened.Load() != nil })
	for _, other := range f.nodes {
		if other == n {
			continue
		}
		for range 2 { // longer than any caller waits by itself
			ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
			if _, err := clone.c.rpc.hello(ctx, other.id, &peerpb.HelloRequest{Node: n.id}); err == nil {
				t.Errorf("%s took the copy", other.id)
			}
			cancel()
		}
	}
	busy.Close()
	n.start()
	clone.refusedAs(t, "copy")
	f.ready()
	n.propose(declare("vm", "one"))
}

// TestWhoWasCutOffComesBack: nothing was where a node is reached when a copy came, which is as if the node had moved. The
// original was only cut off, and is asked for again as long as that is not certain.
func TestWhoWasCutOffComesBack(t *testing.T) {
	t.Parallel()
	original, copied := life{2, 11}, life{3, 12}
	there, gone := make(chan life, 1), errors.New("no route to host")
	var floor, cuts atomic.Uint64
	c := newContacts(nil, nil)
	c.mine.Epoch = 1
	c.floor = func(string) uint64 { return floor.Load() }
	c.cut = func() { cuts.Add(1) }
	c.spawn = func(f func(context.Context)) { go f(t.Context()) }
	c.ask = func(context.Context, string) (life, error) {
		select {
		case l := <-there:
			there <- l
			return l, nil
		default:
			return life{}, gone
		}
	}
	meet := func(l life) error { return c.meet(t.Context(), "n", said{1, l}, nil, "") }
	refused := func(err error) bool { _, ok := errors.AsType[*refusal](err); return ok }
	there <- original
	if err := meet(original); err != nil {
		t.Fatal(err)
	}
	<-there
	if err := meet(copied); err != nil {
		t.Fatalf("nothing is where the node is reached, and another is refused: %v", err)
	}
	if !refused(meet(original)) {
		t.Error("an older life is taken that is not there")
	}
	if !c.outlived("n", original) || c.outlived("n", copied) {
		t.Error("the wrong connections are cut")
	}
	there <- original
	if err := meet(original); err != nil {
		t.Errorf("the original is back and is refused: %v", err)
	}
	if err := meet(copied); !refused(err) || !strings.Contains(err.Error(), "runs elsewhere") {
		t.Errorf("the copy is told %v", err)
	}
	if !c.outlived("n", copied) || c.outlived("n", original) {
		t.Error("the copy's connections stay")
	}

	// Nor does it take the original to call.
	<-there
	if err := meet(copied); err != nil {
		t.Fatal(err)
	}
	there <- original
	c.mu.Lock()
	b := c.lives["n"]
	b.asked = time.Now().Add(-2 * askAgain)
	c.lives["n"] = b
	c.mu.Unlock()
	for deadline := time.Now().Add(10 * time.Second); !refused(meet(copied)); time.Sleep(time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatal("the copy is dealt with for good")
		}
	}
	floor.Store(3)
	if !refused(meet(original)) {
		t.Error("the state knows of a later start")
	}
	if !c.outlived("n", original) {
		t.Error("the state knows of a later start, and the connections stay")
	}
	for deadline := time.Now().Add(10 * time.Second); cuts.Load() < 4; time.Sleep(time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatalf("connections were cut %d times", cuts.Load())
		}
	}
}

// TestTheDeadDoNotKeepTheNewEpochFromTheLiving: after a recovery most nodes may be dead.
func TestTheDeadDoNotKeepTheNewEpochFromTheLiving(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		ids := make([]string, 0, 1000)
		for i := range cap(ids) {
			ids = append(ids, fmt.Sprintf("n%d", i))
		}
		begin := time.Now()
		var after time.Duration
		got := reached(ids, func(id string) error {
			if id == ids[999] {
				after = time.Since(begin)
				return nil
			}
			time.Sleep(helloTime) // virtual
			return errNotSent
		})
		if !slices.Equal(got, ids[999:]) || after > time.Minute {
			t.Errorf("after %s it has reached %v", after, got)
		}
	})
}
