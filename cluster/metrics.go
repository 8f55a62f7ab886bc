package cluster

import (
	"errors"
	"fmt"
	"time"

	"github.com/hashicorp/raft"
	"github.com/prometheus/client_golang/prometheus"

	"github.com/palisade/palisade/fsm"
)

type metrics struct {
	propose  *prometheus.HistogramVec
	append   prometheus.Histogram
	nudges   prometheus.Counter
	reg      prometheus.Registerer
	enrolled []prometheus.Collector
}

func newMetrics(c *Cluster, reg prometheus.Registerer) (*metrics, error) {
	m := &metrics{
		reg: reg,
		propose: prometheus.NewHistogramVec(prometheus.HistogramOpts{
			Name:    "palisade_cluster_propose_seconds",
			Help:    "Time from a proposal on this node to its outcome, by outcome: done, unavailable, unknown, failed.",
			Buckets: []float64{.0005, .001, .002, .003, .005, .01, .02, .05, .1, .5, 1, 3, 10},
		}, []string{"outcome"}),
		append: prometheus.NewHistogram(prometheus.HistogramOpts{
			Name:    "palisade_cluster_log_append_seconds",
			Help:    "Time that it took to bring entries of the log to this node's disk, synced.",
			Buckets: []float64{.0002, .0005, .001, .002, .005, .01, .02, .05, .1, .5, 1, 2, 5},
		}),
		nudges: prometheus.NewCounter(prometheus.CounterOpts{
			Name: "palisade_cluster_nudges_total",
			Help: "Commits that this node as the leader told a follower of at once.",
		}),
	}
	for _, outcome := range []string{"done", "unavailable", "unknown", "failed"} {
		m.propose.WithLabelValues(outcome) // the first of each is an increase too
	}
	if reg == nil {
		return m, nil
	}
	for _, col := range append(c.gauges(), m.propose, m.append, m.nudges) {
		if err := reg.Register(col); err != nil {
			m.unregister()
			return nil, fmt.Errorf("register metrics: %w", err)
		}
		m.enrolled = append(m.enrolled, col)
	}
	return m, nil
}

// gauges are read when they are asked for.
func (c *Cluster) gauges() []prometheus.Collector {
	var out []prometheus.Collector
	gauge := func(name, help string, f func() float64) {
		out = append(out, prometheus.NewGaugeFunc(prometheus.GaugeOpts{Name: "palisade_cluster_" + name, Help: help}, f))
	}
	is := func(yes bool) float64 {
		if yes {
			return 1
		}
		return 0
	}
	members := func(counted func(fsm.Member) bool) func() float64 {
		return func() float64 {
			n := 0.
			for _, p := range c.Members() {
				n += is(counted(p))
			}
			return n
		}
	}
	gauge("applied_index", "Log index of this node's state.", func() float64 { return float64(c.store.View().Index()) })
	gauge("commit_index", "Log index that this node knows to be committed.", func() float64 { return float64(c.Status().CommitIndex) })
	gauge("is_leader", "1 while this node leads and accepts writes.", func() float64 {
		r := c.running.Load()
		return is(r != nil && r.throne.current() != nil)
	})
	gauge("has_quorum", "1 while a leader was heard from within its lease.", func() float64 { return is(c.Status().Quorum) })
	gauge("caught_up", "1 while everything that the leader had committed when it was last heard is applied here.", func() float64 { return is(c.Status().CaughtUp) })
	gauge("term", "Raft term of this node.", func() float64 { return float64(c.Status().Term) })
	gauge("raft_state", "Raft state: 0 follower, 1 candidate, 2 leader, 3 shut down.", func() float64 {
		if r := c.running.Load(); r != nil {
			return float64(r.raft.State())
		}
		return float64(raft.Shutdown)
	})
	gauge("leader_contact_age_seconds", "Time since this node last heard a leader, or since its start; 0 on the leader.", func() float64 { return time.Since(c.leaderSeen()).Seconds() })
	gauge("peers", "Peers of the fleet, this node included.", members(func(fsm.Member) bool { return true }))
	gauge("peers_alive", "Peers seen alive, this node included.", members(func(p fsm.Member) bool { return p.Alive }))
	gauge("voters", "Peers that vote.", members(func(p fsm.Member) bool { return p.Voter }))
	gauge("commit_stall_seconds", "How long this leader has been unable to commit; it ends itself at 10.", func() float64 { return c.Health().CommitStall.Seconds() })
	gauge("store_slowest_seconds", "Slowest call to the store of those under way and of the last minute, to a second; the process ends at 5.", func() float64 { return c.Health().StoreSlowest.Seconds() })
	gauge("gossip_health_score", "How late this node is to answer gossip: 0 is well, 8 the worst.", func() float64 { return float64(c.Health().Gossip) })
	return out
}

func (m *metrics) unregister() {
	for _, col := range m.enrolled {
		m.reg.Unregister(col)
	}
	m.enrolled = nil
}

func (m *metrics) appended(took time.Duration) { m.append.Observe(took.Seconds()) }

func (m *metrics) proposed(took time.Duration, err error) {
	outcome := "failed"
	switch {
	case err == nil:
		outcome = "done"
	case errors.Is(err, fsm.ErrUnknown):
		outcome = "unknown"
	case errors.Is(err, fsm.ErrUnavailable):
		outcome = "unavailable"
	}
	m.propose.WithLabelValues(outcome).Observe(took.Seconds())
}
