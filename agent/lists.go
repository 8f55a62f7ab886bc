package agent

import (
	"context"
	"fmt"
	"log/slog"
	"net/netip"
	"runtime"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"golang.org/x/sys/unix"

	"github.com/palisade/palisade/enforce"
	"github.com/palisade/palisade/enforce/nft"
	"github.com/palisade/palisade/fsm"
)

// listKernel is what the list enforcer needs of enforce/nft.
type listKernel interface {
	Index(ctx context.Context) (uint64, error)
	Bring(ctx context.Context, c nft.ListChange) error
	Release(ctx context.Context, guards []netip.Prefix) error
	Check(ctx context.Context) error
	Hits(ctx context.Context) ([]nft.Hit, error)
	Due() bool
	deviceKernel
}

var _ listKernel = (*nft.Lists)(nil)

// listEnforcer keeps what lists drop in this node's kernel equal to the state. Its rules are those of the
// enforcer. Blocks on lists get their receipts from here.
type listEnforcer struct {
	keeper
	log     *slog.Logger
	kernel  listKernel
	metrics listMetrics
	drift   *drift

	standing // its mu guards all below; the log index is that whose lists are in the kernel
	local    *enforce.Local
	startAt  time.Time // when the kernel first matched the state
	holds    bool      // the kernel has lists
	told     bool      // the kernel knows which devices there are
	since    map[string]receipt
	dropped  map[string]enforce.Counter // by block
}

type listMetrics struct {
	enforced prometheus.Gauge
	failures prometheus.Counter
	latency  prometheus.Histogram
}

func newListMetrics(reg prometheus.Registerer) listMetrics {
	m := listMetrics{
		enforced: prometheus.NewGauge(prometheus.GaugeOpts{Name: "palisade_lists_enforced_index", Help: "Log index whose lists are in the kernel."}),
		failures: prometheus.NewCounter(prometheus.CounterOpts{Name: "palisade_lists_kernel_failures_total", Help: "Changes of lists in the kernel that failed and were tried again."}),
		latency: prometheus.NewHistogram(prometheus.HistogramOpts{
			Name: "palisade_lists_apply_seconds", Help: "Time that bringing changed lists to the kernel took.",
			Buckets: prometheus.ExponentialBuckets(1e-3, 2, 14),
		}),
	}
	reg.MustRegister(m.enforced, m.failures, m.latency)
	return m
}

func newListEnforcer(log *slog.Logger, reg prometheus.Registerer, store *fsm.Store, k listKernel, caughtUp <-chan struct{}) *listEnforcer {
	return &listEnforcer{
		keeper: newKeeper(store, caughtUp), log: log, kernel: k, metrics: newListMetrics(reg), drift: newDrift(reg, "lists"),
		standing: newStanding(), since: map[string]receipt{}, dropped: map[string]enforce.Counter{},
	}
}

// SetLocal tells what this node knows of itself. Until it is called with guards, the lists in the kernel stay as
// they are: one of them may name this node's own addresses. l must not be changed afterwards.
func (e *listEnforcer) SetLocal(l enforce.Local) {
	if l.Guards == nil {
		return
	}
	e.mu.Lock()
	same := e.local != nil && !e.local.TouchesLists(e.store.View(), l)
	e.local = &l
	e.mu.Unlock()
	if same {
		return // to compile a million prefixes for each guest that comes would keep a core busy
	}
	signal(e.localCh)
}

// SetDevices tells the kernel which interfaces pass packets to neither a bridge nor this node's own stack. It does not
// wait for the loop, which loads the lists for the first of them.
func (e *listEnforcer) SetDevices(ctx context.Context, list []nft.Device) error {
	if err := e.kernel.SetDevices(ctx, list); err != nil {
		return err
	}
	e.mu.Lock()
	defer e.mu.Unlock()
	e.told = true
	return nil
}

// Unenforced is that of the kernel.
func (e *listEnforcer) Unenforced() map[string]error { return e.kernel.Unenforced() }

// listWork is what the loop still owes the kernel and the receipts.
type listWork struct {
	view     *fsm.View
	lists    *enforce.Lists // compiled; nil if they have to be again
	brought  *enforce.Lists // what the kernel was brought to last; nil at the start
	events   []fsm.Event    // of blocks on lists, since the last receipt
	dirty    bool           // the kernel may differ from lists
	floor    uint64         // the log index that the kernel stood for at the start
	floored  bool           // floor was read
	caughtUp bool
}

