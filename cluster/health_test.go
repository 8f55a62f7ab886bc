package cluster

import (
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/prometheus/client_golang/prometheus"
)

// TestAHangingStoreShowsBeforeItEndsTheProcess, and a store that is well shows nothing.
func TestAHangingStoreShowsBeforeItEndsTheProcess(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f, disks := faultyFleet(t, 3)
		f.start().ready()
		l := f.leader()
		time.Sleep(10 * time.Second)
		if h := l.c.Health(); h != (Health{}) {
			t.Errorf("a leader that is well: %+v", h)
		}
		release := make(chan struct{})
		disks[l.id].hang.Store(&release)
		if err := <-l.fatal; err == nil {
			t.Error("it ended without a reason")
		}
		if h := l.c.Health(); h.StoreSlowest < 5*time.Second {
			t.Errorf("behind a disk that hangs: %+v", h)
		}
		close(release)
		l.crash()
		f.leader()
		f.stopVirtual()
	})
}

func TestTheSlowestCallIsToldOfForAMinute(t *testing.T) {
	g := newGuard("test", 5*time.Second, func(err error) { t.Error(err) })
	release, running, done := make(chan struct{}), make(chan struct{}), make(chan struct{})
	go func() {
		defer close(done)
		_ = g.do("a write", 1, func() error { close(running); <-release; return nil })
	}()
	<-running
	for range 2 {
		g.passed(time.Second)
	}
	if d := g.slowest(); d != 2*time.Second {
		t.Errorf("a call that is under way for 2 s: %s", d)
	}
	close(release)
	<-done
	_ = g.do("a quick one", 1, func() error { return nil })
	for range 50 {
		g.passed(time.Second)
	}
	if d := g.slowest(); d != 2*time.Second {
		t.Errorf("50 s later: %s", d)
	}
	for range 11 {
		g.passed(time.Second)
	}
	if d := g.slowest(); d != 0 {
		t.Errorf("after a minute: %s", d)
	}
}

// TestALeaderThatCannotCommitShows before it ends, and while it idles shows nothing.
func TestALeaderThatCannotCommitShows(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f, disks := faultyFleet(t, 3, func(_ *memWorld, o *Options) {
			o.Timing.StuckIO = time.Hour
			o.Timing.Heartbeat, o.Timing.Election, o.Timing.Lease = 12*time.Second, 12*time.Second, 12*time.Second // it does not step down
		})
		f.start().ready()
		l := f.leader()
		for range 100 {
			time.Sleep(300 * time.Millisecond)
			if d := l.c.Health().CommitStall; d != 0 {
				t.Fatalf("an idle leader is stalled for %s", d)
			}
		}
		release := make(chan struct{})
		for _, n := range f.nodes {
			if n != l {
				disks[n.id].hang.Store(&release)
			}
		}
		time.Sleep(9 * time.Second)
		if d := l.c.Health().CommitStall; d < 5*time.Second || d > 9*time.Second {
			t.Errorf("9 s later it says %s", d)
		}
		if err := <-l.fatal; err == nil {
			t.Error("it ended without a reason")
		}
		close(release)
		f.stopVirtual()
	})
}

// TestMetricsOfTheCluster: every gauge tells what a fleet that is well has.
func TestMetricsOfTheCluster(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		regs := map[string]*prometheus.Registry{}
		f, _ := memFleet(t, 3, func(w *memWorld, o *Options) {
			regs[w.id] = prometheus.NewRegistry()
			o.Registry = regs[w.id]
		})
		f.start().ready()
		l, n := f.leader(), f.follower()
		l.propose(declare("vm", "one"))
		time.Sleep(2 * time.Second)
		values := func(id string) map[string]float64 {
			out := map[string]float64{}
			families, err := regs[id].Gather()
			if err != nil {
				t.Fatal(err)
			}
			for _, mf := range families {
				name := strings.TrimPrefix(mf.GetName(), "palisade_cluster_")
				for _, m := range mf.GetMetric() {
					out[name] += m.GetGauge().GetValue() + float64(m.GetHistogram().GetSampleCount())
				}
			}
			return out
		}
		for _, c := range []struct {
			id   string
			want map[string]float64
		}{
			{l.id, map[string]float64{"is_leader": 1, "raft_state": 2, "propose_seconds": 1, "leader_contact_age_seconds": 0}},
			{n.id, map[string]float64{"is_leader": 0, "raft_state": 0}},
		} {
			got := values(c.id)
			for _, well := range []string{"has_quorum", "caught_up"} {
				c.want[well] = 1
			}
			for _, all := range []string{"peers", "peers_alive", "voters"} {
				c.want[all] = 3
			}
			for _, none := range []string{"commit_stall_seconds", "store_slowest_seconds", "gossip_health_score"} {
				c.want[none] = 0
			}
			for name, want := range c.want {
				if v, ok := got[name]; !ok || v != want {
					t.Errorf("%s: %s is %v (%t), want %v", c.id, name, v, ok, want)
				}
			}
			if got["applied_index"] == 0 || got["commit_index"] < got["applied_index"] || got["term"] == 0 || got["log_append_seconds"] == 0 {
				t.Errorf("%s: %v", c.id, got)
			}
			if age := got["leader_contact_age_seconds"]; age > 2 {
				t.Errorf("%s: a leader was heard %v s ago", c.id, age)
			}
		}
		f.stopVirtual()
	})
}
