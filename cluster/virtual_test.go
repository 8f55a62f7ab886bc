package cluster

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/hashicorp/raft"
	"google.golang.org/protobuf/proto"

	"github.com/palisade/palisade/fsm"
)

// memNet is a network without a network: raft's in-memory transports, direct calls, and cuts.
type memNet struct {
	mu     sync.Mutex
	worlds map[string]*memWorld // those that are up
	cuts   map[[2]string]bool   // one-way: from, to
	measures
}

// memStore is a disk that outlives its node.
type memStore struct {
	logs  *raft.InmemStore
	snaps raft.SnapshotStore
}

func newMemStore() *memStore {
	return &memStore{logs: raft.NewInmemStore(), snaps: raft.NewInmemSnapshotStore()}
}

// memWorld is one life of a node on a memNet.
type memWorld struct {
	net   *memNet
	id    string
	store *memStore
	wrap  func(*disk) // changes the disk before it is used
	c     *Cluster
	trans *raft.InmemTransport
	memLife
}

var (
	_ world    = (*memWorld)(nil)
	_ peers    = (*memWorld)(nil)
	_ gossiper = (*memWorld)(nil)
)

func (w *memWorld) connect(c *Cluster) error {
	w.c = c
	w.begin()
	c.rpc, c.gossip = calls{w}, w
	return nil
}

func (w *memWorld) open(c *Cluster) (*disk, error) {
	g := newGuard("in memory", c.timing.StuckIO, c.fatal)
	d := w.store.disk(g)
	if w.wrap != nil {
		w.wrap(d)
	}
	return d, nil
}

func (w *memWorld) serve(*Cluster, func(func(context.Context) error)) error {
	w.net.mu.Lock()
	defer w.net.mu.Unlock()
	w.net.worlds[w.id] = w
	return nil
}

func (w *memWorld) transport(*Cluster) (raft.Transport, error) {
	_, trans := raft.NewInmemTransport(raft.ServerAddress(w.id))
	w.net.mu.Lock()
	defer w.net.mu.Unlock()
	w.trans = trans
	for _, other := range w.net.worlds {
		if other != w && other.trans != nil {
			w.net.wire(w, other)
			w.net.wire(other, w)
		}
	}
	if w.net.latency > 0 {
		return &lagTransport{InmemTransport: trans, net: w.net, id: w.id}, nil
	}
	return trans, nil
}

func (w *memWorld) stop(bool) {
	defer w.end()
	w.net.mu.Lock()
	defer w.net.mu.Unlock()
	if w.net.worlds[w.id] != w {
		return
	}
	delete(w.net.worlds, w.id)
	w.unwire()
}

func (w *memWorld) cut() {
	w.net.mu.Lock()
	defer w.net.mu.Unlock()
	w.unwire()
	w.trans = nil
}

// unwire takes raft's transport from the others. The caller holds mu.
func (w *memWorld) unwire() {
	if w.trans == nil {
		return
	}
	w.trans.DisconnectAll()
	for _, other := range w.net.worlds {
		if other.trans != nil {
			other.trans.Disconnect(w.trans.LocalAddr())
		}
	}
}

// wire lets from reach to, unless that is cut. The caller holds mu.
func (n *memNet) wire(from, to *memWorld) {
	if n.cuts[[2]string{from.id, to.id}] {
		from.trans.Disconnect(to.trans.LocalAddr())
	} else {
		from.trans.Connect(to.trans.LocalAddr(), to.trans)
	}
}

// cut separates one node from the others, both ways, or heals that.
func (n *memNet) cut(id string, on bool) {
	n.mu.Lock()
	defer n.mu.Unlock()
	for i := range 99 {
		other := fmt.Sprintf("n%d", i+1)
		if other == id {
			continue
		}
		n.cuts[[2]string{id, other}], n.cuts[[2]string{other, id}] = on, on
		a, b := n.worlds[id], n.worlds[other]
		if a != nil && b != nil && a.trans != nil && b.trans != nil {
			n.wire(a, b)
			n.wire(b, a)
		}
	}
}

func (n *memNet) reach(from, to string) *memWorld {
	n.mu.Lock()
	defer n.mu.Unlock()
	if n.cuts[[2]string{from, to}] {
		return nil
	}
	return n.worlds[to]
}

