package soak

import (
	"context"
	"fmt"
	"maps"
	"slices"
	"time"
)

// What a move may cost the guest that moves: a wire that comes up again, and neighbours that must be resolved, which is
// tried again after 1 s.
const (
	before  = 20 * time.Millisecond
	resolve = 1200 * time.Millisecond
)

// loss is what the flows of innocents lost.
type loss struct {
	packets int
	perMove []int    // of each flow in each move of one of its ends
	outside []string // of no move
}

// lost says what the flows between innocents lost in the moves of their ends, and besides.
func (l *storm) lost(moves []moved) loss {
	byGuest := map[string][]gap{}
	for _, m := range moves {
		if m.kind != aborted {
			byGuest[m.guest] = append(byGuest[m.guest], m.gap)
		}
	}
	innocent := map[string]bool{"": true}
	for _, g := range l.guests {
		innocent[g.guest] = !g.suspect
	}
	// blame returns the number of the move that a loss at a time belongs to: the last that had begun, as they may follow
	// each other closely; -1 for none.
	blame := func(gaps []gap, at int64) int {
		i, _ := slices.BinarySearchFunc(gaps, at+before.Nanoseconds(), func(g gap, at int64) int { return int(g.from - at) })
		if i == 0 || at > gaps[i-1].to+resolve.Nanoseconds() {
			return -1
		}
		return i - 1
	}
	var out loss
	for _, id := range slices.Sorted(maps.Keys(l.traffic.tracks)) {
		t := l.traffic.tracks[id]
		if !innocent[t.from.guest] || !innocent[t.to.guest] {
			continue
		}
		gaps := slices.Concat(byGuest[t.from.guest], byGuest[t.to.guest])
		slices.SortFunc(gaps, func(a, b gap) int { return int(a.from - b.from) })
		in := make([]int, len(gaps))
		for _, at := range t.lost() {
			out.packets++
			if i := blame(gaps, at); i >= 0 {
				in[i]++
			}
		}
		for _, at := range l.traffic.missing(t) {
			if blame(gaps, at) < 0 {
				out.outside = append(out.outside, fmt.Sprintf("%s: a packet sent at %s was lost, but nobody moved", t.name, clock(at)))
			}
		}
		out.perMove = append(out.perMove, in...)
	}
	return out
}

// mean is how many packets a flow lost in a move.
func (l loss) mean() float64 {
	sum := 0
	for _, n := range l.perMove {
		sum += n
	}
	return float64(sum) / float64(max(len(l.perMove), 1))
}

// judge holds against each other what was promised, what was measured and what arrived.
func (l *storm) judge(ctx context.Context, res *Result, m *movers, without loss) error {
	var leaked []string
	stopped := 0
	for _, id := range slices.Sorted(maps.Keys(l.traffic.tracks)) {
		list, n := l.ledger.leaks(l.traffic.tracks[id])
		leaked, stopped = append(leaked, list...), stopped+n
	}
	frames, tried := l.watchedLeaks()
	leaked, stopped = append(leaked, frames...), stopped+tried
	with := l.lost(m.done)
	kinds := map[string]int{}
	var took, unheard, whole []time.Duration
	for _, mv := range m.done {
		whole = append(whole, mv.whole)
		kinds[mv.kind]++
		if mv.kind == unnoticed {
			unheard = append(unheard, mv.took)
		} else {
			took = append(took, mv.took)
		}
	}
	sent, received := l.traffic.watched()
	res.count("moves", len(m.done))
	for _, kind := range slices.Sorted(maps.Keys(kinds)) {
		res.count("moves, "+kind, kinds[kind])
	}
	if l.faults != nil {
		res.count("agents killed", l.faults.count())
	}
	res.count("blocks made and lifted", l.blocks.count())
	res.packets("watched: sent", float64(sent))
	res.packets("watched: received", float64(received))
	res.packets("of blocked guests, stopped", float64(stopped))
	res.packets("of blocked guests, passed", float64(len(leaked)))
	res.packets("of innocents, lost while nobody moved", float64(len(with.outside)))
	res.packets("of innocents, lost while nobody moved, without Palisade", float64(len(without.outside)))
	res.packets("of innocents, lost by a flow in a move, median", float64(median(with.perMove)))
	res.packets("of innocents, the same without Palisade", float64(median(without.perMove)))
	res.packets("of innocents, lost by a flow in a move, mean", with.mean())
	res.packets("of innocents, the same without Palisade", without.mean())
	res.millis("until the registry was right everywhere, median", median(took))
	res.millis("until the registry was right everywhere, worst", quantile(took, 1))
	if len(unheard) > 0 {
		res.millis("the same where the news was lost, worst", quantile(unheard, 1))
	}
	if l.faults != nil {
		res.millis("the same with the time in which agents were down, worst", quantile(whole, 1))
	}
	res.millis("until all nodes had given their receipts, worst", l.blocks.slow)

	res.failAll("packets of blocked guests passed", leaked)
	res.failAll("packets of innocents were lost while nobody moved", with.outside)
	res.failAll("the registry was right too late", m.failures)
	if stopped == 0 {
		res.fail("nothing of a blocked guest was stopped: the storm shows nothing")
	}
	// Medians differ by what a busy machine does; what a node does to all that moves would show.
	if a, b := median(with.perMove), median(without.perMove); a > 2*b+rate/4 {
		res.fail("an innocent's flow loses %d packets in a move, %d without Palisade (medians)", a, b)
	}
	if err := l.agreed(ctx); err != nil {
		res.fail("at the end: %v", err)
	}
	if err := l.blocks.kept(ctx); err != nil {
		res.fail("acknowledged writes: %v", err)
	}
	return ctx.Err()
}
