package libvirt

import (
	"context"
	"log/slog"
	"strings"
	"sync"
	"testing"
	"time"

	golibvirt "github.com/digitalocean/go-libvirt"
	"github.com/google/go-cmp/cmp"
	"go.uber.org/goleak"

	"github.com/palisade/palisade/inventory"
)

const (
	a = "00000000-0000-0000-0000-00000000000a"
	b = "00000000-0000-0000-0000-00000000000b"
)

func running() *fakeDomain {
	return &fakeDomain{name: "web", state: golibvirt.DomainRunning, mac: "52:54:00:00:00:01", tap: "vnet0"}
}

func receiving() *fakeDomain {
	d := running()
	d.state, d.reason, d.receiving, d.transient = golibvirt.DomainPaused, int32(golibvirt.DomainPausedMigration), true, true
	return d
}

// bed runs a driver against a fake daemon.
type bed struct {
	*fake
	reports chan inventory.Report
	logs    *logText
	link    chan struct{} // a network interface appeared
}

type logText struct {
	mu sync.Mutex
	strings.Builder
}

func (l *logText) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.Builder.Write(p)
}

func (l *logText) count(s string) int {
	l.mu.Lock()
	defer l.mu.Unlock()
	return strings.Count(l.String(), s)
}

func start(t *testing.T, f *fake, change func(*Options)) *bed {
	t.Helper()
	bd := &bed{fake: f, reports: make(chan inventory.Report, 100), logs: &logText{}, link: make(chan struct{}, 1)}
	o := Options{Socket: f.path, MaxBackoff: 20 * time.Millisecond, Rescan: time.Hour, Logger: slog.New(slog.NewTextHandler(bd.logs, nil))}
	if change != nil {
		change(&o)
	}
	d, err := New(o)
	if err != nil {
		t.Fatal(err)
	}
	d.watch = func() *links { return &links{changed: bd.link} }
	ctx, cancel := context.WithCancel(context.Background())
	ended := make(chan error)
	go func() { ended <- d.Run(ctx, func(r inventory.Report) { bd.reports <- r }) }()
	t.Cleanup(func() {
		cancel()
		if err := <-ended; err != nil {
			t.Errorf("Run: %v", err)
		}
		f.cut()
		f.group.Wait()
		goleak.VerifyNone(t)
	})
	return bd
}

// next waits for a report and compares its last-digit ids, phases and arrivals: "a running", "+a".
func (bd *bed) next(want ...string) {
	bd.t.Helper()
	select {
	case r := <-bd.reports:
		var got []string
		for _, v := range r.VMs {
			got = append(got, v.ID[len(v.ID)-1:]+" "+string(v.Phase))
		}
		for _, id := range r.Arrived {
			got = append(got, "+"+id[len(id)-1:])
		}
		if diff := cmp.Diff(want, got); diff != "" {
			bd.t.Fatalf("report (-want +got):\n%s", diff)
		}
	case <-time.After(10 * time.Second):
		bd.t.Fatalf("no report, want %v; log:\n%s", want, bd.logs)
	}
}

// await waits until the log has said something so many times.
func (bd *bed) await(logged string, times int) {
	bd.t.Helper()
	for deadline := time.Now().Add(10 * time.Second); bd.logs.count(logged) < times; {
		if time.Now().After(deadline) {
			bd.t.Fatalf("the log says %q %d times, want %d", logged, bd.logs.count(logged), times)
		}
		<-time.After(2 * time.Millisecond)
	}
}

func TestListsThenFollows(t *testing.T) {
	f := newFake(t)
	f.set(a, running())
	bd := start(t, f, nil)
	bd.next("a running", "+a")

	f.set(b, receiving())
	f.event(b, int32(golibvirt.DomainEventStarted), 1)
	bd.next("a running", "b incoming", "+b")
	f.set(b, running())
	f.event(b, int32(golibvirt.DomainEventResumed), 1)
	bd.next("a running", "b running", "+b")

	leaving := running()
	leaving.state, leaving.reason, leaving.transient = golibvirt.DomainPaused, int32(golibvirt.DomainPausedMigration), true
	f.set(a, leaving)
	f.event(a, int32(golibvirt.DomainEventSuspended), 1)
	f.set(a, nil)
	f.event(a, int32(golibvirt.DomainEventStopped), 3)
	bd.next("b running")
}

// A migration that fails after the guest was paused: it runs on, and that is news.
func TestMigrationThatFails(t *testing.T) {
	f := newFake(t)
	f.set(a, running())
	bd := start(t, f, nil)
	bd.next("a running", "+a")
	leaving := running()
	leaving.state, leaving.reason = golibvirt.DomainPaused, int32(golibvirt.DomainPausedMigration)
	f.set(a, leaving)
	f.event(a, int32(golibvirt.DomainEventSuspended), 1)
	f.set(b, running()) // a report proves that the driver has seen it leave
	f.event(b, int32(golibvirt.DomainEventStarted), 0)
	bd.next("a running", "b running", "+b")
	f.set(a, running())
	f.event(a, int32(golibvirt.DomainEventResumed), 1)
	bd.next("a running", "b running", "+a")
}

// What an event says is never believed: the domain is looked at.
func TestEventsThatAreFalse(t *testing.T) {
	f := newFake(t)
	f.set(a, running())
	bd := start(t, f, nil)
	bd.next("a running", "+a")
	for range 3 {
		f.event(a, int32(golibvirt.DomainEventStopped), 3)
		f.event(b, int32(golibvirt.DomainEventStarted), 0)
		f.event(a, int32(golibvirt.DomainEventUndefined), 0)
	}
	f.set(b, running()) // and one true one after them
	f.event(b, int32(golibvirt.DomainEventStarted), 0)
	bd.next("a running", "b running", "+b")
}

