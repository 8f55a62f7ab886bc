package cluster

import (
	"context"
	"errors"
	"strings"
	"sync/atomic"
	"syscall"
	"testing"
	"testing/synctest"
	"time"

	"github.com/hashicorp/raft"

	"github.com/palisade/palisade/fsm"
)

// faultyLogs fails or hangs appends on demand, under the guard as a real disk would.
type faultyLogs struct {
	raft.LogStore
	fail atomic.Bool
	hang atomic.Pointer[chan struct{}]
}

func (l *faultyLogs) StoreLogs(logs []*raft.Log) error {
	if ch := l.hang.Load(); ch != nil {
		<-*ch
	}
	if l.fail.Load() {
		return syscall.EIO
	}
	return l.LogStore.StoreLogs(logs)
}

// faultyFleet is a memFleet whose disks can be made to fail.
func faultyFleet(t *testing.T, n int, tune ...func(w *memWorld, o *Options)) (*fleet, map[string]*faultyLogs) {
	disks := map[string]*faultyLogs{}
	f, _ := memFleet(t, n, append(tune, func(w *memWorld, _ *Options) {
		l := &faultyLogs{LogStore: w.store.logs}
		disks[w.id] = l
		w.wrap = func(d *disk) { d.logs = &guardedLogs{d.guard, l} }
	})...)
	return f, disks
}

func TestFailingStoreEndsTheProcess(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f, disks := faultyFleet(t, 3)
		f.start().ready()
		l := f.leader()
		disks[l.id].fail.Store(true)
		_, err := l.c.Propose(within(t, 10*time.Second), declare("vm", "one"))
		if !errors.Is(err, fsm.ErrUnknown) {
			t.Errorf("a write on a failing disk: %v", err)
		}
		fatal := <-l.fatal
		if !errors.Is(fatal, syscall.EIO) || !strings.Contains(fatal.Error(), "in memory: append to the log") {
			t.Errorf("Fatal was called with %v", fatal)
		}
		// A failed sync is final: the disk that says it works again is not believed.
		disks[l.id].fail.Store(false)
		d := l.c.running.Load().disk
		if err := d.logs.StoreLog(&raft.Log{Index: 100, Term: 9}); !errors.Is(err, syscall.EIO) {
			t.Errorf("after a failure the store answers %v", err)
		}
		l.crash()
		f.ready()
		f.follower().propose(declare("vm", "two"))
		f.stopVirtual()
	})
}

func TestHangingStoreEndsTheProcess(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f, disks := faultyFleet(t, 3)
		f.start().ready()
		l := f.leader()
		release := make(chan struct{})
		disks[l.id].hang.Store(&release)
		begin := time.Now()
		// Nobody writes: the leader's own probe finds it out.
		fatal := <-l.fatal
		if !strings.Contains(fatal.Error(), "the disk hangs") {
			t.Errorf("Fatal was called with %v", fatal)
		}
		if took := time.Since(begin); took > 14*time.Second {
			t.Errorf("a hung disk was noticed after %s", took)
		}
		close(release)
		l.crash()
		f.leader()
		f.stopVirtual()
	})
}

func TestLeaderThatCannotCommitEndsTheProcess(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f, disks := faultyFleet(t, 3, func(_ *memWorld, o *Options) { o.Timing.StuckIO = time.Hour })
		f.start().ready()
		l := f.leader()
		// The followers' disks hang and nobody there notices: they answer heartbeats.
		release := make(chan struct{})
		for _, n := range f.nodes {
			if n != l {
				disks[n.id].hang.Store(&release)
			}
		}
		begin := time.Now()
		select {
		case fatal := <-l.fatal:
			if !strings.Contains(fatal.Error(), "committed nothing") {
				t.Errorf("Fatal was called with %v", fatal)
			}
			if took := time.Since(begin); took < 9*time.Second || took > 12*time.Second {
				t.Errorf("after %s", took)
			}
		case <-time.After(time.Minute):
			if l.leads() {
				t.Error("a leader that commits nothing leads on")
			}
		}
		close(release)
		f.stopVirtual()
	})
}

func TestHaltedStateStaysAMember(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f, _ := memFleet(t, 3)
		f.start().ready()
		l := f.leader()
		before := l.propose(declare("vm", "one"))
		// An entry of a version to come: a command with a field (1000) that this one doesn't know.
		data, err := fsm.MarshalCommand(declare("vm", "future"))
		if err != nil {
			t.Fatal(err)
		}
		go func() { _ = l.c.running.Load().raft.Apply(append(data, 0xc0, 0x3e, 1), time.Second).Error() }()
		f.await("the states to halt", func() bool {
			for _, n := range f.nodes {
				if n.store.Halted() == nil {
					return false
				}
			}
			return true
		})
		time.Sleep(time.Minute) // virtual
		for _, n := range f.nodes {
			s := n.c.Status()
			if s.CaughtUp || s.Applied != before.Index || !s.Quorum {
				t.Errorf("status of %s: %+v", n.id, s)
			}
			if owner(n.store, "vm") != "one" {
				t.Errorf("%s lost its state", n.id)
			}
			if _, err := n.c.Propose(within(t, 5*time.Second), declare("vm", "two")); !errors.Is(err, fsm.ErrUnavailable) {
				t.Errorf("Propose on %s: %v", n.id, err)
			}
			if len(n.fatal) > 0 {
				t.Errorf("%s would have ended: %v", n.id, <-n.fatal)
			}
			// The log behind the entry must not be cut off.
			if err := n.c.running.Load().raft.Snapshot().Error(); err == nil {
				t.Errorf("%s took a snapshot of a halted state", n.id)
			}
		}
		f.stopVirtual()
	})
}

