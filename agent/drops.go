package agent

import (
	"context"
	"sync"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/palisade/palisade/enforce"
	"github.com/palisade/palisade/fsm"
)

const (
	dropsKept   = 5 * time.Second // how long what was counted answers further scrapes
	dropsBudget = 20_000          // elements asked for in one scrape: a tenth of a second
	dropsChunk  = 500             // elements asked for at a time: a change waits 2 ms for them at most
	dropsTime   = 2 * time.Second // for all of it
	// otherReason is the label of reasons that are no words of ours: labels must be few.
	otherReason = "other"
)

// drops counts, when it is scraped, the blocks by state and reason, and what the kernel dropped for each
// reason since this process started. With many blocks a scrape reads a part of the counters, and the next one goes on;
// what blocks on lists dropped is counted apart and read each time.
type drops struct {
	view     func() *fsm.View
	elements func(block string) []enforce.Element
	counters func(ctx context.Context, els []enforce.Element) (map[enforce.Element]enforce.Counter, error)
	listed   func(block string) enforce.Counter // of a block on a list, since this process started

	blocks, packets, bytes *prometheus.Desc

	mu     sync.Mutex
	at     time.Time                  // of the last look
	start  uint64                     // number of the newest block at the first look: up to it, blocks count from their first reading on
	cursor string                     // the block after which the next look goes on
	last   map[string]enforce.Counter // readings, by block
	total  map[string]enforce.Counter // by reason
	census map[[2]string]int          // blocks, by state and reason
	since  []dropped                  // what was read since it was taken

	queue sync.Mutex // guards over; taken alone, or after mu
	over  []lastReading
}

// lastReading is what a block had dropped when it ended.
type lastReading struct {
	block *fsm.Block
	sum   enforce.Counter
}

// maxLastReadings bounds what waits for the next scrape.
const maxLastReadings = 10_000

var _ prometheus.Collector = (*drops)(nil)

func newDrops(view func() *fsm.View, e *enforcer) *drops {
	return &drops{
		view: view, elements: e.elementsOf, counters: e.kernel.Counters, listed: e.listed,
		blocks:  prometheus.NewDesc("palisade_blocks", "Blocks in the state, by state (pending or active) and reason; reasons that are none of ours are other.", []string{"state", "reason"}, nil),
		packets: prometheus.NewDesc("palisade_dropped_packets_total", "Packets that this node's kernel discarded, by the reason of the block, since the agent started. Blocks that hold the same target count the same packets.", []string{"reason"}, nil),
		bytes:   prometheus.NewDesc("palisade_dropped_bytes_total", "Bytes of the packets that this node's kernel discarded, by the reason of the block, since the agent started.", []string{"reason"}, nil),
		last:    map[string]enforce.Counter{}, total: map[string]enforce.Counter{},
	}
}

// reasons are the labels.
func reasons() []string {
	return []string{fsm.ReasonUnpaid, fsm.ReasonAbuse, fsm.ReasonAttack, fsm.ReasonMaintenance, fsm.ReasonLegal, fsm.ReasonManual, otherReason}
}

func reasonLabel(reason string) string {
	for _, r := range reasons() {
		if r == reason {
			return r
		}
	}
	return otherReason
}

// Describe implements prometheus.Collector.
func (d *drops) Describe(ch chan<- *prometheus.Desc) { ch <- d.blocks; ch <- d.packets; ch <- d.bytes }

// Collect implements prometheus.Collector. Scrapes at the same time wait for each other.
func (d *drops) Collect(ch chan<- prometheus.Metric) {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.fresh(context.Background())
	for _, r := range reasons() {
		for _, state := range []fsm.BlockState{fsm.BlockPending, fsm.BlockActive} {
			ch <- prometheus.MustNewConstMetric(d.blocks, prometheus.GaugeValue, float64(d.census[[2]string{string(state), r}]), string(state), r)
		}
		ch <- prometheus.MustNewConstMetric(d.packets, prometheus.CounterValue, float64(d.total[r].Packets), r)
		ch <- prometheus.MustNewConstMetric(d.bytes, prometheus.CounterValue, float64(d.total[r].Bytes), r)
	}
}

