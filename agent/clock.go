package agent

import (
	"context"
	"fmt"
	"slices"
	"sync"
	"time"

	"github.com/palisade/palisade/fsm"
)

const (
	askClocks     = 250 * time.Millisecond // for the answers of the voters
	measureClocks = 30 * time.Second       // how often a leader asks them
	stampFor      = 2 * time.Minute        // how long stamps trust what was measured last
	rememberClock = time.Hour              // how long the clock of a voter that is silent is remembered
	// clockStep is by how much a clock that runs evenly may leave the monotonic one in that time; a larger
	// difference is a step, after which nothing that was measured holds.
	clockStep = 500 * time.Millisecond
	// clockDoubt is how far the bounds of the fleet's time may lie apart for a stamp. State time never runs
	// back: one clock that is years ahead must not move it while another voter is silent.
	clockDoubt = time.Hour
)

// fleetClock tells the fleet's time on the leader: the latest time that a majority of the voters' clocks has
// reached, so that no single clock counts. It is known within bounds only, as an answer takes time and a voter
// may be silent. What ends a block uses the lower bound, and the stamp of a command, from which durations are
// counted, the upper one: so no block ends before its time by the clocks of a majority. It is safe for
// concurrent use.
type fleetClock struct {
	members func() []fsm.Member
	ask     func(ctx context.Context, node string, q fsm.Query) (fsm.Report, error)

	turn chan struct{} // holds one token while somebody measures

	mu       sync.Mutex
	measured time.Time // this node's clock; zero if nothing is known
	reached  time.Duration
	bound    time.Duration
	voters   map[string]clockReading
}

// clockReading is by how much a voter's clock is ahead of this node's, at least and at most.
type clockReading struct {
	at        time.Time
	low, high time.Duration
}

func newFleetClock(members func() []fsm.Member, ask func(context.Context, string, fsm.Query) (fsm.Report, error)) *fleetClock {
	return &fleetClock{members: members, ask: ask, turn: make(chan struct{}, 1), voters: map[string]clockReading{}}
}

// Stamp is the time for a command: not before that of a majority of the clocks. It asks them if it has not
// for long; the error says that no majority answered, or that they are too far apart to tell which is right.
func (c *fleetClock) Stamp(ctx context.Context) (time.Time, error) {
	if !c.holds(stampFor) {
		select {
		case c.turn <- struct{}{}:
		case <-ctx.Done():
			return time.Time{}, ctx.Err()
		}
		ok := c.holds(stampFor) || c.measure(ctx, time.Time{})
		<-c.turn
		if !ok {
			return time.Time{}, fmt.Errorf("the clocks of a majority of the voters are not known: no answer in %s", askClocks)
		}
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	if doubt := c.bound - c.reached; doubt > clockDoubt {
		return time.Time{}, fmt.Errorf("the clocks of the voters that answer are %s apart, and too few answer to tell which is right: "+
			"set the wrong one (palisade node ls shows the offsets), or bring the silent voters back", doubt.Round(time.Minute))
	}
	return time.Now().Add(c.bound).UTC(), nil
}

// Now is a time that a majority of the clocks has reached, by what was measured last.
func (c *fleetClock) Now() time.Time {
	c.mu.Lock()
	defer c.mu.Unlock()
	return time.Now().Add(c.reached).UTC()
}

// Until is how long it takes, by what was measured last, until a majority of the clocks has reached t.
func (c *fleetClock) Until(t time.Time) time.Duration {
	c.mu.Lock()
	defer c.mu.Unlock()
	return time.Until(t.Add(-c.reached))
}

// trustOffset is how long Offset tells what was measured last.
const trustOffset = 5 * time.Minute

// Offset is by how much this node's clock is ahead of the median of the voters' clocks, by what was measured
// last; false if that is too long ago, or this node's clock was set since.
func (c *fleetClock) Offset() (time.Duration, bool) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.measured.IsZero() || len(c.voters) == 0 || !steady(c.measured, time.Now(), trustOffset) {
		return 0, false
	}
	var middles []time.Duration
	for _, r := range c.voters {
		middles = append(middles, (r.low+r.high)/2)
	}
	slices.Sort(middles)
	n := len(middles)
	return -(middles[(n-1)/2] + middles[n/2]) / 2, true
}

