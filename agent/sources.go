package agent

import (
	"context"
	"log/slog"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/palisade/palisade/enforce"
	"github.com/palisade/palisade/enforce/nft"
	"github.com/palisade/palisade/fsm"
)

// sourceKernel is what the source enforcer needs of enforce/nft.
type sourceKernel interface {
	Adopt(ctx context.Context) (nft.SourcesHeld, error)
	Apply(ctx context.Context, d enforce.SourceDelta) error
	Check(ctx context.Context) error
	Dropped(ctx context.Context) (map[string]enforce.Counter, error)
}

var _ sourceKernel = (*nft.Sources)(nil)

// sourceEnforcer keeps the guests of this node to the addresses that are registered for them, where that is asked for.
//
// It waits for the first report of the hypervisor, and for a state that is not older than the one that the kernel stands for; until
// then the kernel keeps what it holds, but for interfaces that are other guests' by now.
type sourceEnforcer struct {
	keeper
	log     *slog.Logger
	kernel  sourceKernel
	drift   *drift
	metrics sourceMetrics

	standing // its mu guards all below; the log index is that whose registrations are in the kernel
	local    enforce.Local
	bound    map[string]enforce.SourceBinding // in the kernel, by VM
	dropped  map[string]enforce.Counter       // by VM, since the agent started
}

type sourceMetrics struct {
	enforced, guests, partly prometheus.Gauge
	packets, bytes, failures prometheus.Counter
}

func newSourceMetrics(reg prometheus.Registerer) sourceMetrics {
	m := sourceMetrics{
		enforced: prometheus.NewGauge(prometheus.GaugeOpts{Name: "palisade_source_guard_enforced_index", Help: "Log index whose source guard is in the kernel."}),
		guests:   prometheus.NewGauge(prometheus.GaugeOpts{Name: "palisade_source_guard_vms", Help: "VMs on this node that are bound to their registered addresses."}),
		partly:   prometheus.NewGauge(prometheus.GaugeOpts{Name: "palisade_source_guard_incomplete_vms", Help: "VMs on this node of which too little is known to bind them wholly."}),
		packets:  prometheus.NewCounter(prometheus.CounterOpts{Name: "palisade_source_guard_dropped_packets_total", Help: "Packets of VMs that the source guard dropped on this node since the agent started."}),
		bytes:    prometheus.NewCounter(prometheus.CounterOpts{Name: "palisade_source_guard_dropped_bytes_total", Help: "Bytes of the packets that the source guard dropped."}),
		failures: prometheus.NewCounter(prometheus.CounterOpts{Name: "palisade_source_guard_failures_total", Help: "Changes of the source guard in the kernel that failed and were tried again."}),
	}
	reg.MustRegister(m.enforced, m.guests, m.partly, m.packets, m.bytes, m.failures)
	return m
}

func newSourceEnforcer(log *slog.Logger, reg prometheus.Registerer, store *fsm.Store, k sourceKernel, caughtUp <-chan struct{}) *sourceEnforcer {
	return &sourceEnforcer{
		keeper: newKeeper(store, caughtUp), log: log, kernel: k,
		drift: newDrift(reg, "sources"), metrics: newSourceMetrics(reg), standing: newStanding(), dropped: map[string]enforce.Counter{},
	}
}

// SetLocal tells what this node knows of itself. l must not be changed afterwards.
func (e *sourceEnforcer) SetLocal(l enforce.Local) {
	e.mu.Lock()
	e.local = l
	e.mu.Unlock()
	signal(e.localCh)
}

// sourceWork is what the loop knows.
type sourceWork struct {
	compiler *enforce.Sources
	view     *fsm.View
	events   []fsm.Event // since the compiler's last update
	reset    bool        // the compiler has to look at everything
	dirty    bool        // the kernel may differ from what the compiler holds
	caughtUp bool
	held     nft.SourcesHeld // of an earlier life; its elements are nil once the kernel was compared
	adopted  bool
	want     map[enforce.SourceElement]bool // true: to add, false: to remove
	readings map[string]enforce.Counter     // by tap; nil before the first
}

// Run enforces until ctx ends. The kernel keeps what it has.
func (e *sourceEnforcer) Run(ctx context.Context) error {
	w := sourceWork{compiler: enforce.NewSources(), reset: true, want: map[enforce.SourceElement]bool{}}
	e.keep(ctx, turns{
		took:     func(b batch) { w.view, w.events, w.reset = b.view, append(w.events, b.events...), w.reset || b.reset },
		local:    func() {},
		caughtUp: func() { w.caughtUp = true },
		look:     func(ctx context.Context) { e.look(ctx, &w) },
		count:    func(ctx context.Context) { e.count(ctx, &w) },
		step:     func(ctx context.Context) error { return e.step(ctx, &w) },
		failed: func(err error) {
			w.dirty = true
			e.metrics.failures.Inc()
			e.log.Error("the source guard in the kernel is behind the state; trying again", "err", err)
			e.behind(err.Error())
			e.drift.stuck(err)
		},
	})
	return nil
}

