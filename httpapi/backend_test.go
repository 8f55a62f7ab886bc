package httpapi

import (
	"context"
	"crypto/sha256"
	"fmt"
	"io"
	"maps"
	"net"
	"net/http"
	"net/http/httptest"
	"net/netip"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/palisade/palisade/fsm"
)

// fleet is a Backend over one real state machine: a write is applied at once. Members beside n1 are
// scripted.
type fleet struct {
	t     testing.TB
	store *fsm.Store

	mu        sync.Mutex // also the single writer of the store
	index     uint64
	proposed  []fsm.Command
	failWith  func(fsm.Command) error // before the command is applied
	failAfter error                   // the command is applied and the answer lost
	members   map[string]*member
	sightings map[string]fsm.Sighting
	status    fsm.Status
	readIndex func(context.Context) (uint64, error)
}

// member is one scripted peer.
type member struct {
	fsm.Member
	down     bool              // refuses connections
	hangs    bool              // never answers
	fails    error             // of every call
	stuck    uint64            // the kernel does not get past this index, if not zero
	held     map[string]uint64 // block id to packets
	problem  string
	asked    int
	lastAsk  fsm.Query
	failOnce error
}

var _ Backend = (*fleet)(nil)

func newFleet(t testing.TB, others ...string) *fleet {
	f := &fleet{t: t, store: fsm.NewStore(), members: map[string]*member{}, sightings: map[string]fsm.Sighting{}}
	f.status = fsm.Status{Node: "n1", Leader: "n1", Quorum: true, Term: 3, CaughtUp: true}
	f.members["n1"] = &member{Member: fsm.Member{ID: "n1", Name: "one", Voter: true, Leader: true, Alive: true, Self: true}}
	for _, id := range others {
		f.members[id] = &member{Member: fsm.Member{ID: id, Name: id, Voter: true, Alive: true, LastHeard: time.Now()}}
	}
	return f
}

func (f *fleet) View() *fsm.View                { return f.store.View() }
func (f *fleet) Watch(from uint64) *fsm.Watcher { return f.store.Watch(from) }

func (f *fleet) Propose(ctx context.Context, c fsm.Command) (fsm.Result, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.proposed = append(f.proposed, c)
	if f.failWith != nil {
		if err := f.failWith(c); err != nil {
			return fsm.Result{}, err
		}
	}
	c.Time = time.Now()
	data, err := fsm.MarshalCommand(c)
	if err != nil {
		return fsm.Result{}, err
	}
	f.index++
	res, err := f.store.ApplyBatch([]fsm.Entry{{Index: f.index, Data: data}})
	if err != nil {
		return fsm.Result{}, err
	}
	if f.failAfter != nil {
		return fsm.Result{}, f.failAfter
	}
	return res[0], nil
}

