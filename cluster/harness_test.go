package cluster

import (
	"context"
	"crypto/ecdsa"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"math/rand/v2"
	"net"
	"os"
	"path/filepath"
	"sync"
	"testing"
	"time"

	"github.com/palisade/palisade/fsm"
	"github.com/palisade/palisade/internal/files"
	"github.com/palisade/palisade/pki"
)

// node is one peer of a fleet under test, through its lives.
type node struct {
	t    testing.TB
	id   string
	opts func(n *node) (Options, world)

	store     *fsm.Store
	c         *Cluster
	kill      context.CancelCauseFunc
	ended     chan error
	mu        sync.Mutex // guards c and store where clients run beside the test
	fatal     chan error
	sightings chan fsm.Sighting
}

func newNode(t testing.TB, id string, opts func(n *node) (Options, world)) *node {
	return &node{t: t, id: id, opts: opts, fatal: make(chan error, 16), sightings: make(chan fsm.Sighting, 100)}
}

// start begins a life with an empty fsm.Store.
func (n *node) start() *node {
	n.t.Helper()
	store := fsm.NewStore()
	n.mu.Lock()
	n.store = store
	n.mu.Unlock()
	o, w := n.opts(n)
	o.ID = n.id
	o.Store = store
	o.Fatal = func(err error) { n.fatal <- err }
	o.OnSighting = func(s fsm.Sighting) { n.sightings <- s }
	if o.Answer == nil {
		o.Answer = func(context.Context, fsm.Query) (fsm.Report, error) {
			return fsm.Report{Node: n.id, Applied: store.View().Index(), Hash: store.View().Hash()}, nil
		}
	}
	c, err := newCluster(o, w)
	if err != nil {
		n.t.Fatal(err)
	}
	ctx, cancel := context.WithCancelCause(context.Background())
	n.mu.Lock()
	n.c, n.kill, n.ended = c, cancel, make(chan error, 1)
	n.mu.Unlock()
	go func(ended chan error) { ended <- c.Run(ctx) }(n.ended)
	return n
}

// stop ends a life as a signal does.
func (n *node) stop() { n.end(nil) }

// crash ends a life without a word to anyone.
func (n *node) crash() { n.end(errAbrupt) }

func (n *node) end(cause error) {
	n.t.Helper()
	if n.c == nil {
		return
	}
	n.kill(cause)
	if err := <-n.ended; err != nil {
		n.t.Errorf("Run of %s: %v", n.id, err)
	}
	n.mu.Lock()
	n.c = nil
	n.mu.Unlock()
}

// now is what a client that comes to the node at this moment finds; c is nil if it is down.
func (n *node) now() (c *Cluster, store *fsm.Store) {
	n.mu.Lock()
	defer n.mu.Unlock()
	return n.c, n.store
}

// status is the node's, and that of a node without a complaint if it is down.
func (n *node) status() fsm.Status {
	if !n.alive() {
		return fsm.Status{Quorum: true, CaughtUp: true}
	}
	return n.c.Status()
}

func (n *node) alive() bool { return n.c != nil }

type fleet struct {
	t      testing.TB
	nodes  []*node
	voters int // how many there will be
	born   *born
}

func (f *fleet) start() *fleet {
	for _, n := range f.nodes {
		n.start()
	}
	return f
}

func (f *fleet) stop() {
	var wg sync.WaitGroup
	for _, n := range f.nodes {
		wg.Go(n.stop)
	}
	wg.Wait()
}

// leader waits for a node that leads and accepts writes.
func (f *fleet) leader() *node {
	f.t.Helper()
	var l *node
	f.await("a leader", func() bool {
		for _, n := range f.nodes {
			if n.alive() && n.leads() {
				l = n
				return true
			}
		}
		return false
	})
	return l
}

// votes says whether the node asks for votes and gives them.
func (n *node) votes() bool {
	r := n.c.running.Load()
	return r != nil && !r.tap.gated.Load()
}

func (n *node) leads() bool {
	r := n.c.running.Load()
	return r != nil && r.throne.current() != nil
}

func (f *fleet) follower() *node {
	f.t.Helper()
	l := f.leader()
	for _, n := range f.nodes {
		if n.alive() && n != l {
			return n
		}
	}
	f.t.Fatal("no follower is alive")
	return nil
}

// await waits for a condition, at most half a minute.
func (f *fleet) await(what string, ok func() bool) {
	f.t.Helper()
	for deadline := time.Now().Add(30 * time.Second); ; time.Sleep(2 * time.Millisecond) {
		if ok() {
			return
		}
		if time.Now().After(deadline) {
			f.t.Fatalf("waited in vain for %s", what)
		}
	}
}

// ready waits until the fleet has its voters and all living nodes are up to date.
func (f *fleet) ready() *fleet {
	f.t.Helper()
	f.await("all voters", func() bool {
		for _, n := range f.nodes {
			if n.alive() && n.leads() && len(n.c.voters()) == f.voters {
				return true
			}
		}
		return false
	})
	f.await("every node to be up to date", func() bool {
		for _, n := range f.nodes {
			if s := n.status(); !s.CaughtUp || !s.Quorum {
				return false
			}
		}
		return true
	})
	return f
}

