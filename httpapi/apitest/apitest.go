// Package apitest has a Backend of the API over one real state machine and scripted members, for tests of
// whatever talks to the API.
package apitest

import (
	"cmp"
	"context"
	"crypto/sha256"
	"fmt"
	"maps"
	"net"
	"net/netip"
	"slices"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/palisade/palisade/fsm"
	"github.com/palisade/palisade/pki"
)

// Fleet is a Backend over one real state machine: a write is applied at once. Members beside n1 are
// scripted.
type Fleet struct {
	t     testing.TB
	store *fsm.Store

	mu       sync.Mutex // also the single writer of the store
	index    uint64
	proposed []fsm.Command
	entries  []fsm.Entry   // all that was applied
	later    time.Duration // what the leader's clock is ahead

	authority *pki.Authority // of the fleet, once it is formed

	// The script. While the fleet is in use it is changed within Set.

	FailWith   func(fsm.Command) error // called before a command is applied; its error is Propose's
	FailAfter  error                   // Propose's error after the command was applied: a lost answer
	Peers      map[string]*Member      // by id; "n1" is the node itself
	Sightings  map[string]fsm.Sighting // by VM
	Standing   fsm.Status
	StrongRead func(context.Context) (uint64, error) // ReadIndex, if not nil
}

// Member is one scripted peer.
type Member struct {
	fsm.Member
	Down     bool              // refuses connections
	Hangs    bool              // never answers
	Fails    error             // of every call
	Stuck    uint64            // the kernel does not get past this index, if not zero
	Held     map[string]uint64 // block id to packets
	Problem  string            // of its kernel
	Problems []fsm.Problem     // that it tells
	Ahead    *time.Duration    // its clock, if that is known
	Explains *fsm.Explanation  // of any packet
	Binds    *fsm.SourceReport // of any VM: what it is bound to
	Sources  map[string]fsm.SourceStatus
	Dropped  *fsm.Drops // lately
	FailOnce error      // of the next call
	Asked    int        // calls so far
	LastAsk  fsm.Query
}

// Tokens are the texts of the tokens that every fleet has, by name. They are made by its first log entry.
func Tokens() map[string]string {
	return map[string]string{
		"root": "admin-secret-0123456789", "staff": "operator-secret-0123456789", "look": "viewer-secret-0123456789", "prom": "metrics-secret-0123456789",
	}
}

func tokens() (all fsm.Batch) {
	for name, scope := range map[string]fsm.Scope{"root": fsm.ScopeAdmin, "staff": fsm.ScopeOperator, "look": fsm.ScopeViewer, "prom": fsm.ScopeMetrics} {
		all.Ops = append(all.Ops, fsm.CreateToken{Name: name, Scope: scope, Hash: sha256.Sum256([]byte(Tokens()[name]))})
	}
	slices.SortFunc(all.Ops, func(a, b fsm.Op) int { return cmp.Compare(a.(fsm.CreateToken).Name, b.(fsm.CreateToken).Name) })
	return all
}

// New returns a fleet of the leader n1 and the other members named, all alive.
func New(t testing.TB, others ...string) *Fleet {
	f := &Fleet{t: t, store: fsm.NewStore(), Peers: map[string]*Member{}, Sightings: map[string]fsm.Sighting{}}
	f.Standing = fsm.Status{Node: "n1", Leader: "n1", Quorum: true, Term: 3, CaughtUp: true}
	f.Peers["n1"] = &Member{Member: fsm.Member{ID: "n1", Name: "one", Voter: true, Leader: true, Alive: true, Self: true}}
	for _, id := range others {
		f.Peers[id] = &Member{Member: fsm.Member{ID: id, Name: id, Voter: true, Alive: true, LastHeard: time.Now()}}
	}
	f.Apply(tokens())
	f.proposed = nil
	return f
}

// View returns the state.
func (f *Fleet) View() *fsm.View { return f.store.View() }

// Watch watches the state.
func (f *Fleet) Watch(from uint64) *fsm.Watcher { return f.store.Watch(from) }

