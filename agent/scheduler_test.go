package agent

import (
	"context"
	"log/slog"
	"maps"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/palisade/palisade/fsm"
)

// clockFleet is what a scheduler sees of a fleet: a log that commits at once, and clocks of three voters.
// It is used in a synctest bubble.
type clockFleet struct {
	t     *testing.T
	store *fsm.Store

	mu      sync.Mutex
	index   uint64
	leader  string
	cut     map[string]time.Time     // since when the node hears no leader
	offsets map[string]time.Duration // of the voters' clocks
	dead    map[string]bool
	stamp   time.Time      // of the next entry, if not zero; else it is the bubble's
	kernel  uint64         // log index in the kernels; 0: that of the store
	lost    bool           // the outcome of the next proposal stays unknown, though it is committed
	fires   map[string]int // that changed something, by block
}

func newClockFleet(t *testing.T) *clockFleet {
	return &clockFleet{
		t: t, store: fsm.NewStore(), leader: "n1", cut: map[string]time.Time{},
		offsets: map[string]time.Duration{"n1": 0, "n2": 0, "n3": 0}, dead: map[string]bool{}, fires: map[string]int{},
	}
}

func (f *clockFleet) apply(op fsm.Op) fsm.Result {
	f.t.Helper()
	r, err := f.propose(fsm.Command{Actor: "test", Op: op})
	if err != nil || r.Err != nil {
		f.t.Fatalf("%+v: %v %v", op, err, r.Err)
	}
	return r
}

func (f *clockFleet) propose(c fsm.Command) (fsm.Result, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if c.Time = time.Now(); !f.stamp.IsZero() {
		c.Time, f.stamp = f.stamp, time.Time{}
	}
	data, err := fsm.MarshalCommand(c)
	if err != nil {
		return fsm.Result{}, err
	}
	f.index++
	r, err := f.store.ApplyBatch([]fsm.Entry{{Index: f.index, Data: data}})
	if err != nil {
		return fsm.Result{}, err
	}
	for _, item := range r[0].Items {
		if item.Err == nil && item.Block != nil {
			f.fires[item.Block.ID]++
		}
	}
	if f.lost && len(r[0].Items) > 0 {
		f.lost = false
		return fsm.Result{}, fsm.ErrUnknown
	}
	return r[0], nil
}

// clock is that of one node, whose own is the bubble's.
func (f *clockFleet) clock(node string) *fleetClock {
	return newFleetClock(func() (list []fsm.Member) {
		for _, id := range []string{"n1", "n2", "n3"} {
			list = append(list, fsm.Member{ID: id, Voter: true, Self: id == node})
		}
		return list
	}, func(ctx context.Context, id string, _ fsm.Query) (fsm.Report, error) {
		f.mu.Lock()
		dead, offset, own := f.dead[id], f.offsets[id], f.offsets[node]
		f.mu.Unlock()
		if dead {
			<-ctx.Done()
			return fsm.Report{}, ctx.Err()
		}
		time.Sleep(time.Millisecond)
		return fsm.Report{At: time.Now().Add(offset - own)}, nil
	})
}

// run starts the scheduler of one node; the result tells what it has started by itself.
func (f *clockFleet) run(ctx context.Context, node string) func() []string {
	var mu sync.Mutex
	var mine []string
	s := &scheduler{
		log: slog.New(slog.DiscardHandler), node: node, store: f.store, metrics: newSchedulerMetrics(prometheus.NewRegistry()),
		status: func() fsm.Status {
			f.mu.Lock()
			defer f.mu.Unlock()
			since, cut := f.cut[node]
			if cut {
				return fsm.Status{Node: node, LastContact: since}
			}
			return fsm.Status{Node: node, Leader: f.leader, Quorum: true, LastContact: time.Now()}
		},
		clock: f.clock(node),
		propose: func(_ context.Context, c fsm.Command) (fsm.Result, error) {
			f.mu.Lock()
			leads := f.leader == node && f.cut[node].IsZero()
			f.mu.Unlock()
			if !leads {
				return fsm.Result{}, fsm.ErrUnavailable
			}
			return f.propose(c)
		},
		started: func(ids map[string]struct{}) {
			mu.Lock()
			defer mu.Unlock()
			mine = slices.Sorted(maps.Keys(ids))
		},
		enforced: func() uint64 {
			f.mu.Lock()
			defer f.mu.Unlock()
			if f.kernel != 0 {
				return f.kernel
			}
			return f.store.View().Index()
		},
	}
	go func() {
		if err := s.Run(ctx); err != nil {
			f.t.Error(err)
		}
	}()
	return func() []string {
		mu.Lock()
		defer mu.Unlock()
		return mine
	}
}

