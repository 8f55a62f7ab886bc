package fsm

import "time"

// Steps of Drops.
const (
	DropsFineStep   = 10 * time.Second
	DropsFineSpan   = time.Hour
	DropsCoarseStep = 5 * time.Minute
	DropsCoarseSpan = 24 * time.Hour
)

// DropsQuery asks a peer what it dropped in each step of the last hour, or of the last day.
type DropsQuery struct {
	Blocks []string // series of these blocks, at most MaxQueryBlocks; without any, of the reasons
	Coarse bool     // the last day
}

// Drops is what a peer dropped in each of its last steps.
type Drops struct {
	Step   time.Duration
	End    time.Time // of the last step, by the peer's clock; a multiple of Step
	Steps  int       // that the peer knows, without gaps up to End
	Series []DropSeries
}

// DropSeries is what was dropped for a reason or a block in each step, the oldest first: Drops.Steps of them. One in which
// nothing was dropped is left out.
type DropSeries struct {
	Reason, Block  string // one of them
	Packets, Bytes []uint64
}

// Add adds a series, unless nothing was dropped; step gives the packets and bytes of each step.
func (d *Drops) Add(s DropSeries, step func(i int) (packets, bytes uint64)) {
	some := false
	for i := range d.Steps {
		packets, bytes := step(i)
		s.Packets, s.Bytes = append(s.Packets, packets), append(s.Bytes, bytes)
		some = some || packets > 0 || bytes > 0
	}
	if some {
		d.Series = append(d.Series, s)
	}
}
