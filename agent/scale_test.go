package agent

import (
	"context"
	"fmt"
	"log/slog"
	"runtime"
	"slices"
	"sync"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/palisade/palisade/enforce"
	"github.com/palisade/palisade/enforce/nft"
	"github.com/palisade/palisade/fsm"
)

const (
	scaleVMs    = 100_000
	scaleBlocks = 10_000
	scaleTaps   = 1_000
	scaleFresh  = 100 // taps that are watched one by one
)

// scaleMAC is the address of a VM's interface; the first scaleBlocks are blocked.
func scaleMAC(i int) fsm.MAC { return fsm.MAC{0x52, 0x54, 0, byte(i >> 16), byte(i >> 8), byte(i)} }

// timedKernel notes when a tap was read back from the kernel.
type timedKernel struct {
	*nft.Kernel
	mu    sync.Mutex
	since map[string]time.Time
}

func (k *timedKernel) Apply(ctx context.Context, d enforce.Delta) error {
	err := k.Kernel.Apply(ctx, d)
	now := time.Now()
	k.mu.Lock()
	defer k.mu.Unlock()
	for _, el := range d.Add {
		if el.Tap != "" && err == nil {
			k.since[el.Tap] = now
		}
	}
	return err
}

func (k *timedKernel) held(tap string) (time.Time, bool) {
	k.mu.Lock()
	defer k.mu.Unlock()
	at, ok := k.since[tap]
	return at, ok
}

// TestANodeWithAThousandGuests: 100,000 VMs and 10,000 blocks in the state, real taps, the real kernel.
// Nobody asks a hypervisor. A guest that comes costs as much beside a thousand as beside a hundred.
func TestANodeWithAThousandGuests(t *testing.T) {
	b := newBench(t, 0)
	ns, _ := newLinkBed(t)
	fd, err := unix.Open("/run/netns/"+ns, unix.O_RDONLY|unix.O_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = unix.Close(fd) }()
	kernel, err := nft.Open(nft.Options{NetNS: fd})
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = kernel.Close() }()
	held, err := kernel.Adopt(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	fillFleet(b)
	k := &timedKernel{Kernel: kernel, since: map[string]time.Time{}}
	close(b.caughtUp)
	e := newEnforcer(slog.New(slog.DiscardHandler), prometheus.NewRegistry(), b.store, k, "n1", b.caughtUp)
	links := newLinkMonitor(slog.New(slog.DiscardHandler))
	seen := newSeenLinks(links)
	binder := newTapBinder(b.store, links, e.SetLocal)
	ctx, cancel := context.WithCancel(context.Background())
	var wg sync.WaitGroup
	wg.Go(func() { _ = e.Run(ctx, held) })
	wg.Go(func() { _ = binder.Run(ctx) })
	defer wg.Wait()
	defer cancel()
	b.eventually("the fleet's blocks are in the kernel", func() bool { index, _ := e.Standing(); return index >= b.index })
	links.start(t, ns)
	<-links.Listed()

	// They come in four parts of 250. If the cost of one grew with those that are there, the last part
	// would take seven times as long as the first.
	var parts []time.Duration
	for part := range 4 {
		begin := time.Now()
		from := part * scaleTaps / 4
		makeTaps(t, ns, from, from+scaleTaps/4)
		b.eventually("all of them are in the kernel", func() bool {
			for i := from; i < from+scaleTaps/4; i++ {
				if _, ok := k.held(scaleTap(i)); !ok {
					return false
				}
			}
			return true
		})
		parts = append(parts, time.Since(begin))
	}
	t.Logf("figure: first 250 of %d taps that come up, made and enforced: %v", scaleTaps, parts[0])
	t.Logf("figure: last 250 of them: %v", parts[3])
	if parts[3] > 4*parts[0] {
		t.Errorf("the last 250 of 1,000 taps took %v, the first %v", parts[3], parts[0])
	}

	var after []time.Duration
	for i := scaleTaps; i < scaleTaps+scaleFresh; i++ {
		makeTaps(t, ns, i, i+1)
		b.eventually("the tap is in the kernel", func() bool { _, ok := k.held(scaleTap(i)); return ok })
		at, _ := k.held(scaleTap(i))
		after = append(after, at.Sub(seen.at(scaleTap(i))))
	}
	slices.Sort(after)
	t.Logf("figure: link event to read-back beside %d guests, median: %v", scaleTaps, after[len(after)/2])
	t.Logf("figure: link event to read-back, worst of %d: %v", len(after), after[len(after)-1])
	if median := after[len(after)/2]; median > 5*time.Millisecond {
		t.Errorf("a tap is enforced %v after its link event", median)
	}
	var m runtime.MemStats
	runtime.GC()
	runtime.ReadMemStats(&m)
	t.Logf("heap with %d VMs, %d blocks, %d guests: %d MiB", scaleVMs, scaleBlocks, scaleTaps+scaleFresh, m.HeapAlloc>>20)
}

func scaleTap(i int) string { return fmt.Sprintf("vnet%d", i) }

// fillFleet makes the VMs, with one address each, and blocks the first of them.
func fillFleet(b *bench) {
	b.t.Helper()
	const at = 1_000
	for from := 0; from < scaleVMs; from += at {
		var ops []fsm.Op
		for i := from; i < from+at; i++ {
			id := fmt.Sprintf("vm-%06d", i)
			ops = append(ops, fsm.ObserveVM{ID: id, Name: id, Kind: "kvm", Node: fmt.Sprintf("n%d", 2+i%999), Phase: fsm.PhaseRunning, Epoch: 1, NICs: []fsm.NIC{{MAC: scaleMAC(i)}}})
			if i < scaleBlocks {
				ops = append(ops, fsm.AddBlock{Target: fsm.Target{VM: id}})
			}
		}
		b.apply(fsm.Batch{Ops: ops})
	}
}

// makeTaps makes taps as libvirt does: with the guest's address but for the first byte.
func makeTaps(t *testing.T, ns string, from, to int) {
	t.Helper()
	err := within(ns, func() error {
		for i := from; i < to; i++ {
			tap := &netlink.Tuntap{LinkAttrs: netlink.LinkAttrs{Name: scaleTap(i)}, Mode: netlink.TUNTAP_MODE_TAP}
			if err := netlink.LinkAdd(tap); err != nil {
				return err
			}
			mac := ofTap(scaleMAC(i))
			if err := netlink.LinkSetHardwareAddr(tap, mac[:]); err != nil {
				return err
			}
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
}

// seenLinks notes when the link monitor told of each tap's address.
type seenLinks struct {
	mu   sync.Mutex
	when map[string]time.Time
}

func newSeenLinks(m *linkMonitor) *seenLinks {
	s := &seenLinks{when: map[string]time.Time{}}
	m.Subscribe(func(changes []linkChange) {
		s.mu.Lock()
		defer s.mu.Unlock()
		for _, c := range changes {
			if tellsGuest(c.Now) && !tellsGuest(c.Before) {
				s.when[c.Now.Name] = time.Now()
			}
		}
	})
	return s
}

func (s *seenLinks) at(tap string) time.Time {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.when[tap]
}