func (f *clockFleet) set(change func()) {
	f.mu.Lock()
	defer f.mu.Unlock()
	change()
}

func (f *clockFleet) block(id string) *fsm.Block {
	f.t.Helper()
	b, ok := f.store.View().Block(id)
	if !ok {
		f.t.Fatalf("there is no block %s", id)
	}
	return b
}

func bubble(t *testing.T, test func(t *testing.T, f *clockFleet, ctx context.Context)) {
	t.Helper()
	synctest.Test(t, func(t *testing.T) {
		ctx, cancel := context.WithCancel(t.Context())
		defer cancel()
		test(t, newClockFleet(t), ctx)
		cancel()
		synctest.Wait()
	})
}

// TestDueTimesAreMet: a delayed block starts and ends at its times, with other due times all around.
func TestDueTimesAreMet(t *testing.T) {
	bubble(t, func(t *testing.T, f *clockFleet, ctx context.Context) {
		f.run(ctx, "n1")
		start := time.Now().Add(time.Hour + 123*time.Millisecond)
		b := f.apply(fsm.AddBlock{Target: fsm.Target{Account: "a"}, StartsAt: start, Duration: time.Minute}).Block
		for i := range 500 {
			f.apply(fsm.AddBlock{Target: fsm.Target{Account: strconv.Itoa(i)}, StartsAt: start.Add(time.Duration(i-250) * time.Second)})
		}
		time.Sleep(time.Until(start.Add(-time.Nanosecond)))
		if got := f.block(b.ID); got.State != fsm.BlockPending {
			t.Fatalf("it started early: %+v", got)
		}
		time.Sleep(50 * time.Millisecond)
		if got := f.block(b.ID); got.State != fsm.BlockActive || got.StartedAt.Before(start) {
			t.Fatalf("50 ms after its start it is %+v", got)
		}
		end := start.Add(time.Minute)
		time.Sleep(time.Until(end.Add(-time.Nanosecond)))
		if got := f.block(b.ID); got.State != fsm.BlockActive {
			t.Fatalf("it ended early: %+v", got)
		}
		time.Sleep(50 * time.Millisecond)
		if got := f.block(b.ID); got.State != fsm.BlockEnded {
			t.Fatalf("50 ms after its end it is %+v", got)
		}
	})
}

// TestClocksThatDisagree: neither a leader whose clock is ahead nor a minority ends a block early; one
// whose clock is behind does not end it late.
func TestClocksThatDisagree(t *testing.T) {
	for name, c := range map[string]struct {
		offsets map[string]time.Duration
		late    time.Duration // after the end by the clocks that are right
	}{
		"leader ahead":   {map[string]time.Duration{"n1": time.Hour}, 0},
		"leader behind":  {map[string]time.Duration{"n1": -time.Hour}, 0},
		"other behind":   {map[string]time.Duration{"n3": -time.Hour}, 0},
		"other ahead":    {map[string]time.Duration{"n2": time.Hour}, 0},
		"all apart":      {map[string]time.Duration{"n1": time.Minute, "n3": -time.Minute}, 0},
		"majority ahead": {map[string]time.Duration{"n1": -time.Minute, "n2": -time.Minute}, time.Minute},
	} {
		t.Run(name, func(t *testing.T) {
			bubble(t, func(t *testing.T, f *clockFleet, ctx context.Context) {
				f.set(func() { maps.Copy(f.offsets, c.offsets) })
				own := f.offsets["n1"]
				// The bubble's clock is the leader's, so the others reach a time that much later on it.
				end := time.Now().Add(2 * time.Hour)
				b := f.apply(fsm.AddBlock{Target: fsm.Target{Account: "a"}, EndsAt: end}).Block
				f.run(ctx, "n1")
				at := end.Add(own).Add(c.late)
				time.Sleep(time.Until(at.Add(-time.Millisecond)))
				if got := f.block(b.ID); got.State != fsm.BlockActive {
					t.Fatalf("it ended early: %+v", got)
				}
				time.Sleep(60 * time.Millisecond)
				if got := f.block(b.ID); got.State != fsm.BlockEnded {
					t.Fatalf("it did not end: %+v", got)
				}
			})
		})
	}
}

