package inventory

import (
	"context"
	"errors"
	"log/slog"
	"slices"
	"strings"
	"testing"
)

func TestSeveral(t *testing.T) {
	var logged strings.Builder
	d := Several(slog.New(slog.NewTextHandler(&logged, nil)), nil, nil).(*several)
	var reports []Report
	send := func(i int, r Report) { d.take(i, r, func(r Report) { reports = append(reports, r) }) }
	list := func(lines ...string) []VM {
		var vms []VM
		for _, s := range seen(lines...) {
			vms = append(vms, s.VM)
		}
		return vms
	}
	next := func(want ...string) {
		t.Helper()
		if len(reports) != 1 || !slices.Equal(said(reports[0]), want) {
			t.Fatalf("reports %v, want one of %v", reports, want)
		}
		reports = nil
	}
	send(0, Report{VMs: list("b running", "c running", "g running"), Arrived: []string{"b", "c", "g"}})
	send(0, Report{VMs: list("b running", "c stopped")}) // the second has not reported: nothing is said
	send(1, Report{VMs: list("a running", "b stopped", "d running"), Arrived: []string{"a"}})
	next("a running", "b running", "c stopped", "d running", "+a", "+b")
	send(1, Report{VMs: list("a running", "b running"), Arrived: []string{"b"}}) // b is the first one's
	next("a running", "b running", "c stopped")
	send(0, Report{VMs: list("c running"), Arrived: []string{"c"}})
	next("a running", "b running", "c running", "+c")
	send(1, Report{})
	next("c running")
	if n := strings.Count(logged.String(), "same VM"); n != 1 {
		t.Errorf("the double was logged %d times", n)
	}
}

// driverFunc is a driver that is one function.
type driverFunc func(ctx context.Context, report func(Report)) error

func (f driverFunc) Run(ctx context.Context, report func(Report)) error { return f(ctx, report) }

func TestSeveralEndTogether(t *testing.T) {
	broken := errors.New("can't work")
	d := Several(slog.Default(),
		driverFunc(func(ctx context.Context, _ func(Report)) error { <-ctx.Done(); return nil }),
		driverFunc(func(_ context.Context, report func(Report)) error { report(Report{}); return broken }))
	if err := d.Run(t.Context(), func(Report) { t.Error("a report without the first driver's") }); !errors.Is(err, broken) {
		t.Errorf("error %v", err)
	}
}