// Propose applies the command at once, unless the script says otherwise.
func (f *Fleet) Propose(ctx context.Context, c fsm.Command) (fsm.Result, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.proposed = append(f.proposed, c)
	if f.FailWith != nil {
		if err := f.FailWith(c); err != nil {
			return fsm.Result{}, err
		}
	}
	c.Time = time.Now().Add(f.later)
	data, err := fsm.MarshalCommand(c)
	if err != nil {
		return fsm.Result{}, err
	}
	f.index++
	f.entries = append(f.entries, fsm.Entry{Index: f.index, Data: data})
	res, err := f.store.ApplyBatch(f.entries[len(f.entries)-1:])
	if err != nil {
		return fsm.Result{}, err
	}
	if f.FailAfter != nil {
		return fsm.Result{}, f.FailAfter
	}
	return res[0], nil
}

// Ask answers for a member as its script says.
func (f *Fleet) Ask(ctx context.Context, node string, q fsm.Query) (fsm.Report, error) {
	for {
		f.mu.Lock()
		m, ok := f.Peers[node]
		if !ok {
			f.mu.Unlock()
			return fsm.Report{}, fmt.Errorf("no member %s", node)
		}
		m.Asked++
		m.LastAsk = q
		r, ready, err := f.answer(m, q)
		f.mu.Unlock()
		if err != nil || ready {
			return r, err
		}
		select {
		case <-time.After(time.Millisecond):
		case <-ctx.Done():
			return fsm.Report{}, ctx.Err()
		}
	}
}

func (f *Fleet) answer(m *Member, q fsm.Query) (r fsm.Report, ready bool, err error) {
	v := f.store.View()
	switch {
	case m.Down:
		return r, false, fmt.Errorf("ask %s: %w", m.ID, &net.OpError{Op: "dial", Err: syscall.ECONNREFUSED})
	case m.FailOnce != nil:
		err, m.FailOnce = m.FailOnce, nil
		return r, false, err
	case m.Fails != nil:
		return r, false, m.Fails
	case m.Hangs:
		return r, false, nil
	}
	r = fsm.Report{Node: m.ID, At: time.Now(), Applied: v.Index(), Enforced: v.Index(), Hash: v.Hash(), Version: "test", Problem: m.Problem, Blocks: map[string]fsm.BlockReport{}}
	r.Problems = m.Problems
	if m.Ahead != nil {
		r.ClockOffset, r.ClockKnown = *m.Ahead, true
	}
	if m.Stuck != 0 {
		r.Enforced = min(r.Enforced, m.Stuck)
	}
	r.EnforcedBlocks = r.Enforced
	if q.Sources {
		r.Sources = m.Sources
	}
	if r.Enforced < q.WaitIndex {
		return r, false, nil
	}
	if q.Drops != nil {
		r.Drops = m.Dropped
	}
	if q.SourceGuard != "" {
		r.SourceGuard = m.Binds
	}
	if q.Explain != nil {
		r.Explained = m.Explains
	}
	for _, id := range q.Blocks {
		if b, ok := v.Block(id); ok {
			r.Blocks[id] = fsm.BlockReport{Enforced: r.Enforced >= b.Index, Index: r.Enforced, At: time.Now(), Packets: m.Held[id], Bytes: 100 * m.Held[id]}
		}
	}
	return r, true, nil
}

// Members lists the members by id.
func (f *Fleet) Members() []fsm.Member {
	f.mu.Lock()
	defer f.mu.Unlock()
	var out []fsm.Member
	for _, id := range slices.Sorted(maps.Keys(f.Peers)) {
		out = append(out, f.Peers[id].Member)
	}
	return out
}

// Status returns Standing with the present indexes.
func (f *Fleet) Status() fsm.Status {
	f.mu.Lock()
	defer f.mu.Unlock()
	st := f.Standing
	st.Applied, st.CommitIndex = f.index, f.index
	if st.LastContact.IsZero() && st.Quorum {
		st.LastContact = time.Now()
	}
	return st
}

// ReadIndex is StrongRead, or the present index.
func (f *Fleet) ReadIndex(ctx context.Context) (uint64, error) {
	if f.StrongRead != nil {
		return f.StrongRead(ctx)
	}
	return f.View().Index(), nil
}

// Sighting looks into Sightings.
func (f *Fleet) Sighting(vm string) (fsm.Sighting, bool) {
	f.mu.Lock()
	defer f.mu.Unlock()
	s, ok := f.Sightings[vm]
	return s, ok
}

// Set changes the script.
func (f *Fleet) Set(change func()) {
	f.mu.Lock()
	defer f.mu.Unlock()
	change()
}

