package agent

import (
	"context"
	"maps"
	"testing"
	"time"

	"github.com/palisade/palisade/fsm"
)

// TestDurationsAreCountedByAMajority: a block with a duration ends when that has passed, whatever the
// clock of the leader that took the request says, and that of the leader that ends it.
func TestDurationsAreCountedByAMajority(t *testing.T) {
	const length = time.Hour
	for name, c := range map[string]struct {
		offsets map[string]time.Duration
		dead    string // while the request is stamped
		most    time.Duration
	}{
		"all right":                        {},
		"leader slow":                      {offsets: map[string]time.Duration{"n1": -10 * time.Minute}},
		"leader fast":                      {offsets: map[string]time.Duration{"n1": 10 * time.Minute}},
		"leader slow, one dead":            {offsets: map[string]time.Duration{"n1": -10 * time.Minute}, dead: "n3"},
		"leader fast, one dead":            {offsets: map[string]time.Duration{"n1": 10 * time.Minute}, dead: "n3", most: 10 * time.Minute},
		"another slow, the right one dead": {offsets: map[string]time.Duration{"n2": -10 * time.Minute}, dead: "n3"},
		"one slow, one fast":               {offsets: map[string]time.Duration{"n1": -10 * time.Minute, "n2": 10 * time.Minute}},
	} {
		t.Run(name, func(t *testing.T) {
			bubble(t, func(t *testing.T, f *clockFleet, ctx context.Context) {
				f.set(func() { maps.Copy(f.offsets, c.offsets); f.dead[c.dead] = true })
				at, err := f.clock("n1").Stamp(ctx)
				if err != nil {
					t.Fatal(err)
				}
				begin := time.Now()
				f.set(func() { f.stamp = at; f.dead[c.dead] = false })
				b := f.apply(fsm.AddBlock{Target: fsm.Target{Account: "a"}, Duration: length, ConfirmWithin: 2 * length}).Block
				f.run(ctx, "n1")
				time.Sleep(time.Until(begin.Add(length)))
				if got := f.block(b.ID); got.State != fsm.BlockActive {
					t.Fatalf("%s later it is %s: it ended early", length, got.State)
				}
				time.Sleep(c.most + lookAgain + 60*time.Millisecond)
				if got := f.block(b.ID); got.State != fsm.BlockEnded {
					t.Fatalf("it has not ended: %+v", got)
				}
			})
		})
	}
}

// TestStampRemembersWhoIsSilent: a voter that has just died still counts, so that one fast clock does not
// move the time.
func TestStampRemembersWhoIsSilent(t *testing.T) {
	bubble(t, func(t *testing.T, f *clockFleet, ctx context.Context) {
		f.set(func() { f.offsets["n2"] = time.Hour })
		c := f.clock("n1")
		for range 3 {
			at, err := c.Stamp(ctx)
			if err != nil {
				t.Fatal(err)
			}
			if ahead := time.Until(at); ahead < 0 || ahead > 10*time.Millisecond {
				t.Fatalf("the stamp is %s ahead of two clocks of three", ahead)
			}
			f.set(func() { f.dead["n3"] = true })
			time.Sleep(stampFor + time.Second)
		}
	})
}

// TestNoStampWithoutAMajority: a leader that hears nobody does not guess.
func TestNoStampWithoutAMajority(t *testing.T) {
	bubble(t, func(t *testing.T, f *clockFleet, ctx context.Context) {
		f.set(func() { f.dead["n2"], f.dead["n3"] = true, true })
		c := f.clock("n1")
		if at, err := c.Stamp(ctx); err == nil {
			t.Fatalf("it stamps %s", at)
		}
		f.set(func() { f.dead["n2"] = false })
		if _, err := c.Stamp(ctx); err != nil {
			t.Fatal(err)
		}
	})
}

// TestOneWrongClockDoesNotMoveTheTime: state time never runs back, so a stamp years ahead would end every token,
// and let every duration end years late. While too few answer to tell which clock is right, there is none.
func TestOneWrongClockDoesNotMoveTheTime(t *testing.T) {
	for _, wrong := range []string{"n1", "n2"} {
		t.Run(wrong, func(t *testing.T) {
			bubble(t, func(t *testing.T, f *clockFleet, ctx context.Context) {
				f.set(func() { f.offsets[wrong] = 87_600 * time.Hour; f.dead["n3"] = true })
				c := f.clock("n1")
				if at, err := c.Stamp(ctx); err == nil {
					t.Fatalf("the stamp is %s ahead", time.Until(at))
				}
				f.set(func() { f.dead["n3"] = false })
				time.Sleep(stampFor + time.Second)
				at, err := c.Stamp(ctx)
				if err != nil {
					t.Fatal(err)
				}
				right := time.Now() // the bubble's clock is that of n1
				if wrong == "n1" {
					right = right.Add(-87_600 * time.Hour)
				}
				if off := at.Sub(right).Abs(); off > 10*time.Millisecond {
					t.Fatalf("the stamp is %s away from two clocks of three", off)
				}
			})
		})
	}
}