// step brings what is due to the kernel.
func (e *sourceEnforcer) step(ctx context.Context, w *sourceWork) error {
	e.mu.Lock()
	local := e.local
	e.mu.Unlock()
	if w.view == nil || local.NICs.IsZero() {
		return nil // nobody knows yet who runs here
	}
	if !w.adopted {
		held, err := e.kernel.Adopt(ctx)
		if err != nil {
			return err
		}
		w.held, w.adopted, w.dirty = held, true, !held.Intact
	}
	if w.held.Elements != nil && !w.caughtUp && w.view.Index() < w.held.Index {
		strange := enforce.StrangeSources(w.held.Elements, local)
		for _, el := range strange {
			delete(w.held.Elements, el)
		}
		if len(strange) == 0 {
			return nil // the kernel knows better
		}
		return e.kernel.Apply(ctx, enforce.SourceDelta{Index: w.held.Index, Remove: strange})
	}
	d := w.compiler.Update(w.view, w.events, local, w.reset)
	w.events, w.reset = nil, false
	for _, el := range d.Remove {
		w.want[el] = false
	}
	for _, el := range d.Add {
		w.want[el] = true
	}
	if w.held.Elements != nil {
		now := w.compiler.Elements()
		for el := range w.held.Elements {
			if _, ok := now[el]; !ok {
				w.want[el] = false
			}
		}
		w.held.Elements = nil
	}
	d = enforce.SourceDelta{Index: d.Index}
	for el, add := range w.want {
		if add {
			d.Add = append(d.Add, el)
		} else {
			d.Remove = append(d.Remove, el)
		}
	}
	if w.dirty || len(w.want) > 0 {
		if err := e.kernel.Apply(ctx, d); err != nil {
			return err
		}
		if w.dirty {
			e.drift.undone()
		}
	}
	clear(w.want)
	w.dirty = false
	e.record(w)
	return nil
}

// record tells what the kernel holds.
func (e *sourceEnforcer) record(w *sourceWork) {
	bound := w.compiler.Bound()
	partly, guests := 0, 0
	for _, b := range bound {
		if len(b.Taps) > 0 {
			guests++
		}
		if b.Why != "" {
			partly++
		}
	}
	e.mu.Lock()
	defer e.mu.Unlock()
	for id := range e.dropped {
		if _, here := e.local.NICs.Lookup(id); !here {
			delete(e.dropped, id)
		}
	}
	for id, b := range bound {
		if old, known := e.bound[id]; b.Why != "" && (!known || old.Why != b.Why) {
			e.log.Warn("a VM can't be bound to its addresses wholly", "vm", id, "why", b.Why)
		}
	}
	e.bound, e.problem = bound, ""
	e.metrics.guests.Set(float64(guests))
	e.metrics.partly.Set(float64(partly))
	e.reach(w.view.Index(), e.metrics.enforced)
}

// look finds out whether another program has changed the tables.
func (e *sourceEnforcer) look(ctx context.Context, w *sourceWork) {
	if !w.adopted || w.dirty {
		return
	}
	if err := e.kernel.Check(ctx); err != nil && ctx.Err() == nil {
		e.drift.saw("tables of the source guard: " + err.Error())
		e.log.Error("the source guard in the kernel is not as it was left; bringing it back", "err", err)
		w.dirty = true
	}
}

// count reads what was dropped.
func (e *sourceEnforcer) count(ctx context.Context, w *sourceWork) {
	if !w.adopted || w.dirty {
		return
	}
	dropped, err := e.kernel.Dropped(ctx)
	if err != nil {
		if ctx.Err() == nil {
			e.log.Warn("can't read what the source guard dropped", "err", err)
		}
		return
	}
	e.mu.Lock()
	defer e.mu.Unlock()
	for id, b := range e.bound {
		for _, tap := range b.Taps {
			now, was := dropped[tap], w.readings[tap]
			if w.readings == nil {
				was = now // before this process
			}
			if now.Packets < was.Packets {
				was = enforce.Counter{} // it was written anew
			}
			more := enforce.Counter{Packets: now.Packets - was.Packets, Bytes: now.Bytes - was.Bytes}
			e.dropped[id] = plus(e.dropped[id], more)
			e.metrics.packets.Add(float64(more.Packets))
			e.metrics.bytes.Add(float64(more.Bytes))
		}
	}
	w.readings = dropped
}

// Report says what a VM is bound to on this node; nil if it is not to be bound here.
func (e *sourceEnforcer) Report(vm string) *fsm.SourceReport {
	e.mu.Lock()
	defer e.mu.Unlock()
	b, ok := e.bound[vm]
	if !ok {
		return nil
	}
	c := e.dropped[vm]
	return &fsm.SourceReport{MACs: len(b.Taps) > 0, Addresses: b.Addresses, Why: b.Why, Packets: c.Packets, Bytes: c.Bytes}
}
