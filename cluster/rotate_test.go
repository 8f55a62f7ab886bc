package cluster

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/palisade/palisade/cluster/internal/peerpb"
	"github.com/palisade/palisade/fsm"
	"github.com/palisade/palisade/pki"
)

// busy writes on every node until it is stopped, and says how many writes there were and which failed.
func (f *fleet) busy() (stop func() (int, []error)) {
	done := make(chan struct{})
	var mu sync.Mutex
	var failed []error
	count := 0
	var wg sync.WaitGroup
	for _, n := range f.nodes {
		c, _ := n.now()
		wg.Go(func() {
			for i := 0; ; i++ {
				select {
				case <-done:
					return
				default:
				}
				write, end := context.WithTimeout(context.Background(), 20*time.Second)
				res, err := c.Propose(write, declare("vm", fmt.Sprint(n.id, i)))
				end()
				if err == nil && res.Err != nil {
					err = res.Err
				}
				mu.Lock()
				if count++; err != nil {
					failed = append(failed, err)
				}
				mu.Unlock()
			}
		})
	}
	return func() (int, []error) { close(done); wg.Wait(); return count, failed }
}

func (f *fleet) state() *fsm.Fleet {
	f.t.Helper()
	fl, ok := f.leader().store.View().Fleet()
	if !ok {
		f.t.Fatal("there is no fleet")
	}
	return fl
}

// renew does what an agent does.
func renew(n *node) error {
	if !n.c.AuthorityChanged() {
		return nil
	}
	return n.c.Renew(context.Background())
}

func TestAuthorityIsRotatedUnderWrites(t *testing.T) {
	t.Parallel()
	f := realFleet(t, 3).start().ready()
	was := f.state().CAs[0].ID
	stop := f.busy()
	if err := f.follower().c.RotateCA(within(t, 10*time.Second), "token:test", "local"); err != nil {
		t.Fatal(err)
	}
	if refused, ok := errors.AsType[*fsm.Error](f.follower().c.RotateCA(within(t, 10*time.Second), "token:test", "local")); !ok || refused.Code != fsm.CodeConflict {
		t.Errorf("a second rotation meanwhile: %v", refused)
	}
	late := f.nodes[2]
	for _, n := range f.nodes[:2] {
		f.await(n.id+" to have renewed", func() bool {
			if err := renew(n); err != nil {
				t.Errorf("%s renews: %v", n.id, err)
			}
			return !n.c.AuthorityChanged()
		})
	}
	if missing := f.leader().store.View().AwaitingCA(); !slices.Equal(missing, []string{late.id}) {
		t.Errorf("missing are %v, want %s", missing, late.id)
	}
	if cas := f.state().CAs; len(cas) != 2 || cas[1].State != fsm.CACurrent || cas[0].SealedKey != nil {
		t.Errorf("authorities while one is missing: %+v", cas)
	}
	f.await("the last one to have renewed", func() bool { return renew(late) == nil && !late.c.AuthorityChanged() })
	f.await("the old authority to go", func() bool { return len(f.state().CAs) == 1 })
	now := f.state().CAs[0].ID
	if now == was {
		t.Error("the old authority stays")
	}
	count, failed := stop()
	if len(failed) > 0 || count < 10 {
		t.Errorf("%d of %d writes failed: %v", len(failed), count, failed)
	}
	t.Logf("%d writes during the rotation, %d failed", count, len(failed))
	f.agree(f.leader().propose(declare("vm", "end")).Index)
	for _, n := range f.nodes {
		f.await(n.id+" to trust the new authority alone", func() bool {
			trusted := n.c.dir.now().trusted
			return len(trusted) == 1 && fmt.Sprintf("%x", pki.KeyHash(trusted[0])) == now
		})
	}
	// And from the disks: every connection is a new one.
	for _, n := range f.nodes {
		n.stop()
	}
	f.start().ready()
	f.follower().propose(declare("vm", "after"))
}

