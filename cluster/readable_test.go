package cluster

import (
	"context"
	"errors"
	"testing"
	"testing/synctest"
)

// TestAdmissionsAndFirstEntriesOfAFormat: neither sets out while the other is under way, whichever was first, and then the state
// is asked again: an entry that waited for an admission must not be appended by what was known before.
func TestAdmissionsAndFirstEntriesOfAFormat(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := newFormats()
		needed, has := 2, 1
		first := func() bool { return needed > has }
		plain := func() bool { return false }
		enter := func(admits bool, raises func() bool) (entered chan func()) {
			entered = make(chan func(), 1)
			go func() {
				leave, err := f.enter(t.Context(), admits, raises)
				if err != nil {
					t.Error(err)
				}
				entered <- leave
			}()
			synctest.Wait()
			return entered
		}
		out := func(c chan func()) bool { return len(c) == 1 }
		one, two := enter(true, plain), enter(true, plain)
		raising, other := enter(false, first), enter(false, plain)
		if !out(one) || !out(two) || out(raising) || !out(other) {
			t.Fatal("two admissions and a plain command go on, a first entry waits")
		}
		(<-one)()
		synctest.Wait()
		if out(raising) {
			t.Fatal("it did not wait for the second admission")
		}
		(<-two)()
		synctest.Wait()
		if !out(raising) {
			t.Fatal("it waits for nothing")
		}
		late, again, other := enter(true, plain), enter(false, first), enter(false, plain)
		if out(late) || out(again) || !out(other) {
			t.Fatal("while a first entry is under way an admission waits, and another one, but nothing else")
		}
		ended, cancel := context.WithCancel(t.Context())
		cancel()
		if _, err := f.enter(ended, true, plain); !errors.Is(err, context.Canceled) {
			t.Errorf("gave up with %v", err)
		}
		has = 2 // it was applied
		(<-raising)()
		synctest.Wait()
		if !out(late) || !out(again) {
			t.Fatal("both wait though the format is known now")
		}
		(<-late)()
		(<-again)()
		if f.admits != 0 || f.raises {
			t.Errorf("at the end %d admissions and %v are under way", f.admits, f.raises)
		}
	})
}
