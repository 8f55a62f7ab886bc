package agent

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/netip"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/palisade/palisade/enforce"
	"github.com/palisade/palisade/fsm"
	"github.com/palisade/palisade/inventory"
)

// gateBed is an observer of node n1 with its enforcer, and a hypervisor that is told by hand what to report.
type gateBed struct {
	bench    *bench
	observer *observer
	reports  chan inventory.Report
	heard    chan error // what the listener of a guest's tap ends with

	mu       sync.Mutex
	reading  error // of ReadIndex
	proposed []string
}

// Run implements inventory.Driver.
func (b *gateBed) run(ctx context.Context, report func(inventory.Report)) error {
	for {
		select {
		case r := <-b.reports:
			report(r)
		case <-ctx.Done():
			return nil
		}
	}
}

type driverFunc func(context.Context, func(inventory.Report)) error

func (f driverFunc) Run(ctx context.Context, report func(inventory.Report)) error {
	return f(ctx, report)
}

// newGateBed is called in a bubble: time is virtual, and nothing that is asked for takes any.
func newGateBed(t *testing.T) *gateBed {
	b := &gateBed{bench: newBench(t, 0), reports: make(chan inventory.Report), heard: make(chan error)}
	b.bench.apply(fsm.PutAccount{ID: "nobody", Note: "x"}) // an index to stand at
	b.bench.run()
	log := slog.New(slog.DiscardHandler)
	b.observer = &observer{
		log: log, node: "n1", binder: newTapBinder(b.bench.store, newLinkMonitor(log), b.bench.enforcer.SetLocal), store: b.bench.store, driver: driverFunc(b.run),
		networks: func() map[string]string { return nil },
		announce: func(fsm.Sighting) {}, caughtUp: b.bench.caughtUp, wake: make(chan struct{}, 1), claims: map[string]bool{},
		propose: func(_ context.Context, c fsm.Command) (fsm.Result, error) {
			ops := []fsm.Op{c.Op}
			if batch, ok := c.Op.(fsm.Batch); ok {
				ops = batch.Ops
			}
			b.mu.Lock()
			defer b.mu.Unlock()
			for _, op := range ops {
				o := op.(fsm.ObserveVM)
				b.proposed = append(b.proposed, strings.TrimSpace(fmt.Sprintf("%s %s %s", o.ID, o.Phase, o.Migration)))
				b.bench.apply(op)
			}
			return fsm.Result{}, nil
		},
		arrivals: newArrivals(&gate{store: b.bench.store, enforcer: b.bench.enforcer, readIndex: func(context.Context) (uint64, error) {
			b.mu.Lock()
			defer b.mu.Unlock()
			return b.bench.store.View().Index(), b.reading
		}}, func(ctx context.Context, _ string, _ fsm.MAC) error {
			select {
			case err := <-b.heard:
				return err
			case <-ctx.Done():
				return ctx.Err()
			}
		}),
	}
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() { done <- b.observer.Run(ctx) }()
	t.Cleanup(func() {
		cancel()
		if err := <-done; err != nil {
			t.Error(err)
		}
	})
	return b
}

// apply commits what somebody else asked for.
func (b *gateBed) apply(ops ...fsm.Op) {
	b.mu.Lock()
	defer b.mu.Unlock()
	for _, op := range ops {
		b.bench.apply(op)
	}
}

func (b *gateBed) report(vms ...inventory.VM) {
	inventory.Sort(vms)
	r := inventory.Report{VMs: vms, Arrived: inventory.Arrivals(b.last(), vms)}
	b.reports <- r
	synctest.Wait()
}

func (b *gateBed) last() []inventory.VM {
	b.observer.mu.Lock()
	defer b.observer.mu.Unlock()
	return b.observer.report.VMs
}

// told compares what was proposed since the last time with what is wanted.
func (b *gateBed) told(t *testing.T, when string, want ...string) {
	t.Helper()
	synctest.Wait()
	b.mu.Lock()
	defer b.mu.Unlock()
	if got := strings.Join(b.proposed, ", "); got != strings.Join(want, ", ") {
		t.Errorf("%s: proposed %q, want %q", when, got, want)
	}
	b.proposed = nil
}

func (b *gateBed) phase(t *testing.T, want string) {
	t.Helper()
	vm, ok := b.bench.store.View().VM("vm1")
	got := "unknown"
	if ok {
		got = string(vm.State) + " " + vm.Node
		if m := vm.Migration; m != nil {
			got += " " + string(m.Phase)
		}
	}
	if got != want {
		t.Errorf("vm1 is %q, want %q", got, want)
	}
}

