package agent

import (
	"context"
	"errors"
	"log/slog"
	"maps"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/palisade/palisade/enforce"
	"github.com/palisade/palisade/enforce/nft"
	"github.com/palisade/palisade/fsm"
)

// fakeSourceKernel holds what it is told to.
type fakeSourceKernel struct {
	mu       sync.Mutex
	index    uint64
	held     map[enforce.SourceElement]struct{}
	applied  int
	fail     error
	tampered error
	dropped  map[string]enforce.Counter
}

func (k *fakeSourceKernel) Adopt(context.Context) (nft.SourcesHeld, error) {
	k.mu.Lock()
	defer k.mu.Unlock()
	return nft.SourcesHeld{Index: k.index, Elements: maps.Clone(k.held), Intact: true}, nil
}

func (k *fakeSourceKernel) Apply(_ context.Context, d enforce.SourceDelta) error {
	k.mu.Lock()
	defer k.mu.Unlock()
	if k.fail != nil {
		return k.fail
	}
	k.applied++
	for _, e := range d.Add {
		k.held[e] = struct{}{}
	}
	for _, e := range d.Remove {
		delete(k.held, e)
	}
	k.tampered = nil
	return nil
}

func (k *fakeSourceKernel) Check(context.Context) error {
	k.mu.Lock()
	defer k.mu.Unlock()
	return k.tampered
}

func (k *fakeSourceKernel) Dropped(context.Context) (map[string]enforce.Counter, error) {
	k.mu.Lock()
	defer k.mu.Unlock()
	dropped := map[string]enforce.Counter{}
	maps.Copy(dropped, k.dropped)
	return dropped, nil
}

// has waits until the taps that are bound are these.
func (k *fakeSourceKernel) has(t *testing.T, taps ...string) {
	t.Helper()
	want := map[string]bool{}
	for _, tap := range taps {
		want[tap] = true
	}
	var got map[string]bool
	for end := time.Now().Add(5 * time.Second); time.Now().Before(end); time.Sleep(time.Millisecond) {
		got = map[string]bool{}
		k.mu.Lock()
		for e := range k.held {
			got[e.Tap] = true
		}
		k.mu.Unlock()
		if maps.Equal(got, want) {
			return
		}
	}
	t.Fatalf("bound are %v, want %v", got, want)
}

// sourceBed is a source enforcer over a fake kernel.
type sourceBed struct {
	store    *fsm.Store
	kernel   *fakeSourceKernel
	enforcer *sourceEnforcer
	caughtUp chan struct{}
	index    uint64
}

func newSourceBed(k *fakeSourceKernel) *sourceBed {
	b := &sourceBed{store: fsm.NewStore(), kernel: k, caughtUp: make(chan struct{})}
	b.enforcer = newSourceEnforcer(slog.New(slog.DiscardHandler), prometheus.NewRegistry(), b.store, k, b.caughtUp)
	b.enforcer.interval, b.enforcer.counting = 5*time.Millisecond, 5*time.Millisecond
	return b
}

func (b *sourceBed) run(t *testing.T) {
	t.Helper()
	ctx, cancel := context.WithCancel(t.Context())
	ended := make(chan struct{})
	go func() { defer close(ended); _ = b.enforcer.Run(ctx) }()
	t.Cleanup(func() { cancel(); <-ended })
}

func (b *sourceBed) apply(t *testing.T, op fsm.Op) {
	t.Helper()
	data, err := fsm.MarshalCommand(fsm.Command{Time: time.Unix(1, 0), Actor: "test", Op: op})
	if err != nil {
		t.Fatal(err)
	}
	b.index++
	res, err := b.store.ApplyBatch([]fsm.Entry{{Index: b.index, Data: data}})
	if err != nil || res[0].Err != nil {
		t.Fatal(err, res[0].Err)
	}
}

func guests(taps map[string]string) enforce.Local {
	nics := map[string][]fsm.NIC{}
	for id, tap := range taps {
		nics[id] = []fsm.NIC{{MAC: fsm.MAC{2, 0, 0, 0, 0, id[len(id)-1]}, Tap: tap}}
	}
	return enforce.Local{NICs: enforce.MapOf(nics)}
}

