package agent

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/netip"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"golang.org/x/sys/unix"

	"github.com/palisade/palisade/enforce"
	"github.com/palisade/palisade/enforce/nft"
	"github.com/palisade/palisade/fsm"
)

// fakeListKernel remembers what it was told to hold. It can fail, be slow, and be tampered with.
type fakeListKernel struct {
	mu       sync.Mutex
	index    uint64
	brought  []nft.ListChange
	released [][]netip.Prefix
	fail     error
	tampered error
	gate     chan struct{} // if not nil, Bring waits until it is closed
	hits     []nft.Hit     // the next answer of Hits
	called   func()        // by Bring, if not nil
	devices  []nft.Device
	due      bool
	loose    map[string]error
}

// SetDevices makes a Bring due, like the first device does.
func (k *fakeListKernel) SetDevices(_ context.Context, list []nft.Device) error {
	k.mu.Lock()
	defer k.mu.Unlock()
	if k.fail == nil {
		k.devices, k.due = list, true
	}
	return k.fail
}

func (k *fakeListKernel) Due() bool {
	k.mu.Lock()
	defer k.mu.Unlock()
	return k.due
}

func (k *fakeListKernel) Unenforced() map[string]error {
	k.mu.Lock()
	defer k.mu.Unlock()
	return k.loose
}

func (k *fakeListKernel) Hits(context.Context) ([]nft.Hit, error) {
	k.mu.Lock()
	defer k.mu.Unlock()
	hits := k.hits
	k.hits = nil
	return hits, nil
}

func (k *fakeListKernel) Index(context.Context) (uint64, error) { return k.index, nil }

func (k *fakeListKernel) Bring(_ context.Context, c nft.ListChange) error {
	k.mu.Lock()
	gate, called := k.gate, k.called
	k.mu.Unlock()
	if called != nil {
		called()
	}
	if gate != nil {
		<-gate
	}
	k.mu.Lock()
	defer k.mu.Unlock()
	if k.fail == nil {
		k.brought = append(k.brought, c)
		k.tampered, k.due = nil, false
	}
	return k.fail
}

func (k *fakeListKernel) Release(_ context.Context, guards []netip.Prefix) error {
	k.mu.Lock()
	defer k.mu.Unlock()
	k.released = append(k.released, guards)
	return nil
}

func (k *fakeListKernel) Check(context.Context) error {
	k.mu.Lock()
	defer k.mu.Unlock()
	return k.tampered
}

func (k *fakeListKernel) set(change func()) {
	k.mu.Lock()
	defer k.mu.Unlock()
	change()
}

func (k *fakeListKernel) calls() []nft.ListChange {
	k.mu.Lock()
	defer k.mu.Unlock()
	return slices.Clone(k.brought)
}

func (k *fakeListKernel) holds(s string) bool {
	all := k.calls()
	return len(all) > 0 && all[len(all)-1].Lists.Contains(enforce.ListElement{Direction: fsm.Both, Prefix: netip.MustParsePrefix(s)})
}

type listBench struct {
	*bench

	kernel *fakeListKernel
	lists  *listEnforcer
}

func newListBench(t *testing.T, kernelIndex uint64) *listBench {
	t.Helper()
	b := &listBench{bench: newBench(t, 0), kernel: &fakeListKernel{index: kernelIndex}}
	b.lists = newListEnforcer(slog.New(slog.DiscardHandler), prometheus.NewRegistry(), b.store, b.kernel, b.caughtUp)
	b.lists.interval, b.lists.counting = 5*time.Millisecond, 5*time.Millisecond
	return b
}

func (b *listBench) run() {
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- b.lists.Run(ctx) }()
	b.t.Cleanup(func() {
		cancel()
		if err := <-done; err != nil {
			b.t.Errorf("Run: %v", err)
		}
	})
}

func (b *listBench) guard(list ...string) {
	guards := []netip.Prefix{}
	for _, s := range list {
		guards = append(guards, netip.MustParsePrefix(s))
	}
	b.lists.SetLocal(enforce.Local{Guards: guards})
}

func (b *listBench) put(name string, prefixes ...string) *fsm.List {
	b.t.Helper()
	var set fsm.PrefixSetBuilder
	for _, s := range prefixes {
		set.Add(netip.MustParsePrefix(s))
	}
	content, _ := set.Set()
	b.apply(fsm.BeginList{Upload: "u", Name: name})
	for part := range content.Packed(1 << 20) {
		b.apply(fsm.AddListChunk{Upload: "u", Prefixes: part})
	}
	return b.apply(fsm.CommitList{Upload: "u"}).List
}

