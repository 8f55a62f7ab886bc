package agent

import (
	"context"
	"fmt"
	"strings"
	"sync"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/palisade/palisade/enforce/nft"
)

// lookInterval is how often the kernel is asked whether any program has changed any rules: some 8 us a question. What was changed is
// found after a twentieth of a second on average, and undone some milliseconds later.
const lookInterval = 100 * time.Millisecond

// driftTold is how long it is told that another program changed our tables, after that was undone: who
// did it will do it again, and what was blocked passed meanwhile.
const driftTold = 10 * time.Minute

// drift is what other programs did to tables of ours, and whether it is undone. It is safe for concurrent use.
type drift struct {
	found, healed prometheus.Counter
	took          prometheus.Histogram // seconds from finding to undoing
	tables        string               // "blocks" or "lists"
	// undoneAfter is told, when all is undone, what was found and how long undoing took; must not block; may be nil.
	undoneAfter func(tables, what string, took time.Duration)
	// stuckWith is told the first time that what was found can't be undone; must not block; may be nil.
	stuckWith func(tables, what string, err error)

	mu      sync.Mutex
	begun   time.Time // of what is not undone yet
	what    string
	last    time.Time // when it was found last; zero if never
	times   int       // found in a row, with less than driftTold in between
	pending bool      // not undone yet
	failure error     // why not
}

func newDrift(reg prometheus.Registerer, tables string) *drift {
	counter := func(name, help string) prometheus.Counter {
		return prometheus.NewCounter(prometheus.CounterOpts{Name: "palisade_kernel_drift_" + name + "_total", Help: help, ConstLabels: prometheus.Labels{"tables": tables}})
	}
	d := &drift{
		tables: tables,
		took: prometheus.NewHistogram(prometheus.HistogramOpts{
			Name: "palisade_kernel_drift_heal_seconds", Help: "Time from finding such a change, at most 0.1 s after it was made, to its being undone.",
			ConstLabels: prometheus.Labels{"tables": tables}, Buckets: prometheus.ExponentialBuckets(1e-3, 2, 16),
		}),
		found:  counter("found", "Times that another program was found to have changed our tables, of blocks, of lists or of the source guard."),
		healed: counter("healed", "Times that such a change was undone."),
	}
	reg.MustRegister(d.found, d.healed, d.took)
	return d
}

// saw notes that the tables are not as they were left.
func (d *drift) saw(what string) {
	d.mu.Lock()
	defer d.mu.Unlock()
	if time.Since(d.last) > driftTold {
		d.times = 0
	}
	d.what, d.last, d.failure = what, time.Now(), nil
	d.times++
	if !d.pending {
		d.found.Inc()
		d.begun = d.last
	}
	d.pending = true
}

// stuck notes that what was found, if anything was, could not be undone.
func (d *drift) stuck(err error) {
	d.mu.Lock()
	if !d.pending {
		d.mu.Unlock()
		return
	}
	first, what := d.failure == nil, d.what
	d.failure = err
	d.mu.Unlock()
	if first && d.stuckWith != nil {
		d.stuckWith(d.tables, what, err)
	}
}

// undone notes that the tables are as they should be.
func (d *drift) undone() {
	d.mu.Lock()
	was, what, took := d.pending, d.what, time.Since(d.begun)
	d.pending, d.failure = false, nil
	d.mu.Unlock()
	if !was {
		return
	}
	d.healed.Inc()
	d.took.Observe(took.Seconds())
	if d.undoneAfter != nil {
		d.undoneAfter(d.tables, what, took)
	}
}

// unsolved says what is different in the kernel now, "" if nothing is.
func (d *drift) unsolved() string {
	d.mu.Lock()
	defer d.mu.Unlock()
	switch {
	case !d.pending:
		return ""
	case d.failure != nil:
		return "another program changed the kernel's rules (" + d.what + ") and they can't be brought back: " + d.failure.Error()
	}
	return "another program changed the kernel's rules (" + d.what + "); they are being brought back"
}

// told says what was found lately, "" if nothing was.
func (d *drift) told() string {
	if now := d.unsolved(); now != "" {
		return now
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.last.IsZero() || time.Since(d.last) > driftTold {
		return ""
	}
	times := "once"
	if d.times > 1 {
		times = fmt.Sprintf("%d times", d.times)
	}
	return fmt.Sprintf("another program changed the kernel's rules %s, last at %s (%s); it was undone", times, d.last.UTC().Format(time.TimeOnly+"Z"), d.what)
}

// watch looks whether another program changed the tables, and brings them back, until ctx ends.
func (e *enforcer) watch(ctx context.Context) {
	for sleep(ctx, e.interval) {
		e.look(ctx)
	}
}

func (e *enforcer) look(ctx context.Context) {
	if e.drift.unsolved() == "" {
		d, err := e.kernel.Check(ctx)
		switch {
		case ctx.Err() != nil:
			return
		case err != nil:
			e.metrics.failures.Inc()
			e.log.Warn("can't compare the kernel with the state", "err", err)
			return
		case d.None():
			return
		}
		what := differs(d)
		e.drift.saw(what)
		e.log.Error("another program changed the kernel's rules; bringing them back", "found", what)
	}
	if err := e.kernel.Heal(ctx); err != nil {
		if ctx.Err() == nil {
			e.drift.stuck(err)
			e.log.Error("can't bring the kernel's rules back; trying again", "err", err)
		}
		return
	}
	e.drift.undone()
	e.log.Info("the kernel's rules are as they should be again")
}

// differs is a short text for what may be long lists.
func differs(d nft.Difference) string {
	var parts []string
	const most = 3
	parts = append(parts, d.Problems[:min(len(d.Problems), most)]...)
	if n := len(d.Problems) - most; n > 0 {
		parts = append(parts, fmt.Sprintf("and %d more", n))
	}
	if n := len(d.Missing); n > 0 {
		parts = append(parts, fmt.Sprintf("%d elements missing", n))
	}
	if n := len(d.Unexpected); n > 0 {
		parts = append(parts, fmt.Sprintf("%d elements of others", n))
	}
	if d.Index != d.WantIndex {
		parts = append(parts, fmt.Sprintf("log index %d instead of %d", d.Index, d.WantIndex))
	}
	return strings.Join(parts, ", ")
}
