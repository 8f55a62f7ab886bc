package fsm

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"strconv"
	"sync"
	"testing"
	"testing/synctest"
	"time"
)

// next is Next within a deadline that only a broken watcher meets.
func next(tb testing.TB, w *Watcher) (*View, []Event, error) {
	tb.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), 20*time.Second)
	defer cancel()
	return w.Next(ctx)
}

// TestWatchersSeeEveryEventOnce runs watchers against a writer, readers and snapshots. The race
// detector looks on: views must not be touched by later writes.
func TestWatchersSeeEveryEventOnce(t *testing.T) {
	const entries = 3000
	s := newStore(limits{results: 50, over: 20, events: 20 * entries})
	var wg sync.WaitGroup
	for range 3 {
		w := s.Watch(0)
		wg.Go(func() {
			blocks, at := 0, uint64(0)
			for at < entries {
				v, events, err := next(t, w)
				if err != nil {
					t.Errorf("after %d: %v", at, err)
					return
				}
				for _, e := range events {
					if e.Index <= at || e.Index > v.Index() {
						t.Errorf("event of %d came between %d and %d", e.Index, at, v.Index())
					}
					if e.Type == EventBlockAdded {
						blocks++
						if want := FormatBlockID(uint64(blocks)); e.Block.ID != want {
							t.Errorf("got the event of %s, want %s", e.Block.ID, want)
							return
						}
					}
				}
				at = v.Index()
			}
			if want := entries / 2; blocks != want {
				t.Errorf("%d blocks were added, the feed said %d", want, blocks)
			}
		})
	}
	done := make(chan struct{})
	wg.Go(func() {
		for {
			v := s.View()
			if got := recomputed(v); got != v.sum {
				t.Errorf("view %d changed while it was read", v.Index())
			}
			fresh := newStore(s.limits)
			var b bytes.Buffer
			if err := errors.Join(v.WriteSnapshot(&b), fresh.Restore(&b)); err != nil {
				t.Errorf("view %d: %v", v.Index(), err)
			}
			v.GuardedPrefixes()
			select {
			case <-done:
				return
			default:
			}
		}
	})
	log := newLog(s)
	var batch []Entry
	for i := range entries {
		var op Op = onPrefix(fmt.Sprintf("198.51.100.%d/32", i%200))
		switch i % 4 {
		case 1:
			op = LiftBlock{ID: FormatBlockID(uint64(i/4 + 1))}
		case 3:
			op = PutGuard{Prefix: prefix("192.0.2.0/24"), Note: strconv.Itoa(i)}
		}
		batch = append(batch, Entry{uint64(i + 1), encode(t, Command{Time: log.time, Key: strconv.Itoa(i), Op: op})})
		if len(batch) > i%17 {
			if _, err := s.ApplyBatch(batch); err != nil {
				t.Fatal(err)
			}
			batch = nil
		}
	}
	if _, err := s.ApplyBatch(batch); err != nil {
		t.Fatal(err)
	}
	close(done)
	wg.Wait()
}

func TestWatcherWaits(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := NewStore()
		log := newLog(s)
		w := s.Watch(2)
		got := make(chan uint64)
		go func() {
			defer close(got)
			for range 2 {
				v, events, err := w.Next(t.Context())
				if err != nil || len(events) != 1 {
					t.Errorf("got %v, %v", events, err)
					return
				}
				got <- v.Index()
			}
		}()
		quiet := func() {
			t.Helper()
			synctest.Wait()
			select {
			case i := <-got:
				t.Fatalf("the watcher woke up at %d", i)
			default:
			}
		}
		quiet()
		log.ok(t, onPrefix("198.51.100.1/32"))
		log.ok(t, onPrefix("198.51.100.2/32"))
		quiet() // it asked for what comes after 2
		log.ok(t, onPrefix("198.51.100.3/32"))
		if i := <-got; i != 3 {
			t.Errorf("woke up at %d", i)
		}
		quiet()
		log.ok(t, onPrefix("198.51.100.4/32"))
		if i := <-got; i != 4 {
			t.Errorf("woke up at %d", i)
		}
		<-got

		ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
		defer cancel()
		if v, _, err := w.Next(ctx); !errors.Is(err, context.DeadlineExceeded) || v != nil {
			t.Errorf("got %v, %v", v, err)
		}
	})
}