// agree waits until all living nodes have an index, and compares their state hashes there.
func (f *fleet) agree(index uint64) {
	f.t.Helper()
	f.await(fmt.Sprintf("index %d everywhere", index), func() bool {
		for _, n := range f.nodes {
			if n.alive() && n.store.View().Index() < index {
				return false
			}
		}
		return true
	})
	hashes := map[uint64]string{}
	for _, n := range f.nodes {
		if !n.alive() {
			continue
		}
		v := n.store.View()
		if h, ok := hashes[v.Index()]; ok && h != v.Hash() {
			f.t.Errorf("state of %s at index %d differs", n.id, v.Index())
		}
		hashes[v.Index()] = v.Hash()
	}
}

func logger(t testing.TB) *slog.Logger {
	w := io.Discard
	if os.Getenv("CLUSTER_TEST_LOG") != "" {
		w = os.Stderr
	}
	return slog.New(slog.NewTextHandler(w, &slog.HandlerOptions{Level: slog.LevelDebug})).With("test", t.Name())
}

// born is a fleet as it was formed: its authority, and the log that its first node begins with.
type born struct {
	*newborn
	t         testing.TB
	fleet     string
	authority *pki.Authority
	roster    Roster
	keys      Keys
	commands  [][]byte
	index     uint64
	state     *fsm.Store
	creds     map[string]*credentials
}

// bear forms a fleet of these nodes. All but the first were admitted by a token each.
func bear(t testing.TB, peers []Peer) *born {
	t.Helper()
	first := peers[0]
	nb, err := newBirth(FormOptions{Node: first.ID, Address: first.Address, Gossip: first.Gossip}, time.Now())
	if err != nil {
		t.Fatal(err)
	}
	b := &born{newborn: nb, t: t, fleet: nb.op.ID, index: 1, state: fsm.NewStore(), creds: map[string]*credentials{first.ID: nb.cred}}
	b.apply(nb.op)
	key, err := pki.Open(nb.seal, pki.AuthorityPurpose(b.fleet, nb.op.CA.ID), nb.op.CA.SealedKey)
	if err != nil {
		t.Fatal(err)
	}
	if b.authority, err = pki.OpenAuthority(nb.op.CA.Certificate, nil, key); err != nil {
		t.Fatal(err)
	}
	for _, p := range peers[1:] {
		b.admit(p)
	}
	b.roster, _ = rosterOf(b.state.View())
	f, _ := b.state.View().Fleet()
	if b.keys, err = openKeys(f, nb.seal); err != nil {
		t.Fatal(err)
	}
	return b
}

func (b *born) apply(op fsm.Op) fsm.Result {
	b.t.Helper()
	data, err := fsm.MarshalCommand(fsm.Command{Time: time.Now(), Actor: "test", Op: op})
	if err != nil {
		b.t.Fatal(err)
	}
	b.index++
	res, err := b.state.ApplyBatch([]fsm.Entry{{Index: b.index, Data: data}})
	if err != nil || res[0].Err != nil {
		b.t.Fatalf("%T: %v, %v", op, err, res[0].Err)
	}
	b.commands = append(b.commands, data)
	return res[0]
}

func (b *born) admit(p Peer) {
	b.t.Helper()
	key, err := pki.NewKey()
	if err != nil {
		b.t.Fatal(err)
	}
	request, err := pki.Request(key)
	if err != nil {
		b.t.Fatal(err)
	}
	hash, err := pki.RequestKey(request)
	if err != nil {
		b.t.Fatal(err)
	}
	b.apply(fsm.CreateJoinToken{ID: "token-" + p.ID, Hash: hash, TTL: time.Hour})
	res := b.apply(fsm.AdmitNode{Token: "token-" + p.ID, Hash: hash, Node: fsm.Admission{
		ID: p.ID, Name: p.ID, Address: p.Address, Gossip: p.Gossip, KeyHash: hash, NotAfter: time.Now().Add(time.Hour),
	}})
	b.creds[p.ID] = b.issue(key, p.ID, res.Node.Serial, 0)
}

// issue signs a certificate.
func (b *born) issue(key *ecdsa.PrivateKey, node string, serial uint64, lifetime time.Duration) *credentials {
	b.t.Helper()
	return issueBy(b.t, b.authority, b.fleet, key, node, serial, lifetime)
}

func issueBy(t testing.TB, a *pki.Authority, fleet string, key *ecdsa.PrivateKey, node string, serial uint64, lifetime time.Duration) *credentials {
	t.Helper()
	request, err := pki.Request(key)
	if err != nil {
		t.Fatal(err)
	}
	leaf, err := a.IssueNode(request, pki.NodeTerms{Fleet: fleet, Node: node, Serial: serial, Lifetime: lifetime}, time.Now())
	if err != nil {
		t.Fatal(err)
	}
	c, err := newCredentials(key, a.Chain(leaf))
	if err != nil {
		t.Fatal(err)
	}
	return c
}

