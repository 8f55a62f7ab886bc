package agent

import (
	"cmp"
	"context"
	"slices"
	"sync"
	"time"

	"github.com/palisade/palisade/enforce"
	"github.com/palisade/palisade/fsm"
)

const (
	maxDropBlocks = 256 // blocks of which a series is kept; 10 KB each
	fineSteps     = int(fsm.DropsFineSpan / fsm.DropsFineStep)
	coarseSteps   = int(fsm.DropsCoarseSpan / fsm.DropsCoarseStep)
)

// dropSeries keeps what this node dropped in each step of the last hour, and of the last day, for plots. It takes the counters
// that drops reads. Steps end at whole multiples of their length by the node's clock, so those of the nodes fit together.
type dropSeries struct {
	drops *drops
	now   func() time.Time

	mu     sync.Mutex
	fine   ring[map[string]enforce.Counter] // by reason
	coarse ring[map[string]enforce.Counter]
	sum    map[string]enforce.Counter // of the coarse step that is not over
	blocks map[string]*blockSeries
}

// blockSeries is what was dropped for one block.
type blockSeries struct {
	fine, coarse ring[enforce.Counter]
	sum          enforce.Counter // of the coarse step that is not over
	moved        time.Time       // when it dropped something last
}

func newDropSeries(d *drops) *dropSeries {
	return &dropSeries{
		drops: d, now: time.Now, sum: map[string]enforce.Counter{}, blocks: map[string]*blockSeries{},
		fine:   ring[map[string]enforce.Counter]{step: fsm.DropsFineStep, size: fineSteps},
		coarse: ring[map[string]enforce.Counter]{step: fsm.DropsCoarseStep, size: coarseSteps},
	}
}

// Run looks at the end of each step, until ctx ends.
func (s *dropSeries) Run(ctx context.Context) error {
	s.drops.take(ctx) // what was before is no step of this process
	for {
		now := s.now()
		if !sleep(ctx, now.Truncate(fsm.DropsFineStep).Add(fsm.DropsFineStep).Sub(now)) {
			return nil
		}
		s.add(s.now().Round(fsm.DropsFineStep), s.drops.take(ctx))
	}
}

// add takes what was dropped, by block, in the step that ends then.
func (s *dropSeries) add(end time.Time, dropped []dropped) {
	s.mu.Lock()
	defer s.mu.Unlock()
	byReason := map[string]enforce.Counter{}
	byBlock := map[string]enforce.Counter{}
	for _, d := range dropped {
		byReason[d.reason] = plus(byReason[d.reason], d.count)
		s.sum[d.reason] = plus(s.sum[d.reason], d.count)
		byBlock[d.block] = plus(byBlock[d.block], d.count)
	}
	s.fine.add(end, byReason)
	over := end.Truncate(fsm.DropsCoarseStep).Equal(end)
	if over {
		s.coarse.add(end, s.sum)
		s.sum = map[string]enforce.Counter{}
	}
	for id, c := range byBlock {
		b := s.blocks[id]
		if b == nil {
			s.makeRoom()
			b = &blockSeries{
				fine:   ring[enforce.Counter]{step: fsm.DropsFineStep, size: fineSteps},
				coarse: ring[enforce.Counter]{step: fsm.DropsCoarseStep, size: coarseSteps},
			}
			s.blocks[id] = b
		}
		b.moved, b.sum = end, plus(b.sum, c)
		b.fine.add(end, c)
	}
	for id, b := range s.blocks {
		if over && b.sum != (enforce.Counter{}) {
			b.coarse.add(end, b.sum)
			b.sum = enforce.Counter{}
		}
		if end.Sub(b.moved) >= fsm.DropsCoarseSpan {
			delete(s.blocks, id)
		}
	}
}

// makeRoom forgets the block that dropped something the longest ago, if there are as many as are kept.
func (s *dropSeries) makeRoom() {
	if len(s.blocks) < maxDropBlocks {
		return
	}
	oldest := ""
	for id, b := range s.blocks {
		if oldest == "" || cmp.Or(b.moved.Compare(s.blocks[oldest].moved), cmp.Compare(id, oldest)) < 0 {
			oldest = id
		}
	}
	delete(s.blocks, oldest)
}

// Answer gives the series that are asked for, of the steps since this process started.
func (s *dropSeries) Answer(q fsm.DropsQuery) *fsm.Drops {
	s.mu.Lock()
	defer s.mu.Unlock()
	r := &s.fine
	if q.Coarse {
		r = &s.coarse
	}
	out := &fsm.Drops{Step: r.step, End: r.end, Steps: len(r.items)}
	for _, id := range q.Blocks {
		b, ok := s.blocks[id]
		if !ok {
			continue
		}
		own := &b.fine
		if q.Coarse {
			own = &b.coarse
		}
		out.Add(fsm.DropSeries{Block: id}, func(i int) (uint64, uint64) {
			c := own.at(r.time(i))
			return c.Packets, c.Bytes
		})
	}
	if len(q.Blocks) > 0 {
		return out
	}
	for _, reason := range reasons() {
		out.Add(fsm.DropSeries{Reason: reason}, func(i int) (uint64, uint64) { return r.items[i][reason].Packets, r.items[i][reason].Bytes })
	}
	return out
}

func plus(a, b enforce.Counter) enforce.Counter {
	return enforce.Counter{Packets: a.Packets + b.Packets, Bytes: a.Bytes + b.Bytes}
}

// ring keeps the newest steps of a series, without gaps.
type ring[T any] struct {
	step  time.Duration
	size  int
	items []T       // the oldest first
	end   time.Time // of the newest
}

// add appends the step that ends then. Steps that nobody looked at, as after a suspend or a clock that was set, are empty; a step that was
// there already is replaced.
func (r *ring[T]) add(end time.Time, v T) {
	missed := int(end.Sub(r.end)/r.step) - 1
	switch {
	case r.end.IsZero() || missed >= r.size || missed < -r.size:
		r.items = nil
	case missed < 0: // the clock was set back: what is newer than it is of no time that was
		r.items = r.items[:max(0, len(r.items)+missed)]
	default:
		r.items = append(r.items, make([]T, missed)...)
	}
	r.items, r.end = append(r.items, v), end
	if n := len(r.items) - r.size; n > 0 {
		r.items = slices.Delete(r.items, 0, n)
	}
}

// time is when the step i ends.
func (r *ring[T]) time(i int) time.Time { return r.end.Add(-time.Duration(len(r.items)-1-i) * r.step) }

// at is the step that ends then, the zero value if it is not kept.
func (r *ring[T]) at(end time.Time) (v T) {
	i := len(r.items) - 1 - int(r.end.Sub(end)/r.step)
	if end.After(r.end) || i < 0 || i >= len(r.items) {
		return v
	}
	return r.items[i]
}
