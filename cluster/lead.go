package cluster

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"slices"
	"sync"
	"time"

	"github.com/hashicorp/raft"

	"github.com/palisade/palisade/fsm"
)

// reign is a time of leadership, from the barrier on.
type reign struct {
	term  uint64
	since time.Time
}

// throne follows this node's leadership: a reign begins after a barrier, when everything that earlier
// leaders committed is applied here, and ends with the leadership. Begin and end come in pairs.
type throne struct {
	c      *Cluster
	notify chan bool

	mu     sync.Mutex
	claim  uint64 // counts gains and losses, so that a late barrier can't begin a reign that is over
	reign  *reign
	ended  time.Time     // when the last reign ended
	leads  bool          // raft says so
	wanted time.Time     // since when raft says so
	idle   time.Duration // how long this leader has committed nothing, while it tries to
	turn   chan struct{} // closed when the next reign begins or the present one ends
}

func newThrone(c *Cluster) *throne {
	return &throne{c: c, notify: make(chan bool, 1), turn: make(chan struct{})}
}

// turned is closed when the next reign begins or the present one ends.
func (t *throne) turned() <-chan struct{} {
	t.mu.Lock()
	defer t.mu.Unlock()
	return t.turn
}

// tell wakes who waits for turned. The caller holds mu.
func (t *throne) tell() {
	close(t.turn)
	t.turn = make(chan struct{})
}

// run follows raft's notifications until ctx ends. It never blocks on anything else: raft blocks
// while a notification is not taken.
func (t *throne) run(ctx context.Context, run *running) {
	r := run.raft
	var barriers sync.WaitGroup
	defer barriers.Wait()
	for {
		select {
		case <-ctx.Done():
			t.revoke()
			return
		case leads := <-t.notify:
			if !leads {
				t.revoke()
				continue
			}
			t.mu.Lock()
			t.claim++
			claim := t.claim
			t.leads, t.wanted = true, time.Now()
			t.mu.Unlock()
			t.c.log.Info("elected leader, waiting for the barrier", "term", r.CurrentTerm())
			barriers.Go(func() { t.establish(run, claim) })
		}
	}
}

func (t *throne) establish(run *running, claim uint64) {
	r := run.raft
	for {
		term := r.CurrentTerm()
		err := run.barrier()
		t.mu.Lock()
		if t.claim != claim {
			t.mu.Unlock()
			return
		}
		if err == nil {
			t.reign = &reign{term: term, since: time.Now()}
			t.tell()
			t.mu.Unlock()
			run.tellBarrier(term)
			t.c.pulse(run)
			t.c.log.Info("leadership established, writes are accepted", "term", term)
			return
		}
		t.mu.Unlock()
		t.c.log.Warn("the leader's barrier failed", "err", err)
		select {
		case <-time.After(100 * time.Millisecond):
		case <-t.c.stopping:
			return
		}
	}
}

// tellBarrier lets followers know at once that the new leader has committed: until then they can't
// tell whether they are up to date. The entry's term is read from the log, see nudger.
func (r *running) tellBarrier(term uint64) {
	index := r.raft.CommitIndex()
	var l raft.Log
	if err := r.logs.GetLog(index, &l); err == nil && l.Term == term {
		r.nudger.committed(index, term)
	}
}

func (t *throne) revoke() {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.claim++
	t.leads = false
	if t.reign != nil {
		t.ended = time.Now()
		t.c.log.Info("leadership ended", "term", t.reign.term, "after", time.Since(t.reign.since).Round(time.Millisecond))
		t.reign = nil
		t.tell()
	}
}

// current is the reign, nil while this node does not lead or has not passed its barrier.
func (t *throne) current() *reign {
	t.mu.Lock()
	defer t.mu.Unlock()
	return t.reign
}

// watch ends the process if this node leads, or believes it does, and nothing gets committed: a
// barrier is proposed when nothing else was committed for some seconds. Followers answer
// heartbeats also when their disks hang, so nobody else would depose this leader.
func (t *throne) watch(ctx context.Context, run *running) {
	r, tap := run.raft, run.tap
	limit := t.c.timing.StuckLead
	tick := time.NewTicker(limit / 10)
	defer tick.Stop()
	var probes sync.WaitGroup
	defer probes.Wait()
	var commit uint64
	var last time.Time
	probing := make(chan struct{}, 1)
	for {
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
		}
		t.mu.Lock()
		leads, wanted := t.leads, t.wanted
		t.mu.Unlock()
		if !leads {
			last = time.Time{}
			t.stalled(0)
			continue
		}
		if now := r.CommitIndex(); now != commit || tap.installing.Load() > 0 || last.Before(wanted) {
			commit, last = now, time.Now()
			t.stalled(0)
			continue
		}
		idle := time.Since(last)
		if idle > 7*limit/10 { // the barrier below has not been committed for some seconds
			t.stalled(idle)
		}
		if idle > limit {
			t.c.fatal(fmt.Errorf("this node leads in term %d but has committed nothing for %s", r.CurrentTerm(), idle.Round(time.Second)))
			return
		}
		if idle >= 2*limit/5 {
			select {
			case probing <- struct{}{}:
				probes.Go(func() {
					_ = run.barrier() // a success shows in the commit index
					<-probing
				})
			default:
			}
		}
	}
}

func (t *throne) stalled(idle time.Duration) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.idle = idle
}

// stall is how long this node leads, or believes it does, and commits nothing although it tries to.
func (t *throne) stall() time.Duration {
	t.mu.Lock()
	defer t.mu.Unlock()
	return t.idle
}

