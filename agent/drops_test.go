package agent

import (
	"context"
	"fmt"
	"net/netip"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/palisade/palisade/enforce"
	"github.com/palisade/palisade/fsm"
)

// dropping is a state, and a kernel whose counters a test sets.
type dropping struct {
	*clockFleet
	d   *drops
	reg *prometheus.Registry

	mu    sync.Mutex
	count map[string]uint64 // packets, by block
	asked int               // elements of blocks that are on no list
}

func newDropping(t *testing.T) *dropping {
	p := &dropping{clockFleet: newClockFleet(t), count: map[string]uint64{}, reg: prometheus.NewRegistry()}
	e := newEnforcer(nil, prometheus.NewRegistry(), p.store, &fakeKernel{}, "n1", nil)
	p.d = newDrops(p.store.View, e)
	element := func(id string) enforce.Element { return enforce.Element{Tap: id} }
	p.d.elements = func(id string) []enforce.Element { return []enforce.Element{element(id)} }
	p.d.counters = func(_ context.Context, els []enforce.Element) (map[enforce.Element]enforce.Counter, error) {
		p.mu.Lock()
		defer p.mu.Unlock()
		out := map[enforce.Element]enforce.Counter{}
		for _, el := range els {
			out[el] = enforce.Counter{Packets: p.count[el.Tap], Bytes: 10 * p.count[el.Tap]}
		}
		p.asked += len(els)
		return out, nil
	}
	p.d.listed = func(id string) enforce.Counter { return enforce.Counter{Packets: p.count[id], Bytes: 10 * p.count[id]} }
	p.reg.MustRegister(p.d)
	return p
}

func (p *dropping) block(n int, reason string) *fsm.Block {
	addr := netip.AddrFrom4([4]byte{198, 18, byte(n >> 8), byte(n)})
	return p.apply(fsm.AddBlock{Target: fsm.Target{Prefix: netip.PrefixFrom(addr, 32)}, Reason: reason}).Block
}

func (p *dropping) lift(b *fsm.Block) {
	p.apply(fsm.LiftBlock{ID: b.ID})
	p.d.ended(b, enforce.Counter{Packets: p.count[b.ID], Bytes: 10 * p.count[b.ID]})
}

// dropped scrapes, later than the last time, and returns the packets dropped for a reason.
func (p *dropping) dropped(t *testing.T, reason string) float64 {
	t.Helper()
	time.Sleep(dropsKept)
	return gauge(t, p.reg, "palisade_dropped_packets_total", reason)
}

// TestDropsAreCountedOnce: a counter goes only up, by what was dropped since this process started, whatever
// becomes of the blocks.
func TestDropsAreCountedOnce(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p := newDropping(t)
		old := p.block(1, fsm.ReasonAbuse)
		p.count[old.ID] = 1000
		gone := p.block(2, fsm.ReasonAbuse)
		p.count[gone.ID] = 500
		p.lift(gone)
		if n := p.dropped(t, fsm.ReasonAbuse); n != 0 {
			t.Fatalf("what an earlier process counted: %v", n)
		}
		p.count[old.ID] += 5
		fresh, custom := p.block(3, fsm.ReasonAbuse), p.block(4, "custom-word")
		p.count[fresh.ID], p.count[custom.ID] = 7, 100
		if n := p.dropped(t, fsm.ReasonAbuse); n != 12 {
			t.Errorf("abuse: %v, want 12", n)
		}
		if n := gauge(t, p.reg, "palisade_dropped_bytes_total", otherReason); n != 1000 {
			t.Errorf("bytes of other reasons: %v, want 1000", n)
		}
		// One that is lifted counts to its end, also one that no scrape ever saw; and once.
		p.count[fresh.ID] = 10
		p.lift(fresh)
		brief := p.block(5, fsm.ReasonAbuse)
		p.count[brief.ID] = 4
		p.lift(brief)
		for range 2 {
			if n := p.dropped(t, fsm.ReasonAbuse); n != 19 {
				t.Errorf("abuse: %v, want 19", n)
			}
		}
		// Another program flushed the counters.
		p.count[old.ID] = 2
		if n := p.dropped(t, fsm.ReasonAbuse); n != 21 {
			t.Errorf("abuse: %v, want 21", n)
		}
		if len(p.d.last) != 2 {
			t.Errorf("%d readings are kept, want those of the 2 active blocks", len(p.d.last))
		}
		// At once again nothing is asked.
		p.asked = 0
		gauge(t, p.reg, "palisade_dropped_packets_total", fsm.ReasonAbuse)
		if p.asked != 0 {
			t.Errorf("%d elements were asked for again at once", p.asked)
		}
		for key, want := range map[string]float64{fsm.ReasonAbuse: 1, otherReason: 1, fsm.ReasonLegal: 0} {
			families, err := p.reg.Gather()
			if err != nil {
				t.Fatal(err)
			}
			for _, mf := range families {
				for _, m := range mf.GetMetric() {
					if mf.GetName() == "palisade_blocks" && m.GetLabel()[0].GetValue() == key && m.GetLabel()[1].GetValue() == "active" && m.GetGauge().GetValue() != want {
						t.Errorf("%s: %v active blocks, want %v", key, m.GetGauge().GetValue(), want)
					}
				}
			}
		}
	})
}

// TestDropsOfListsAreCounted: what a block on a list drops is of its reason too, to its end, and once.
func TestDropsOfListsAreCounted(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p := newDropping(t)
		p.apply(fsm.BeginList{Upload: "u", Name: "feed"})
		p.apply(fsm.CommitList{Upload: "u"})
		p.dropped(t, fsm.ReasonAttack)
		b := p.apply(fsm.AddBlock{Target: fsm.Target{List: "feed"}, Reason: fsm.ReasonAttack, Force: true}).Block
		p.count[b.ID] = 30
		for range 2 {
			if n := p.dropped(t, fsm.ReasonAttack); n != 30 {
				t.Errorf("dropped %v, want 30", n)
			}
		}
		p.count[b.ID] = 33
		p.apply(fsm.LiftBlock{ID: b.ID})
		for range 2 {
			if n := p.dropped(t, fsm.ReasonAttack); n != 33 {
				t.Errorf("lifted, %v, want 33", n)
			}
		}
		if p.asked != 0 || len(p.d.last) != 0 {
			t.Errorf("%d elements were asked for, %d readings are kept", p.asked, len(p.d.last))
		}
	})
}

// TestManyBlocksAreReadInParts: a scrape asks for a bounded number of elements, and some scrapes see all.
func TestManyBlocksAreReadInParts(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p := newDropping(t)
		const n = dropsBudget + 5_000
		for first := 0; first < n; first += 1_000 {
			var ops []fsm.Op
			for i := range 1_000 {
				a := netip.AddrFrom4([4]byte{198, byte(18 + (first+i)>>16), byte((first + i) >> 8), byte(i)})
				ops = append(ops, fsm.AddBlock{Target: fsm.Target{Account: fmt.Sprint(a, first)}, Reason: fsm.ReasonAttack})
			}
			p.apply(fsm.Batch{Ops: ops})
		}
		for range 3 {
			p.asked = 0
			p.dropped(t, fsm.ReasonAttack)
			if p.asked > dropsBudget+dropsChunk || p.asked < 1_000 {
				t.Errorf("a scrape asked for %d elements", p.asked)
			}
		}
		for b := range p.store.View().Blocks("") {
			p.count[b.ID] = 1
		}
		got := 0.
		for range 4 {
			got = p.dropped(t, fsm.ReasonAttack)
		}
		if got != n {
			t.Errorf("after four scrapes %v of %d are counted", got, n)
		}
	})
}
