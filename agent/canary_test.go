package agent

import (
	"context"
	"errors"
	"log/slog"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/palisade/palisade/enforce"
	"github.com/palisade/palisade/enforce/canary"
	"github.com/palisade/palisade/fsm"
)

type fakeBird struct {
	mu     sync.Mutex
	flight canary.Flight
	err    error
	open   int // times opened, less times closed
}

func (b *fakeBird) Open() error  { b.open++; return nil }
func (b *fakeBird) Close() error { b.open--; return nil }

func (b *fakeBird) Fly(context.Context) (canary.Flight, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.flight, b.err
}

func (b *fakeBird) set(f canary.Flight, err error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.flight, b.err = f, err
}

// TestTheCanaryTells: what passes twice in a row is told once to the fleet, and is a problem until it passes no more; what proves nothing
// three times is another; an error is tried again.
func TestTheCanaryTells(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := &fakeBird{}
		c := newCanaryLoop(slog.New(slog.DiscardHandler), prometheus.NewRegistry(), b)
		told := 0
		c.tell = func(code string, s fsm.Severity, text string, _ time.Duration) {
			if told++; code != "canary_passes" || s != fsm.Critical || !strings.Contains(text, "bridge_mac") {
				t.Errorf("told %s, %s: %s", code, s, text)
			}
		}
		var ready sync.Once
		kernel := make(chan struct{})
		c.ready = func() bool {
			select {
			case <-kernel:
				return true
			default:
				return false
			}
		}
		ctx, cancel := context.WithCancel(t.Context())
		done := make(chan error)
		go func() { done <- c.Run(ctx) }()
		time.Sleep(time.Minute)
		synctest.Wait()
		if b.open != 0 {
			t.Error("it flies before the kernel has what must be dropped")
		}
		ready.Do(func() { close(kernel) })
		state := func(after time.Duration, passing, failing bool, times int) {
			t.Helper()
			time.Sleep(after)
			synctest.Wait()
			if p, f := c.Passing(), c.Failing(); (p != "") != passing || (f != "") != failing || told != times {
				t.Errorf("passing %q, failing %q, told %d times", p, f, told)
			}
		}
		state(16*time.Second, false, false, 0)
		passes := canary.Flight{Passed: []canary.Path{canary.BridgeMAC}}
		b.set(passes, nil)
		time.Sleep(4500 * time.Millisecond) // one flight
		b.set(canary.Flight{}, nil)
		state(10*time.Second, false, false, 0) // the rules were back
		b.set(passes, nil)
		state(12*time.Second, true, false, 1)
		state(time.Minute, true, false, 1)
		b.set(canary.Flight{Blind: canary.Paths()}, nil)
		state(7*time.Second, false, false, 1)
		state(20*time.Second, false, true, 1)
		b.set(canary.Flight{}, nil)
		state(15*time.Second, false, false, 1)
		b.set(canary.Flight{}, errors.New("no such interface"))
		state(15*time.Second, false, true, 1)
		b.set(canary.Flight{}, nil)
		state(45*time.Second, false, false, 1)
		if b.open != 1 {
			t.Errorf("open %d times", b.open)
		}
		cancel()
		if err := <-done; err != nil || b.open != 0 {
			t.Errorf("ended with %v, open %d times", err, b.open)
		}
	})
}

// TestTheCanarysElementsStay: they are in the kernel from the start, are not taken for leftovers, and no block on the same address takes
// them along.
func TestTheCanarysElementsStay(t *testing.T) {
	b := newBench(t, 0, "100::7061:6c/128")
	b.enforcer.canary = canary.Elements()
	close(b.caughtUp)
	b.run()
	held := func(what string) {
		t.Helper()
		b.kernel.mu.Lock()
		defer b.kernel.mu.Unlock()
		for _, el := range canary.Elements() {
			if _, ok := b.kernel.held[el]; !ok {
				t.Errorf("%s: %v is not in the kernel", what, el)
			}
		}
	}
	is := b.block("100::7061:6c/128")
	b.waitEnforced(is.Index)
	held("blocked")
	lifted := b.apply(fsm.LiftBlock{ID: is.ID})
	b.waitEnforced(lifted.Index)
	held("lifted")
	if _, ok := b.kernel.held[enforce.Element{Tap: "palcan1"}]; !ok {
		t.Error("the tap is not")
	}
}
