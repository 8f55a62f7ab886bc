package agent

import (
	"context"
	"errors"
	"log/slog"
	"maps"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/palisade/palisade/fsm"
)

const (
	maxFires = 2_000 // in one log entry

	// lookAgain bounds how long the scheduler trusts what it knows of the clocks and of who leads.
	lookAgain = 200 * time.Millisecond
	overtaken = 10 * time.Millisecond // pause after a proposal that changed nothing

	// alone is how long a node hears no leader before it starts agreed blocks by its own clock. After a
	// start it waits longer: its state may be old, and the leader is usually there in a moment.
	alone           = 2 * time.Second
	aloneAfterStart = 5 * time.Second
)

// scheduler starts and ends blocks at their due times.
//
// The leader proposes a FireBlock for what is due. Which time it is, a majority of the voters agrees
// on: the scheduler asks them before each firing, and takes the latest time that most of their clocks
// have reached, so that one clock, the leader's own included, can neither end a block early nor hold
// everything up. The state lets each fire happen once. A new leader goes on from the state.
//
// A node that hears no leader starts agreed blocks by its own clock, in its own kernel only, and ends
// none.
type scheduler struct {
	log     *slog.Logger
	node    string
	store   *fsm.Store
	status  func() fsm.Status
	clock   *fleetClock
	propose func(ctx context.Context, c fsm.Command) (fsm.Result, error)
	// started is told, from Run, the ids of the pending blocks that this node has started by itself.
	started func(ids map[string]struct{})
	// enforced is the log index that is in this node's kernel, lists included.
	enforced func() uint64
	metrics  schedulerMetrics

	began time.Time
	rest  time.Time            // nothing is proposed before
	mine  map[string]time.Time // start of the blocks that this node has started by itself
}

type schedulerMetrics struct {
	fired prometheus.Counter
	late  prometheus.Histogram
}

func newSchedulerMetrics(reg prometheus.Registerer) schedulerMetrics {
	m := schedulerMetrics{
		fired: prometheus.NewCounter(prometheus.CounterOpts{Name: "palisade_fired_total", Help: "Blocks that this node, as leader, started or ended at their due time."}),
		late: prometheus.NewHistogram(prometheus.HistogramOpts{
			Name: "palisade_fire_lateness_seconds", Help: "Time from a block's due time to the commit of its start or end.",
			Buckets: prometheus.ExponentialBuckets(1e-3, 2, 16),
		}),
	}
	reg.MustRegister(m.fired, m.late)
	return m
}

// Run works until ctx ends.
func (s *scheduler) Run(ctx context.Context) error {
	s.began = time.Now()
	changed := make(chan struct{}, 1)
	done := make(chan struct{})
	go func() {
		defer close(done)
		w := s.store.Watch(s.store.View().Index())
		for {
			if _, _, err := w.Next(ctx); err != nil && !errors.Is(err, fsm.ErrCompacted) {
				return
			}
			signal(changed)
		}
	}()
	defer func() { <-done }()
	timer := time.NewTimer(0)
	defer timer.Stop()
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-changed:
		case <-timer.C:
		}
		timer.Reset(s.step(ctx))
	}
}

// step does what is to be done now and returns when to look again.
func (s *scheduler) step(ctx context.Context) time.Duration {
	v, st := s.store.View(), s.status()
	leads, idle := st.Leader == s.node && st.Quorum, v.CountDue() == 0 && len(s.mine) == 0
	if idle && !leads {
		return time.Hour // a change of the state wakes us
	}
	s.startAlone(v, st, time.Now())
	if !leads {
		return lookAgain
	}
	if wait := time.Until(s.rest); wait > 0 {
		return wait
	}
	if !s.clock.holds(measureClocks) && !s.clock.Measure(ctx, time.Time{}) && !idle {
		return lookAgain
	}
	if idle {
		return measureClocks // so that the clocks are known when a command is to be stamped
	}
	for b := range v.Due() {
		wait := s.clock.Until(b.Due())
		if wait > 0 {
			return min(wait, lookAgain)
		}
		break
	}
	return s.fire(ctx, v)
}

// fire proposes what is due by the time that the voters agree on.
func (s *scheduler) fire(ctx context.Context, v *fsm.View) time.Duration {
	var first time.Time
	for b := range v.Due() {
		first = b.Due()
		break
	}
	if first.IsZero() {
		return 0 // the state has changed
	}
	if !s.clock.Measure(ctx, first) {
		return lookAgain
	}
	at := s.clock.Now()
	var ops []fsm.Op
	for b := range v.Due() {
		if b.Due().After(at) || len(ops) == maxFires {
			break
		}
		ops = append(ops, fsm.FireBlock{ID: b.ID, Revision: b.Revision, At: at})
	}
	if len(ops) == 0 {
		return time.Millisecond // by the clocks of the others it is not yet time
	}
	r, err := s.propose(ctx, fsm.Command{Actor: "node:" + s.node, Op: fsm.Batch{Ops: ops}})
	if err == nil && r.Err != nil {
		err = r.Err
	}
	if err != nil {
		if ctx.Err() == nil {
			s.log.Warn("can't start or end what is due; trying again", "blocks", len(ops), "err", err)
		}
		return s.pause(lookAgain)
	}
	fired := 0
	for i := range r.Items {
		if r.Items[i].Err == nil {
			fired++
		}
	}
	if fired == 0 {
		return s.pause(overtaken)
	}
	late := s.clock.Now().Sub(first)
	s.metrics.fired.Add(float64(fired))
	s.metrics.late.Observe(late.Seconds())
	s.log.Info("started or ended blocks that were due", "blocks", fired, "index", r.Index, "late", late.Round(time.Microsecond))
	return 0
}

// pause keeps fire from being tried again before d is over. What was proposed in vain is an entry too, and
// the newer state would wake us at once.
func (s *scheduler) pause(d time.Duration) time.Duration {
	s.rest = time.Now().Add(d)
	return d
}

// startAlone starts agreed blocks while no leader is heard. What was started stays so until the state
// says what became of it: a clock that is set back ends nothing.
func (s *scheduler) startAlone(v *fsm.View, st fsm.Status, now time.Time) {
	heard, patience := st.LastContact, alone
	if heard.IsZero() {
		heard, patience = s.began, aloneAfterStart
	}
	mine := map[string]time.Time{}
	for id, start := range s.mine {
		b, ok := v.Block(id)
		switch {
		case !ok:
		case b.State != fsm.BlockPending:
			// The kernel may follow an older view, in which the block is pending: to be taken out here would
			// open it until the kernel comes to the view in which it is active.
			if s.enforced() < b.Index {
				mine[id] = start
			}
		case !b.StartsAt.After(start) || !b.StartsAt.After(now):
			mine[id] = b.StartsAt
		}
	}
	if !st.Quorum && now.Sub(heard) >= patience {
		for b := range v.Due() {
			if b.Due().After(now) {
				break
			}
			if b.State == fsm.BlockPending {
				mine[b.ID] = b.StartsAt
			}
		}
	}
	if maps.Equal(mine, s.mine) {
		return
	}
	ids := map[string]struct{}{}
	for id := range mine {
		ids[id] = struct{}{}
		if _, known := s.mine[id]; !known {
			s.log.Warn("no leader is heard: starting an agreed block by this node's clock", "block", id)
		}
	}
	s.mine = mine
	s.started(ids)
}