// listNiceness is that of the thread that loads lists: it gets a third of what another thread gets where both want
// the same core. With more, a loaded host would let it hold the kernel's lock on rules for too long.
const listNiceness = 5

// yieldToOthers binds the calling goroutine to a thread that has a lower priority than those of all other goroutines.
// The thread ends with the goroutine.
func yieldToOthers() error {
	runtime.LockOSThread()
	return unix.Setpriority(unix.PRIO_PROCESS, unix.Gettid(), listNiceness)
}

// Run enforces until ctx ends. The kernel keeps what it has. The caller's goroutine must end after it: its thread is
// no good for anything else.
func (e *listEnforcer) Run(ctx context.Context) error {
	if err := yieldToOthers(); err != nil {
		e.log.Warn("lists are loaded with the priority of everything else", "err", err)
	}
	w := listWork{dirty: true}
	e.keep(ctx, turns{
		took:     w.take,
		local:    func() { w.lists, w.dirty = nil, true },
		caughtUp: func() { w.caughtUp, w.dirty = true, true },
		look:     func(ctx context.Context) { e.look(ctx, &w) },
		count:    func(ctx context.Context) { e.count(ctx, &w) },
		step:     func(ctx context.Context) error { return e.step(ctx, &w) },
		failed: func(err error) {
			w.dirty = true
			e.fail(err)
		},
	})
	return nil
}

// take notes whether the step of the feed can change what lists drop.
func (w *listWork) take(b batch) {
	w.view = b.view
	changed := b.reset
	for _, ev := range b.events {
		switch {
		case ev.Block != nil && ev.Block.Target.List != "":
			w.events = append(w.events, ev)
			changed = true
		case ev.List != nil, ev.Node != nil, ev.Guard != nil, ev.Fleet != nil:
			changed = true
		case ev.VM != nil && !changed:
			for g := range b.view.Guards() {
				changed = changed || g.VM == ev.VM.ID
			}
		}
	}
	if changed {
		w.lists, w.dirty = nil, true
	}
}

// step brings what is due to the kernel and gives the receipts for it.
func (e *listEnforcer) step(ctx context.Context, w *listWork) error {
	e.mu.Lock()
	local := e.local
	e.mu.Unlock()
	if w.view == nil || local == nil {
		return nil
	}
	if !w.floored {
		index, err := e.kernel.Index(ctx)
		if err != nil {
			return err
		}
		w.floor, w.floored = index, true
	}
	if !w.caughtUp && w.dirty {
		// Among what is dropped since an earlier life may be what this node needs to catch up.
		if err := e.kernel.Release(ctx, local.Guards); err != nil {
			return err
		}
	}
	if !w.caughtUp && w.view.Index() < w.floor {
		return nil // the kernel knows better
	}
	behind := w.view.Index() < w.floor
	fleet, over := unsettled(w.view, w.floor)
	if w.dirty {
		begin := time.Now()
		if w.lists == nil {
			w.lists = enforce.CompileLists(w.view, *local)
		}
		e.count(ctx, w) // for the blocks that go now
		index := max(w.view.Index(), w.floor)
		if over {
			index = w.floor // the next start must see from when it is
		}
		if err := e.kernel.Bring(ctx, nft.ListChange{Lists: w.lists, Index: index, Remove: w.caughtUp && !behind && !over}); err != nil {
			return err
		}
		w.dirty, w.brought = false, w.lists
		e.drift.undone()
		took := time.Since(begin)
		e.metrics.latency.Observe(took.Seconds())
		if took > time.Second {
			e.log.Info("the kernel holds the lists", "index", index, "took", took.Round(time.Millisecond))
		}
	}
	if w.caughtUp {
		problem := ""
		if behind && !w.lists.Empty() {
			problem = fmt.Sprintf("the kernel holds lists of log index %d, which this fleet (at %d) does not know; they are kept", w.floor, w.view.Index())
		}
		if over {
			problem = fmt.Sprintf("the kernel may hold lists from before epoch %d that the state does not; they stay until \"palisade settle\" lets them go", fleet.Epoch)
		}
		e.record(w, problem)
	}
	return nil
}

