package agent

import (
	"context"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/palisade/palisade/fsm"
	"github.com/palisade/palisade/inventory"
)

// arrivals are the guests that are in flight to here, and what is known of them earlier than by the hypervisor's report: that
// they were announced (the hook), that the kernel holds all that applies to them (the gate), and that they run (their first
// packet). It is part of the observer, whose mu guards it.
type arrivals struct {
	gate *gate
	// listen blocks until the guest with the hardware address is heard from its tap, or fails.
	listen func(ctx context.Context, tap string, mac fsm.MAC) error

	expected map[string]*arrival
	toArm    chan struct{}   // signals that a guest is to be confirmed
	ctx      context.Context //nolint:containedctx // of Run, for the listeners that reports start
	group    *sync.WaitGroup // of Run
}

// arrival is one guest in flight to here.
type arrival struct {
	vm    inventory.VM // as it was announced; its phase is incoming
	since time.Time
	shown bool // the hypervisor knows of it
	armed bool
	live  bool               // it was heard
	stop  context.CancelFunc // of its listener; nil if there is none
	were  bool               // it was defined here, stopped, when it was announced
}

const (
	// armPatience is for how long the fleet is not told of an arrival that is not confirmed: mostly it is within
	// milliseconds, and one entry tells both.
	armPatience = 50 * time.Millisecond
	// expectFor is when an announced guest that the hypervisor still knows nothing of is given up. Measured with libvirt,
	// it is listed 75 ms after it was announced.
	expectFor = 15 * time.Second
	// armTimeout bounds one attempt to confirm a guest, and armAgain the pause before the next.
	armTimeout = 2 * time.Second
	armAgain   = 200 * time.Millisecond
)

func newArrivals(g *gate, listen func(ctx context.Context, tap string, mac fsm.MAC) error) arrivals {
	return arrivals{gate: g, listen: listen, expected: map[string]*arrival{}, toArm: make(chan struct{}, 1)}
}

func (a *arrivals) begin(ctx context.Context, group *sync.WaitGroup) { a.ctx, a.group = ctx, group }

// Expect takes the announcement of a guest: from now on its interfaces are known to this node's kernel. It returns nil once
// all that applies to it is there, read back; else why not when ctx ends. The guest stays expected unless Dismiss is called.
func (o *observer) Expect(ctx context.Context, vm inventory.VM) error {
	vm.Phase = fsm.PhaseIncoming
	view := o.store.View()
	o.mu.Lock()
	if here, ok := findVM(o.report.VMs, vm.ID); !ok || here.Phase != fsm.PhaseRunning {
		vm.NICs = o.withoutOthersTaps(vm)
		o.forget(vm.ID)
		o.expected[vm.ID] = &arrival{vm: vm, since: time.Now(), were: ok}
		o.claims[vm.ID] = true
		o.overlay()
	}
	o.mu.Unlock()
	o.announce(fsm.Sighting{VM: vm.ID, Name: vm.Name, Node: o.node, Phase: vm.Phase, Epoch: nextEpoch(view, vm.ID, o.node), At: time.Now()})
	o.signal() // if it takes long, the fleet is told that it is arming
	err := o.gate.confirm(ctx, &vm)
	if err == nil {
		o.setArmed(vm.ID)
	} else {
		o.askToArm() // it may come all the same
	}
	o.signal()
	return err
}

// Dismiss says that an announced guest does not come. One that the hypervisor knows of is its affair.
func (o *observer) Dismiss(id string) {
	o.mu.Lock()
	if a, ok := o.expected[id]; ok && !a.shown {
		o.forget(id)
		o.overlay()
	}
	o.mu.Unlock()
	o.signal()
}

// withoutOthersTaps leaves out names of interfaces that belong to another guest here: it would be bound in the place of this
// one. The caller holds mu.
func (o *observer) withoutOthersTaps(vm inventory.VM) []fsm.NIC {
	nics := slices.Clone(vm.NICs)
	for i := range nics {
		for _, other := range o.vms {
			if other.ID != vm.ID && slices.ContainsFunc(other.NICs, func(n fsm.NIC) bool { return n.Tap == nics[i].Tap }) {
				nics[i].Tap = ""
			}
		}
	}
	return nics
}

// forget ends what is known of an arrival. The caller holds mu.
func (a *arrivals) forget(id string) {
	if known, ok := a.expected[id]; ok && known.stop != nil {
		known.stop()
	}
	delete(a.expected, id)
}

// follow brings the arrivals up to date with a report. The caller holds mu.
func (o *observer) follow(now time.Time) {
	if o.expected == nil {
		return
	}
	for _, vm := range o.report.VMs {
		a, ok := o.expected[vm.ID]
		switch {
		case vm.Phase == fsm.PhaseIncoming:
			if !ok {
				a = &arrival{vm: vm, since: now}
				o.expected[vm.ID] = a
			}
			a.vm.NICs, a.shown = vm.NICs, true
			o.hear(vm, a)
			o.askToArm()
		case ok && vm.Phase == fsm.PhaseStopped && !a.shown && a.were: // a definition of before
		case ok:
			o.forget(vm.ID)
		}
	}
	for id, a := range o.expected {
		if _, ok := findVM(o.report.VMs, id); !ok && (a.shown || o.report.Found) {
			o.forget(id)
		}
	}
}