// TestRenewedCertificateDropsNothing: the new certificate is in use, the old one is refused, connections stand.
func TestRenewedCertificateDropsNothing(t *testing.T) {
	t.Parallel()
	f := realFleet(t, 3).start().ready()
	stop := f.busy()
	for _, n := range f.nodes {
		was := n.c.identity.cur.Load()
		if err := n.c.Renew(within(t, 20*time.Second)); err != nil {
			t.Fatalf("%s: %v", n.id, err)
		}
		m := n.c.Certificate()
		if m.Serial <= was.member.Serial {
			t.Errorf("%s: serial %d after %d", n.id, m.Serial, was.member.Serial)
		}
		for _, o := range f.nodes {
			f.await(o.id+" to know", func() bool { return o.c.dir.now().all[n.id].Confirmed == m.Serial })
			if err := o.c.dir.accepts(was.member); !errors.Is(err, errRefused) {
				t.Errorf("%s accepts the old certificate of %s: %v", o.id, n.id, err)
			}
		}
	}
	if count, failed := stop(); len(failed) > 0 || count < 10 {
		t.Errorf("%d of %d writes failed: %v", len(failed), count, failed)
	}
}

// TestNobodyRenewsForAnother: a member gets certificates in its own name only.
func TestNobodyRenewsForAnother(t *testing.T) {
	t.Parallel()
	f := realFleet(t, 3).start().ready()
	l, n := f.leader(), f.follower()
	before, _ := l.store.View().Node("n1")
	resp, err := l.c.onRenew(within(t, 10*time.Second), n.id, mustRenew(t, n))
	if err != nil || resp.GetRefusal() != nil {
		t.Fatalf("%v, %v", err, resp.GetRefusal())
	}
	chain, err := pki.ParseChain(resp.GetChain())
	if err != nil {
		t.Fatal(err)
	}
	if m, err := pki.ReadMember(chain[0]); err != nil || m.Node != n.id {
		t.Errorf("%s got the certificate of %+v, %v", n.id, m, err)
	}
	if after, _ := l.store.View().Node("n1"); n.id != "n1" && after.Serial != before.Serial {
		t.Error("another node's certificate was replaced")
	}
	if _, err := f.follower().c.onRenew(within(t, time.Second), n.id, mustRenew(t, n)); !errors.Is(err, fsm.ErrUnavailable) {
		t.Errorf("a follower signs: %v", err)
	}
}

func TestServingCertificateHasNobodyElsesName(t *testing.T) {
	t.Parallel()
	f := realFleet(t, 3).start().ready()
	n := f.follower()
	other := "n1"
	if n.id == other {
		other = "n2"
	}
	chain, err := n.c.ServingCertificate(within(t, 10*time.Second), mustRequest(t, mustKey(t)), []string{n.id, "localhost", strings.ToUpper(other)}, nil)
	if err != nil {
		t.Fatal(err)
	}
	certs, err := pki.ParseChain(chain)
	if err != nil {
		t.Fatal(err)
	}
	if got := certs[0].DNSNames; !slices.Equal(got, []string{n.id, "localhost"}) {
		t.Errorf("the certificate is for %q", got)
	}
}

