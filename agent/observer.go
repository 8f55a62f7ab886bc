package agent

import (
	"context"
	"errors"
	"log/slog"
	"maps"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/palisade/palisade/fsm"
	"github.com/palisade/palisade/inventory"
)

// observer turns what the hypervisor reports into the fleet's knowledge: at once into this node's own
// kernel (taps), by gossip to all peers (a hint), and by proposal into the log (the truth).
type observer struct {
	log      *slog.Logger
	node     string
	store    *fsm.Store
	driver   inventory.Driver
	propose  proposeFunc
	announce func(fsm.Sighting)
	binder   *tapBinder // told first
	caughtUp <-chan struct{}
	wake     chan struct{}            // signals that the report changed
	networks func() map[string]string // the kind of network of each interface of this node

	reporting sync.Mutex // held while a report is taken in

	mu     sync.Mutex // guards below
	known  bool       // a first report has come
	report inventory.Report
	vms    []inventory.VM      // of the report, with what is known better: see arrivals
	claims map[string]bool     // ids that arrived here and that the view doesn't show here yet
	dirty  map[string]struct{} // ids that the view may not show as they are; nil: all
	arrivals
}

const (
	retryObserve = time.Second
	retryRefused = 30 * time.Second // what the state machine refuses, it refuses again
	// observeBatch bounds the VMs in one log entry, so that a node with thousands of guests does not
	// hold up a block behind its first report.
	observeBatch = 500
)

func newObserver(log *slog.Logger, node string, r *rooms, d inventory.Driver) *observer {
	return &observer{
		log: log, node: node, store: r.store, driver: d, binder: r.binder,
		propose: r.cluster.Propose, announce: r.cluster.Announce, caughtUp: r.caughtUp,
		wake: make(chan struct{}, 1), claims: map[string]bool{}, networks: r.devices.networks,
		arrivals: newArrivals(&gate{r.store, r.enforcer, r.lists, r.cluster.ReadIndex}, listenFor),
	}
}

// Run observes until ctx ends.
func (o *observer) Run(ctx context.Context) error {
	ctx, cancel := context.WithCancel(ctx)
	var wg sync.WaitGroup
	defer wg.Wait()
	defer cancel()
	o.begin(ctx, &wg)
	w := o.store.Watch(o.store.View().Index()) // before anything is compared with the view
	wg.Go(func() { o.confirmAll(ctx) })
	wg.Go(func() { o.followView(ctx, w) })
	wg.Go(func() { o.settle(ctx) })
	return o.driver.Run(ctx, o.onReport)
}

// onReport is called by the driver.
func (o *observer) onReport(r inventory.Report) {
	o.reporting.Lock()
	defer o.reporting.Unlock()
	r.VMs = slices.Clone(r.VMs) // the driver's
	o.label(r.VMs)
	o.take(r)
}

// take makes what this node's VMs are known: here at once, and to all in time.
func (o *observer) take(r inventory.Report) {
	o.mu.Lock()
	o.touch(r.Arrived...)
	o.known, o.report = true, r
	for _, id := range r.Arrived {
		o.claims[id] = true
	}
	o.follow(time.Now())
	o.overlay()
	o.mu.Unlock()
	view := o.store.View()
	for _, id := range r.Arrived {
		if vm, ok := findVM(r.VMs, id); ok {
			o.announce(fsm.Sighting{VM: id, Name: vm.Name, Node: o.node, Phase: vm.Phase, Epoch: nextEpoch(view, id, o.node), At: time.Now()})
		}
	}
	o.signal()
}

// overlay makes what is known of the report and the arrivals, for the kernel of this node first: a blocked guest that arrives
// is bound to its tap before anybody else has to agree. The caller holds mu.
func (o *observer) overlay() {
	vms := o.over(o.report.VMs)
	nics := make(map[string][]fsm.NIC, len(vms))
	for _, vm := range vms {
		if bound := boundHere(vm); len(bound) > 0 {
			nics[vm.ID] = bound
		}
	}
	o.binder.Report(nics)
	if o.dirty != nil {
		o.touch(differing(o.vms, vms)...)
	}
	o.vms = vms
	for id := range o.claims {
		if vm, ok := findVM(vms, id); !ok || !vm.Here() {
			delete(o.claims, id)
		}
	}
}

// boundHere returns the interfaces by which a VM is known in this node's kernel: all of one that is here, and of
// one that doesn't run those whose tap is its own even so. That binds a blocked container before it starts, or
// arrives, however it has changed its addresses.
func boundHere(vm inventory.VM) []fsm.NIC {
	if vm.Here() {
		return vm.NICs
	}
	var nics []fsm.NIC
	for _, n := range vm.NICs {
		if n.Tap != "" {
			nics = append(nics, fsm.NIC{MAC: n.MAC, Tap: n.Tap})
		}
	}
	return nics
}