// over lays what is known better over what the hypervisor reported; neither is changed. The caller holds mu.
func (a *arrivals) over(reported []inventory.VM) []inventory.VM {
	if len(a.expected) == 0 {
		return reported
	}
	vms := slices.Clone(reported)
	for id, e := range a.expected {
		i, ok := slices.BinarySearchFunc(vms, id, func(v inventory.VM, id string) int { return strings.Compare(v.ID, id) })
		switch {
		case !ok:
			vms = slices.Insert(vms, i, e.vm)
		case e.live:
			vms[i].Phase = fsm.PhaseRunning
		case !e.shown:
			vms[i] = e.vm
		}
	}
	return vms
}

// upkeep gives up guests that never came, and returns when it is to be called next: zero for when something happens.
func (o *observer) upkeep(now time.Time) (next time.Time) {
	o.mu.Lock()
	defer o.mu.Unlock()
	gone := false
	for id, a := range o.expected {
		at := a.since.Add(armPatience)
		switch {
		case !a.armed && now.Before(at):
		case a.shown:
			continue
		default:
			at = a.since.Add(expectFor)
		}
		if !a.shown && !now.Before(a.since.Add(expectFor)) {
			o.log.Warn("a guest was announced and did not come", "vm", id, "name", a.vm.Name)
			o.forget(id)
			gone = true
			continue
		}
		if next.IsZero() || at.Before(next) {
			next = at
		}
	}
	if gone {
		o.overlay()
	}
	return next
}

// confirmed says what to tell of an incoming guest, and whether to wait with it. The caller holds mu.
func (a *arrivals) confirmed(id string, now time.Time) (phase fsm.MigrationPhase, wait bool) {
	switch e, ok := a.expected[id]; {
	case !ok:
		return "", false
	case e.armed:
		return fsm.MigrationArmed, false
	default:
		return "", now.Before(e.since.Add(armPatience))
	}
}

func (a *arrivals) askToArm() {
	signal(a.toArm)
}

// setArmed records that the kernel holds all that applies to a guest.
func (o *observer) setArmed(id string) {
	o.mu.Lock()
	defer o.mu.Unlock()
	if a, ok := o.expected[id]; ok {
		a.armed = true
		o.touch(id)
	}
}

// confirmAll confirms the guests that are not, until ctx ends.
func (o *observer) confirmAll(ctx context.Context) {
	again := time.NewTimer(time.Hour)
	defer again.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-o.toArm:
		case <-again.C:
		}
		if !o.confirmOnce(ctx) {
			again.Reset(armAgain)
		}
	}
}

// confirmOnce says whether all are confirmed.
func (o *observer) confirmOnce(ctx context.Context) (all bool) {
	o.mu.Lock()
	var vms []inventory.VM
	for _, a := range o.expected {
		if !a.armed {
			vms = append(vms, a.vm)
		}
	}
	o.mu.Unlock()
	if len(vms) == 0 {
		return true
	}
	ctx, cancel := context.WithTimeout(ctx, armTimeout)
	defer cancel()
	if err := o.gate.current(ctx); err != nil {
		return false // the watchdog tells why
	}
	all = true
	for i := range vms {
		if err := o.gate.verify(ctx, &vms[i]); err != nil {
			all = false
			continue
		}
		o.setArmed(vms[i].ID)
	}
	o.signal()
	return all
}

// hear listens for the first word of a guest, once its tap is there. The caller holds mu.
func (o *observer) hear(vm inventory.VM, a *arrival) {
	if a.stop != nil || a.live || o.listen == nil || o.group == nil {
		return
	}
	var ears []fsm.NIC
	for _, n := range vm.NICs {
		if n.Tap != "" {
			ears = append(ears, n)
		}
	}
	if len(ears) == 0 {
		return
	}
	ctx, stop := context.WithCancel(o.ctx)
	a.stop = stop
	for _, n := range ears {
		o.group.Go(func() {
			err := o.listen(ctx, n.Tap, n.MAC)
			switch {
			case ctx.Err() != nil:
			case err != nil:
				o.log.Debug("can't listen for a guest that arrives; the hypervisor will tell", "vm", vm.ID, "tap", n.Tap, "err", err)
			default:
				o.heard(vm.ID, a)
			}
		})
	}
}

func (o *observer) heard(id string, a *arrival) {
	o.mu.Lock()
	if o.expected[id] == a && !a.live {
		a.live = true
		o.overlay()
	}
	o.mu.Unlock()
	o.signal()
}

// leftFrom says whether a VM was on the node and is live elsewhere now: it is settled once it has gone from there.
func leftFrom(vm *fsm.VM, node string) bool {
	return vm.Migration != nil && vm.Migration.Phase == fsm.MigrationLive && vm.Migration.From == node
}
