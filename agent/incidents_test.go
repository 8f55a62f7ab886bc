package agent

import (
	"context"
	"errors"
	"log/slog"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/palisade/palisade/fsm"
)

// TestIncidentsAreTold: the first at once, what follows within ten seconds together, and what nobody took again.
func TestIncidentsAreTold(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var mu sync.Mutex // guards the next two
		var got []fsm.Incident
		var refuse error
		refusing := func(err error) {
			mu.Lock()
			defer mu.Unlock()
			refuse = err
		}
		told := func() []fsm.Incident {
			synctest.Wait()
			mu.Lock()
			defer mu.Unlock()
			return slices.Clone(got)
		}
		i := newIncidents(slog.New(slog.DiscardHandler), "n1", func(_ context.Context, c fsm.Command) (fsm.Result, error) {
			mu.Lock()
			defer mu.Unlock()
			if refuse != nil {
				return fsm.Result{}, refuse
			}
			if c.Actor != "node:n1" {
				t.Errorf("told by %s", c.Actor)
			}
			got = append(got, c.Op.(fsm.ReportIncident).Incident)
			return fsm.Result{}, nil
		})
		d := newDrift(prometheus.NewRegistry(), "blocks")
		i.drifted(d)
		ctx, cancel := context.WithCancel(t.Context())
		done := make(chan error)
		go func() { done <- i.Run(ctx) }()

		d.saw("table inet is missing")
		time.Sleep(30 * time.Millisecond)
		d.undone()
		if got := told(); len(got) != 1 || got[0].Lasted != 30*time.Millisecond || got[0].Times != 1 || got[0].Code != "kernel_drift" || got[0].Severity != fsm.Critical {
			t.Fatalf("told %+v", got)
		}
		for range 5 {
			time.Sleep(time.Second)
			d.saw("again")
			d.undone()
		}
		if got := told(); len(got) != 1 {
			t.Fatalf("told %d times within the pause", len(got))
		}
		time.Sleep(10 * time.Second)
		if got := told(); len(got) != 2 || got[1].Times != 5 {
			t.Fatalf("then told %+v", got[1:])
		}
		// What was done to other tables is told beside it.
		lists := newDrift(prometheus.NewRegistry(), "lists")
		i.drifted(lists)
		d.saw("flushed")
		lists.saw("flushed")
		lists.undone()
		d.undone()
		time.Sleep(10 * time.Second)
		if got := told(); len(got) != 4 || !strings.Contains(got[2].Text, "rules of lists") || !strings.Contains(got[3].Text, "rules of blocks") {
			t.Fatalf("of lists and blocks, told %+v", got[2:])
		}
		refusing(errors.New("no leader"))
		time.Sleep(10 * time.Second)
		d.saw("while alone")
		d.stuck(errors.New("not permitted"))
		d.stuck(errors.New("not permitted"))
		time.Sleep(time.Minute)
		refusing(nil)
		time.Sleep(3 * time.Second)
		if got := told(); len(got) != 5 || got[4].Times != 1 || got[4].Lasted != 0 {
			t.Fatalf("after it was alone, told %+v", got[4:])
		}
		cancel()
		if err := <-done; err != nil {
			t.Error(err)
		}
	})
}