// Later puts the leader's clock ahead.
func (f *Fleet) Later(d time.Duration) { f.Set(func() { f.later += d }) }

// Proposals returns every command proposed so far.
func (f *Fleet) Proposals() []fsm.Command {
	f.mu.Lock()
	defer f.mu.Unlock()
	return slices.Clone(f.proposed)
}

// Apply writes past the API.
func (f *Fleet) Apply(op fsm.Op) fsm.Result {
	f.t.Helper()
	r, err := f.Propose(context.Background(), fsm.Command{Actor: "node:n1", Op: op})
	if err != nil || r.Err != nil {
		f.t.Fatalf("apply %T: %v, %v", op, err, r.Err)
	}
	return r
}

// RunVM makes a VM that runs on a node.
func (f *Fleet) RunVM(id, name, node string, addrs ...string) {
	f.t.Helper()
	var as []netip.Addr
	for _, a := range addrs {
		as = append(as, netip.MustParseAddr(a))
	}
	f.Apply(fsm.ObserveVM{ID: id, Name: name, Kind: "netns", Node: node, Phase: fsm.PhaseRunning, Epoch: 1,
		NICs: []fsm.NIC{{MAC: fsm.MAC{0x52, 0x54, 0, 1, 2, byte(len(id))}, Tap: "tap0", Addresses: as}}})
}

// Form forms a fleet with the node n1, whose authority is real. Its keys are sealed under SealKey.
func (f *Fleet) Form() *pki.Authority {
	a, err := pki.NewAuthority(FleetID, time.Now())
	if err != nil {
		f.t.Fatal(err)
	}
	f.Apply(fsm.FormFleet{
		ID: FleetID, CA: f.sealed(a), GossipKey: fsm.GossipKey{ID: "g1", SealedKey: []byte("sealed")},
		Node: fsm.Admission{
			ID: "n1", Name: "one", Zone: "z1", Address: "192.0.2.1:7420", Gossip: "192.0.2.1:7421", API: "192.0.2.1:8440",
			KeyHash: [32]byte{1}, NotAfter: time.Now().Add(pki.LeafLifetime),
		},
	})
	f.mu.Lock()
	defer f.mu.Unlock()
	f.authority = a
	return a
}

// Admit makes a node a member of the fleet that Form formed.
func (f *Fleet) Admit(id string) {
	f.Apply(fsm.CreateJoinToken{ID: "of-" + id, Hash: [32]byte{1}, TTL: time.Minute})
	var key [32]byte
	copy(key[:], "key of "+id)
	host := "192.0.2.1" + id[len(id)-1:]
	f.Apply(fsm.AdmitNode{Token: "of-" + id, Hash: [32]byte{1}, Node: fsm.Admission{
		ID: id, Name: id, Address: host + ":7420", Gossip: host + ":7421", KeyHash: key, NotAfter: time.Now().Add(pki.LeafLifetime),
	}})
	f.Apply(fsm.DeleteJoinToken{ID: "of-" + id})
}

// FleetID is the id of the fleet that Form forms.
const FleetID = "0123456789abcdef"

func (f *Fleet) sealed(a *pki.Authority) fsm.CA {
	return fsm.CA{ID: a.ID(), Certificate: a.Certificate(), Cross: a.Cross(), SealedKey: []byte("sealed")}
}

// RotateCA begins a rotation with a real authority.
func (f *Fleet) RotateCA(ctx context.Context, actor, from string) error {
	f.mu.Lock()
	a := f.authority
	f.mu.Unlock()
	if a == nil {
		return &fsm.Error{Code: fsm.CodeConflict, Detail: "there is no fleet yet"}
	}
	next, err := a.Next(FleetID, time.Now())
	if err != nil {
		return err
	}
	return f.refused(ctx, actor, from, fsm.StartCA{CA: f.sealed(next)})
}

// RotateGossipKey begins a rotation.
func (f *Fleet) RotateGossipKey(ctx context.Context, actor, from string) error {
	return f.refused(ctx, actor, from, fsm.AddGossipKey{Key: fsm.GossipKey{ID: "g2", SealedKey: []byte("sealed")}})
}

func (f *Fleet) refused(ctx context.Context, actor, from string, op fsm.Op) error {
	res, err := f.Propose(ctx, fsm.Command{Actor: actor, From: from, Op: op})
	if err == nil && res.Err != nil {
		err = res.Err
	}
	return err
}
