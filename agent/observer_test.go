package agent

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"reflect"
	"slices"
	"testing"
	"testing/synctest"
	"time"

	"github.com/palisade/palisade/fsm"
	"github.com/palisade/palisade/inventory"
)

// newQuietObserver returns an observer of node n1 whose report is set by hand.
func newQuietObserver(b *bench, vms []inventory.VM, arrived ...string) *observer {
	o := &observer{log: slog.New(slog.DiscardHandler), node: "n1", store: b.store, claims: map[string]bool{}, known: true, networks: func() map[string]string { return nil }}
	inventory.Sort(vms)
	o.report, o.vms = inventory.Report{VMs: vms, Arrived: arrived}, vms
	for _, id := range arrived {
		o.claims[id] = true
	}
	return o
}

func vm(id string, phase fsm.Phase) inventory.VM {
	return inventory.VM{ID: id, Name: id, Kind: "netns", Phase: phase, NICs: []fsm.NIC{{MAC: fsm.MAC{2, 1}, Tap: "tap-" + id}}}
}

func observed(b *bench, node, id string, phase fsm.Phase, epoch uint64) {
	b.t.Helper()
	v := vm(id, phase)
	b.apply(fsm.ObserveVM{ID: id, Name: id, Kind: "netns", Node: node, Phase: phase, NICs: v.NICs, Epoch: epoch})
}

func TestWhatANodeClaims(t *testing.T) {
	type claim struct {
		phase fsm.Phase
		epoch uint64
	}
	tests := map[string]struct {
		history func(b *bench)
		vms     []inventory.VM
		arrived []string
		want    []claim // of vm1
	}{
		"a VM that nobody knows": {
			func(*bench) {}, []inventory.VM{vm("vm1", fsm.PhaseRunning)}, nil, []claim{{fsm.PhaseRunning, 1}},
		},
		"a VM that the view has here already": {
			func(b *bench) { observed(b, "n1", "vm1", fsm.PhaseRunning, 3) },
			[]inventory.VM{vm("vm1", fsm.PhaseRunning)}, []string{"vm1"}, nil,
		},
		"a VM that arrives from another node": {
			func(b *bench) { observed(b, "n2", "vm1", fsm.PhaseRunning, 3) },
			[]inventory.VM{vm("vm1", fsm.PhaseIncoming)}, []string{"vm1"}, []claim{{fsm.PhaseIncoming, 4}},
		},
		"a VM in flight to here that now runs": {
			func(b *bench) {
				observed(b, "n2", "vm1", fsm.PhaseRunning, 3)
				observed(b, "n1", "vm1", fsm.PhaseIncoming, 4)
			},
			[]inventory.VM{vm("vm1", fsm.PhaseRunning)}, []string{"vm1"}, []claim{{fsm.PhaseRunning, 4}},
		},
		"a VM that has left and is claimed by the other node": {
			func(b *bench) {
				observed(b, "n1", "vm1", fsm.PhaseRunning, 3)
				observed(b, "n2", "vm1", fsm.PhaseRunning, 4)
			},
			[]inventory.VM{vm("vm1", fsm.PhaseRunning)}, nil, nil, // still listed here, as old news
		},
		"a VM in flight from here": {
			func(b *bench) {
				observed(b, "n1", "vm1", fsm.PhaseRunning, 3)
				observed(b, "n2", "vm1", fsm.PhaseIncoming, 4)
			},
			[]inventory.VM{vm("vm1", fsm.PhaseRunning)}, []string{"vm1"}, nil,
		},
		"a VM whose flight to here was called off": {
			func(b *bench) {
				observed(b, "n2", "vm1", fsm.PhaseRunning, 3)
				observed(b, "n1", "vm1", fsm.PhaseIncoming, 4)
			},
			nil, nil, []claim{{fsm.PhaseGone, 4}},
		},
		"a VM that vanished": {
			func(b *bench) { observed(b, "n1", "vm1", fsm.PhaseRunning, 3) }, nil, nil, []claim{{fsm.PhaseGone, 3}},
		},
		"a VM that stopped here long ago": {
			func(b *bench) {
				observed(b, "n1", "vm1", fsm.PhaseRunning, 3)
				observed(b, "n1", "vm1", fsm.PhaseGone, 3)
			}, nil, nil, nil,
		},
		"a VM that runs here although it stopped elsewhere": {
			func(b *bench) {
				observed(b, "n2", "vm1", fsm.PhaseRunning, 3)
				observed(b, "n2", "vm1", fsm.PhaseStopped, 3)
			},
			[]inventory.VM{vm("vm1", fsm.PhaseRunning)}, nil, []claim{{fsm.PhaseRunning, 4}},
		},
	}
	for name, tt := range tests {
		t.Run(name, func(t *testing.T) {
			b := newBench(t, 0)
			tt.history(b)
			var got []claim
			for _, op := range newQuietObserver(b, tt.vms, tt.arrived...).decide(b.store.View(), time.Now()) {
				obs, ok := op.(fsm.ObserveVM)
				if !ok || obs.ID != "vm1" || obs.Node != "n1" {
					t.Fatalf("unexpected op %#v", op)
				}
				got = append(got, claim{obs.Phase, obs.Epoch})
			}
			if !slices.Equal(got, tt.want) {
				t.Errorf("proposes %v, want %v", got, tt.want)
			}
		})
	}
}

