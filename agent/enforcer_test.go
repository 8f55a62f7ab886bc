package agent

import (
	"context"
	"errors"
	"log/slog"
	"maps"
	"net/netip"
	"sync"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/palisade/palisade/enforce"
	"github.com/palisade/palisade/enforce/nft"
	"github.com/palisade/palisade/fsm"
)

// fakeKernel holds elements as the kernel would, and can fail.
type fakeKernel struct {
	mu    sync.Mutex
	held  map[enforce.Element]struct{}
	index uint64
	fail  error
	tries int

	drift   nft.Difference // that Check finds until Heal
	healing error          // of Heal
}

func (k *fakeKernel) Check(context.Context) (nft.Difference, error) {
	k.mu.Lock()
	defer k.mu.Unlock()
	return k.drift, nil
}

func (k *fakeKernel) Heal(context.Context) error {
	k.mu.Lock()
	defer k.mu.Unlock()
	if k.healing == nil {
		k.drift = nft.Difference{}
	}
	return k.healing
}

func (k *fakeKernel) Apply(_ context.Context, d enforce.Delta) error {
	k.mu.Lock()
	defer k.mu.Unlock()
	k.tries++
	if k.fail != nil {
		return k.fail
	}
	for _, el := range d.Remove {
		delete(k.held, el)
	}
	for _, el := range d.Add {
		k.held[el] = struct{}{}
	}
	k.index = d.Index
	return nil
}

func (k *fakeKernel) Counters(_ context.Context, els []enforce.Element) (map[enforce.Element]enforce.Counter, error) {
	k.mu.Lock()
	defer k.mu.Unlock()
	out := map[enforce.Element]enforce.Counter{}
	for _, el := range els {
		if _, ok := k.held[el]; ok {
			out[el] = enforce.Counter{Packets: 1, Bytes: 100}
		}
	}
	return out, nil
}

func (k *fakeKernel) holds(s string) bool {
	k.mu.Lock()
	defer k.mu.Unlock()
	_, ok := k.held[enforce.Element{Prefix: netip.MustParsePrefix(s)}]
	return ok
}

func (k *fakeKernel) setFail(err error) {
	k.mu.Lock()
	defer k.mu.Unlock()
	k.fail = err
}

func (k *fakeKernel) attempts() int {
	k.mu.Lock()
	defer k.mu.Unlock()
	return k.tries
}

type bench struct {
	t        *testing.T
	store    *fsm.Store
	kernel   *fakeKernel
	enforcer *enforcer
	caughtUp chan struct{}
	index    uint64
}

// newBench starts an enforcer over a kernel that holds the prefixes at the index.
func newBench(t *testing.T, kernelIndex uint64, held ...string) *bench {
	t.Helper()
	b := &bench{t: t, store: fsm.NewStore(), kernel: &fakeKernel{held: map[enforce.Element]struct{}{}, index: kernelIndex}, caughtUp: make(chan struct{})}
	for _, s := range held {
		b.kernel.held[enforce.Element{Prefix: netip.MustParsePrefix(s)}] = struct{}{}
	}
	b.enforcer = newEnforcer(slog.New(slog.DiscardHandler), prometheus.NewRegistry(), b.store, b.kernel, "n1", b.caughtUp)
	return b
}

func (b *bench) run() {
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	held := nft.Held{Index: b.kernel.index, Elements: maps.Clone(b.kernel.held), Intact: true}
	go func() { done <- b.enforcer.Run(ctx, held) }()
	b.t.Cleanup(func() {
		cancel()
		if err := <-done; err != nil {
			b.t.Errorf("Run: %v", err)
		}
	})
}

// apply commits one op at the next index and returns its result.
func (b *bench) apply(op fsm.Op) fsm.Result {
	b.t.Helper()
	b.index++
	data, err := fsm.MarshalCommand(fsm.Command{Time: time.Unix(int64(b.index), 0), Actor: "test", Op: op})
	if err != nil {
		b.t.Fatal(err)
	}
	res, err := b.store.ApplyBatch([]fsm.Entry{{Index: b.index, Data: data}})
	if err != nil {
		b.t.Fatal(err)
	}
	if res[0].Err != nil {
		b.t.Fatal(res[0].Err)
	}
	return res[0]
}