func (o *observer) signal() {
	signal(o.wake)
}

// followView wakes the observer when the state of a VM changed.
func (o *observer) followView(ctx context.Context, w *fsm.Watcher) {
	for {
		_, events, err := w.Next(ctx)
		if err != nil && !errors.Is(err, fsm.ErrCompacted) {
			return
		}
		o.mu.Lock()
		if err != nil {
			o.dirty = nil
		}
		ours := err != nil
		for _, e := range events {
			if e.VM != nil && o.concerns(e.VM) {
				o.touch(e.VM.ID)
				ours = true
			}
		}
		o.mu.Unlock()
		if ours {
			o.signal()
		}
	}
}

// concerns says whether a VM of the view is, or is said to be, on this node. The caller holds mu.
func (o *observer) concerns(vm *fsm.VM) bool {
	_, here := findVM(o.vms, vm.ID)
	return here || vm.Node == o.node || vm.Destination == o.node || leftFrom(vm, o.node)
}

// touch has VMs compared again. The caller holds mu.
func (o *observer) touch(ids ...string) {
	for _, id := range ids {
		if o.dirty != nil {
			o.dirty[id] = struct{}{}
		}
	}
}

// differing returns the ids of which two reports say something else. Both are sorted by id.
func differing(a, b []inventory.VM) (ids []string) {
	for len(a) > 0 || len(b) > 0 {
		switch {
		case len(b) == 0 || len(a) > 0 && a[0].ID < b[0].ID:
			ids, a = append(ids, a[0].ID), a[1:]
		case len(a) == 0 || b[0].ID < a[0].ID:
			ids, b = append(ids, b[0].ID), b[1:]
		default:
			if !inventory.Equal(a[:1], b[:1]) {
				ids = append(ids, b[0].ID)
			}
			a, b = a[1:], b[1:]
		}
	}
	return ids
}

// settle proposes until the fleet's view and the report agree. It starts when the view is current: a
// claim made on an old view would carry a stale epoch.
func (o *observer) settle(ctx context.Context) {
	select {
	case <-o.caughtUp:
	case <-ctx.Done():
		return
	}
	retry, due := time.NewTimer(0), time.NewTimer(time.Hour)
	defer retry.Stop()
	defer due.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-o.wake:
		case <-retry.C:
		case <-due.C:
		}
		if at := o.upkeep(time.Now()); !at.IsZero() {
			due.Reset(time.Until(at))
		}
		if err := o.proposeOnce(ctx); err != nil && ctx.Err() == nil {
			pause := retryObserve
			if refused := (*fsm.Error)(nil); errors.As(err, &refused) {
				pause = retryRefused
			}
			o.mu.Lock()
			o.dirty = nil
			o.mu.Unlock()
			o.log.Warn("the registry does not know all that runs here; trying again", "after", pause, "err", err)
			retry.Reset(pause)
		}
	}
}

func (o *observer) proposeOnce(ctx context.Context) error {
	o.mu.Lock()
	ops := o.decide(o.store.View(), time.Now())
	o.mu.Unlock()
	var refused []error // one VM that is refused must not keep the others from being known
	for chunk := range slices.Chunk(ops, observeBatch) {
		var op fsm.Op = fsm.Batch{Ops: chunk}
		if len(chunk) == 1 {
			op = chunk[0]
		}
		res, err := o.propose(ctx, fsm.Command{Actor: "node:" + o.node, Op: op})
		if err != nil {
			return err
		}
		for _, r := range append(slices.Clone(res.Items), res) {
			// A stale observation lost against a newer one; the view that shows it wakes us again.
			if r.Err != nil && r.Err.Code != fsm.CodeStale {
				refused = append(refused, r.Err)
			}
		}
	}
	return errors.Join(refused...)
}

// decide compares what may differ between what is known here and the view (see inventory.Driver for the
// rules) and returns what to propose. The caller holds mu.
func (o *observer) decide(view *fsm.View, now time.Time) []fsm.Op {
	if !o.known {
		return nil
	}
	ids := slices.Sorted(maps.Keys(o.dirty))
	if o.dirty == nil {
		ids = o.all(view)
	}
	o.dirty = map[string]struct{}{}
	var ops []fsm.Op
	for _, id := range ids {
		known, exists := view.VM(id)
		if !exists {
			known = nil
		}
		vm, listed := findVM(o.vms, id)
		var op fsm.ObserveVM
		var due bool
		if !listed || known != nil && leftFrom(known, o.node) && !vm.Here() {
			op, due = o.decideGone(known)
		} else {
			op, due = o.decideOn(view, known, vm, now)
		}
		if due {
			ops = append(ops, op)
		}
	}
	return ops
}

