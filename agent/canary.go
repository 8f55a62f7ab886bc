package agent

import (
	"context"
	"fmt"
	"log/slog"
	"strings"
	"sync"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/palisade/palisade/enforce/canary"
	"github.com/palisade/palisade/fsm"
)

// bird is what the canary loop needs of package enforce/canary. Open may be called again after Close.
type bird interface {
	Open() error
	Fly(ctx context.Context) (canary.Flight, error)
	Close() error
}

var _ bird = (*canary.Canary)(nil)

// canaryTiming says when the canary flies.
type canaryTiming struct {
	every time.Duration // between two flights
	again time.Duration // after one that passed: rules that another program changed are back by then
	retry time.Duration // after an error
}

func defaultCanaryTiming() canaryTiming {
	return canaryTiming{every: 5 * time.Second, again: time.Second, retry: 30 * time.Second}
}

// blindMost is after how many flights in a row that prove nothing it is told.
const blindMost = 3

// canaryLoop sends packets that this node's kernel must drop, and tells when one passes: rules that read right are no proof.
type canaryLoop struct {
	log     *slog.Logger
	bird    bird // nil: there is none
	ready   func() bool
	tell    func(code string, severity fsm.Severity, text string, lasted time.Duration)
	timing  canaryTiming
	metrics canaryMetrics

	mu      sync.Mutex
	passing string // what passes, after a second look
	failing string // why nothing is proven
}

type canaryMetrics struct {
	flights prometheus.Counter
	passed  *prometheus.CounterVec
	blind   *prometheus.CounterVec
	proven  prometheus.Gauge
}

func newCanaryLoop(log *slog.Logger, reg prometheus.Registerer, b bird) *canaryLoop {
	c := &canaryLoop{log: log, bird: b, ready: func() bool { return true }, tell: func(string, fsm.Severity, string, time.Duration) {}, timing: defaultCanaryTiming(), metrics: canaryMetrics{
		flights: prometheus.NewCounter(prometheus.CounterOpts{Name: "palisade_canary_flights_total", Help: "Times that packets were sent which this node's kernel must drop."}),
		passed:  prometheus.NewCounterVec(prometheus.CounterOpts{Name: "palisade_canary_passed_total", Help: "Times that such a packet passed, by its path."}, []string{"path"}),
		blind:   prometheus.NewCounterVec(prometheus.CounterOpts{Name: "palisade_canary_blind_total", Help: "Times that a packet did not pass that must, so that nothing was proven, by path."}, []string{"path"}),
		proven:  prometheus.NewGauge(prometheus.GaugeOpts{Name: "palisade_canary_proven_timestamp_seconds", Help: "When it was last proven on all paths that blocked packets are dropped, in seconds since 1970; 0 if it never was."}),
	}}
	for _, p := range canary.Paths() {
		c.metrics.passed.WithLabelValues(string(p))
		c.metrics.blind.WithLabelValues(string(p))
	}
	reg.MustRegister(c.metrics.flights, c.metrics.passed, c.metrics.blind, c.metrics.proven)
	return c
}

// Run flies until ctx ends, once the kernel has what must be dropped.
func (c *canaryLoop) Run(ctx context.Context) error {
	if c.bird == nil {
		<-ctx.Done()
		return nil
	}
	for !c.ready() {
		if !sleep(ctx, 100*time.Millisecond) {
			return nil
		}
	}
	for ctx.Err() == nil {
		if err := c.fly(ctx); err != nil && ctx.Err() == nil {
			c.set("", "the canary can't fly: "+err.Error())
			c.log.Warn("the canary can't fly", "err", err)
			sleep(ctx, c.timing.retry)
		}
	}
	return nil
}

// fly flies until ctx ends, or something fails.
func (c *canaryLoop) fly(ctx context.Context) (err error) {
	if err := c.bird.Open(); err != nil {
		return err
	}
	defer func() {
		if closing := c.bird.Close(); closing != nil {
			c.log.Warn("the canary's interfaces are not removed", "err", closing)
		}
	}()
	blind, passed := 0, 0
	for {
		f, err := c.bird.Fly(ctx)
		if err != nil || ctx.Err() != nil {
			return err
		}
		c.count(f)
		if blind++; len(f.Blind) == 0 {
			blind = 0
		}
		if passed++; len(f.Passed) == 0 {
			passed = 0
		}
		c.judge(f, passed, blind)
		wait := c.timing.every
		if passed == 1 {
			wait = c.timing.again
		}
		if !sleep(ctx, wait) {
			return nil
		}
	}
}

func (c *canaryLoop) count(f canary.Flight) {
	c.metrics.flights.Inc()
	for _, p := range f.Passed {
		c.metrics.passed.WithLabelValues(string(p)).Inc()
	}
	for _, p := range f.Blind {
		c.metrics.blind.WithLabelValues(string(p)).Inc()
	}
	if len(f.Passed)+len(f.Blind) == 0 {
		c.metrics.proven.SetToCurrentTime()
	}
}

// judge tells what passes the second time in a row, and what can't be proven for long.
func (c *canaryLoop) judge(f canary.Flight, passed, blind int) {
	passing, failing := "", ""
	if passed > 1 {
		passing = "packets that are blocked pass this node's kernel, over " + paths(f.Passed)
	}
	if blind >= blindMost {
		failing = fmt.Sprintf("the canary proves nothing over %s: what is not blocked does not arrive either", paths(f.Blind))
	}
	if passed == 2 {
		c.log.Error("packets that are blocked pass", "paths", f.Passed)
		c.tell("canary_passes", fsm.Critical, passing, 0)
	}
	c.set(passing, failing)
}

func (c *canaryLoop) set(passing, failing string) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.passing, c.failing = passing, failing
}

// Passing says what passes that is blocked, "" if nothing does.
func (c *canaryLoop) Passing() string {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.passing
}

// Failing says why nothing is proven, "" if it is.
func (c *canaryLoop) Failing() string {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.failing
}

func paths(list []canary.Path) string {
	texts := make([]string, len(list))
	for i, p := range list {
		texts[i] = string(p)
	}
	return strings.Join(texts, ", ")
}
