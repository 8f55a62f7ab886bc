package agent

import (
	"context"
	"errors"
	"log/slog"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/palisade/palisade/enforce"
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
	enforcer *enforcer
	caughtUp <-chan struct{}
	wake     chan struct{} // signals that the report changed

	mu     sync.Mutex // guards below
	known  bool       // a first report has come
	report inventory.Report
	claims map[string]bool // ids that arrived here and that the view doesn't show here yet
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
		log: log, node: node, store: r.store, driver: d, enforcer: r.enforcer,
		propose: r.cluster.Propose, announce: r.cluster.Announce, caughtUp: r.caughtUp,
		wake: make(chan struct{}, 1), claims: map[string]bool{},
	}
}

// Run observes until ctx ends.
func (o *observer) Run(ctx context.Context) error {
	ctx, cancel := context.WithCancel(ctx)
	var wg sync.WaitGroup
	defer wg.Wait()
	defer cancel()
	wg.Go(func() { o.followView(ctx) })
	wg.Go(func() { o.settle(ctx) })
	return o.driver.Run(ctx, o.onReport)
}

// onReport is called by the driver.
func (o *observer) onReport(r inventory.Report) {
	nics := make(map[string][]fsm.NIC, len(r.VMs))
	for _, vm := range r.VMs {
		if vm.Here() {
			nics[vm.ID] = vm.NICs
		}
	}
	// First the kernel of this node: a blocked guest that arrives is bound to its tap before anybody
	// else has to agree.
	o.enforcer.SetLocal(func(l *enforce.Local) { l.NICs = nics })

	view := o.store.View()
	o.mu.Lock()
	o.known, o.report = true, r
	for _, id := range r.Arrived {
		o.claims[id] = true
	}
	for id := range o.claims {
		if vm, ok := findVM(r.VMs, id); !ok || !vm.Here() {
			delete(o.claims, id)
		}
	}
	o.mu.Unlock()
	for _, id := range r.Arrived {
		if vm, ok := findVM(r.VMs, id); ok {
			o.announce(fsm.Sighting{VM: id, Name: vm.Name, Node: o.node, Phase: vm.Phase, Epoch: nextEpoch(view, id, o.node), At: time.Now()})
		}
	}
	o.signal()
}

func (o *observer) signal() {
	select {
	case o.wake <- struct{}{}:
	default:
	}
}

// followView wakes the observer when the state of a VM changed.
func (o *observer) followView(ctx context.Context) {
	w := o.store.Watch(o.store.View().Index())
	for {
		_, events, err := w.Next(ctx)
		if err != nil && !errors.Is(err, fsm.ErrCompacted) {
			return
		}
		if err != nil || slices.ContainsFunc(events, func(e fsm.Event) bool { return e.VM != nil }) {
			o.signal()
		}
	}
}

// settle proposes until the fleet's view and the report agree. It starts when the view is current: a
// claim made on an old view would carry a stale epoch.
func (o *observer) settle(ctx context.Context) {
	select {
	case <-o.caughtUp:
	case <-ctx.Done():
		return
	}
	retry := time.NewTimer(0)
	defer retry.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-o.wake:
		case <-retry.C:
		}
		if err := o.proposeOnce(ctx); err != nil && ctx.Err() == nil {
			pause := retryObserve
			if refused := (*fsm.Error)(nil); errors.As(err, &refused) {
				pause = retryRefused
			}
			o.log.Warn("the registry does not know all that runs here; trying again", "after", pause, "err", err)
			retry.Reset(pause)
		}
	}
}

func (o *observer) proposeOnce(ctx context.Context) error {
	o.mu.Lock()
	ops := o.decide(o.store.View())
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

// decide compares the last report with the view (see inventory.Driver for the rules) and returns what
// to propose. The caller holds mu.
func (o *observer) decide(view *fsm.View) []fsm.Op {
	if !o.known {
		return nil
	}
	var ops []fsm.Op
	for _, vm := range o.report.VMs {
		known, exists := view.VM(vm.ID)
		op := fsm.ObserveVM{ID: vm.ID, Name: vm.Name, Kind: vm.Kind, Node: o.node, Phase: vm.Phase, NICs: vm.NICs}
		ours := exists && (known.Node == o.node || known.Destination == o.node)
		if exists && shows(known, vm, o.node) {
			delete(o.claims, vm.ID)
			continue
		}
		switch {
		case ours:
			op.Epoch = known.Epoch
		case o.claims[vm.ID], !exists, vm.Here() && known.State != fsm.VMRunning && known.State != fsm.VMMigrating,
			known.State == fsm.VMDeclared:
			op.Epoch = nextEpoch(view, vm.ID, o.node)
		default:
			continue // it runs elsewhere by newer news than ours
		}
		ops = append(ops, op)
	}
	for known := range view.VMsOn(o.node) {
		if _, ok := findVM(o.report.VMs, known.ID); ok {
			continue
		}
		if known.Destination != o.node && known.State == fsm.VMStopped {
			continue // it stopped here, and that is the last that is known of it
		}
		ops = append(ops, fsm.ObserveVM{ID: known.ID, Name: known.Name, Kind: known.Kind, Node: o.node, Phase: fsm.PhaseGone, Epoch: known.Epoch})
	}
	return ops
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
		return a.MAC == b.MAC && (stopped || a.Tap == b.Tap) && slices.Equal(a.Addresses, b.Addresses)
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
	for _, vm := range o.report.VMs {
		for _, n := range vm.NICs {
			taps[n.Tap] = true
		}
	}
	return taps
}