// look finds out whether another program has changed the tables, or devices came or went.
func (e *listEnforcer) look(ctx context.Context, w *listWork) {
	if w.dirty {
		return
	}
	if e.kernel.Due() {
		w.dirty = true
		return
	}
	if err := e.kernel.Check(ctx); err != nil && ctx.Err() == nil {
		e.drift.saw("tables of lists: " + err.Error())
		e.log.Error("lists in the kernel are not as they were left; bringing them back", "err", err)
		w.dirty = true
	}
}

// count adds up what the kernel has dropped, for each block that names the address.
func (e *listEnforcer) count(ctx context.Context, w *listWork) {
	if w.brought == nil || w.brought.Empty() {
		return
	}
	hits, err := e.kernel.Hits(ctx)
	if err != nil {
		if ctx.Err() == nil {
			e.log.Warn("can't read what lists dropped", "err", err)
		}
		return
	}
	e.mu.Lock()
	defer e.mu.Unlock()
	for _, h := range hits {
		d := fsm.In
		if h.Source {
			d = fsm.Out
		}
		for id := range w.brought.Holding(h.Address, d) {
			c := e.dropped[id]
			e.dropped[id] = enforce.Counter{Packets: c.Packets + h.Packets, Bytes: c.Bytes + h.Bytes}
		}
	}
}

// record gives the receipts: the kernel holds the lists of the view.
func (e *listEnforcer) record(w *listWork, problem string) {
	now := time.Now()
	index := w.view.Index()
	e.mu.Lock()
	defer e.mu.Unlock()
	if e.startAt.IsZero() {
		e.startAt = now
	}
	for _, ev := range w.events {
		if ev.Type == fsm.EventBlockForgotten {
			delete(e.since, ev.Block.ID)
			delete(e.dropped, ev.Block.ID)
			continue
		}
		e.since[ev.Block.ID] = receipt{index: index, at: now}
	}
	w.events = nil
	if problem != "" && problem != e.problem {
		e.log.Warn(problem)
	}
	e.problem, e.holds = problem, w.brought != nil && !w.brought.Empty()
	e.reach(index, e.metrics.enforced)
}

func (e *listEnforcer) fail(err error) {
	e.metrics.failures.Inc()
	e.log.Error("lists in the kernel are behind the state; trying again", "err", err)
	e.behind(err.Error())
	e.drift.stuck(err)
}

// Dropped is what a block on a list has dropped since the agent started.
func (e *listEnforcer) Dropped(block string) enforce.Counter {
	e.mu.Lock()
	defer e.mu.Unlock()
	return e.dropped[block]
}

// Receipt reports on a block on a list: in force is the block with the content that the list has in the view.
func (e *listEnforcer) Receipt(v *fsm.View, b *fsm.Block) fsm.BlockReport {
	index := b.Index
	if l, _, ok := v.List(b.Target.List); ok && !b.State.Over() {
		index = max(index, l.Revision)
	}
	e.mu.Lock()
	defer e.mu.Unlock()
	c := e.dropped[b.ID]
	r := fsm.BlockReport{Enforced: !e.startAt.IsZero() && e.enforced >= index, Index: e.enforced, At: e.startAt, Packets: c.Packets, Bytes: c.Bytes}
	if known, ok := e.since[b.ID]; ok {
		r.At = known.at
	}
	if b.State == fsm.BlockActive && e.local != nil {
		if r.Open = unlisted(e.local.NICs.All(), e.told, e.kernel.Unenforced()); r.Open != "" {
			r.Enforced = false
		}
	}
	return r
}

// open says for which guests here the lists that are held do not hold, or "".
func (e *listEnforcer) open() string {
	e.mu.Lock()
	defer e.mu.Unlock()
	if !e.holds || e.local == nil {
		return ""
	}
	return unlisted(e.local.NICs.All(), e.told, e.kernel.Unenforced())
}

// holdsLists says whether one of the blocks is on a list.
func holdsLists(v *fsm.View, ids []string) bool {
	for _, id := range ids {
		if b, ok := v.Block(id); ok && b.Target.List != "" {
			return true
		}
	}
	return false
}
