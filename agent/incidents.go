package agent

import (
	"context"
	"fmt"
	"log/slog"
	"maps"
	"strings"
	"sync"
	"time"

	"github.com/palisade/palisade/fsm"
)

// incidentTiming says how often the fleet is told.
type incidentTiming struct {
	every time.Duration // between two reports of one matter: what comes meanwhile is in the next
	retry time.Duration // after a report that nobody took
}

func defaultIncidentTiming() incidentTiming { return incidentTiming{10 * time.Second, 2 * time.Second} }

// incidents tells the fleet what befell this node, as entries of the log: they are events on every node, and in the
// audit. Without a leader they wait. What happens over and over is one report each ten seconds.
type incidents struct {
	log     *slog.Logger
	node    string
	propose proposeFunc
	now     func() time.Time
	timing  incidentTiming
	wake    chan struct{}

	mu      sync.Mutex
	waiting map[matter]fsm.Incident
	last    map[matter]time.Time // when one was taken
}

// matter is what incidents are of that are one if they come close together.
type matter struct {
	code   string
	tables string // whose rules; "" for incidents that are of none
}

func newIncidents(log *slog.Logger, node string, propose proposeFunc) *incidents {
	return &incidents{
		log: log, node: node, propose: propose, now: time.Now, timing: defaultIncidentTiming(), wake: make(chan struct{}, 1),
		waiting: map[matter]fsm.Incident{}, last: map[matter]time.Time{},
	}
}

// Tell notes an incident. It does not block.
func (i *incidents) Tell(code string, severity fsm.Severity, text string, lasted time.Duration) {
	i.note(matter{code: code}, severity, text, lasted)
}

func (i *incidents) note(of matter, severity fsm.Severity, text string, lasted time.Duration) {
	if len(text) > fsm.MaxIncidentBytes {
		text = text[:fsm.MaxIncidentBytes]
	}
	text = strings.ToValidUTF8(text, "")
	i.mu.Lock()
	was := i.waiting[of]
	i.waiting[of] = fsm.Incident{
		Node: i.node, Code: of.code, Severity: severity, Text: text, At: i.now().Round(0).UTC(), Lasted: max(lasted, was.Lasted), Times: was.Times + 1,
	}
	i.mu.Unlock()
	signal(i.wake)
}

// drifted is what drifts are told by.
func (i *incidents) drifted(d *drift) {
	d.undoneAfter = func(tables, what string, took time.Duration) {
		i.note(matter{"kernel_drift", tables}, fsm.Critical, fmt.Sprintf("another program changed the rules of %s (%s); it was undone %s after it was found", tables, what, took.Round(100*time.Microsecond)), took)
	}
	d.stuckWith = func(tables, what string, err error) {
		i.note(matter{"kernel_drift", tables}, fsm.Critical, fmt.Sprintf("another program changed the rules of %s (%s) and they can't be brought back: %v", tables, what, err), 0)
	}
}

// Run reports until ctx ends.
func (i *incidents) Run(ctx context.Context) error {
	again := time.NewTimer(0)
	defer again.Stop()
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-i.wake:
		case <-again.C:
		}
		if wait := i.report(ctx); wait > 0 {
			again.Reset(wait)
		}
	}
}

// report proposes what waits and may be told, and returns after how long to come again; 0 if nothing waits.
func (i *incidents) report(ctx context.Context) (wait time.Duration) {
	later := func(d time.Duration) {
		if wait == 0 || d < wait {
			wait = d
		}
	}
	for of, is := range i.list() {
		i.mu.Lock()
		rest := time.Until(i.last[of].Add(i.timing.every))
		i.mu.Unlock()
		if rest > 0 {
			later(rest)
			continue
		}
		res, err := i.propose(ctx, fsm.Command{Actor: "node:" + i.node, Op: fsm.ReportIncident{Incident: is}})
		switch {
		case ctx.Err() != nil:
			return 0
		case err != nil:
			i.log.Warn("the fleet is not told of an incident yet", "code", is.Code, "err", err)
			later(i.timing.retry)
			continue
		case res.Err != nil: // it will not be taken later either
			i.log.Error("the fleet does not take the report of an incident", "code", is.Code, "err", res.Err)
		}
		i.taken(of, is)
	}
	return wait
}

func (i *incidents) list() map[matter]fsm.Incident {
	i.mu.Lock()
	defer i.mu.Unlock()
	return maps.Clone(i.waiting)
}

// taken forgets what was reported; what happened while it was under way stays.
func (i *incidents) taken(of matter, is fsm.Incident) {
	i.mu.Lock()
	defer i.mu.Unlock()
	i.last[of] = time.Now()
	left := i.waiting[of]
	if left.Times -= is.Times; left.Times == 0 {
		delete(i.waiting, of)
		return
	}
	i.waiting[of] = left
	signal(i.wake) // its turn comes after the pause
}
