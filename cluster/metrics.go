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
		nudges: prometheus.NewCounter(prometheus.CounterOpts{
			Name: "palisade_cluster_nudges_total",
			Help: "Commits that this node as the leader told a follower of at once.",
		}),
	}
	gauge := func(name, help string, f func() float64) prometheus.Collector {
		return prometheus.NewGaugeFunc(prometheus.GaugeOpts{Name: "palisade_cluster_" + name, Help: help}, f)
	}
	all := []prometheus.Collector{
		m.propose, m.nudges,
		gauge("applied_index", "Log index of this node's state.", func() float64 { return float64(c.store.View().Index()) }),
		gauge("is_leader", "1 while this node leads and accepts writes.", func() float64 {
			if r := c.running.Load(); r != nil && r.throne.current() != nil {
				return 1
			}
			return 0
		}),
		gauge("has_quorum", "1 while a leader was heard from within its lease.", func() float64 {
			if c.Status().Quorum {
				return 1
			}
			return 0
		}),
		gauge("term", "Raft term of this node.", func() float64 { return float64(c.Status().Term) }),
		gauge("raft_state", "Raft state: 0 follower, 1 candidate, 2 leader, 3 shut down.", func() float64 {
			if r := c.running.Load(); r != nil {
				return float64(r.raft.State())
			}
			return float64(raft.Shutdown)
		}),
		gauge("peers_alive", "Peers seen alive, this node included.", func() float64 {
			n := 0
			for _, p := range c.Members() {
				if p.Alive {
					n++
				}
			}
			return float64(n)
		}),
	}
	if reg == nil {
		return m, nil
	}
	for _, col := range all {
		if err := reg.Register(col); err != nil {
			m.unregister()
			return nil, fmt.Errorf("register metrics: %w", err)
		}
		m.enrolled = append(m.enrolled, col)
	}
	return m, nil
}

func (m *metrics) unregister() {
	for _, col := range m.enrolled {
		m.reg.Unregister(col)
	}
	m.enrolled = nil
}

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
