package agent

import (
	"log/slog"
	"math"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/palisade/palisade/fsm"
	"github.com/palisade/palisade/pki"
)

// newWatchdog connects the checks with what they look at.
func (r *rooms) newWatchdog(log *slog.Logger, reg prometheus.Registerer, version string) *watchdog {
	v := vitals{
		status: r.cluster.Status, members: r.cluster.Members, health: r.cluster.Health, halted: r.store.Halted, offset: r.clock.Offset,
		applied: func() uint64 { return r.store.View().Index() },
		blocks:  r.enforcer.Standing, lists: r.lists.Standing, drifts: []*drift{r.enforcer.drift, r.lists.drift, r.sources.drift},
		passing: r.canary.Passing, blind: r.canary.Failing,
		open:    r.openNetworks,
		missing: func() []fsm.Kind { return r.enforcer.Local().Missing },
		audit:   r.auditor.Warning, page: r.pager.Warning, sources: r.loader.Failing, life: r.certificateLife, boot: r.saver.Warning, differs: r.agreement.Warning,
		aside: func() string { return asideWarning(r.cluster.Status().Aside) },
	}
	reg.MustRegister(prometheus.NewGaugeFunc(prometheus.GaugeOpts{
		Name: "palisade_clock_offset_seconds", Help: "By how much this node's clock is ahead of the median of the voters' clocks; NaN while that is not known.",
	}, func() float64 {
		if d, known := r.clock.Offset(); known {
			return d.Seconds()
		}
		return math.NaN()
	}))
	reg.MustRegister(prometheus.NewGaugeFunc(prometheus.GaugeOpts{
		Name: "palisade_certificate_expiry_timestamp_seconds", Help: "When this node's certificate ends, in seconds since 1970; NaN while it has none.",
	}, func() float64 {
		if _, end := r.certificateLife(); !end.IsZero() {
			return float64(end.Unix())
		}
		return math.NaN()
	}))
	reg.MustRegister(prometheus.NewGaugeFunc(prometheus.GaugeOpts{
		Name: "palisade_certificate_lifetime_seconds", Help: "For how long this node's certificate was signed; NaN while it has none.",
	}, func() float64 {
		if signed, end := r.certificateLife(); !end.IsZero() {
			return end.Sub(signed).Seconds()
		}
		return math.NaN()
	}))
	build := prometheus.NewGaugeVec(prometheus.GaugeOpts{Name: "palisade_build_info", Help: "1, with the version of the build."}, []string{"version"})
	build.WithLabelValues(version).Set(1)
	reg.MustRegister(build)
	return newWatchdog(log, reg, v.checks(newLags(reg)), r.clock.refresh)
}

// certificateLife is when this node's present certificate was signed, and when it ends. What the state says of it may be
// newer: an answer can be lost.
func (r *rooms) certificateLife() (signed, ends time.Time) {
	m := r.cluster.Certificate()
	return m.NotBefore.Add(pki.Backdate), m.NotAfter
}

// fleetTime is the time by the voters' clocks, as far as it is known.
func (r *rooms) fleetTime() time.Time {
	d, _ := r.clock.Offset()
	return time.Now().Add(-d)
}
