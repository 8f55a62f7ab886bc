package agent

import (
	"context"
	"log/slog"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/palisade/palisade/fsm"
)

// watchInterval is how often the watchdog looks. A look costs some microseconds.
const watchInterval = time.Second

// check is one thing that can go wrong with this node.
type check struct {
	code     string
	severity fsm.Severity
	after    time.Duration // how long it must have lasted before it is told
	advice   string        // what to do
	// look says what is wrong, "" if nothing is. It is called from one goroutine and must not block.
	look func(now time.Time) string
}

// watchdog finds out what is wrong with this node, and tells when it begins and ends: in the log, in metrics,
// in the node's reports. What has to be done at once is done by others: a store that hangs and a leader
// that cannot commit end the process (package cluster), changed rules are brought back (drift.go).
type watchdog struct {
	log     *slog.Logger
	checks  []check
	refresh func(ctx context.Context) // measures what the checks look at; may take a moment
	gauge   *prometheus.GaugeVec

	begun map[string]time.Time // when what is wrong was first seen, by code

	mu   sync.Mutex
	open map[string]fsm.Problem
}

func newWatchdog(log *slog.Logger, reg prometheus.Registerer, checks []check, refresh func(context.Context)) *watchdog {
	w := &watchdog{
		log: log, checks: checks, refresh: refresh, begun: map[string]time.Time{}, open: map[string]fsm.Problem{},
		gauge: prometheus.NewGaugeVec(prometheus.GaugeOpts{Name: "palisade_problem", Help: "1 while the node has the problem, by its code; see docs/monitoring.md."}, []string{"code", "severity"}),
	}
	reg.MustRegister(w.gauge)
	for _, c := range checks {
		w.gauge.WithLabelValues(c.code, string(c.severity)).Set(0)
	}
	return w
}

// Run looks until ctx ends.
func (w *watchdog) Run(ctx context.Context) error {
	for {
		w.refresh(ctx)
		w.look(ctx, time.Now())
		if !sleep(ctx, watchInterval) {
			return nil
		}
	}
}

// look makes all checks once.
func (w *watchdog) look(ctx context.Context, now time.Time) {
	for _, c := range w.checks {
		wrong := c.look(now)
		if wrong == "" {
			w.end(c, now)
			continue
		}
		begun, seen := w.begun[c.code]
		if !seen {
			begun = now
			w.begun[c.code] = now
		}
		if now.Sub(begun) >= c.after {
			w.tell(ctx, c, begun, wrong)
		}
	}
}

func (w *watchdog) tell(ctx context.Context, c check, begun time.Time, wrong string) {
	p := fsm.Problem{Code: c.code, Severity: c.severity, Since: begun.Round(0).UTC(), Text: wrong + ". " + c.advice}
	w.mu.Lock()
	_, told := w.open[c.code]
	w.open[c.code] = p
	w.mu.Unlock()
	if told {
		return
	}
	w.gauge.WithLabelValues(c.code, string(c.severity)).Set(1)
	level := slog.LevelWarn
	if c.severity == fsm.Critical {
		level = slog.LevelError
	}
	w.log.Log(ctx, level, "a problem has begun", "code", c.code, "what", wrong, "advice", c.advice)
}

func (w *watchdog) end(c check, now time.Time) {
	begun := w.begun[c.code]
	delete(w.begun, c.code)
	w.mu.Lock()
	_, told := w.open[c.code]
	delete(w.open, c.code)
	w.mu.Unlock()
	if told {
		w.gauge.WithLabelValues(c.code, string(c.severity)).Set(0)
		w.log.Info("a problem has ended", "code", c.code, "after", now.Sub(begun).Round(time.Second))
	}
}

// Problems are those that last, in order of their codes.
func (w *watchdog) Problems() []fsm.Problem {
	w.mu.Lock()
	defer w.mu.Unlock()
	var out []fsm.Problem
	for _, p := range w.open {
		out = append(out, p)
	}
	slices.SortFunc(out, func(a, b fsm.Problem) int { return strings.Compare(a.Code, b.Code) })
	return out
}
