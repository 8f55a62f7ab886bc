package agent

import (
	"context"
	"fmt"
	"log/slog"
	"maps"
	"net/netip"
	"slices"
	"sync"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/palisade/palisade/enforce"
	"github.com/palisade/palisade/enforce/nft"
	"github.com/palisade/palisade/fsm"
)

// kernel is what the enforcer needs of enforce/nft.
type kernel interface {
	Apply(ctx context.Context, d enforce.Delta) error
	Check(ctx context.Context) (nft.Difference, error)
	Heal(ctx context.Context) error
	Counters(ctx context.Context, els []enforce.Element) (map[enforce.Element]enforce.Counter, error)
}

var _ kernel = (*nft.Kernel)(nil)

// enforcer walks the change feed and keeps this node's kernel equal to the state.
//
// Three rules keep the wall closed while the agent is not sure of the present:
//   - The kernel says itself which log index it stands for. While the state is older (a restart whose
//     snapshot lies behind), nothing is changed at all. If the whole fleet agrees on an older state
//     (its stores were replaced), what the kernel holds is kept, added to, and reported as a problem.
//   - Until the state has caught up with the leader once, elements are only added: what an old entry
//     lifts, a later one may hold again. Only what covers one of this node's own guards goes at once:
//     it could be the leader's address that is dropped.
//   - A delta that failed is kept and tried again; the receipt waits for it.
type enforcer struct {
	log      *slog.Logger
	store    *fsm.Store
	kernel   kernel
	caughtUp <-chan struct{}         // closed once the state was as new as the leader's
	localCh  chan struct{}           // signals that local changed
	alive    chan struct{}           // taken by the loop, see Alive
	freed    func([]fsm.MAC)         // told what has left the kernel; must not block; may be nil
	lists    *listEnforcer           // told what local is; may be nil
	loose    func() map[string]error // interfaces of guests that can't be enforced
	sources  *sourceEnforcer         // likewise
	metrics  enforcerMetrics
	drift    *drift
	drops    *drops
	series   *dropSeries
	clock    func() time.Time  // the fleet's, to which stamps are compared
	interval time.Duration     // of looks at the kernel
	canary   []enforce.Element // always in the kernel, whatever is blocked

	standing // its mu guards all below
	compiler *enforce.Compiler
	local    enforce.Local
	told     localTold
	startAt  time.Time // when the kernel first matched the state
	since    map[string]receipt
	final    map[string]enforce.Counter // of lifted blocks: what they dropped until then
}

// localTold counts what SetLocal was told: it takes effect with the loop's next turn.
type localTold struct{ told, compiled, enforced uint64 }

// receipt says when this process first saw a block in force in its kernel.
type receipt struct {
	index uint64
	at    time.Time
}

type enforcerMetrics struct {
	enforced prometheus.Gauge
	elements prometheus.Gauge
	failures prometheus.Counter
	missing  prometheus.Gauge
	latency  prometheus.Histogram
	commit   prometheus.Histogram
}

const (
	// maxKeptCounters bounds the reads of counters before lifts that come together: a mass lift must
	// not hold up the block behind it.
	maxKeptCounters = 256

	retryKernelMin = 50 * time.Millisecond
	retryKernelMax = 2 * time.Second
)

func newEnforcer(log *slog.Logger, reg prometheus.Registerer, store *fsm.Store, k kernel, node string, caughtUp <-chan struct{}) *enforcer {
	e := &enforcer{
		log: log, store: store, kernel: k, caughtUp: caughtUp,
		localCh:  make(chan struct{}, 1),
		alive:    make(chan struct{}),
		compiler: enforce.NewCompiler(),
		local:    enforce.Local{Node: node},
		standing: newStanding(),
		since:    map[string]receipt{},
		final:    map[string]enforce.Counter{},
		metrics: enforcerMetrics{
			enforced: prometheus.NewGauge(prometheus.GaugeOpts{Name: "palisade_enforced_index", Help: "Log index that is in the kernel, read back."}),
			elements: prometheus.NewGauge(prometheus.GaugeOpts{Name: "palisade_kernel_elements", Help: "Addresses, prefixes, MACs and taps held in the kernel."}),
			failures: prometheus.NewCounter(prometheus.CounterOpts{Name: "palisade_kernel_failures_total", Help: "Kernel changes that failed and were tried again."}),
			missing:  prometheus.NewGauge(prometheus.GaugeOpts{Name: "palisade_kernel_missing_kinds", Help: "Kinds of blocks that this kernel lacks; they drop everything."}),
			latency: prometheus.NewHistogram(prometheus.HistogramOpts{
				Name: "palisade_kernel_apply_seconds", Help: "Time from a new state to its read-back from the kernel.",
				Buckets: prometheus.ExponentialBuckets(50e-6, 2, 16),
			}),
			commit: prometheus.NewHistogram(prometheus.HistogramOpts{
				Name: "palisade_commit_to_kernel_seconds", Help: "Time from the leader's stamp of a change to its read-back from this node's kernel, by the fleet's clock.",
				Buckets: []float64{.001, .002, .003, .005, .01, .02, .05, .1, .2, .5, 1, 2, 5, 10, 60, 600},
			}),
		},
		drift: newDrift(reg, "blocks"), loose: func() map[string]error { return nil }, clock: time.Now, interval: lookInterval,
	}
	e.drops = newDrops(store.View, e)
	e.series = newDropSeries(e.drops)
	reg.MustRegister(e.drops, e.metrics.enforced, e.metrics.elements, e.metrics.failures, e.metrics.missing, e.metrics.latency, e.metrics.commit)
	return e
}