func TestEventsThatAreLost(t *testing.T) {
	f := newFake(t)
	f.set(a, running())
	bd := start(t, f, func(o *Options) { o.Rescan = 20 * time.Millisecond })
	bd.next("a running", "+a")
	f.set(b, running())
	bd.next("a running", "b running", "+b")
	f.set(a, nil)
	bd.next("b running")
}

func TestLostDaemonMakesNothingDisappear(t *testing.T) {
	f := newFake(t)
	f.set(a, running())
	bd := start(t, f, nil)
	bd.next("a running", "+a")
	f.cut()
	bd.await("no connection to libvirt", 1)
	f.set(b, running())
	f.listen()
	// Whoever is here is news again: a VM may have left and come back meanwhile.
	bd.next("a running", "b running", "+a", "+b")
	f.set(a, nil)
	f.event(a, int32(golibvirt.DomainEventStopped), 0)
	bd.next("b running")
	f.cut()
	bd.await("no connection to libvirt", 2)
	f.listen()
	bd.next("b running", "+b")
}

// A VM that is about to leave when the connection comes back is here, but no news: claiming it would
// take it away from its destination.
func TestReconnectWhileLeaving(t *testing.T) {
	f := newFake(t)
	f.set(a, running())
	bd := start(t, f, nil)
	bd.next("a running", "+a")
	f.cut()
	leaving := running()
	leaving.state, leaving.reason = golibvirt.DomainPaused, int32(golibvirt.DomainPausedMigration)
	f.set(a, leaving)
	f.set(b, receiving())
	f.listen()
	bd.next("a running", "b incoming", "+b")
}

func TestHungDaemonIsLeft(t *testing.T) {
	f := newFake(t)
	f.set(a, running())
	bd := start(t, f, func(o *Options) { o.Timeout = 50 * time.Millisecond })
	bd.next("a running", "+a")
	f.hang(true)
	bd.await("no answer to", 1)
	f.hang(false)
	bd.next("a running", "+a")
}

func TestHungDaemonDoesNotHoldTheEnd(t *testing.T) {
	f := newFake(t)
	f.hang(true)
	start(t, f, nil) // its end has no answer to wait for
}

func TestDomainThatCannotBeReadStays(t *testing.T) {
	f := newFake(t)
	f.set(a, running())
	bd := start(t, f, nil)
	bd.next("a running", "+a")
	broken := running()
	broken.broken = true
	f.set(a, broken)
	f.event(a, int32(golibvirt.DomainEventResumed), 0)
	f.event(a, int32(golibvirt.DomainEventResumed), 0)
	bd.await("cannot do that now", 1)
	f.set(b, running())
	f.event(b, int32(golibvirt.DomainEventStarted), 0)
	bd.next("a running", "b running", "+b")
	if n := bd.logs.count("cannot do that now"); n != 1 {
		t.Errorf("logged %d times", n)
	}
}

// A guest that arrives is seen by its tap, before libvirt sends the first event about it, also when
// libvirt lists it only some milliseconds after the tap exists.
func TestNewcomersAreSeenByTheirTap(t *testing.T) {
	starting := receiving()
	starting.reason = int32(golibvirt.DomainPausedStartingUp)
	for name, steps := range map[string]func(*bed){
		"listed first": func(bd *bed) { bd.set(b, starting); bd.link <- struct{}{} },
		"tap first": func(bd *bed) {
			listed := bd.lists()
			bd.link <- struct{}{}
			for deadline := time.Now().Add(10 * time.Second); bd.lists() == listed && time.Now().Before(deadline); {
				<-time.After(time.Millisecond)
			}
			bd.set(b, starting)
		},
	} {
		t.Run(name, func(t *testing.T) {
			f := newFake(t)
			f.set(a, running())
			bd := start(t, f, nil)
			bd.next("a running", "+a")
			steps(bd)
			bd.next("a running", "b incoming", "+b")
		})
	}
}

// A VM that ran here, left while libvirt was away, and is on its way back when libvirt is found again.
func TestReconnectWhileReturning(t *testing.T) {
	f := newFake(t)
	f.set(a, running())
	bd := start(t, f, nil)
	bd.next("a running", "+a")
	f.cut()
	f.set(a, receiving())
	f.listen()
	bd.next("a incoming", "+a")
}

func TestRetriesAreSpent(t *testing.T) {
	r := newRetries()
	defer r.stop()
	if r.next() != nil {
		t.Error("waits without a hint")
	}
	r.begin()
	for i := range retryTimes {
		if r.next() == nil {
			t.Fatalf("gave up after %d looks", i)
		}
		r.spent()
	}
	if r.next() != nil {
		t.Error("never gives up")
	}
}

// TestManyHintsListSeldom: a thousand guests that start together make thousands of hints; libvirt is asked
// for its list at most every retryAfter, and what has started is known all the same.
func TestManyHintsListSeldom(t *testing.T) {
	f := newFake(t)
	f.set(a, running())
	bd := start(t, f, nil)
	bd.next("a running", "+a")
	before, began := bd.lists(), time.Now()
	for range 2_000 {
		bd.link <- struct{}{}
	}
	starting := receiving()
	starting.reason = int32(golibvirt.DomainPausedStartingUp)
	bd.set(b, starting)
	bd.link <- struct{}{}
	bd.next("a running", "b incoming", "+b")
	if n, most := bd.lists()-before, int(time.Since(began)/retryAfter)+2; n > most {
		t.Errorf("listed %d times in %v, want at most %d", n, time.Since(began), most)
	}
}