// all are the VMs of which this node has to tell, or of which the view says something of this node. The caller holds mu.
func (o *observer) all(view *fsm.View) (ids []string) {
	for _, vm := range o.vms {
		ids = append(ids, vm.ID)
	}
	for known := range view.VMs("") {
		if _, listed := findVM(o.vms, known.ID); !listed && o.concerns(known) {
			ids = append(ids, known.ID)
		}
	}
	return ids
}

// decideGone compares a VM that is not here with the view, which may not know it (nil).
func (o *observer) decideGone(known *fsm.VM) (op fsm.ObserveVM, due bool) {
	if known == nil {
		return op, false
	}
	op = fsm.ObserveVM{ID: known.ID, Name: known.Name, Kind: known.Kind, Node: o.node, Phase: fsm.PhaseGone, Epoch: known.Epoch}
	switch {
	case leftFrom(known, o.node):
		op.Migration = fsm.MigrationSettled
	case known.Destination == o.node:
	case known.Node != o.node, known.State == fsm.VMStopped: // it stopped here, and that is the last that is known of it
		return op, false
	}
	return op, true
}

// decideOn compares a VM that is here with the view, which may not know it (nil). The caller holds mu.
func (o *observer) decideOn(view *fsm.View, known *fsm.VM, vm inventory.VM, now time.Time) (op fsm.ObserveVM, due bool) {
	op = fsm.ObserveVM{ID: vm.ID, Name: vm.Name, Kind: vm.Kind, Node: o.node, Phase: vm.Phase, NICs: vm.NICs}
	if vm.Phase == fsm.PhaseIncoming {
		var wait bool
		if op.Migration, wait = o.confirmed(vm.ID, now); wait {
			o.touch(vm.ID) // settle comes back to it
			return op, false
		}
	}
	confirms := op.Migration != "" && known != nil && known.Migration != nil && known.Migration.Phase == fsm.MigrationArming
	switch {
	case known != nil && shows(known, vm, o.node) && !confirms:
		delete(o.claims, vm.ID)
		return op, false
	case known != nil && (known.Node == o.node || known.Destination == o.node):
		op.Epoch = known.Epoch
	case o.claims[vm.ID], known == nil, vm.Here() && known.State != fsm.VMRunning && known.State != fsm.VMMigrating,
		known.State == fsm.VMDeclared:
		op.Epoch = nextEpoch(view, vm.ID, o.node)
	default:
		return op, false // it runs elsewhere by newer news than ours
	}
	return op, true
}

// shows says whether the view already has what this node reports of a VM.
func shows(known *fsm.VM, vm inventory.VM, node string) bool {
	var place bool
	switch vm.Phase {
	case fsm.PhaseRunning:
		// While it is in flight from here it still runs here.
		place = known.Node == node && (known.State == fsm.VMRunning || known.State == fsm.VMMigrating && known.Destination != node)
	case fsm.PhaseIncoming:
		place = known.State == fsm.VMMigrating && known.Destination == node
	case fsm.PhaseStopped:
		place = known.Node == node && known.State == fsm.VMStopped
	case fsm.PhaseGone: // no driver reports it: what is gone is missing in the report
	}
	if !place {
		return false
	}
	if known.State == fsm.VMMigrating {
		return true // details are settled on arrival
	}
	name, nics := fsm.Observed(vm.Name, vm.NICs)
	stopped := vm.Phase == fsm.PhaseStopped // its interfaces don't exist: the state keeps no taps
	return (name == "" || known.Name == name) && known.Kind == vm.Kind && slices.EqualFunc(known.NICs, nics, func(a, b fsm.NIC) bool {
		return a.MAC == b.MAC && (stopped || a.Tap == b.Tap && a.Network == b.Network) && slices.Equal(a.Addresses, b.Addresses)
	})
}

// nextEpoch is the epoch under which this node may report the VM: the present one if it holds the VM
// already, else the next.
func nextEpoch(view *fsm.View, id, node string) uint64 {
	known, ok := view.VM(id)
	switch {
	case !ok:
		return 1
	case known.Node == node || known.Destination == node:
		return known.Epoch
	default:
		return known.Epoch + 1
	}
}

// findVM finds a VM in a report, which is sorted by id.
func findVM(vms []inventory.VM, id string) (inventory.VM, bool) {
	i, ok := slices.BinarySearchFunc(vms, id, func(v inventory.VM, id string) int { return strings.Compare(v.ID, id) })
	if !ok {
		return inventory.VM{}, false
	}
	return vms[i], true
}

// taps are the host interfaces of the guests here.
func (o *observer) taps() map[string]bool {
	o.mu.Lock()
	defer o.mu.Unlock()
	taps := map[string]bool{}
	for _, vm := range o.vms {
		for _, n := range vm.NICs {
			taps[n.Tap] = true
		}
	}
	return taps
}