func (b *listBench) hold(name string) *fsm.Block {
	b.t.Helper()
	return b.apply(fsm.AddBlock{Target: fsm.Target{List: name}}).Block
}

func (b *listBench) enforced(index uint64) {
	b.t.Helper()
	ctx, cancel := context.WithTimeout(b.t.Context(), 5*time.Second)
	defer cancel()
	if err := b.lists.WaitEnforced(ctx, index); err != nil {
		b.t.Fatalf("the lists of index %d are not enforced: %v", index, err)
	}
}

func TestAListHoldIsConfirmedWhenItsContentIsInTheKernel(t *testing.T) {
	b := newListBench(t, 0)
	b.enforcer.lists = b.lists
	b.bench.run()
	b.run()
	b.enforcer.SetLocal(func(l *enforce.Local) { l.Guards = []netip.Prefix{netip.MustParsePrefix("192.0.2.1/32")} })
	close(b.caughtUp)
	b.enforced(b.index)

	gate := make(chan struct{})
	b.kernel.set(func() { b.kernel.gate = gate })
	b.put("feed", "198.51.100.0/24", "192.0.2.0/24")
	hold := b.hold("feed")
	single := b.block("203.0.113.9/32")
	b.waitEnforced(b.index) // the single block, while the list is still loaded
	if r, err := b.enforcer.Receipt(t.Context(), single); err != nil || !r.Enforced {
		t.Errorf("the block beside the list is not in force: %+v, %v", r, err)
	}
	if r := b.lists.Receipt(b.store.View(), hold); r.Enforced {
		t.Error("a list that is not loaded is reported in force")
	}
	close(gate)
	b.enforced(b.index)
	if r := b.lists.Receipt(b.store.View(), hold); !r.Enforced || r.Index < hold.Index || r.At.IsZero() {
		t.Errorf("receipt %+v", r)
	}
	if !b.kernel.holds("198.51.100.0/24") || b.kernel.holds("192.0.2.0/24") || !b.kernel.holds("192.0.2.128/25") {
		t.Error("the kernel was not given the list without this node's own address")
	}

	// With another content it is in force once that is.
	gate = make(chan struct{})
	b.kernel.set(func() { b.kernel.gate = gate })
	b.put("feed", "198.51.100.0/24")
	if r := b.lists.Receipt(b.store.View(), hold); r.Enforced {
		t.Error("a changed list is reported in force")
	}
	close(gate)
	b.enforced(b.index)
	if r := b.lists.Receipt(b.store.View(), hold); !r.Enforced {
		t.Errorf("receipt %+v", r)
	}
	lifted := b.apply(fsm.LiftBlock{ID: hold.ID}).Block
	b.enforced(b.index)
	if r := b.lists.Receipt(b.store.View(), lifted); !r.Enforced || b.kernel.holds("198.51.100.0/24") {
		t.Errorf("lifted: receipt %+v", r)
	}
}

