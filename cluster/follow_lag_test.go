package cluster

import (
	"fmt"
	"strconv"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/hashicorp/raft"
)

// tiredLogs takes a time that a test sets for each write.
type tiredLogs struct {
	raft.LogStore
	takes *atomic.Int64
}

func (l tiredLogs) StoreLogs(logs []*raft.Log) error {
	time.Sleep(time.Duration(l.takes.Load()))
	return l.LogStore.StoreLogs(logs)
}

func (l tiredLogs) StoreLog(log *raft.Log) error { return l.StoreLogs([]*raft.Log{log}) }

// slowing lets a test slow the disks of nodes.
func slowing(disks map[string]*atomic.Int64) func(*memWorld, *Options) {
	return func(w *memWorld, _ *Options) {
		takes := &atomic.Int64{}
		disks[w.id] = takes
		w.wrap = func(d *disk) { d.logs = tiredLogs{d.logs, takes} }
	}
}

// under writes all the time, through a node, until what is given ends.
func (n *node) under(t *testing.T, writers int, do func()) {
	stop := make(chan struct{})
	var wg sync.WaitGroup
	for w := range writers {
		wg.Go(func() {
			for i := 0; ; i++ {
				select {
				case <-stop:
					return
				default:
				}
				if _, err := n.c.Propose(within(t, 20*time.Second), declare(fmt.Sprint("vm", w), strconv.Itoa(i))); err != nil {
					t.Error(err)
					return
				}
				time.Sleep(10 * time.Millisecond)
			}
		})
	}
	do()
	close(stop)
	wg.Wait()
}

// TestFollowerThatFallsBehindKnowsIt: its own disk is too slow for what comes. What it hears of the leader waits
// in the stream with the entries, so that alone would never tell.
func TestFollowerThatFallsBehindKnowsIt(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		disks := map[string]*atomic.Int64{}
		f, _ := treeFleet(t, 3, 2, slowing(disks))
		f.start()
		_, followers := f.split()
		n := followers[0]
		l := f.leader()
		l.under(t, 5, func() {
			time.Sleep(5 * time.Second)
			was := n.store.View().Index()
			time.Sleep(time.Second)
			for range 20 {
				if s := n.c.Status(); s.CaughtUp && s.Quorum && s.Applied > was {
					was = 0
					break
				}
				time.Sleep(50 * time.Millisecond)
			}
			if was != 0 {
				t.Errorf("under load, but well, it says %+v", n.c.Status())
			}
			disks[n.id].Store(int64(3 * time.Second))
			var marks []uint64 // index of the leader, one a second
			looks, unknown := 0, 0
			for range 45 {
				time.Sleep(time.Second)
				marks = append(marks, l.store.View().Index())
				s := n.c.Status()
				const most = 7 // seconds
				if len(marks) <= most || s.Applied >= marks[len(marks)-1-most] {
					continue
				}
				looks++
				if s.CaughtUp {
					t.Errorf("more than %d s behind it says that it is up to date: %+v", most, s)
				}
				if !s.Quorum || s.CommitIndex < marks[len(marks)-1-4] { // it does not know how far
					unknown++
				}
			}
			if looks < 20 {
				t.Errorf("it was behind in %d of 45 looks: this shows nothing", looks)
			}
			if unknown > looks/10 {
				t.Errorf("in %d of %d looks it did not know how far it is behind", unknown, looks)
			}
			disks[n.id].Store(0)
		})
		f.ready().agree(l.store.View().Index())
		if s := n.c.Status(); !s.CaughtUp {
			t.Errorf("afterwards it says %+v", s)
		}
		f.stopVirtual()
	})
}

// TestFollowersLeaveASlowSource: whoever follows a node that stores too slowly finds another.
func TestFollowersLeaveASlowSource(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		disks := map[string]*atomic.Int64{}
		f, _ := treeFleet(t, 3, 10, serving(2), slowing(disks))
		f.start()
		_, followers := f.split()
		time.Sleep(time.Minute) // virtual
		var slow *node
		for _, n := range followers {
			if slow == nil || n.c.source.followers() > slow.c.source.followers() {
				slow = n
			}
		}
		if slow.c.source.followers() == 0 {
			t.Fatal("nobody follows a follower")
		}
		l := f.leader()
		l.under(t, 8, func() {
			disks[slow.id].Store(int64(time.Second))
			time.Sleep(15 * time.Second) // virtual
			last := l.store.View().Index()
			time.Sleep(2 * time.Second) // virtual
			if index := slow.store.View().Index(); index >= last {
				t.Errorf("the slow node is not slow: index %d, the leader was at %d", index, last)
			}
			for _, n := range followers {
				if index := n.store.View().Index(); n != slow && index < last {
					t.Errorf("%s, on %v, is at index %d, the leader was at %d 2 s ago", n.id, n.path(), index, last)
				}
			}
			if n := slow.c.source.followers(); n > 0 {
				t.Errorf("%d still follow the slow node", n)
			}
			disks[slow.id].Store(0)
		})
		f.ready().agree(l.store.View().Index())
		f.stopVirtual()
	})
}