func (b *gateBed) expect(t *testing.T, limit time.Duration) error {
	ctx, cancel := context.WithTimeout(t.Context(), limit)
	defer cancel()
	v := vm("vm1", "")
	v.NICs = []fsm.NIC{{MAC: fsm.MAC{2, 1}, Addresses: []netip.Addr{netip.MustParseAddr("192.0.2.7")}}}
	return b.observer.Expect(ctx, v)
}

func elsewhere() fsm.Op {
	return fsm.ObserveVM{ID: "vm1", Name: "vm1", Kind: "netns", Node: "n2", Phase: fsm.PhaseRunning, Epoch: 1, NICs: []fsm.NIC{{MAC: fsm.MAC{2, 1}, Tap: "there"}}}
}

func TestALiveMigrationWithTheHook(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := newGateBed(t)
		b.apply(elsewhere(), fsm.AddBlock{Target: fsm.Target{VM: "vm1"}})
		close(b.bench.caughtUp)
		b.report()
		if err := b.expect(t, time.Second); err != nil {
			t.Fatal(err)
		}
		b.bench.kernel.mu.Lock()
		for _, el := range []enforce.Element{{MAC: fsm.MAC{2, 1}}, {Prefix: netip.MustParsePrefix("192.0.2.7/32")}} {
			if _, ok := b.bench.kernel.held[el]; !ok {
				t.Errorf("let in, and the kernel does not hold %v", el)
			}
		}
		b.bench.kernel.mu.Unlock()
		b.told(t, "announced", "vm1 incoming armed")
		b.phase(t, "migrating n2 armed")
		b.report(vm("vm1", fsm.PhaseIncoming))
		b.told(t, "shown")
		b.heard <- nil
		b.told(t, "heard", "vm1 running")
		b.phase(t, "running n1 live")
		b.report(vm("vm1", fsm.PhaseIncoming)) // the hypervisor is late
		b.report(vm("vm1", fsm.PhaseRunning))
		b.told(t, "resumed")
		// The source says that it has gone; and on the way back this node is the source.
		b.apply(fsm.ObserveVM{ID: "vm1", Kind: "netns", Node: "n2", Phase: fsm.PhaseGone, Epoch: 2, Migration: fsm.MigrationSettled})
		b.phase(t, "running n1 settled")
		b.apply(fsm.ObserveVM{ID: "vm1", Name: "vm1", Kind: "netns", Node: "n2", Phase: fsm.PhaseRunning, Epoch: 3, NICs: vm("vm1", "").NICs})
		b.told(t, "while it is still listed here")
		b.report()
		b.told(t, "gone", "vm1 gone settled")
		b.phase(t, "running n2 settled")
		b.report()
		time.Sleep(time.Hour)
		b.told(t, "an hour later")
	})
}

func TestAMigrationThatTheHypervisorShowsFirst(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := newGateBed(t)
		b.apply(elsewhere())
		close(b.bench.caughtUp)
		b.report()
		b.report(vm("vm1", fsm.PhaseIncoming))
		b.told(t, "shown", "vm1 incoming armed")
		b.heard <- errors.New("the tap went")
		b.report(vm("vm1", fsm.PhaseRunning))
		b.told(t, "resumed", "vm1 running")
		b.phase(t, "running n1 live")
	})
}

func TestAMigrationThatIsCalledOff(t *testing.T) {
	for name, off := range map[string]func(b *gateBed){
		"never shown":       func(*gateBed) { time.Sleep(expectFor) },
		"libvirt restarted": func(b *gateBed) { b.reports <- inventory.Report{Found: true} },
		"released":          func(b *gateBed) { b.observer.Dismiss("vm1") },
		"shown, then gone":  func(b *gateBed) { b.report(vm("vm1", fsm.PhaseIncoming)); b.report() },
		"shown, and hinted": func(b *gateBed) { b.report(vm("vm1", fsm.PhaseIncoming)); b.observer.Dismiss("vm1"); b.report() },
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				b := newGateBed(t)
				b.apply(elsewhere(), fsm.AddBlock{Target: fsm.Target{VM: "vm1"}})
				close(b.bench.caughtUp)
				b.report()
				if err := b.expect(t, time.Second); err != nil {
					t.Fatal(err)
				}
				b.told(t, "announced", "vm1 incoming armed")
				off(b)
				b.told(t, "called off", "vm1 gone")
				b.phase(t, "running n2 aborted")
				if nics := b.bench.enforcer.Local().NICs.Get("vm1"); len(nics) != 0 {
					t.Errorf("still expected: %v", nics)
				}
			})
		})
	}
}