func (b *bench) block(prefix string) *fsm.Block {
	b.t.Helper()
	return b.apply(fsm.AddBlock{Target: fsm.Target{Prefix: netip.MustParsePrefix(prefix)}}).Block
}

func (b *bench) eventually(what string, cond func() bool) {
	b.t.Helper()
	deadline := time.Now().Add(5 * time.Second)
	for !cond() {
		if time.Now().After(deadline) {
			b.t.Fatalf("not within 5 s: %s", what)
		}
		time.Sleep(time.Millisecond)
	}
}

func (b *bench) waitEnforced(index uint64) {
	b.t.Helper()
	ctx, cancel := context.WithTimeout(b.t.Context(), 5*time.Second)
	defer cancel()
	if err := b.enforcer.WaitEnforced(ctx, index); err != nil {
		b.t.Fatalf("index %d is not enforced: %v", index, err)
	}
}

func TestABlockReachesTheKernelAndALiftLeavesIt(t *testing.T) {
	b := newBench(t, 0)
	b.run()
	close(b.caughtUp)
	blk := b.block("198.51.100.7/32")
	b.waitEnforced(b.index)
	if !b.kernel.holds("198.51.100.7/32") {
		t.Fatal("reported in force, and the kernel does not hold it")
	}
	r, err := b.enforcer.Receipt(t.Context(), blk)
	if err != nil || !r.Enforced || r.Index != b.index || r.Packets != 1 {
		t.Errorf("receipt %+v, %v", r, err)
	}
	lifted := b.apply(fsm.LiftBlock{ID: blk.ID}).Block
	b.waitEnforced(b.index)
	if b.kernel.holds("198.51.100.7/32") {
		t.Error("lifted, and still in the kernel")
	}
	r, err = b.enforcer.Receipt(t.Context(), lifted)
	if err != nil || !r.Enforced || r.Packets != 1 {
		t.Errorf("a lifted block forgets what it dropped: %+v, %v", r, err)
	}
}

// TestAForgottenBlockLeavesNothing lifts and forgets a block in one step of the feed, as a node that
// catches up sees it.
func TestAForgottenBlockLeavesNothing(t *testing.T) {
	b := newBench(t, 0)
	blk := b.block("198.51.100.7/32")
	lifted := b.apply(fsm.LiftBlock{ID: blk.ID}).Block
	events := []fsm.Event{{Type: fsm.EventBlockAdded, Block: blk}, {Type: fsm.EventBlockLifted, Block: lifted}, {Type: fsm.EventBlockForgotten, Block: lifted}}
	view := b.store.View()
	b.enforcer.compile(t.Context(), batch{view: view, events: events})
	b.enforcer.record(&pending{view: view, events: events}, "")
	if len(b.enforcer.since) != 0 || len(b.enforcer.final) != 0 {
		t.Errorf("kept %v and %v", b.enforcer.since, b.enforcer.final)
	}
}

func TestAStateOlderThanTheKernelChangesNothing(t *testing.T) {
	// The kernel stands for index 5; the state was restored at index 1 and knows a block that index 3
	// lifted and not the one that index 5 set.
	b := newBench(t, 5, "203.0.113.5/32")
	old := b.block("198.51.100.1/32")
	b.run()
	b.enforcer.SetLocal(func(l *enforce.Local) { l.NICs = enforce.Map[[]fsm.NIC]{} }) // makes the loop turn once more
	b.apply(fsm.DeclareVM{ID: "vm1"})
	b.eventually("the loop has turned", func() bool { return len(b.enforcer.localCh) == 0 })
	if b.kernel.attempts() != 0 {
		t.Fatal("an old state changed the kernel")
	}
	b.apply(fsm.LiftBlock{ID: old.ID})
	b.block("198.51.100.2/32")
	b.block("203.0.113.5/32")
	close(b.caughtUp)
	b.waitEnforced(5)
	for prefix, want := range map[string]bool{"203.0.113.5/32": true, "198.51.100.2/32": true, "198.51.100.1/32": false} {
		if b.kernel.holds(prefix) != want {
			t.Errorf("%s in the kernel: %v, want %v", prefix, !want, want)
		}
	}
}