// TestListsAreNotConfirmedForGuestsThatTheyDoNotHold: those on a network that can't be enforced, and those on devices that the
// kernel was not told of yet, or does not enforce lists on.
func TestListsAreNotConfirmedForGuestsThatTheyDoNotHold(t *testing.T) {
	b := newListBench(t, 0)
	here := func(networks ...string) {
		var nics []fsm.NIC
		for i, network := range networks {
			nics = append(nics, fsm.NIC{MAC: fsm.MAC{2, byte(i)}, Tap: fmt.Sprint("tap", i), Network: network})
		}
		l := enforce.Local{Guards: []netip.Prefix{}}
		l.NICs = l.NICs.With("v1", nics).With("v2", []fsm.NIC{{MAC: fsm.MAC{4}, Network: fsm.NetworkBridge}})
		b.lists.SetLocal(l)
	}
	here(fsm.NetworkMacvtap)
	b.run()
	close(b.caughtUp)
	b.enforced(b.index)
	if why := b.lists.open(); why != "" {
		t.Errorf("no list is held, and yet: %s", why)
	}
	b.put("feed", "198.51.100.0/24")
	hold := b.hold("feed")
	b.enforced(b.index)
	type guests struct {
		networks []string
		why      string
	}
	confirms := func(list ...guests) {
		t.Helper()
		for _, c := range list {
			here(c.networks...)
			r := b.lists.Receipt(b.store.View(), hold)
			if r.Enforced != (c.why == "") || r.Open != c.why || b.lists.open() != c.why {
				t.Errorf("guest on %q: receipt %+v, problem %q", c.networks, r, b.lists.open())
			}
		}
	}
	always := []guests{
		{[]string{fsm.NetworkHostdev}, "VM v1: lists do not hold on its network (hostdev)"},
		{[]string{"", fsm.NetworkBridge, fsm.NetworkRouted}, ""},
	}
	confirms(append(always, []guests{
		{[]string{fsm.NetworkMacvtap}, "VM v1: lists do not hold on its network (macvtap)"},
		{[]string{fsm.NetworkBridge, fsm.NetworkOpenVSwitch}, "VM v1: lists do not hold on its network (openvswitch)"},
		{[]string{fsm.NetworkUserspace}, "VM v1: lists do not hold on its network (openvswitch-userspace)"},
	}...)...)
	before := len(b.kernel.calls())
	if err := b.lists.SetDevices(t.Context(), []nft.Device{{Name: "tap0", Index: 7, Path: nft.Macvtap}}); err != nil {
		t.Fatal(err)
	}
	waitUntil(t, func() bool { return len(b.kernel.calls()) > before })
	confirms(append(always, guests{[]string{fsm.NetworkMacvtap}, ""}, guests{[]string{fsm.NetworkBridge, fsm.NetworkOpenVSwitch}, ""}, guests{[]string{fsm.NetworkUserspace}, ""})...)
	b.kernel.set(func() { b.kernel.loose = map[string]error{"tap0": errors.New("refused")} })
	confirms(guests{[]string{fsm.NetworkMacvtap}, "VM v1: interface tap0: refused"})
	b.kernel.set(func() { b.kernel.loose = map[string]error{"up0": errors.New("refused")} })
	confirms(guests{[]string{fsm.NetworkUserspace}, "interface up0: refused"}) // the switch's way out
	lifted := b.apply(fsm.LiftBlock{ID: hold.ID}).Block
	b.enforced(b.index)
	if r := b.lists.Receipt(b.store.View(), lifted); !r.Enforced || r.Open != "" || b.lists.open() != "" {
		t.Errorf("lifted: receipt %+v, problem %q", r, b.lists.open())
	}
}

func TestListsOnlyGrowBeforeCatchingUp(t *testing.T) {
	b := newListBench(t, 6)
	b.put("feed", "198.51.100.0/24") // 3 entries
	b.run()
	b.hold("feed")
	b.guard("192.0.2.1/32")
	b.eventually("guards are looked for in what an earlier life left", func() bool {
		b.kernel.mu.Lock()
		defer b.kernel.mu.Unlock()
		return len(b.kernel.released) > 0
	})
	if calls := b.kernel.calls(); len(calls) > 0 {
		t.Fatalf("a state older than the kernel changed it: %+v", calls)
	}
	b.put("feed", "203.0.113.0/24")
	b.eventually("the state is as new as the kernel", func() bool { return b.kernel.holds("203.0.113.0/24") })
	for _, c := range b.kernel.calls() {
		if c.Remove || c.Index < 6 {
			t.Errorf("before catching up: removals %t, index %d", c.Remove, c.Index)
		}
	}
	if index, _ := b.lists.Standing(); index != 0 {
		t.Errorf("index %d is claimed before catching up", index)
	}
	close(b.caughtUp)
	b.enforced(b.index)
	if calls := b.kernel.calls(); !calls[len(calls)-1].Remove {
		t.Error("after catching up nothing is removed")
	}
}

func TestListsStayUntilTheNodeKnowsItself(t *testing.T) {
	b := newListBench(t, 0)
	b.put("feed", "198.51.100.0/24")
	b.hold("feed")
	b.lists.SetLocal(enforce.Local{Node: "n1"})
	if err := b.lists.step(t.Context(), &listWork{view: b.store.View(), dirty: true, caughtUp: true}); err != nil {
		t.Fatal(err)
	}
	if calls := b.kernel.calls(); len(calls) > 0 {
		t.Error("lists were brought before the node knew its own addresses")
	}
	close(b.caughtUp)
	b.run()
	b.guard()
	b.enforced(b.index)
}