// submit appends commands as the leader and waits for their outcomes, or until ctx ends.
func (c *Cluster) submit(ctx context.Context, cmds []fsm.Command) []outcome {
	out := make([]outcome, len(cmds))
	fill := func(from int, o outcome) []outcome {
		for i := from; i < len(out); i++ {
			out[i] = o
		}
		return out
	}
	r := c.running.Load()
	if r == nil || r.throne.current() == nil {
		return fill(0, failed(notAppended, raft.ErrNotLeader))
	}
	if err := c.store.Halted(); err != nil {
		return fill(0, failed(notAppended, fmt.Errorf("this leader's state is halted: %w", err)))
	}
	if !r.inflight.begin() {
		return fill(0, failed(notAppended, raft.ErrRaftShutdown))
	}
	cmds, refusals, release, err := c.screen(ctx, r, cmds)
	over := func() { release(); r.inflight.end() }
	if err != nil {
		over()
		return fill(0, failed(notAppended, err))
	}
	now, err := c.clock(ctx)
	if err != nil {
		over()
		return fill(0, failed(notAppended, err))
	}
	leave, err := r.formats.enter(ctx, slices.ContainsFunc(cmds, admits), func() bool { return raisesFormat(c.store.View(), cmds) })
	if err != nil {
		over()
		return fill(0, failed(notAppended, err))
	}
	with, err := c.convoy.join(ctx)
	if err != nil {
		leave()
		over()
		return fill(0, failed(notAppended, err))
	}
	futures := make([]raft.ApplyFuture, len(cmds))
	view := c.store.View()
	for i, cmd := range cmds {
		if refused := cmp.Or(refusals[i], view.Readable(cmd.Op)); refused != nil {
			out[i] = outcome{kind: done, result: fsm.Result{Err: refused}}
			continue
		}
		if admits(cmd) && raisesFormat(view, cmds) {
			out[i] = failed(notAppended, errFormatFirst)
			continue
		}
		cmd.Time = now
		data, err := fsm.MarshalCommand(cmd)
		if err == nil && len(data) > MaxCommandBytes {
			err = fmt.Errorf("it has %d bytes, at most %d are allowed", len(data), MaxCommandBytes)
		}
		if err != nil {
			out[i] = failed(invalid, err)
			continue
		}
		left := enqueueTime
		if deadline, ok := ctx.Deadline(); ok {
			left = min(left, time.Until(deadline))
		}
		if left <= 0 {
			fill(i, failed(notAppended, context.DeadlineExceeded))
			break
		}
		futures[i] = r.raft.Apply(data, left)
	}
	// Raft's futures know no context: they end with the commit or with the leadership.
	var mu sync.Mutex
	finished := make(chan struct{})
	go func() {
		defer over()
		defer leave()
		defer close(finished)
		defer c.convoy.arrive(with)
		for i, f := range futures {
			if f == nil {
				continue
			}
			err := f.Error()
			var o outcome
			if err == nil {
				o = classify(f.Response(), nil)
			} else {
				o = classify(nil, err)
			}
			mu.Lock()
			out[i] = o
			futures[i] = nil
			mu.Unlock()
		}
	}()
	select {
	case <-finished:
		return out
	case <-ctx.Done():
		mu.Lock()
		defer mu.Unlock()
		answer := append([]outcome(nil), out...)
		for i, f := range futures {
			if f != nil {
				answer[i] = failed(unknown, fmt.Errorf("appended, not committed in time: %w", ctx.Err()))
			}
		}
		return answer
	}
}

// barrier waits until everything committed so far is applied here. It costs an entry in the log.
func (r *running) barrier() error {
	if !r.inflight.begin() {
		return raft.ErrRaftShutdown
	}
	defer r.inflight.end()
	return r.raft.Barrier(enqueueTime).Error()
}

var errTransfer = errors.New("no other voter took over")

// abdicate hands leadership over before this node stops, so that the fleet is not without a leader
// until its heartbeat times out. It is tried once in a process's life: raft can get stuck when it is
// repeated.
func (c *Cluster) abdicate(r *running, limit time.Duration) error {
	voters := 0
	for _, s := range r.servers() {
		if s.Suffrage == raft.Voter {
			voters++
		}
	}
	if r.raft.State() != raft.Leader || voters < 2 || !r.handed.CompareAndSwap(false, true) {
		return nil
	}
	ended := make(chan error, 1)
	go func() { ended <- r.raft.LeadershipTransfer().Error() }()
	select {
	case err := <-ended:
		return err
	case <-time.After(limit):
		return errTransfer
	}
}

// tally counts calls that must end before raft is shut down.
type tally struct {
	mu     sync.Mutex
	closed bool
	n      int
	empty  chan struct{} // closed once closed and n is 0
}

func newTally() *tally { return &tally{empty: make(chan struct{})} }

func (t *tally) begin() bool {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.closed {
		return false
	}
	t.n++
	return true
}

func (t *tally) end() {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.n--; t.n == 0 && t.closed {
		close(t.empty)
	}
}

// close refuses further calls and waits for those under way; false if they outlast the limit.
func (t *tally) close(limit time.Duration) bool {
	t.mu.Lock()
	if !t.closed {
		t.closed = true
		if t.n == 0 {
			close(t.empty)
		}
	}
	t.mu.Unlock()
	select {
	case <-t.empty:
		return true
	case <-time.After(limit):
		return false
	}
}
