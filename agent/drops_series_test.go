package agent

import (
	"context"
	"fmt"
	"testing"
	"testing/synctest"
	"time"

	"github.com/palisade/palisade/enforce"
	"github.com/palisade/palisade/fsm"
)

// tail is the newest steps of the one series that an answer should have.
func tail(t *testing.T, d *fsm.Drops, n int) string {
	t.Helper()
	if len(d.Series) != 1 {
		t.Fatalf("%d series: %+v", len(d.Series), d.Series)
	}
	s := d.Series[0]
	if len(s.Packets) != d.Steps || len(s.Bytes) != d.Steps || s.Bytes[d.Steps-1] != 10*s.Packets[d.Steps-1] {
		t.Fatalf("%d steps, %d packets, %d bytes", d.Steps, len(s.Packets), len(s.Bytes))
	}
	return s.Reason + s.Block + fmt.Sprint(s.Packets[max(0, d.Steps-n):])
}

// TestSeriesOfDrops: each step has what was dropped in it, whoever read the counters meanwhile.
func TestSeriesOfDrops(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p := newDropping(t)
		s := newDropSeries(p.d)
		ctx, cancel := context.WithCancel(t.Context())
		ended := make(chan error, 1)
		go func() { ended <- s.Run(ctx) }()
		synctest.Wait()
		b := p.block(1, fsm.ReasonAbuse)
		drop := func(n uint64) {
			p.mu.Lock()
			p.count[b.ID] += n
			p.mu.Unlock()
		}
		step := func() { time.Sleep(fsm.DropsFineStep); synctest.Wait() }
		drop(3)
		step()
		drop(5)
		p.dropped(t, fsm.ReasonAbuse) // a scrape in the middle of a step takes nothing away
		drop(2)
		time.Sleep(fsm.DropsFineStep - dropsKept)
		synctest.Wait()
		step()
		d := s.Answer(fsm.DropsQuery{})
		if got := tail(t, d, 3); got != "abuse[3 7 0]" || d.Steps != 3 || d.Step != fsm.DropsFineStep || !d.End.Equal(d.End.Truncate(fsm.DropsFineStep)) || time.Since(d.End) > time.Second {
			t.Fatalf("%s of %d steps to %s, now %s", got, d.Steps, d.End, time.Now())
		}
		if got := tail(t, s.Answer(fsm.DropsQuery{Blocks: []string{b.ID, "b99"}}), 3); got != b.ID+"[3 7 0]" {
			t.Errorf("of the block: %s", got)
		}
		for range 60 {
			step()
		}
		if got := tail(t, s.Answer(fsm.DropsQuery{Coarse: true}), 9); got != "abuse[10 0]" {
			t.Errorf("of the day: %s", got)
		}
		if got := tail(t, s.Answer(fsm.DropsQuery{Blocks: []string{b.ID}, Coarse: true}), 9); got != b.ID+"[10 0]" {
			t.Errorf("of the block's day: %s", got)
		}
		for range fineSteps {
			step()
		}
		if d := s.Answer(fsm.DropsQuery{}); d.Steps != fineSteps || len(d.Series) != 0 || len(s.Answer(fsm.DropsQuery{Blocks: []string{b.ID}}).Series) != 0 {
			t.Errorf("after an hour of quiet: %d steps, %d series, %d blocks", d.Steps, len(d.Series), len(s.blocks))
		}
		for range int(fsm.DropsCoarseSpan / fsm.DropsFineStep) {
			step()
		}
		if len(s.blocks) != 0 {
			t.Errorf("after a day of quiet: %d blocks", len(s.blocks))
		}
		cancel()
		if err := <-ended; err != nil {
			t.Error(err)
		}
	})
}

func TestSeriesAreKeptOfTheBlocksThatDropLast(t *testing.T) {
	s := newDropSeries(nil)
	end := time.Unix(1_700_000_000, 0)
	for i := range maxDropBlocks + 3 {
		end = end.Add(fsm.DropsFineStep)
		s.add(end, []dropped{{fmt.Sprintf("b%d", i+1), fsm.ReasonAbuse, enforce.Counter{Packets: 1, Bytes: 10}}})
	}
	if len(s.blocks) != maxDropBlocks || s.blocks["b3"] != nil || s.blocks["b4"] == nil {
		t.Errorf("%d blocks", len(s.blocks))
	}
}

func TestARingSurvivesClocksThatAreSet(t *testing.T) {
	at := func(n int) time.Time { return time.Unix(1_700_000_000, 0).Add(time.Duration(n) * time.Second) }
	r := ring[int]{step: time.Second, size: 5}
	for _, c := range []struct {
		end  int
		want string
	}{
		{1, "[1]"}, {2, "[1 2]"}, {5, "[1 2 0 0 5]"}, {6, "[2 0 0 5 6]"}, {6, "[2 0 0 5 6]"}, {4, "[2 0 4]"}, {5, "[2 0 4 5]"}, {99, "[99]"}, {3, "[3]"}, {4, "[3 4]"},
	} {
		r.add(at(c.end), c.end)
		if got := fmt.Sprint(r.items); got != c.want || !r.end.Equal(at(c.end)) || r.at(at(c.end)) != c.end || r.at(at(c.end+1)) != 0 || r.at(at(c.end-50)) != 0 {
			t.Errorf("after %d: %s, want %s", c.end, got, c.want)
		}
	}
}
