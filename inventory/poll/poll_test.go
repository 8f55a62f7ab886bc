package poll

import (
	"context"
	"errors"
	"log/slog"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/palisade/palisade/fsm"
	"github.com/palisade/palisade/inventory"
)

// hypervisor is what a driver looks at.
type hypervisor struct {
	mu    sync.Mutex
	vms   []string
	odd   []string
	err   error
	took  time.Duration // of a look
	looks []time.Time
}

func (h *hypervisor) set(err error, vms ...string) {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.err, h.vms = err, vms
}

func (h *hypervisor) look(_ context.Context, list func(Listing) error) error {
	h.mu.Lock()
	l, err, took := Listing{Odd: h.odd}, h.err, h.took
	h.looks = append(h.looks, time.Now())
	for _, id := range h.vms {
		l.VMs = append(l.VMs, inventory.Seen{VM: inventory.VM{ID: id, Phase: fsm.PhaseRunning}})
	}
	h.mu.Unlock()
	time.Sleep(took)
	if err != nil {
		return err
	}
	return list(l)
}

func (h *hypervisor) looked() []time.Time {
	h.mu.Lock()
	defer h.mu.Unlock()
	return slices.Clone(h.looks)
}

type report struct {
	vms, arrived string
	at           time.Time
}

// follow runs a driver; the function ends it.
func follow(t *testing.T, o Options) (chan report, func()) {
	t.Helper()
	d, err := New(o)
	if err != nil {
		t.Fatal(err)
	}
	reports := make(chan report, 100)
	ctx, cancel := context.WithCancel(t.Context())
	ended := make(chan error)
	go func() {
		ended <- d.Run(ctx, func(r inventory.Report) {
			var ids []string
			for _, v := range r.VMs {
				ids = append(ids, v.ID)
			}
			reports <- report{strings.Join(ids, " "), strings.Join(r.Arrived, " "), time.Now()}
		})
	}()
	return reports, func() {
		cancel()
		if err := <-ended; err != nil {
			t.Errorf("Run: %v", err)
		}
	}
}

func (r report) want(t *testing.T, vms, arrived string) {
	t.Helper()
	if r.vms != vms || r.arrived != arrived {
		t.Fatalf("report %q +%q, want %q +%q", r.vms, r.arrived, vms, arrived)
	}
}

func TestLooksAtIntervals(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		h := &hypervisor{vms: []string{"a"}}
		reports, end := follow(t, Options{Look: h.look})
		defer end()
		(<-reports).want(t, "a", "a")
		h.set(nil, "a", "b")
		start := time.Now()
		r := <-reports
		r.want(t, "a b", "b")
		if took := r.at.Sub(start); took != defaultInterval {
			t.Errorf("it took %v to look again", took)
		}
	})
}

func TestKeepsWhatItKnewWhileALookFails(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var logged strings.Builder
		h := &hypervisor{vms: []string{"a"}}
		reports, end := follow(t, Options{Look: h.look, Logger: slog.New(slog.NewTextHandler(&logged, nil))})
		(<-reports).want(t, "a", "a")
		h.set(errors.New("no answer"))
		time.Sleep(10 * time.Minute)
		if len(reports) != 0 {
			t.Errorf("a report while it could not look: %v", <-reports)
		}
		if n := len(h.looked()); n < 20 || n > 30 {
			t.Errorf("%d looks in ten minutes", n)
		}
		h.set(nil, "a", "b")
		(<-reports).want(t, "a b", "a b") // what is here is news again
		end()
		if n := strings.Count(logged.String(), "no answer"); n != 1 {
			t.Errorf("the problem was logged %d times", n)
		}
	})
}

func TestALookThatListsNothingIsNoEmptyListing(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		reports, end := follow(t, Options{Look: func(context.Context, func(Listing) error) error { return nil }})
		defer end()
		time.Sleep(time.Minute)
		if len(reports) != 0 {
			t.Error("it was reported")
		}
	})
}

func TestOddsAreLoggedOnce(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var logged strings.Builder
		h := &hypervisor{vms: []string{"a"}, odd: []string{"a: no MAC"}}
		_, end := follow(t, Options{Look: h.look, Logger: slog.New(slog.NewTextHandler(&logged, nil))})
		time.Sleep(time.Minute)
		end()
		if n := strings.Count(logged.String(), "no MAC"); n != 1 {
			t.Errorf("logged %d times:\n%s", n, logged.String())
		}
	})
}

func TestHints(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		hints := make(chan struct{}, 1)
		h := &hypervisor{vms: []string{"a"}}
		reports, end := follow(t, Options{Look: h.look, Hints: hints, Interval: time.Hour})
		defer end()
		(<-reports).want(t, "a", "a")
		time.Sleep(time.Minute)
		start := time.Now()
		hints <- struct{}{}
		time.Sleep(time.Second)
		h.set(nil, "a", "b") // the list is late
		r := <-reports
		r.want(t, "a b", "b")
		if took := r.at.Sub(start); took > 3*time.Second {
			t.Errorf("a late list was read after %v", took)
		}
		time.Sleep(time.Minute)
		if n := len(h.looked()); n != 1+len(retries()) {
			t.Errorf("%d looks for one hint", n-1)
		}
	})
}

// TestManyHintsLeaveHalfOfTheTime floods a slow hypervisor.
func TestManyHintsLeaveHalfOfTheTime(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		hints := make(chan struct{}, 1)
		h := &hypervisor{vms: []string{"a"}, took: 2 * time.Second}
		_, end := follow(t, Options{Look: h.look, Hints: hints})
		defer end()
		for range 60_000 {
			select {
			case hints <- struct{}{}:
			default:
			}
			time.Sleep(time.Millisecond)
		}
		if n := len(h.looked()); n < 14 || n > 16 {
			t.Errorf("%d looks of 2 s in a minute", n)
		}
	})
}

func TestWatchesFiles(t *testing.T) {
	for name, file := range map[string]string{"a file in a directory": "conf/101.conf", "a file": "run/look"} {
		t.Run(name, func(t *testing.T) {
			dir := t.TempDir()
			for _, d := range []string{"conf", "run"} {
				if err := os.Mkdir(filepath.Join(dir, d), 0o755); err != nil {
					t.Fatal(err)
				}
			}
			h := &hypervisor{vms: []string{"a"}}
			reports, end := follow(t, Options{Look: h.look, Interval: time.Hour, Watch: []string{filepath.Join(dir, "conf"), filepath.Join(dir, "run", "look")}})
			defer end()
			(<-reports).want(t, "a", "a")
			h.set(nil, "a", "b")
			if err := os.WriteFile(filepath.Join(dir, file), nil, 0o600); err != nil {
				t.Fatal(err)
			}
			select {
			case r := <-reports:
				r.want(t, "a b", "b")
			case <-time.After(10 * time.Second):
				t.Fatal("the change was not noticed")
			}
		})
	}
}