// call calls a peer directly, with the messages encoded as over a wire. An answer does not come back through a cut.
func (w *memWorld) call(ctx context.Context, id, verb string, req, resp proto.Message) error {
	to := w.net.reach(w.id, id)
	if to == nil {
		return errNotSent
	}
	body, err := proto.Marshal(req)
	if err != nil {
		return err
	}
	type answer struct {
		body []byte
		err  error
	}
	ch := make(chan answer, 1)
	go func() {
		_ = w.net.as(id, func() error {
			sleep(ctx, w.net.latency)
			m, err := to.c.handlers()[verb](ctx, w.id, body)
			var out []byte
			if err == nil {
				out, err = proto.Marshal(m)
			}
			sleep(ctx, w.net.latency)
			ch <- answer{out, err}
			return err
		})
	}()
	select {
	case a := <-ch:
		if w.net.reach(id, w.id) == nil || w.net.reach(w.id, id) != to {
			return errors.New("connection lost")
		}
		if a.err != nil {
			return a.err
		}
		return proto.Unmarshal(a.body, resp)
	case <-ctx.Done():
		return ctx.Err()
	}
}

func (w *memWorld) tidy() {}

func (w *memWorld) run(ctx context.Context) error { <-ctx.Done(); return nil }
func (w *memWorld) alive(id string) bool          { return id == w.id || w.net.reach(id, w.id) != nil }

func (w *memWorld) health() int { return 0 }

func (w *memWorld) announce(msg []byte) {
	for i := range 99 {
		if to := w.net.reach(w.id, fmt.Sprintf("n%d", i+1)); to != nil && to != w {
			to.c.sightings.take(msg)
		}
	}
}

// memFleet is n nodes on a memNet, not started. All of them will vote unless that is tuned.
func memFleet(t testing.TB, n int, tune ...func(w *memWorld, o *Options)) (*fleet, *memNet) {
	net := &memNet{worlds: map[string]*memWorld{}, cuts: map[[2]string]bool{}}
	var list []Peer
	for i := range n {
		list = append(list, memPeer(i+1))
	}
	f := &fleet{t: t, voters: odd(n), born: bear(t, list)}
	for i, p := range list {
		store := newMemStore()
		if i == 0 {
			g := newGuard("in memory", time.Minute, func(err error) { t.Error(err) })
			if err := birth(store.disk(g), p.ID, f.born.commands); err != nil {
				t.Fatal(err)
			}
		}
		f.addVirtual(net, p, store, func() Roster { return f.born.roster }, tune...)
	}
	return f, net
}

func memPeer(i int) Peer {
	ip := fmt.Sprintf("10.0.%d.%d", i/250, i%250+1)
	return Peer{ID: fmt.Sprintf("n%d", i), Address: ip + ":1", Gossip: ip + ":2"}
}

// addVirtual makes a node of a fleet in virtual time. It starts with what known says of the others.
func (f *fleet) addVirtual(net *memNet, p Peer, store *memStore, known func() Roster, tune ...func(w *memWorld, o *Options)) *node {
	n := newNode(f.t, p.ID, func(*node) (Options, world) {
		o := Options{ID: p.ID, Logger: logger(f.t).With("node", p.ID)}
		o.seams.roster = known()
		o.seams.voters = f.voters
		w := &memWorld{net: net, id: p.ID, store: store}
		for _, change := range tune {
			change(w, &o)
		}
		return o, w
	})
	f.nodes = append(f.nodes, n)
	return n
}

func (s *memStore) disk(g *guard) *disk {
	return &disk{
		guard: g,
		logs:  &guardedLogs{g, s.logs}, stable: &guardedStable{g, s.logs}, snaps: &guardedSnaps{g, s.snaps},
		close: func() error { return nil },
	}
}

// stopVirtual stops a fleet in virtual time, and lets raft's in-memory calls to nodes that are gone
// time out, which the end of a bubble does not wait for.
func (f *fleet) stopVirtual() {
	f.stop()
	time.Sleep(time.Minute)
}

func within(t testing.TB, d time.Duration) context.Context {
	ctx, cancel := context.WithTimeout(context.Background(), d)
	t.Cleanup(cancel)
	return ctx
}

func TestElectionAndFailoverInVirtualTime(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f, _ := memFleet(t, 5)
		f.start().ready()
		acked := map[string]string{}
		for round := range 4 {
			l := f.leader()
			for i := range 5 {
				vm, who := fmt.Sprintf("vm%d", i), fmt.Sprintf("r%d", round)
				f.follower().propose(declare(vm, who))
				acked[vm] = who
			}
			begin := time.Now()
			l.crash()
			next := f.leader()
			if took := time.Since(begin); took > 4*time.Second {
				t.Errorf("a dead leader was replaced after %s", took)
			}
			if next == l {
				t.Fatal("the dead node leads")
			}
			// Nothing that was acknowledged is lost, as read linearizably anywhere.
			n := f.follower()
			if _, err := n.c.ReadIndex(within(t, 5*time.Second)); err != nil {
				t.Fatalf("ReadIndex after failover: %v", err)
			}
			for vm, who := range acked {
				if got := owner(n.store, vm); got != who {
					t.Errorf("%s is owned by %q, acknowledged was %q", vm, got, who)
				}
			}
			l.start()
			f.ready()
		}
		f.agree(f.leader().store.View().Index())
		f.stopVirtual()
	})
}