// look counts the blocks of a view and reads counters. The caller holds mu.
func (d *drops) look(ctx context.Context, v *fsm.View) {
	first := d.at.IsZero()
	d.at = time.Now()
	d.census = map[[2]string]int{}
	newest := ""
	for b := range v.Blocks("") {
		newest = b.ID
		if !b.State.Over() {
			d.census[[2]string{string(b.State), reasonLabel(b.Reason)}]++
		}
	}
	if first {
		d.start, _ = fsm.ParseBlockID(newest)
	}
	d.takeOver(first)
	for id := range d.last {
		b, ok := v.Block(id)
		if ok && b.State == fsm.BlockActive {
			continue
		}
		if ok && b.Target.List != "" {
			d.reading(b, d.listed(id))
		}
		delete(d.last, id) // else it is one of so many lifts that not all could be read
	}
	for b := range v.HeldLists() {
		d.reading(b, d.listed(b.ID))
	}
	var chunk []*fsm.Block
	held := map[string][]enforce.Element{}
	asked, n := 0, 0
	flush := func() bool {
		ok := d.read(ctx, chunk, held)
		asked, n = asked+n, 0
		chunk = chunk[:0]
		clear(held)
		return ok
	}
	for b := range v.Blocks(d.cursor) {
		if b.State != fsm.BlockActive || b.Target.List != "" {
			continue
		}
		els := d.elements(b.ID)
		chunk, held[b.ID], n = append(chunk, b), els, n+len(els)+1
		d.cursor = b.ID
		if n >= dropsChunk && !flush() || asked >= dropsBudget {
			return
		}
	}
	if flush() {
		d.cursor = ""
	}
}

// read takes the readings of some blocks, and says whether that worked.
func (d *drops) read(ctx context.Context, blocks []*fsm.Block, held map[string][]enforce.Element) bool {
	var all []enforce.Element
	for _, b := range blocks {
		all = append(all, held[b.ID]...)
	}
	if len(all) == 0 {
		return true
	}
	counters, err := d.counters(ctx, all)
	if err != nil || ctx.Err() != nil {
		return false // the next scrape goes on
	}
	for _, b := range blocks {
		var sum enforce.Counter
		for _, el := range held[b.ID] {
			sum.Packets += counters[el].Packets
			sum.Bytes += counters[el].Bytes
		}
		d.reading(b, sum)
	}
	return true
}

// reading adds what a block dropped since its last reading. The caller holds mu.
func (d *drops) reading(b *fsm.Block, now enforce.Counter) {
	was, known := d.last[b.ID]
	d.last[b.ID] = now
	switch {
	case !known && d.old(b):
		return // most of it was before this process
	case now.Packets < was.Packets || now.Bytes < was.Bytes:
		was = enforce.Counter{} // another program flushed it
	}
	r := reasonLabel(b.Reason)
	more := enforce.Counter{Packets: now.Packets - was.Packets, Bytes: now.Bytes - was.Bytes}
	d.total[r] = plus(d.total[r], more)
	if more != (enforce.Counter{}) && len(d.since) < maxLastReadings {
		d.since = append(d.since, dropped{b.ID, r, more})
	}
}

// dropped is what was dropped for a block since its last reading.
type dropped struct {
	block, reason string
	count         enforce.Counter
}

// take reads the counters, unless that was done just now, and returns what was dropped since the last call. It waits for a
// scrape that is under way.
func (d *drops) take(ctx context.Context) []dropped {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.fresh(ctx)
	taken := d.since
	d.since = nil
	return taken
}

// fresh reads the counters, unless that was done just now. The caller holds mu.
func (d *drops) fresh(ctx context.Context) {
	if time.Since(d.at) < dropsKept && !d.at.IsZero() {
		return
	}
	ctx, cancel := context.WithTimeout(ctx, dropsTime)
	defer cancel()
	d.look(ctx, d.view())
}

// old says that the block is from before the first look.
func (d *drops) old(b *fsm.Block) bool {
	n, ok := fsm.ParseBlockID(b.ID)
	return !ok || n <= d.start
}

// ended takes the last reading of a block that is over, for the next scrape. It does not block.
func (d *drops) ended(b *fsm.Block, final enforce.Counter) {
	d.queue.Lock()
	defer d.queue.Unlock()
	if len(d.over) < maxLastReadings {
		d.over = append(d.over, lastReading{b, final})
	}
}

// takeOver takes the last readings; those from before the first look are forgotten. The caller holds mu.
func (d *drops) takeOver(forget bool) {
	d.queue.Lock()
	list := d.over
	d.over = nil
	d.queue.Unlock()
	for _, r := range list {
		if _, known := d.last[r.block.ID]; !forget && (known || !d.old(r.block)) {
			d.reading(r.block, r.sum)
		}
		delete(d.last, r.block.ID)
	}
}