// settle puts a node's identity, and the store of the first one, under its data directory.
func (b *born) settle(id, dataDir string) {
	b.t.Helper()
	dir := filepath.Join(dataDir, identityDir)
	if err := os.MkdirAll(dir, 0o700); err != nil {
		b.t.Fatal(err)
	}
	if _, err := settle(dir, b.creds[id], b.roster, b.keys, fleetJSON{}); err != nil {
		b.t.Fatal(err)
	}
	if id != b.op.Node.ID {
		return
	}
	store := filepath.Join(dataDir, storeDir)
	d, err := openDisk(store, newGuard(store, time.Minute, func(error) {}), logger(b.t))
	if err != nil {
		b.t.Fatal(err)
	}
	if err := errors.Join(birth(d, id, b.commands), d.close(), files.ReplaceBytes(filepath.Join(dataDir, sealFile), b.seal)); err != nil {
		b.t.Fatal(err)
	}
}

// realFleet is nodes on loopback TCP with stores on a real disk, not started.
func realFleet(t testing.TB, n int, tune ...func(id string, o *Options)) *fleet {
	t.Helper()
	base := diskDir(t)
	f := &fleet{t: t, voters: odd(min(n, fsm.DefaultVoters))}
	var list []Peer
	for i := range n {
		list = append(list, Peer{ID: fmt.Sprintf("n%d", i+1), Address: freePort(t), Gossip: freePort(t)})
	}
	f.born = bear(t, list)
	for _, p := range list {
		f.born.settle(p.ID, filepath.Join(base, p.ID))
		f.add(p, base, tune...)
	}
	t.Cleanup(f.stop)
	return f
}

// add makes a node of a real fleet whose identity is on the disk.
func (f *fleet) add(p Peer, base string, tune ...func(id string, o *Options)) *node {
	n := newNode(f.t, p.ID, func(*node) (Options, world) {
		identity, err := LoadIdentity(filepath.Join(base, p.ID))
		if err != nil {
			f.t.Fatal(err)
		}
		o := Options{
			ID: p.ID, Version: "test", Dir: filepath.Join(base, p.ID, storeDir), Bind: p.Address, GossipBind: p.Gossip,
			Identity: identity, Logger: logger(f.t).With("node", p.ID),
		}
		for _, change := range tune {
			change(p.ID, &o)
		}
		return o, &realWorld{opts: o}
	})
	f.nodes = append(f.nodes, n)
	return n
}

// diskDir is a directory on a real disk.
func diskDir(t testing.TB) string {
	t.Helper()
	base, err := os.MkdirTemp("/var/tmp", "palisade-cluster-") //nolint:usetesting // /tmp may be a tmpfs
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := os.RemoveAll(base); err != nil {
			t.Error(err)
		}
	})
	return base
}

// wipe removes a dead node's store.
func (n *node) wipe() {
	o, _ := n.opts(n)
	if err := os.RemoveAll(o.Dir); err != nil {
		n.t.Fatal(err)
	}
}

func (n *node) dir() string {
	o, _ := n.opts(n)
	return o.Dir
}

// givenPorts are those that freePort has given out: tests run beside each other, and nodes that are down come back.
var givenPorts sync.Map

// freePort finds a loopback port that is free for TCP and UDP, and was not given out before. It is below the range from which the
// system takes the ports of outgoing connections: one of those could take it before it is used.
func freePort(t testing.TB) string {
	t.Helper()
	const lowest, highest = 12_000, 30_000
	for range 200 {
		addr := fmt.Sprintf("127.0.0.1:%d", lowest+rand.IntN(highest-lowest))
		ln, err := net.Listen("tcp", addr)
		if err != nil {
			continue
		}
		pc, err := net.ListenPacket("udp", addr)
		ln.Close()
		if err != nil {
			continue
		}
		_ = pc.Close()
		if _, given := givenPorts.LoadOrStore(addr, true); !given {
			return addr
		}
	}
	t.Fatal("no free port")
	return ""
}

func declare(id, owner string) fsm.Command {
	return fsm.Command{Actor: "token:test", Op: fsm.DeclareVM{ID: id, Name: id, Owner: owner}}
}

// propose must succeed, however slow the disk of a busy machine is.
func (n *node) propose(cmd fsm.Command) fsm.Result {
	n.t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), 30*time.Second)
	defer cancel()
	res, err := n.c.Propose(ctx, cmd)
	if err != nil {
		n.t.Fatalf("Propose on %s: %v", n.id, err)
	}
	if res.Err != nil {
		n.t.Fatalf("Propose on %s was refused: %v", n.id, res.Err)
	}
	return res
}

func owner(s *fsm.Store, vm string) string {
	v, ok := s.View().VM(vm)
	if !ok {
		return ""
	}
	return v.Owner
}

// odd is the largest odd number that is not above n.
func odd(n int) int { return n - (n+1)%2 }

// followers is how many are served.
func (s *source) followers() int {
	s.mu.Lock()
	defer s.mu.Unlock()
	return len(s.children)
}