func TestGossipKeyIsRotated(t *testing.T) {
	t.Parallel()
	f := realFleet(t, 3).start().ready()
	allAlive := func() bool {
		for _, n := range f.nodes {
			for _, m := range n.c.Members() {
				if n.alive() && !m.Alive {
					return false
				}
			}
		}
		return true
	}
	f.await("everybody alive", allAlive)
	was := f.state().GossipKeys[0].ID
	// One that is alive and can't take the new key is waited for.
	slow := f.follower()
	slow.c.keyring.mu.Lock()
	l := f.leader()
	if err := l.c.RotateGossipKey(within(t, 10*time.Second), "token:test", "local"); err != nil {
		t.Fatal(err)
	}
	for range 2 { // the leader has asked at least once meanwhile
		if missing := l.c.AwaitingGossipKey(t.Context()); !slices.Contains(missing, slow.id) {
			t.Errorf("missing are %v, want %s", missing, slow.id)
		}
	}
	if keys := f.state().GossipKeys; len(keys) != 2 || keys[0].ID != was || keys[0].State != fsm.GossipKeyPrimary {
		t.Errorf("while a node can't read the new key: %+v", keys)
	}
	slow.c.keyring.mu.Unlock()
	f.await("the rotation to end", func() bool { return len(f.state().GossipKeys) == 1 })
	was = f.state().GossipKeys[0].ID
	rotate := func() {
		t.Helper()
		before := f.state().GossipKeys[0].ID
		if err := f.follower().c.RotateGossipKey(within(t, 10*time.Second), "token:test", "local"); err != nil {
			t.Fatal(err)
		}
		f.await("the new key alone", func() bool {
			keys := f.state().GossipKeys
			return len(keys) == 1 && keys[0].ID != before && keys[0].State == fsm.GossipKeyPrimary
		})
	}
	rotate()
	for _, n := range f.nodes {
		f.await(n.id+" to have forgotten the old key", func() bool {
			primary, ids, _ := n.c.keyring.standing()
			return primary != was && len(ids) == 1 && len(n.c.keyring.ring.GetKeys()) == 1
		})
	}
	// Sightings travel by the new key, and nobody was lost on the way.
	s := fsm.Sighting{VM: "vm", Name: "web", Node: "n1", Phase: fsm.PhaseIncoming, Epoch: 4, At: time.Unix(5, 6).UTC()}
	f.nodes[0].c.Announce(s)
	for _, n := range f.nodes[1:] {
		select {
		case <-n.sightings:
		case <-time.After(5 * time.Second):
			t.Errorf("%s was told nothing", n.id)
		}
	}
	if !allAlive() {
		t.Error("a node was lost in the rotation")
	}
	// A node that is away is not waited for, and takes the new key when it comes back.
	away := f.follower()
	away.crash()
	f.await("its death to be noticed", func() bool {
		return slices.ContainsFunc(f.leader().c.Members(), func(m fsm.Member) bool { return m.ID == away.id && !m.Alive })
	})
	rotate()
	away.start()
	f.await("it to be alive again, by the new key", func() bool {
		primary, _, _ := away.c.keyring.standing()
		return primary == f.state().GossipKeys[0].ID && allAlive()
	})
}

// TestRetiredNodeDoesNotKnowTheGossipKey: what it knew is replaced, without being asked for.
func TestRetiredNodeDoesNotKnowTheGossipKey(t *testing.T) {
	t.Parallel()
	f := realFleet(t, 3).start().ready()
	f.await("everybody alive", func() bool {
		return !slices.ContainsFunc(f.leader().c.Members(), func(m fsm.Member) bool { return !m.Alive })
	})
	gone, was := f.follower(), f.state().GossipKeys[0].ID
	// One that is under way when the node goes is of no use: it may have taken that key too.
	gone.c.keyring.mu.Lock()
	if err := f.leader().c.RotateGossipKey(within(t, 10*time.Second), "token:test", "local"); err != nil {
		t.Fatal(err)
	}
	halfway := f.state().GossipKeys[1].ID
	f.leader().propose(fsm.Command{Actor: "test", Op: fsm.RetireNode{ID: gone.id, Force: true}})
	gone.c.keyring.mu.Unlock()
	f.await("another gossip key", func() bool {
		keys := f.state().GossipKeys
		return len(keys) == 1 && keys[0].ID != was && keys[0].ID != halfway
	})
	now := f.state().GossipKeys[0].ID
	if _, ids, _ := gone.c.keyring.standing(); slices.Contains(ids, now) {
		t.Error("the retired node has the new key")
	}
	for _, n := range f.nodes {
		if n != gone {
			f.await(n.id+" to have it", func() bool { primary, _, _ := n.c.keyring.standing(); return primary == now })
		}
	}
	gone.refusedAs(t, "retired")
}

func mustRenew(t *testing.T, n *node) *peerpb.RenewRequest {
	t.Helper()
	cred := n.c.identity.cur.Load()
	return &peerpb.RenewRequest{Request: mustRequest(t, cred.key), Using: cred.member.Serial}
}