// Guests are bound as the state says, once somebody has told who runs here; what failed is tried again, what others changed comes
// back, and what was dropped is counted from the start of the process on.
func TestSourcesFollowTheState(t *testing.T) {
	k := &fakeSourceKernel{held: map[enforce.SourceElement]struct{}{}}
	b := newSourceBed(k)
	close(b.caughtUp)
	settings := fsm.DefaultSettings()
	settings.SourceGuard = true
	b.apply(t, fsm.PutSettings{Settings: settings})
	b.apply(t, fsm.DeclareVM{ID: "vm-b", SourceGuard: fsm.SourceOff})
	b.run(t)
	b.enforcer.SetLocal(guests(map[string]string{"vm-a": "tap0", "vm-b": "tap1", "vm-c": "tap2"}))
	k.has(t, "tap0", "tap2")
	k.mu.Lock()
	k.fail = errors.New("no")
	k.mu.Unlock()
	b.apply(t, fsm.DeclareVM{ID: "vm-b", SourceGuard: fsm.SourceOn})
	waitUntil(t, func() bool { _, problem := b.enforcer.Standing(); return problem != "" })
	k.mu.Lock()
	k.fail = nil
	k.mu.Unlock()
	k.has(t, "tap0", "tap1", "tap2")
	k.mu.Lock()
	k.tampered, k.fail = errors.New("gone"), errors.New("no memory")
	k.mu.Unlock()
	waitUntil(t, func() bool { return strings.Contains(b.enforcer.drift.unsolved(), "can't be brought back: no memory") })
	k.mu.Lock()
	k.fail = nil
	k.mu.Unlock()
	waitUntil(t, func() bool { return b.enforcer.drift.unsolved() == "" })
	k.mu.Lock()
	k.tampered = errors.New("gone")
	before := k.applied
	k.dropped = map[string]enforce.Counter{"tap1": {Packets: 5, Bytes: 50}}
	k.mu.Unlock()
	waitUntil(t, func() bool { k.mu.Lock(); defer k.mu.Unlock(); return k.applied > before })
	waitUntil(t, func() bool { // what was there at the first reading does not count
		k.mu.Lock()
		c := k.dropped["tap1"]
		k.dropped["tap1"] = enforce.Counter{Packets: c.Packets + 5, Bytes: c.Bytes + 50}
		k.mu.Unlock()
		r := b.enforcer.Report("vm-b")
		return r != nil && r.Packets >= 5 && r.MACs && !r.Addresses
	})
	b.enforcer.SetLocal(guests(map[string]string{"vm-a": "tap0", "vm-c": "tap0"}))
	k.has(t) // an interface that two have
	if r := b.enforcer.Report("vm-a"); r == nil || r.MACs || r.Why == "" {
		t.Errorf("of an interface that two have: %+v", r)
	}
	settings.SourceGuard = false
	b.enforcer.SetLocal(guests(map[string]string{"vm-a": "tap0"}))
	k.has(t, "tap0")
	b.apply(t, fsm.PutSettings{Settings: settings})
	k.has(t)
}

// A state that is older than the kernel changes nothing, until it has caught up, but for interfaces that others have by now.
func TestSourcesOfALaterLogIndexStay(t *testing.T) {
	held := map[enforce.SourceElement]struct{}{}
	for tap, last := range map[string]byte{"tap0": 'a', "tap9": 'z'} {
		held[enforce.SourceElement{Tap: tap}] = struct{}{}
		held[enforce.SourceElement{Tap: tap, MAC: fsm.MAC{2, 0, 0, 0, 0, last}}] = struct{}{}
	}
	b := newSourceBed(&fakeSourceKernel{held: held, index: 50})
	b.apply(t, fsm.DeclareVM{ID: "vm-a"})
	b.run(t)
	b.enforcer.SetLocal(guests(map[string]string{"vm-a": "tap0", "vm-b": "tap9"}))
	b.kernel.has(t, "tap0")
	close(b.caughtUp)
	b.kernel.has(t)
}

func waitUntil(t *testing.T, ok func() bool) {
	t.Helper()
	for end := time.Now().Add(5 * time.Second); !ok(); time.Sleep(time.Millisecond) {
		if time.Now().After(end) {
			t.Fatal("after 5 s: not yet")
		}
	}
}