// TestWhatIsProposedIsThenShown keeps the observer from proposing the same thing for ever: whatever
// form the state gives a report, the next comparison must find nothing new.
func TestWhatIsProposedIsThenShown(t *testing.T) {
	b := newBench(t, 0)
	odd := vm("vm1", fsm.PhaseRunning)
	odd.Name = "bad\x00name\n"
	odd.NICs = []fsm.NIC{{MAC: fsm.MAC{4, 9}, Tap: "b"}, {MAC: fsm.MAC{2, 9}, Tap: "a"}}
	o := newQuietObserver(b, []inventory.VM{odd}, "vm1")
	ops := o.decide(b.store.View(), time.Now())
	if len(ops) != 1 {
		t.Fatalf("proposes %v", ops)
	}
	b.apply(ops[0])
	if again := o.decide(b.store.View(), time.Now()); len(again) != 0 {
		got, _ := b.store.View().VM("vm1")
		t.Errorf("proposes again %+v; the view has %+v", again, got)
	}
}

func TestASightingLastsUntilTheCommit(t *testing.T) {
	b := newBench(t, 0)
	observed(b, "n2", "vm1", fsm.PhaseRunning, 3)
	s := newSightings()
	seen := fsm.Sighting{VM: "vm1", Node: "n3", Phase: fsm.PhaseRunning, Epoch: 4}
	s.put(b.store.View(), seen)
	s.put(b.store.View(), fsm.Sighting{VM: "vm1", Node: "n1", Phase: fsm.PhaseRunning, Epoch: 2})
	if got, ok := s.get(b.store.View(), "vm1"); !ok || !reflect.DeepEqual(got, seen) {
		t.Errorf("got %+v, %v", got, ok)
	}
	observed(b, "n3", "vm1", fsm.PhaseRunning, 4)
	if got, ok := s.get(b.store.View(), "vm1"); ok {
		t.Errorf("still hints at %+v after the commit", got)
	}
}

func TestARefusedVMDoesNotHideTheOthers(t *testing.T) {
	b := newBench(t, 0)
	var vms []inventory.VM
	for i := range observeBatch + 1 {
		v := vm(fmt.Sprintf("vm-%04d", i), fsm.PhaseRunning)
		if i == 0 {
			v.NICs = make([]fsm.NIC, fsm.MaxNICs+1)
		}
		vms = append(vms, v)
	}
	o := newQuietObserver(b, vms)
	o.propose = func(_ context.Context, c fsm.Command) (fsm.Result, error) {
		b.index++
		data, err := fsm.MarshalCommand(c)
		if err != nil {
			return fsm.Result{}, err
		}
		res, err := b.store.ApplyBatch([]fsm.Entry{{Index: b.index, Data: data}})
		return res[0], err
	}
	err := o.proposeOnce(t.Context())
	if refused := (*fsm.Error)(nil); !errors.As(err, &refused) {
		t.Errorf("the refusal is not reported: %v", err)
	}
	if n := b.store.View().CountVMs(); n != observeBatch {
		t.Errorf("%d VMs are known, want all %d but the refused one", n, observeBatch)
	}
}

// TestOnlyWhatChangedIsCompared: after all was compared once, a report or an event leads to the VMs that
// it names, and misses none.
func TestOnlyWhatChangedIsCompared(t *testing.T) {
	synctest.Test(t, testOnlyWhatChangedIsCompared)
}

func testOnlyWhatChangedIsCompared(t *testing.T) {
	b := newBench(t, 0)
	o := newQuietObserver(b, []inventory.VM{vm("vm1", fsm.PhaseRunning), vm("vm2", fsm.PhaseRunning), vm("vm3", fsm.PhaseRunning)})
	o.binder = newTapBinder(b.store, newLinkMonitor(o.log), b.enforcer.SetLocal)
	o.announce, o.wake = func(fsm.Sighting) {}, make(chan struct{}, 1)
	decided := func() (ids []string) {
		o.mu.Lock()
		defer o.mu.Unlock()
		for _, op := range o.decide(b.store.View(), time.Now()) {
			b.apply(op)
			seen := op.(fsm.ObserveVM)
			ids = append(ids, string(seen.Phase)+" "+seen.ID)
		}
		return ids
	}
	want := func(what string, ids ...string) {
		t.Helper()
		if got := decided(); !slices.Equal(got, ids) {
			t.Errorf("%s: proposed %v, want %v", what, got, ids)
		}
	}
	want("the first report", "running vm1", "running vm2", "running vm3")
	changed := vm("vm2", fsm.PhaseRunning)
	changed.NICs = []fsm.NIC{{MAC: fsm.MAC{2, 7}, Tap: "tap7"}}
	o.onReport(inventory.Report{VMs: []inventory.VM{vm("vm1", fsm.PhaseRunning), changed, vm("vm3", fsm.PhaseRunning)}})
	if len(o.dirty) != 1 {
		t.Errorf("one VM changed, %v are compared", o.dirty)
	}
	want("one changed", "running vm2")
	o.onReport(inventory.Report{VMs: []inventory.VM{vm("vm1", fsm.PhaseRunning), changed}})
	want("one is gone", "gone vm3")

	go o.followView(t.Context(), b.store.Watch(b.store.View().Index()))
	synctest.Wait()                               // it has begun
	observed(b, "n2", "vm9", fsm.PhaseRunning, 1) // no concern of ours
	observed(b, "n1", "vm8", fsm.PhaseRunning, 1) // somebody says that it is here
	b.eventually("the event of vm8 is seen", func() bool {
		o.mu.Lock()
		defer o.mu.Unlock()
		_, other := o.dirty["vm9"]
		_, ours := o.dirty["vm8"]
		return ours && !other
	})
	want("what is said to be here and is not", "gone vm8")
}