// TestStarvationIsNoHang: a process that got no processor for an hour has not waited an hour for its disk.
func TestStarvationIsNoHang(t *testing.T) {
	g := newGuard("test", time.Second, func(err error) { t.Error(err) })
	release, done := make(chan struct{}), make(chan struct{})
	running := make(chan struct{})
	go func() {
		defer close(done)
		_ = g.do("a write", 1, func() error { close(running); <-release; return nil })
	}()
	<-running
	if _, stuck := g.passed(time.Hour); stuck != 0 {
		t.Errorf("after one late look the disk is said to hang for %s", stuck)
	}
	var stuck time.Duration
	for range ticks {
		_, stuck = g.passed(time.Second / ticks)
	}
	if stuck == 0 {
		t.Error("a disk that hangs while the process runs is not noticed")
	}
	close(release)
	<-done
}

func TestGuardPassesWhatIsNoFailure(t *testing.T) {
	g := newGuard("x", time.Second, func(err error) { t.Errorf("Fatal: %v", err) })
	g.quiet.Store(false)
	mem := raft.NewInmemStore()
	logs, stable := &guardedLogs{g, mem}, &guardedStable{g, mem}
	if err := logs.GetLog(7, &raft.Log{}); !errors.Is(err, raft.ErrLogNotFound) {
		t.Errorf("a missing entry: %v", err)
	}
	if _, err := stable.Get([]byte("none")); err == nil || !notFound(err) {
		t.Errorf("a missing key: %v", err)
	}
	// What goes in comes out, and raft's own entry is not touched.
	in := &raft.Log{Index: 1, Term: 2, Type: raft.LogCommand, Data: []byte("data")}
	if err := logs.StoreLog(in); err != nil || in.Extensions != nil {
		t.Errorf("StoreLog: %v, %x", err, in.Extensions)
	}
	var out raft.Log
	if err := logs.GetLog(1, &out); err != nil || string(out.Data) != "data" || out.Extensions != nil {
		t.Errorf("GetLog: %+v, %v", out, err)
	}
}

func TestChangedEntryIsNotRead(t *testing.T) {
	for name, change := range map[string]func(*raft.Log){
		"data": func(l *raft.Log) { l.Data[0] ^= 1 },
		"term": func(l *raft.Log) { l.Term++ },
		"type": func(l *raft.Log) { l.Type = raft.LogNoop },
	} {
		fatal := make(chan error, 1)
		g := newGuard("x", time.Second, func(err error) { fatal <- err })
		g.quiet.Store(false)
		mem := raft.NewInmemStore()
		logs := &guardedLogs{g, mem}
		if err := logs.StoreLog(&raft.Log{Index: 1, Term: 2, Data: []byte("data")}); err != nil {
			t.Fatal(err)
		}
		var l raft.Log
		if err := mem.GetLog(1, &l); err != nil {
			t.Fatal(err)
		}
		l.Data = append([]byte(nil), l.Data...)
		change(&l)
		if err := mem.StoreLog(&l); err != nil {
			t.Fatal(err)
		}
		if err := logs.GetLog(1, &raft.Log{}); err == nil || len(fatal) != 1 {
			t.Errorf("%s: read a changed entry: %v", name, err)
		}
	}
}

func TestProposeHonoursTheContext(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f, net := memFleet(t, 3)
		f.start().ready()
		l, n := f.leader(), f.follower()
		for _, other := range f.nodes {
			if other != l {
				net.cut(other.id, true)
			}
		}
		for _, on := range []*node{l, n} {
			for _, key := range []string{"", "k"} {
				cmd := declare("vm", "x")
				cmd.Key = key
				ctx, cancel := context.WithTimeout(context.Background(), 300*time.Millisecond)
				begin := time.Now()
				_, err := on.c.Propose(ctx, cmd)
				cancel()
				if took := time.Since(begin); took > 310*time.Millisecond || err == nil {
					t.Errorf("%v after %s", err, took)
				}
				if !errors.Is(err, fsm.ErrUnknown) && !errors.Is(err, fsm.ErrUnavailable) {
					t.Errorf("no honest outcome: %v", err)
				}
			}
		}
		// Without a deadline of its own a keyed write ends after Timing.Propose.
		cmd := declare("vm", "x")
		cmd.Key = "k2"
		begin := time.Now()
		_, err := l.c.Propose(context.Background(), cmd)
		if took := time.Since(begin); err == nil || took > 10*time.Second+time.Second {
			t.Errorf("%v after %s", err, took)
		}
		f.stopVirtual()
	})
}