// lacks tells the enforcer, before it runs, which kinds of blocks this kernel can't carry out: they drop
// everything.
func (e *enforcer) lacks(missing map[fsm.Kind]error) {
	for kind, err := range missing {
		e.log.Warn("this kernel lacks a kind of block: such blocks drop everything here", "kind", kind, "err", err)
	}
	e.metrics.missing.Set(float64(len(missing)))
	e.SetLocal(func(l *enforce.Local) { l.Missing = slices.Sorted(maps.Keys(missing)) })
}

// Alive waits until the loop has come round, or ctx ends.
func (e *enforcer) Alive(ctx context.Context) error {
	select {
	case e.alive <- struct{}{}:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}

// SetLocal tells the enforcer which guests this node runs and what it must never drop. The maps and
// slices are not to be changed afterwards.
func (e *enforcer) SetLocal(update func(*enforce.Local)) {
	e.mu.Lock()
	update(&e.local)
	e.told.told++
	local := e.local
	e.mu.Unlock()
	if e.lists != nil {
		e.lists.SetLocal(local)
	}
	if e.sources != nil {
		e.sources.SetLocal(local)
	}
	signal(e.localCh)
}

// batch is one step of the change feed.
type batch struct {
	view   *fsm.View
	events []fsm.Event
	reset  bool // the feed had a gap: compare everything
}

// Local returns what this node knows of itself now. It must not be changed.
func (e *enforcer) Local() enforce.Local {
	e.mu.Lock()
	defer e.mu.Unlock()
	return e.local
}

// Run enforces until ctx ends, starting from what the kernel was found to hold. The kernel keeps what
// it has.
func (e *enforcer) Run(ctx context.Context, held nft.Held) error {
	ctx, cancel := context.WithCancel(ctx)
	feed := make(chan batch)
	var wg sync.WaitGroup
	wg.Go(func() { follow(ctx, e.store, feed) })
	wg.Go(func() { e.watch(ctx) })
	defer wg.Wait()
	defer cancel()
	return e.loop(ctx, feed, held)
}

// pending is what the loop still owes the kernel and the receipts.
type pending struct {
	view     *fsm.View
	events   []fsm.Event              // since the last receipt
	want     map[enforce.Element]bool // true: to add, false: to remove
	leftover map[enforce.Element]struct{}
	floor    uint64   // the log index that the kernel stood for when it was adopted
	over     heldOver // of the leftovers, until the epoch is settled
	caughtUp bool
	told     uint64      // what of localTold is in what is pushed
	stamps   []time.Time // of the entries that came after catching up, since the last receipt
}

func (e *enforcer) loop(ctx context.Context, feed <-chan batch, held nft.Held) error {
	var (
		p        = pending{want: map[enforce.Element]bool{}, over: heldOver{}, leftover: held.Elements, floor: held.Index}
		retry    = time.NewTimer(0)
		wait     = retryKernelMin
		caughtUp = e.caughtUp
	)
	defer retry.Stop()
	<-retry.C
	for _, el := range e.canary {
		p.want[el] = true
	}
	for {
		fresh := time.Time{}
		select {
		case <-ctx.Done():
			return nil
		case b := <-feed:
			fresh = time.Now()
			p.view, p.events = b.view, append(p.events, b.events...)
			if p.caughtUp {
				p.stamps = appendStamps(p.stamps, b.events)
			}
			e.merge(p.want, e.compile(ctx, b))
		case <-e.localCh:
			if p.view == nil {
				continue
			}
			e.merge(p.want, e.compile(ctx, batch{view: p.view}))
		case <-caughtUp:
			caughtUp, p.caughtUp = nil, true
		case <-retry.C:
		case <-e.alive:
			continue
		}
		if p.view == nil || !p.caughtUp && p.view.Index() < p.floor {
			continue // the kernel knows better
		}
		if err := e.push(ctx, &p); err != nil {
			if ctx.Err() != nil {
				return nil
			}
			e.fail("apply", err)
			retry.Reset(wait)
			wait = min(2*wait, retryKernelMax)
			continue
		}
		wait = retryKernelMin
		if !fresh.IsZero() {
			e.metrics.latency.Observe(time.Since(fresh).Seconds())
		}
	}
}

func (e *enforcer) compile(ctx context.Context, b batch) enforce.Delta {
	e.mu.Lock()
	defer e.mu.Unlock()
	e.told.compiled = e.told.told
	lifts := 0
	for _, ev := range b.events {
		switch ev.Type {
		case fsm.EventBlockLifted, fsm.EventBlockEnded:
			if lifts++; lifts <= maxKeptCounters {
				e.keepCounters(ctx, ev.Block)
			}
		case fsm.EventBlockForgotten:
			delete(e.final, ev.Block.ID)
		default: // counters are kept at the end of a block alone
		}
	}
	if b.reset {
		e.prune(b.view)
		return e.compiler.Reset(b.view, e.local)
	}
	return e.compiler.Update(b.view, b.events, e.local)
}

// prune forgets the blocks that the state forgot in a gap of the feed.
func (e *enforcer) prune(view *fsm.View) {
	for id := range e.since {
		if _, ok := view.Block(id); !ok {
			delete(e.since, id)
		}
	}
	for id := range e.final {
		if _, ok := view.Block(id); !ok {
			delete(e.final, id)
		}
	}
}

// keepCounters remembers what a block dropped before its elements leave the kernel.
func (e *enforcer) keepCounters(ctx context.Context, b *fsm.Block) {
	if els := e.compiler.ElementsOf(b.ID); len(els) > 0 {
		if c, err := e.sum(ctx, els); err == nil {
			e.final[b.ID] = c
			e.drops.ended(b, c)
		}
	}
}

// elementsOf are the elements that are held for a block.
func (e *enforcer) elementsOf(id string) []enforce.Element {
	e.mu.Lock()
	defer e.mu.Unlock()
	return e.compiler.ElementsOf(id)
}

// listed is what a block on a list has dropped here since the agent started.
func (e *enforcer) listed(id string) enforce.Counter {
	if e.lists == nil {
		return enforce.Counter{}
	}
	return e.lists.Dropped(id)
}

func (e *enforcer) sum(ctx context.Context, els []enforce.Element) (enforce.Counter, error) {
	counters, err := e.kernel.Counters(ctx, els)
	var sum enforce.Counter
	for _, c := range counters {
		sum.Packets += c.Packets
		sum.Bytes += c.Bytes
	}
	return sum, err
}

func (e *enforcer) merge(want map[enforce.Element]bool, d enforce.Delta) {
	for _, el := range d.Remove {
		if !slices.Contains(e.canary, el) {
			want[el] = false
		}
	}
	for _, el := range d.Add {
		want[el] = true
	}
}

// compare settles what the kernel was found to hold with what the state wants: what is there already
// needs no writing and was read just now, and what an earlier life left behind is to be removed.
func (e *enforcer) compare(p *pending) {
	e.mu.Lock()
	defer e.mu.Unlock()
	needed := func(el enforce.Element) {
		if _, held := p.leftover[el]; held {
			delete(p.want, el)
			delete(p.leftover, el)
		}
	}
	for el := range e.compiler.Elements() {
		needed(el)
	}
	for _, el := range e.canary {
		needed(el)
	}
	rest := slices.Collect(maps.Keys(p.leftover))
	if _, keep := unsettled(p.view, p.floor); keep {
		rest = p.over.keep(p.leftover)
	}
	for _, el := range rest {
		p.want[el] = false
	}
	p.leftover = nil
}

// settle moves what was held over to what is to be removed, once that is allowed. What the state has come to want is its own.
func (p *pending) settle() (*fsm.Fleet, bool) {
	for el, add := range p.want {
		if add {
			delete(p.over, el)
		}
	}
	f, keep := unsettled(p.view, p.floor)
	if !keep {
		for el := range p.over {
			p.want[el] = false
		}
		clear(p.over)
	}
	return f, len(p.over) > 0
}

// push brings what is pending to the kernel and records the receipt. Removals stay pending until the
// state has caught up with the leader and with what the kernel once held.
func (e *enforcer) push(ctx context.Context, p *pending) error {
	if p.leftover != nil {
		e.compare(p)
	}
	fleet, over := p.settle()
	behind := p.view.Index() < p.floor
	e.mu.Lock()
	guards := e.local.Guards
	p.told = e.told.compiled
	e.mu.Unlock()
	d := enforce.Delta{Index: max(p.view.Index(), p.floor)}
	if over {
		d.Index = p.floor // the next start must see from when it is
	}
	kept := 0
	for el, add := range p.want {
		switch {
		case add:
			d.Add = append(d.Add, el)
		case p.caughtUp && !behind, covers(el, guards):
			d.Remove = append(d.Remove, el)
		default:
			kept++
		}
	}
	if err := e.kernel.Apply(ctx, d); err != nil {
		return err
	}
	for _, el := range d.Add {
		delete(p.want, el)
	}
	for _, el := range d.Remove {
		delete(p.want, el)
	}
	e.tellFreed(d.Remove)
	if !p.caughtUp {
		return nil
	}
	problem := ""
	if behind && kept > 0 {
		problem = fmt.Sprintf("the kernel holds %d elements of log index %d, which this fleet (at %d) does not know; they are kept", kept, p.floor, p.view.Index())
	}
	if over {
		problem = p.over.problem(fleet)
	}
	e.record(p, problem)
	now := e.clock()
	for _, at := range p.stamps {
		e.metrics.commit.Observe(max(0, now.Sub(at).Seconds())) // clocks are known to some milliseconds only
	}
	p.events, p.stamps = nil, p.stamps[:0]
	return nil
}

// appendStamps appends the time of each entry among events, and of all of them a bounded number.
func appendStamps(list []time.Time, events []fsm.Event) []time.Time {
	const most = 1_000
	for i := range events {
		if (i == 0 || events[i].Index != events[i-1].Index) && len(list) < most {
			list = append(list, events[i].Time)
		}
	}
	return list
}

// tellFreed passes on the hardware addresses that the kernel no longer drops.
func (e *enforcer) tellFreed(removed []enforce.Element) {
	var macs []fsm.MAC
	for _, el := range removed {
		if t, _ := el.Treatment.Terms(); el.MAC != (fsm.MAC{}) && t.Kind != enforce.Here {
			macs = append(macs, el.MAC)
		}
	}
	if len(macs) > 0 && e.freed != nil {
		e.freed(macs)
	}
}

// covers says that an element drops packets of a guard. What else it drops stays blocked: the same
// delta adds the prefixes around the guard.
func covers(el enforce.Element, guards []netip.Prefix) bool {
	return el.Prefix.IsValid() && slices.ContainsFunc(guards, el.Prefix.Overlaps)
}

// record gives the receipt: the kernel holds the state at the view's index.
func (e *enforcer) record(p *pending, problem string) {
	now := time.Now()
	e.mu.Lock()
	defer e.mu.Unlock()
	if e.startAt.IsZero() {
		e.startAt = now
	}
	for _, ev := range p.events {
		switch {
		case ev.Block == nil:
		case ev.Type == fsm.EventBlockForgotten:
			delete(e.since, ev.Block.ID)
		default:
			e.since[ev.Block.ID] = receipt{index: p.view.Index(), at: now}
		}
	}
	if problem != "" && problem != e.problem {
		e.log.Warn(problem)
	}
	e.problem = problem
	e.metrics.elements.Set(float64(e.compiler.Len()))
	if e.told.enforced < p.told {
		e.told.enforced = p.told
		e.advance()
	}
	e.reach(p.view.Index(), e.metrics.enforced)
}

func (e *enforcer) fail(what string, err error) {
	e.metrics.failures.Inc()
	e.log.Error("the kernel is behind the state; trying again", "step", what, "err", err)
	e.behind(what + ": " + err.Error())
}

// Receipt reports on one block as this node's kernel has it.
func (e *enforcer) Receipt(ctx context.Context, b *fsm.Block) (fsm.BlockReport, error) {
	e.mu.Lock()
	r := fsm.BlockReport{Enforced: !e.startAt.IsZero() && e.enforced >= b.Index, Index: e.enforced, At: e.startAt}
	if known, ok := e.since[b.ID]; ok {
		r.Index, r.At = known.index, known.at
	}
	els, c := e.compiler.ElementsOf(b.ID), e.final[b.ID]
	local := e.local
	e.mu.Unlock()
	if len(els) > 0 {
		if r.Open = openNICs(e.store.View(), b, local.NICs.All(), e.loose()); r.Open != "" {
			r.Enforced = false
		}
	}
	var err error
	if len(els) > 0 {
		c, err = e.sum(ctx, els)
	}
	r.Packets, r.Bytes = c.Packets, c.Bytes
	return r, err
}

// sleep waits for d and says whether ctx is still alive.
func sleep(ctx context.Context, d time.Duration) bool {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-t.C:
		return true
	case <-ctx.Done():
		return false
	}
}