func (f *fleet) Ask(ctx context.Context, node string, q fsm.Query) (fsm.Report, error) {
	for {
		f.mu.Lock()
		m, ok := f.members[node]
		if !ok {
			f.mu.Unlock()
			return fsm.Report{}, fmt.Errorf("no member %s", node)
		}
		m.asked++
		m.lastAsk = q
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

func (f *fleet) answer(m *member, q fsm.Query) (r fsm.Report, ready bool, err error) {
	v := f.store.View()
	switch {
	case m.down:
		return r, false, fmt.Errorf("ask %s: %w", m.ID, &net.OpError{Op: "dial", Err: syscall.ECONNREFUSED})
	case m.failOnce != nil:
		err, m.failOnce = m.failOnce, nil
		return r, false, err
	case m.fails != nil:
		return r, false, m.fails
	case m.hangs:
		return r, false, nil
	}
	r = fsm.Report{Node: m.ID, At: time.Now(), Applied: v.Index(), Enforced: v.Index(), Hash: v.Hash(), Version: "test", Problem: m.problem, Blocks: map[string]fsm.BlockReport{}}
	if m.stuck != 0 {
		r.Enforced = min(r.Enforced, m.stuck)
	}
	if r.Enforced < q.WaitIndex {
		return r, false, nil
	}
	for _, id := range q.Blocks {
		if b, ok := v.Block(id); ok {
			r.Blocks[id] = fsm.BlockReport{Enforced: r.Enforced >= b.Index, Index: r.Enforced, At: time.Now(), Packets: m.held[id], Bytes: 100 * m.held[id]}
		}
	}
	return r, true, nil
}

func (f *fleet) Members() []fsm.Member {
	f.mu.Lock()
	defer f.mu.Unlock()
	var out []fsm.Member
	for _, id := range slices.Sorted(maps.Keys(f.members)) {
		out = append(out, f.members[id].Member)
	}
	return out
}

func (f *fleet) Status() fsm.Status {
	f.mu.Lock()
	defer f.mu.Unlock()
	st := f.status
	st.Applied, st.CommitIndex = f.index, f.index
	if st.LastContact.IsZero() && st.Quorum {
		st.LastContact = time.Now()
	}
	return st
}

func (f *fleet) ReadIndex(ctx context.Context) (uint64, error) {
	if f.readIndex != nil {
		return f.readIndex(ctx)
	}
	return f.View().Index(), nil
}

func (f *fleet) Sighting(vm string) (fsm.Sighting, bool) {
	f.mu.Lock()
	defer f.mu.Unlock()
	s, ok := f.sightings[vm]
	return s, ok
}

// set changes the script.
func (f *fleet) set(change func()) {
	f.mu.Lock()
	defer f.mu.Unlock()
	change()
}

func (f *fleet) proposals() []fsm.Command {
	f.mu.Lock()
	defer f.mu.Unlock()
	return slices.Clone(f.proposed)
}

// apply writes past the API.
func (f *fleet) apply(op fsm.Op) fsm.Result {
	f.t.Helper()
	r, err := f.Propose(context.Background(), fsm.Command{Actor: "node:n1", Op: op})
	if err != nil || r.Err != nil {
		f.t.Fatalf("apply %T: %v, %v", op, err, r.Err)
	}
	return r
}

// vm makes a VM that runs on a node.
func (f *fleet) vm(id, name, node string, addrs ...string) {
	f.t.Helper()
	var as []netip.Addr
	for _, a := range addrs {
		as = append(as, netip.MustParseAddr(a))
	}
	f.apply(fsm.ObserveVM{ID: id, Name: name, Kind: "netns", Node: node, Phase: fsm.PhaseRunning, Epoch: 1,
		NICs: []fsm.NIC{{MAC: fsm.MAC{0x52, 0x54, 0, 1, 2, byte(len(id))}, Tap: "tap0", Addresses: as}}})
}

// The tokens of tests, by scope.
const (
	adminToken   = "admin-secret-0123456789"
	viewerToken  = "viewer-secret-0123456789"
	metricsToken = "metrics-secret-0123456789"
)

func testOptions(f *fleet) Options {
	return Options{
		Backend: f,
		Version: "test",
		Tokens: []Token{
			{Name: "root", Scope: ScopeAdmin, SHA256: sha256.Sum256([]byte(adminToken))},
			{Name: "look", Scope: ScopeViewer, SHA256: sha256.Sum256([]byte(viewerToken))},
			{Name: "prom", Scope: ScopeMetrics, SHA256: sha256.Sum256([]byte(metricsToken))},
		},
	}
}

func newServer(t testing.TB, f *fleet, change ...func(*Options)) *Server {
	t.Helper()
	o := testOptions(f)
	for _, c := range change {
		c(&o)
	}
	s, err := New(o)
	if err != nil {
		t.Fatal(err)
	}
	return s
}

// request is one call of the API in a test.
type request struct {
	method, path, body string
	token              string // adminToken if empty, none if "-"
	header             map[string]string
}

func (s *Server) do(t testing.TB, q request) *http.Response {
	t.Helper()
	var body io.Reader
	if q.body != "" {
		body = strings.NewReader(q.body)
	}
	r := httptest.NewRequest(q.method, q.path, body)
	if q.body != "" {
		r.Header.Set("Content-Type", "application/json")
	}
	switch q.token {
	case "":
		r.Header.Set("Authorization", "Bearer "+adminToken)
	case "-":
	default:
		r.Header.Set("Authorization", "Bearer "+q.token)
	}
	for k, v := range q.header {
		r.Header.Set(k, v)
	}
	w := httptest.NewRecorder()
	s.Handler().ServeHTTP(w, r)
	return w.Result()
}