func TestIsolatedLeaderStepsDownAndHeals(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f, net := memFleet(t, 3)
		f.start().ready()
		old := f.leader()
		old.propose(declare("vm", "before"))
		net.cut(old.id, true)

		// It still believes that it leads, but it can't prove it: a read must not be answered.
		if index, err := old.c.ReadIndex(within(t, 200*time.Millisecond)); err == nil || !old.leads() {
			t.Errorf("a leader without followers answered a linearizable read with %d, %v", index, err)
		}
		_, err := old.c.Propose(within(t, 5*time.Second), declare("vm", "lost"))
		if !errors.Is(err, fsm.ErrUnknown) {
			t.Errorf("a leader without followers answered %v, want unknown: it had appended the write", err)
		}
		f.await("a new leader", func() bool {
			for _, n := range f.nodes {
				if n != old && n.leads() {
					return true
				}
			}
			return false
		})
		if old.leads() || old.c.Status().Quorum {
			t.Errorf("the isolated node still claims to lead: %+v", old.c.Status())
		}
		begin := time.Now()
		_, err = old.c.Propose(within(t, 20*time.Second), declare("vm", "refused"))
		if !errors.Is(err, fsm.ErrUnavailable) {
			t.Errorf("a node without a leader answered %v, want unavailable", err)
		}
		if took := time.Since(begin); took > 4*time.Second {
			t.Errorf("unavailable was said after %s", took)
		}
		time.Sleep(10 * time.Second) // virtual
		begin = time.Now()
		if _, err = old.c.Propose(within(t, 20*time.Second), declare("vm", "refused")); !errors.Is(err, fsm.ErrUnavailable) || time.Since(begin) > time.Second {
			t.Errorf("a node long without a leader answered %v after %s", err, time.Since(begin))
		}
		if _, err := old.c.ReadIndex(within(t, 20*time.Second)); !errors.Is(err, fsm.ErrUnavailable) {
			t.Errorf("a linearizable read in the minority: %v", err)
		}

		net.cut(old.id, false)
		f.ready()
		res := old.propose(declare("vm", "after"))
		f.agree(res.Index)
		for _, n := range f.nodes {
			if owner(n.store, "vm") != "after" {
				t.Errorf("%s has %q", n.id, owner(n.store, "vm"))
			}
		}
		f.stopVirtual()
	})
}

func TestRetryWithAKeyHasOneEffect(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f, net := memFleet(t, 3)
		f.start().ready()
		old := f.leader()
		// The leader is cut off in the middle of the proposal: it appends and can't commit. With a
		// key, Propose tries on until the fleet is healed and has one effect.
		net.cut(old.id, true)
		cmd := fsm.Command{Actor: "token:test", Key: "k1", Op: fsm.AddBlock{Target: target(t, "203.0.113.7"), Reason: "abuse"}}
		type answer struct {
			res fsm.Result
			err error
		}
		ch := make(chan answer, 1)
		go func() {
			res, err := old.c.Propose(within(t, time.Minute), cmd)
			ch <- answer{res, err}
		}()
		time.Sleep(8 * time.Second) // virtual
		net.cut(old.id, false)
		a := <-ch
		if a.err != nil || a.res.Block == nil {
			t.Fatalf("the retried proposal: %+v, %v", a.res, a.err)
		}
		again, err := f.follower().c.Propose(within(t, time.Minute), cmd)
		if err != nil || !again.Replayed || again.Index != a.res.Index || again.Block.ID != a.res.Block.ID {
			t.Errorf("again: %+v, %v; first was %+v", again, err, a.res)
		}
		f.agree(again.Index)
		for _, n := range f.nodes {
			if got := n.store.View().CountBlocks(); got != 1 {
				t.Errorf("%s has %d blocks", n.id, got)
			}
		}
		f.stopVirtual()
	})
}

func TestReignsComeInPairs(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f, net := memFleet(t, 3)
		f.start().ready()
		for range 5 {
			l := f.leader()
			net.cut(l.id, true)
			f.await("the reign to end", func() bool { return !l.leads() })
			time.Sleep(3 * time.Second) // virtual
			net.cut(l.id, false)
			f.ready()
			leading := 0
			for _, n := range f.nodes {
				if n.leads() {
					leading++
				}
				// A reign of this package never outlives raft's.
				if n.leads() && n.c.running.Load().raft.State() != raft.Leader {
					t.Errorf("%s has a reign without leading", n.id)
				}
			}
			if leading != 1 {
				t.Errorf("%d leaders", leading)
			}
		}
		f.stopVirtual()
	})
}