// TestTheLeaderDiesAtThatMoment, with its proposal committed or not: the next one finishes, once.
func TestTheLeaderDiesAtThatMoment(t *testing.T) {
	bubble(t, func(t *testing.T, f *clockFleet, ctx context.Context) {
		first, die := context.WithCancel(ctx)
		defer die()
		f.run(first, "n1")
		f.run(ctx, "n2")
		at := time.Now().Add(time.Minute)
		done := f.apply(fsm.AddBlock{Target: fsm.Target{Account: "a"}, StartsAt: at}).Block
		open := f.apply(fsm.AddBlock{Target: fsm.Target{Account: "b"}, StartsAt: at.Add(10 * time.Millisecond)}).Block
		f.set(func() { f.lost = true })
		time.Sleep(time.Until(at.Add(5 * time.Millisecond)))
		die()
		f.set(func() { f.leader, f.dead["n1"] = "n2", true })
		time.Sleep(3 * time.Second)
		for _, id := range []string{done.ID, open.ID} {
			fires := 0
			f.set(func() { fires = f.fires[id] })
			if got := f.block(id); got.State != fsm.BlockActive || fires != 1 {
				t.Errorf("block %s was fired %d times and is %s", id, fires, got.State)
			}
		}
	})
}

// TestWithoutQuorum: what was agreed starts on time by the node's own clock, in its kernel only, and
// nothing ends; when the fleet is back, the state decides.
func TestWithoutQuorum(t *testing.T) {
	bubble(t, func(t *testing.T, f *clockFleet, ctx context.Context) {
		mine := f.run(ctx, "n1")
		at := time.Now().Add(time.Minute)
		starts := f.apply(fsm.AddBlock{Target: fsm.Target{Account: "a"}, StartsAt: at}).Block
		ends := f.apply(fsm.AddBlock{Target: fsm.Target{Account: "b"}, EndsAt: at}).Block
		f.apply(fsm.AddBlock{Target: fsm.Target{Account: "c"}, StartsAt: at.Add(time.Hour)})
		time.Sleep(30 * time.Second)
		f.set(func() { f.cut["n1"], f.leader = time.Now(), "" })
		time.Sleep(time.Until(at.Add(-time.Millisecond)))
		if got := mine(); len(got) != 0 {
			t.Fatalf("%v started early", got)
		}
		time.Sleep(lookAgain + 2*time.Millisecond)
		if got := mine(); !slices.Equal(got, []string{starts.ID}) {
			t.Fatalf("started %v, want %s", got, starts.ID)
		}
		time.Sleep(time.Hour / 2)
		if got := f.block(ends.ID); got.State != fsm.BlockActive {
			t.Fatalf("it ended without quorum: %+v", got)
		}
		f.set(func() { delete(f.cut, "n1"); f.leader = "n2" })
		time.Sleep(time.Second)
		if got := mine(); !slices.Equal(got, []string{starts.ID}) {
			t.Fatalf("after the cut %v is held, the fleet has not decided yet", got)
		}
		// The fleet decides. A kernel that is not there yet still sees a pending block: nothing may be taken
		// from it before it sees an active one.
		f.set(func() { f.kernel = f.store.View().Index() })
		f.apply(fsm.FireBlock{ID: starts.ID, Revision: f.block(starts.ID).Revision, At: time.Now()})
		time.Sleep(time.Second)
		if got := mine(); !slices.Equal(got, []string{starts.ID}) {
			t.Fatalf("%v is held while the kernel is behind, want %s", got, starts.ID)
		}
		f.set(func() { f.kernel = 0 })
		time.Sleep(time.Second)
		if got := mine(); len(got) != 0 {
			t.Fatalf("%v is held, though the state holds it", got)
		}
	})
}