func TestWhileCatchingUpOnlyAdds(t *testing.T) {
	b := newBench(t, 0, "203.0.113.5/32")
	b.run()
	b.block("198.51.100.1/32")
	b.eventually("the addition arrives", func() bool { return b.kernel.holds("198.51.100.1/32") })
	if !b.kernel.holds("203.0.113.5/32") {
		t.Fatal("removed what the kernel held before the state was current")
	}
	if enforced, _ := b.enforcer.Standing(); enforced != 0 {
		t.Errorf("gave a receipt for %d before catching up", enforced)
	}
	close(b.caughtUp)
	b.waitEnforced(b.index)
	if b.kernel.holds("203.0.113.5/32") {
		t.Error("caught up, and the leftover is still there")
	}
}

func TestAFleetOlderThanTheKernelKeepsAndSaysSo(t *testing.T) {
	b := newBench(t, 500, "203.0.113.5/32")
	b.run()
	b.block("198.51.100.1/32")
	close(b.caughtUp)
	b.waitEnforced(b.index)
	if !b.kernel.holds("203.0.113.5/32") || !b.kernel.holds("198.51.100.1/32") {
		t.Error("a replaced store opened the wall, or blocks nothing new")
	}
	if _, problem := b.enforcer.Standing(); problem == "" {
		t.Error("nobody is told that the kernel holds more than the fleet knows")
	}
}

func TestAFailedChangeIsKeptAndTriedAgain(t *testing.T) {
	b := newBench(t, 0)
	b.run()
	close(b.caughtUp)
	b.block("198.51.100.1/32")
	b.waitEnforced(b.index)
	b.kernel.setFail(errors.New("ENOBUFS"))
	blk := b.block("198.51.100.2/32")
	b.eventually("the failure is reported", func() bool { _, p := b.enforcer.Standing(); return p != "" })
	if r, _ := b.enforcer.Receipt(t.Context(), blk); r.Enforced {
		t.Error("gave a receipt for what the kernel refused")
	}
	b.block("198.51.100.3/32")
	b.kernel.setFail(nil)
	b.waitEnforced(b.index)
	if !b.kernel.holds("198.51.100.2/32") || !b.kernel.holds("198.51.100.3/32") {
		t.Error("the failed change was lost")
	}
	if _, p := b.enforcer.Standing(); p != "" {
		t.Errorf("problem still reported: %s", p)
	}
}

func TestALocalGuestsTapIsBoundAtOnce(t *testing.T) {
	b := newBench(t, 0)
	b.apply(fsm.DeclareVM{ID: "vm1"})
	b.apply(fsm.AddBlock{Target: fsm.Target{VM: "vm1"}})
	b.run()
	close(b.caughtUp)
	b.waitEnforced(b.index)
	b.enforcer.SetLocal(func(l *enforce.Local) {
		l.NICs = enforce.MapOf(map[string][]fsm.NIC{"vm1": {{Tap: "tap1", MAC: fsm.MAC{2, 0, 0, 0, 0, 1}}}})
	})
	b.eventually("tap and MAC are in the kernel without any commit", func() bool {
		b.kernel.mu.Lock()
		defer b.kernel.mu.Unlock()
		_, tap := b.kernel.held[enforce.Element{Tap: "tap1"}]
		_, mac := b.kernel.held[enforce.Element{MAC: fsm.MAC{2, 0, 0, 0, 0, 1}}]
		return tap && mac
	})
}

func TestAGuardOfThisNodeIsFreedBeforeCatchingUp(t *testing.T) {
	// The kernel still drops a prefix in which a peer's address now lies: waiting for that peer to say
	// so would last for ever.
	b := newBench(t, 0, "198.51.100.0/24")
	b.apply(fsm.AddBlock{Target: fsm.Target{Prefix: netip.MustParsePrefix("198.51.100.0/24")}})
	b.run()
	peer := netip.MustParsePrefix("198.51.100.1/32")
	b.enforcer.SetLocal(func(l *enforce.Local) { l.Guards = []netip.Prefix{peer} })
	b.eventually("the peer's address is free", func() bool { return !b.kernel.holds("198.51.100.0/24") })
	if !b.kernel.holds("198.51.100.128/25") {
		t.Error("the rest of the prefix was opened with it")
	}
}