// A guest that is announced is let in when the kernel holds what applies, and not before.
func TestTheGateWaitsForTheKernel(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := newGateBed(t)
		b.apply(elsewhere())
		close(b.bench.caughtUp)
		b.report()
		b.bench.kernel.setFail(errors.New("no"))
		b.apply(fsm.AddBlock{Target: fsm.Target{VM: "vm1"}})
		if err := b.expect(t, time.Second); err == nil || errors.Is(err, errNotReady) {
			t.Errorf("the kernel refuses a block of the guest, and it is let in: %v", err)
		}
		b.observer.Dismiss("vm1")
		b.told(t, "refused", "vm1 incoming", "vm1 gone") // the fleet was told of it after armPatience
		b.phase(t, "running n2 aborted")
		b.bench.kernel.setFail(nil)
		if err := b.expect(t, 5*time.Second); err != nil {
			t.Error(err)
		}
		b.told(t, "let in", "vm1 incoming armed")
	})
}

// A guest that nobody knows may have an address or a hardware address that is blocked.
func TestTheGateKnowsAGuestByItsAddresses(t *testing.T) {
	for name, op := range map[string]fsm.Op{
		"prefix":           fsm.AddBlock{Target: fsm.Target{Prefix: netip.MustParsePrefix("192.0.2.0/24")}},
		"hardware address": fsm.AddBlock{Target: fsm.Target{VM: "other"}},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				b := newGateBed(t)
				close(b.bench.caughtUp)
				other := elsewhere().(fsm.ObserveVM)
				other.ID = "other"
				b.apply(other, op)
				b.report()
				synctest.Wait()
				b.bench.kernel.mu.Lock()
				lost := b.bench.kernel.held
				b.bench.kernel.held = map[enforce.Element]struct{}{} // another program's doing
				b.bench.kernel.mu.Unlock()
				if err := b.expect(t, time.Second); err == nil || !strings.Contains(err.Error(), "does not hold") {
					t.Errorf("the kernel lacks a block of the guest, and it is let in: %v", err)
				}
				b.bench.kernel.mu.Lock()
				b.bench.kernel.held = lost
				b.bench.kernel.mu.Unlock()
				if err := b.expect(t, time.Second); err != nil {
					t.Error(err)
				}
			})
		})
	}
}

func TestTheGateOfANodeThatIsNotReady(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := newGateBed(t)
		b.apply(elsewhere())
		b.report()
		if err := b.expect(t, time.Second); !errors.Is(err, errNotReady) {
			t.Errorf("before catching up: %v", err)
		}
		close(b.bench.caughtUp)
		b.mu.Lock()
		b.reading = fsm.ErrUnavailable
		b.mu.Unlock()
		if err := b.expect(t, time.Second); !errors.Is(err, errNotReady) {
			t.Errorf("without quorum: %v", err)
		}
		// It came all the same; it is confirmed as soon as that is possible.
		b.report(vm("vm1", fsm.PhaseIncoming))
		time.Sleep(time.Second)
		b.told(t, "not confirmed", "vm1 incoming")
		b.phase(t, "migrating n2 arming")
		b.mu.Lock()
		b.reading = nil
		b.mu.Unlock()
		time.Sleep(time.Second)
		b.told(t, "confirmed", "vm1 incoming armed")
		b.phase(t, "migrating n2 armed")
		b.report()
		b.told(t, "gone", "vm1 gone")
	})
}

func TestAColdMigration(t *testing.T) {
	for name, before := range map[string][]inventory.VM{"first time": nil, "defined here before": {vm("vm1", fsm.PhaseStopped)}} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				b := newGateBed(t)
				off := elsewhere().(fsm.ObserveVM)
				off.Phase = fsm.PhaseStopped
				b.apply(elsewhere(), off)
				close(b.bench.caughtUp)
				b.report(before...)
				if err := b.expect(t, time.Second); err != nil {
					t.Fatal(err)
				}
				b.told(t, "announced", "vm1 incoming armed")
				b.report(vm("vm1", fsm.PhaseStopped))
				time.Sleep(expectFor)
				b.told(t, "defined", "vm1 stopped")
				b.phase(t, "stopped n1 settled")
			})
		})
	}
}

// The name of an interface in an announcement may be another guest's here.
func TestAnAnnouncementTakesNoOthersTap(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := newGateBed(t)
		b.apply(elsewhere())
		close(b.bench.caughtUp)
		b.report(vm("vm0", fsm.PhaseRunning))
		v := vm("vm1", "")
		v.NICs[0].Tap = "tap-vm0"
		if err := b.observer.Expect(t.Context(), v); err != nil {
			t.Fatal(err)
		}
		if nics := b.bench.enforcer.Local().NICs.Get("vm1"); len(nics) != 1 || nics[0].Tap != "" {
			t.Errorf("announced with %v", nics)
		}
	})
}