// TestAMajorityOfClocksIsNeeded: a leader that hears only itself ends nothing.
func TestAMajorityOfClocksIsNeeded(t *testing.T) {
	bubble(t, func(t *testing.T, f *clockFleet, ctx context.Context) {
		f.set(func() { f.dead["n2"], f.dead["n3"] = true, true })
		f.run(ctx, "n1")
		b := f.apply(fsm.AddBlock{Target: fsm.Target{Account: "a"}, Duration: time.Minute}).Block
		time.Sleep(time.Hour)
		if got := f.block(b.ID); got.State != fsm.BlockActive {
			t.Fatalf("it ended: %+v", got)
		}
		f.set(func() { f.dead["n2"] = false })
		time.Sleep(time.Second)
		if got := f.block(b.ID); got.State != fsm.BlockEnded {
			t.Fatalf("it did not end: %+v", got)
		}
	})
}

// TestAClockThatIsSetBack: what a node has started without quorum stays, until the state moves its start.
func TestAClockThatIsSetBack(t *testing.T) {
	f := newClockFleet(t)
	at := time.Now().Add(time.Minute)
	b := f.apply(fsm.AddBlock{Target: fsm.Target{Account: "a"}, StartsAt: at}).Block
	var mine []string
	s := &scheduler{
		log: slog.New(slog.DiscardHandler), node: "n1", store: f.store,
		started: func(ids map[string]struct{}) { mine = slices.Sorted(maps.Keys(ids)) },
	}
	cut := fsm.Status{Node: "n1", LastContact: at.Add(-time.Hour)}
	s.startAlone(f.store.View(), cut, at)
	if !slices.Equal(mine, []string{b.ID}) {
		t.Fatalf("started %v, want %s", mine, b.ID)
	}
	for name, st := range map[string]fsm.Status{"cut": cut, "back": {Node: "n1", Leader: "n2", Quorum: true}} {
		s.startAlone(f.store.View(), st, at.Add(-30*time.Second))
		if !slices.Equal(mine, []string{b.ID}) {
			t.Errorf("%s: with a clock that was set back %v is held, want %s", name, mine, b.ID)
		}
	}
	later := at.Add(time.Hour)
	f.apply(fsm.PatchBlock{ID: b.ID, StartsAt: &later})
	if s.startAlone(f.store.View(), fsm.Status{Node: "n1", Leader: "n2", Quorum: true}, at); len(mine) != 0 {
		t.Errorf("%v is held, though its start was moved", mine)
	}
}

// TestARefusedFireIsNoFlood: what the state refuses as a whole is tried again slowly.
func TestARefusedFireIsNoFlood(t *testing.T) {
	bubble(t, func(t *testing.T, f *clockFleet, ctx context.Context) {
		b := f.apply(fsm.AddBlock{Target: fsm.Target{Account: "a"}, Duration: time.Second}).Block
		node := strings.Repeat("n", fsm.MaxNameBytes) // as an actor it is too long
		f.set(func() { f.leader = node })
		f.run(ctx, node)
		time.Sleep(11 * time.Second)
		tried := uint64(0)
		f.set(func() { tried = f.index })
		if got := f.block(b.ID); got.State != fsm.BlockActive || tried < 10 || tried > 100 {
			t.Errorf("%d entries in ten seconds, the block is %s", tried, got.State)
		}
	})
}