func TestListsAreTriedAgainAndRepaired(t *testing.T) {
	b := newListBench(t, 0)
	b.kernel.fail = errors.New("no memory")
	close(b.caughtUp)
	b.run()
	b.guard()
	b.put("feed", "198.51.100.0/24")
	b.hold("feed")
	b.eventually("the failure is reported", func() bool { _, p := b.lists.Standing(); return p == "no memory" })
	b.kernel.set(func() { b.kernel.fail = nil })
	b.enforced(b.index)
	if _, p := b.lists.Standing(); p != "" {
		t.Errorf("still reported: %s", p)
	}

	// What has nothing to do with lists asks nothing of their kernel.
	n := len(b.kernel.calls())
	b.block("203.0.113.9/32")
	b.enforced(b.index)
	if len(b.kernel.calls()) != n {
		t.Error("a block on an address brought the lists again")
	}
	b.kernel.set(func() { b.kernel.tampered = errors.New("flushed") })
	b.eventually("the lists are brought back", func() bool { return len(b.kernel.calls()) > n })

	b.kernel.set(func() { b.kernel.tampered, b.kernel.fail = errors.New("flushed"), errors.New("no memory") })
	b.eventually("that they can't be brought back is told", func() bool { return strings.Contains(b.lists.drift.unsolved(), "can't be brought back: no memory") })
	b.kernel.set(func() { b.kernel.fail = nil })
	b.eventually("they are, in the end", func() bool { return b.lists.drift.unsolved() == "" })
}

// TestWhatListsDropIsCounted for each block that names the address, in its direction, also what was dropped just
// before the block was lifted.
func TestWhatListsDropIsCounted(t *testing.T) {
	b := newListBench(t, 0)
	close(b.caughtUp)
	b.lists.interval, b.lists.counting = time.Hour, time.Hour
	b.run()
	b.guard()
	b.put("one", "192.0.2.0/24")
	b.put("two", "192.0.2.7/32", "2001:db8::/32")
	out := b.apply(fsm.AddBlock{Target: fsm.Target{List: "one"}, Direction: fsm.Out}).Block
	both := b.apply(fsm.AddBlock{Target: fsm.Target{List: "two"}, Force: true}).Block
	b.enforced(b.index)
	hit := func(a string, source bool, packets uint64) nft.Hit {
		return nft.Hit{Address: netip.MustParseAddr(a), Source: source, Packets: packets, Bytes: 100 * packets}
	}
	b.kernel.set(func() {
		b.kernel.hits = []nft.Hit{
			hit("192.0.2.7", true, 1), hit("192.0.2.7", false, 10), hit("192.0.2.8", true, 100), hit("2001:db8::1", true, 1000), hit("198.51.100.1", true, 1e6),
		}
	})
	b.apply(fsm.LiftBlock{ID: out.ID})
	b.enforced(b.index)
	for _, want := range []struct {
		b       *fsm.Block
		packets uint64
	}{{out, 101}, {both, 1011}} {
		if got := b.lists.Receipt(b.store.View(), want.b); got.Packets != want.packets || got.Bytes != 100*want.packets {
			t.Errorf("block %s dropped %d packets of %d bytes, want %d", want.b.ID, got.Packets, got.Bytes, want.packets)
		}
	}
}

// TestListsYieldToOthers: the thread that brings lists to the kernel has a lower priority than the rest of the process,
// which keeps its own.
func TestListsYieldToOthers(t *testing.T) {
	niceness := func() int {
		n, err := unix.Getpriority(unix.PRIO_PROCESS, 0) // of the calling thread
		if err != nil {
			t.Error(err)
		}
		return 20 - n // as the system call gives it
	}
	own := niceness()
	b := newListBench(t, 0)
	b.kernel.called = func() {
		if got := niceness(); got != own+listNiceness {
			t.Errorf("lists are loaded with niceness %d, the process has %d", got, own)
		}
	}
	close(b.caughtUp)
	b.run()
	b.guard()
	b.put("drop", "192.0.2.0/24")
	b.hold("drop")
	b.enforced(b.index)
	if got := niceness(); got != own {
		t.Errorf("another thread has niceness %d, before it had %d", got, own)
	}
}