func TestWatcherHearsOfEntriesWithoutEvents(t *testing.T) {
	s := NewStore()
	log := newLog(s)
	w := s.Watch(0)
	log.refused(t, onVM("v1"), CodeNotFound, "target.vm")
	if v, events, err := next(t, w); err != nil || v.Index() != 1 || len(events) != 0 {
		t.Errorf("got %v, %v", events, err)
	}
}

func TestWatcherIsToldWhenTheFeedIsTooShort(t *testing.T) {
	s := newStore(limits{results: 1, over: 1, events: 3})
	log := newLog(s)
	slow, exact := s.Watch(0), s.Watch(2)
	for range 5 {
		log.ok(t, onPrefix("198.51.100.1/32"))
	}
	v, events, err := next(t, slow)
	if !errors.Is(err, ErrCompacted) || events != nil || v.Index() != 5 {
		t.Errorf("got %v, %v, %v", v, events, err)
	}
	if _, events, err := next(t, exact); err != nil || len(events) != 3 || events[0].Index != 3 {
		t.Errorf("got %v, %v", events, err)
	}
	log.ok(t, onPrefix("198.51.100.1/32"))
	if _, events, err := next(t, slow); err != nil || len(events) != 1 || events[0].Index != 6 {
		t.Errorf("after ErrCompacted got %v, %v", events, err)
	}
	// Half of an entry's events is not enough for who has not seen that entry.
	log.ok(t, Batch{Ops: []Op{onPrefix("198.51.100.1/32"), onPrefix("198.51.100.1/32"), onPrefix("198.51.100.1/32"), onPrefix("198.51.100.1/32")}})
	if _, _, err := next(t, s.Watch(6)); !errors.Is(err, ErrCompacted) {
		t.Errorf("got %v", err)
	}
}

func TestWatcherAcrossRestore(t *testing.T) {
	l := limits{results: 1, over: 1, events: 3}
	ahead := newStore(l)
	log := newLog(ahead)
	older := snapshot(t, ahead.View())
	for range 5 {
		log.ok(t, onPrefix("198.51.100.1/32"))
	}
	image := snapshot(t, ahead.View())

	s := newStore(l)
	behind := newLog(s)
	near, far := s.Watch(0), s.Watch(0)
	for range 2 {
		behind.ok(t, onPrefix("198.51.100.1/32"))
	}
	if _, _, err := next(t, near); err != nil {
		t.Fatal(err)
	}
	if err := s.Restore(bytes.NewReader(image)); err != nil {
		t.Fatal(err)
	}
	if v, events, err := next(t, near); err != nil || len(events) != 3 || events[0].Index != 3 || v.Index() != 5 {
		t.Errorf("within the feed: %v, %v", events, err)
	}
	if v, _, err := next(t, far); !errors.Is(err, ErrCompacted) || v.Index() != 5 {
		t.Errorf("beyond the feed: %v, %v", v, err)
	}
	waiting := s.Watch(9) // asked for the future and has seen nothing
	if err := s.Restore(bytes.NewReader(older)); err != nil {
		t.Fatal(err)
	}
	if v, _, err := next(t, near); !errors.Is(err, ErrCompacted) || v.Index() != 0 {
		t.Errorf("restored to an older state: %v, %v", v, err)
	}
	if _, err := s.ApplyBatch([]Entry{{1, encode(t, Command{Op: onPrefix("198.51.100.1/32")})}}); err != nil {
		t.Fatal(err)
	}
	if _, events, err := next(t, near); err != nil || len(events) != 1 || events[0].Index != 1 {
		t.Errorf("after that: %v, %v", events, err)
	}
	if _, err := s.ApplyBatch([]Entry{{10, encode(t, Command{Op: onPrefix("198.51.100.1/32")})}}); err != nil {
		t.Fatal(err)
	}
	if _, events, err := next(t, waiting); err != nil || len(events) != 1 || events[0].Index != 10 {
		t.Errorf("a watcher of the future: %v, %v", events, err)
	}
}
