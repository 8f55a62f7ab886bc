package cluster

import (
	"context"
	"errors"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/palisade/palisade/fsm"
)

// TestCommandsAreStampedByTheClockGiven, also those of followers; without it nothing is appended, and it is
// tried again.
func TestCommandsAreStampedByTheClockGiven(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var silent atomic.Bool
		f, _ := memFleet(t, 3, func(_ *memWorld, o *Options) {
			o.Clock = func(context.Context) (time.Time, error) {
				if silent.Load() {
					return time.Time{}, errors.New("no clock answers")
				}
				return time.Now().Add(time.Hour), nil
			}
		})
		f.start().ready()
		for _, n := range []*node{f.leader(), f.follower()} {
			n.propose(declare("vm", n.id))
			if ahead := time.Until(n.store.View().Time()); ahead < 59*time.Minute || ahead > time.Hour {
				t.Errorf("a command of %s was stamped %s ahead, want an hour", n.id, ahead)
			}
		}
		silent.Store(true)
		l := f.leader()
		last := l.c.running.Load().raft.LastIndex()
		if _, err := l.c.Propose(within(t, 2*time.Second), declare("vm", "nobody")); !errors.Is(err, fsm.ErrUnavailable) {
			t.Errorf("without a clock: %v, want %v", err, fsm.ErrUnavailable)
		}
		if now := l.c.running.Load().raft.LastIndex(); now != last {
			t.Errorf("%d entries were appended without a clock", now-last)
		}
		silent.Store(false)
		l.propose(declare("vm", "again"))
		f.stopVirtual()
	})
}