func TestTenQuietMinutesKeepOneLeader(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f, _ := memFleet(t, 5)
		f.start().ready()
		l, term := f.leader(), f.leader().c.Status().Term
		time.Sleep(10 * time.Minute) // virtual
		if !l.leads() || l.c.Status().Term != term {
			t.Errorf("leadership moved in an idle fleet: %+v", l.c.Status())
		}
		for _, n := range f.nodes {
			if s := n.c.Status(); !s.Quorum || !s.CaughtUp {
				t.Errorf("%s after ten minutes: %+v", n.id, s)
			}
		}
		f.stopVirtual()
	})
}

// TestReturningNodeIsFilledAtOnce: raft alone waits up to ten seconds before it tries a follower again
// that was away for long.
func TestReturningNodeIsFilledAtOnce(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f, net := memFleet(t, 3, func(_ *memWorld, o *Options) {
			o.seams.raft = func(c *raft.Config) { c.TrailingLogs = 1 }
		})
		f.start().ready()
		for name, away := range map[string]func(n *node) (back func()){
			"crashed": func(n *node) func() { n.crash(); return func() { n.start() } },
			"cut off": func(n *node) func() { net.cut(n.id, true); return func() { net.cut(n.id, false) } },
		} {
			for round := range 4 {
				n := f.follower()
				back := away(n)
				for _, gap := range []time.Duration{0, 40 * time.Second, 9 * time.Second} {
					time.Sleep(gap) // virtual
					f.leader().propose(declare("vm", name))
				}
				last := f.leader().store.View().Index()
				if round%2 == 1 { // it will need a snapshot
					if err := f.leader().c.running.Load().raft.Snapshot().Error(); err != nil {
						t.Fatal(err)
					}
					time.Sleep(30 * time.Second) // virtual
				}
				begin := time.Now()
				back()
				f.agree(last)
				if took := time.Since(begin); took > 3*time.Second {
					t.Errorf("round %d: a node that was %s got the latest entry after %s", round, name, took)
				}
				f.ready()
			}
		}
		f.stopVirtual()
	})
}

// TestCaughtUpIsNeverEarly: a node that comes back takes itself for caught up only with all that was
// committed while it was away, also if the leader's first call to it is an old one.
func TestCaughtUpIsNeverEarly(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f, net := memFleet(t, 3)
		f.start().ready()
		for _, away := range []func(n *node) (back func()){
			func(n *node) func() { n.crash(); return func() { n.start() } },
			func(n *node) func() { net.cut(n.id, true); return func() { net.cut(n.id, false) } },
		} {
			n := f.follower()
			f.leader().propose(declare("vm", "one"))
			back := away(n)
			f.leader().propose(declare("vm", "two"))
			last := f.leader().store.View().Index()
			time.Sleep(5 * time.Second) // virtual
			back()
			for s := n.status(); !s.CaughtUp || !s.Quorum; s = n.status() {
				time.Sleep(time.Millisecond) // virtual
			}
			if index := n.store.View().Index(); index < last {
				t.Errorf("it says that it is caught up at index %d, the fleet had committed %d", index, last)
			}
			f.ready()
		}
		f.stopVirtual()
	})
}

func TestNonvoterFollows(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f, _ := memFleet(t, 4)
		f.start().ready()
		voters := f.leader().c.voters()
		var n *node
		var others []*node
		for _, m := range f.nodes {
			switch {
			case !voters[m.id]:
				n = m
			default:
				others = append(others, m)
			}
		}
		res := n.propose(declare("vm", "one"))
		f.agree(res.Index)
		f.await("the configuration to arrive", func() bool { return len(n.c.voters()) == 3 })
		for _, m := range n.c.Members() {
			if m.Voter != (m.ID != n.id) || !m.Alive || m.Self != (m.ID == n.id) || m.Leader != (m.ID == f.leader().id) {
				t.Errorf("member %+v", m)
			}
		}
		// It is no part of a majority.
		others[0].crash()
		others[1].crash()
		f.await("the quorum to be lost", func() bool { return !n.c.Status().Quorum })
		time.Sleep(10 * time.Second) // virtual
		if _, err := n.c.Propose(within(t, 10*time.Second), declare("vm", "two")); !errors.Is(err, fsm.ErrUnavailable) {
			t.Errorf("one voter and a nonvoter of three voters: %v", err)
		}
		f.stopVirtual()
	})
}

func target(t testing.TB, prefix string) fsm.Target {
	t.Helper()
	p, err := fsm.ParsePrefix("target.prefix", prefix)
	if err != nil {
		t.Fatal(err)
	}
	return fsm.Target{Prefix: p}
}