// refresh measures if nobody has for measureClocks. It returns soon.
func (c *fleetClock) refresh(ctx context.Context) {
	if !c.holds(measureClocks) {
		c.Measure(ctx, time.Time{})
	}
}

// holds says whether the clocks were measured in the last age, and this node's has not been set since.
func (c *fleetClock) holds(age time.Duration) bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.measured != time.Time{} && steady(c.measured, time.Now(), age)
}

// steady says that then is not older than age, and that the clock has not been set in between.
func steady(then, now time.Time, age time.Duration) bool {
	passed, shown := now.Sub(then), now.Round(0).Sub(then.Round(0))
	return passed <= age && (shown-passed).Abs() <= clockStep
}

// Measure asks the voters for their clocks. It returns as soon as a majority has reached enough, else when all
// have answered or their time is over, and says whether a majority answered.
func (c *fleetClock) Measure(ctx context.Context, enough time.Time) bool {
	select {
	case c.turn <- struct{}{}:
	case <-ctx.Done():
		return false
	}
	defer func() { <-c.turn }()
	return c.measure(ctx, enough)
}

func (c *fleetClock) measure(ctx context.Context, enough time.Time) bool {
	type answer struct {
		id      string
		reading clockReading
	}
	ctx, cancel := context.WithTimeout(ctx, askClocks)
	defer cancel()
	var others []string
	fresh, voters := map[string]clockReading{}, map[string]bool{}
	for _, m := range c.members() {
		switch {
		case !m.Voter:
		case m.Self:
			voters[m.ID] = true
			fresh[m.ID] = clockReading{at: time.Now()}
		default:
			voters[m.ID] = true
			others = append(others, m.ID)
		}
	}
	majority := len(voters)/2 + 1
	answers := make(chan answer, len(others))
	for _, id := range others {
		go func() {
			sent := time.Now()
			r, err := c.ask(ctx, id, fsm.Query{})
			if now := time.Now(); err == nil {
				// It was read after the question left, and before the answer came.
				answers <- answer{id, clockReading{now, r.At.Round(0).Sub(now.Round(0)), r.At.Round(0).Sub(sent.Round(0))}}
				return
			}
			answers <- answer{id: id}
		}()
	}
	reached := func() (time.Duration, bool) {
		if len(fresh) < majority {
			return 0, false
		}
		return latest(fresh, majority, func(r clockReading) time.Duration { return r.low }), true
	}
	for range others {
		if d, ok := reached(); ok && !enough.IsZero() && !time.Now().Add(d).Before(enough) {
			break
		}
		if a := <-answers; !a.reading.at.IsZero() {
			fresh[a.id] = a.reading
		}
	}
	d, ok := reached()
	if !ok {
		return false
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	c.measured, c.reached = time.Now(), d
	for id, r := range c.voters {
		if _, answered := fresh[id]; !answered && voters[id] && steady(r.at, c.measured, rememberClock) {
			fresh[id] = r
		}
	}
	c.voters = fresh
	// Of whom nothing is known, any time is possible.
	c.bound = latest(fresh, majority-(len(voters)-len(fresh)), func(r clockReading) time.Duration { return r.high })
	return true
}

// latest is what at least n of the clocks have reached.
func latest(clocks map[string]clockReading, n int, of func(clockReading) time.Duration) time.Duration {
	var sorted []time.Duration
	for _, r := range clocks {
		sorted = append(sorted, of(r))
	}
	slices.Sort(sorted)
	return sorted[len(sorted)-n]
}
