package cluster

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"time"

	"github.com/hashicorp/raft"

	"github.com/palisade/palisade/internal/hclogslog"
)

// Settings of raft that follow from others, see DESIGN.md.
const (
	// commitTimeout is how soon followers learn of a commit without the nudge. Raft's own 50 ms cost
	// as much as everything else an idle leader does.
	commitTimeout     = time.Second
	maxAppendEntries  = 256
	maxRounds         = 1                // of proposals, that a busy leader has on the way
	largeRound        = 8                // proposals, or calls that bring some, after which the next round gathers more
	gather            = time.Millisecond // a fifth of what such a round takes on two busy cores
	logCacheEntries   = 256
	snapshotInterval  = 20 * time.Second
	snapshotThreshold = 16_384
	trailingLogs      = 10_240
	drainTime         = 3 * time.Second
)

// Run takes part in the fleet until ctx ends, and returns after everything it started has ended. It
// can be called once. An error means that the node could not take part: the store can't be used, the
// port is taken, the options contradict the store.
func (c *Cluster) Run(ctx context.Context) (err error) {
	if c.ran.Swap(true) {
		return errors.New("cluster: Run was called before")
	}
	defer c.metrics.unregister()

	if p, known := c.dir.now().all[c.id]; known && p.Retired {
		return &RefusedError{Why: fmt.Sprintf("node %s was retired: no node deals with it any more. %s", c.id, outside)}
	}
	if err := c.beginLife(); err != nil {
		return err
	}
	defer func() { err = errors.Join(err, c.leaveLife()) }()
	d, err := c.world.open(c)
	if err != nil {
		c.stop()
		c.world.stop(false)
		return err
	}
	defer func() {
		d.guard.quiet.Store(true)
		if err := d.close(); err != nil {
			c.log.Warn("the store did not close cleanly", "err", err)
		}
	}()

	// What serves others lives a little longer than ctx: a leader hands over first.
	world, endWorld := context.WithCancelCause(context.WithoutCancel(ctx))
	var wg sync.WaitGroup
	failed := make(chan error, 8)
	spawn := func(f func(context.Context) error) {
		wg.Go(func() {
			if err := f(world); err != nil {
				failed <- err
			}
		})
	}
	defer func() {
		c.stop()
		endWorld(context.Cause(ctx))
		c.world.stop(false)
		c.endCalls()
		c.calls.Wait()
		wg.Wait()
	}()
	d.guard.appended = c.metrics.appended
	spawn(func(ctx context.Context) error { d.guard.watch(ctx); return nil })
	if err := d.claim(c.id); err != nil {
		return err
	}
	c.opened.Store(d)
	defer c.opened.Store(nil)
	c.applier.restored = d.newest
	if err := c.world.serve(c, spawn); err != nil {
		return err
	}
	if c.contacts != nil {
		c.greet(ctx)
	}
	if c.ended() {
		return c.overErr
	}
	spawn(func(ctx context.Context) error { c.sightings.run(ctx); return nil })
	spawn(func(ctx context.Context) error { c.followState(ctx); return nil })
	if c.gossip != nil {
		spawn(c.gossip.run)
	}
	if c.keyring != nil {
		spawn(func(ctx context.Context) error { c.followKeys(ctx); return nil })
	}

	how, err := c.form(d)
	if err != nil {
		return err
	}
	spawn(func(ctx context.Context) error { c.awaitReady(ctx); return nil })
	for {
		if how.follow {
			err = c.runFollower(ctx, d, failed)
		} else {
			err = c.runRaft(ctx, d, how, failed)
		}
		if how, err = c.after(d, err); err != nil || ctx.Err() != nil || how == (start{}) {
			return err
		}
	}
}

// after turns the end of one way of taking part into the beginning of the other; the zero start ends it.
func (c *Cluster) after(d *disk, err error) (start, error) {
	switch {
	case errors.Is(err, errChosen):
		gated, err := d.mustRejoin()
		return start{gated: gated, chosen: true}, err
	case errors.Is(err, errExpelled):
		return start{follow: true}, nil
	default:
		return start{}, err
	}
}

// runRaft takes part in raft until ctx ends, something that serves the node fails, or this node is no
// member any more, which is errExpelled.
func (c *Cluster) runRaft(ctx context.Context, d *disk, how start, failed chan error) error {
	if err := d.setFollows(false); err != nil {
		return err
	}
	r, err := c.startRaft(d, how)
	if err != nil {
		return err
	}
	var loops sync.WaitGroup
	raftCtx, endRaft := context.WithCancel(context.WithoutCancel(ctx))
	defer endRaft()
	loops.Go(func() { r.throne.run(raftCtx, r) })
	loops.Go(func() { r.throne.watch(raftCtx, r) })
	loops.Go(func() { r.nudger.run(raftCtx) })
	loops.Go(func() { c.openGate(raftCtx, r) })
	loops.Go(func() { c.greetLeaders(raftCtx, r.raft) })
	loops.Go(func() { c.seekLeader(raftCtx) })
	loops.Go(func() { c.tendVoters(raftCtx, r) })
	loops.Go(func() { c.tendRotations(raftCtx, r) })
	loops.Go(func() { c.tellFollowers(raftCtx, r) })
	expelled := make(chan struct{})
	loops.Go(func() { c.awaitExpulsion(raftCtx, r, expelled) })
	loops.Go(func() { c.spreadEpoch(raftCtx, r) })

	select {
	case <-ctx.Done():
	case err = <-failed:
	case <-c.over:
		err = c.overErr
	case <-expelled:
		err = errExpelled
	}
	if errors.Is(err, errExpelled) {
		c.leaveRaft(r)
	} else {
		c.stopRaft(ctx, r)
	}
	endRaft()
	loops.Wait()
	if errors.Is(err, errExpelled) {
		if err := c.settle(d, r); err != nil { // such a log must not be followed from
			return fmt.Errorf("cut the log to what is committed: %w", err)
		}
	}
	return err
}

func (c *Cluster) raftConfig(t *throne) *raft.Config {
	conf := raft.DefaultConfig()
	conf.LocalID = raft.ServerID(c.id)
	conf.HeartbeatTimeout = c.timing.Heartbeat
	conf.ElectionTimeout = c.timing.Election
	conf.LeaderLeaseTimeout = c.timing.Lease
	conf.CommitTimeout = commitTimeout
	conf.MaxAppendEntries = maxAppendEntries
	conf.BatchApplyCh = true
	conf.SnapshotInterval = snapshotInterval
	conf.SnapshotThreshold = snapshotThreshold
	conf.TrailingLogs = trailingLogs
	conf.NotifyCh = t.notify
	conf.NoLegacyTelemetry = true
	conf.Logger = hclogslog.New(c.log.With("part", "raft"), raftLevel)
	if c.seams.raft != nil {
		c.seams.raft(conf)
	}
	return conf
}

// startRaft starts raft.
func (c *Cluster) startRaft(d *disk, how start) (*running, error) {
	inner, err := c.world.transport(c)
	if err != nil {
		return nil, err
	}
	r := &running{disk: d, throne: newThrone(c), began: time.Now(), inflight: newTally(), changing: make(chan struct{}, 1), formats: newFormats()}
	r.tap = newTap(inner, c.ears, c.timing.Heartbeat)
	r.tap.gated.Store(how.gated)
	r.nudger = newNudger(r.tap, c.metrics.nudges.Inc)
	committed := func(index, term uint64) {
		if !c.seams.noNudge {
			r.nudger.committed(index, term)
		}
		c.source.publish(func(p *pulse) { p.index = max(p.index, index) })
	}
	c.applier.committed.Store(&committed)
	if err := c.newRaft(r, how); err != nil {
		_ = r.tap.Close()
		r.tap.stop()
		return nil, fmt.Errorf("start raft on %s: %w", d.guard.where, errors.Join(err, d.guard.err()))
	}
	r.tap.raft.Store(r.raft)
	d.guard.quiet.Store(false)
	if err := d.guard.err(); err != nil { // failed between the last check and now
		c.fatal(err)
	}
	c.followFollowers(r)
	c.running.Store(r)
	return r, nil
}

func (c *Cluster) newRaft(r *running, how start) (err error) {
	defer func() {
		if p := recover(); p != nil { // raft panics on a log that it can't read
			err = fmt.Errorf("raft gave up: %v", p)
		}
	}()
	d := r.disk
	if r.logs, err = raft.NewLogCache(logCacheEntries, d.logs); err != nil {
		return err
	}
	conf := c.raftConfig(r.throne)
	if how.chosen {
		// The state is past the newest snapshot already.
		conf.NoSnapshotRestoreOnStart = true
		if err := d.raiseTerm(); err != nil {
			return err
		}
	}
	r.raft, err = raft.NewRaft(conf, c.applier, r.logs, d.stable, d.snaps, r.tap)
	return err
}

// followFollowers lets what is kept for a follower end when raft does not replicate to it any more.
func (c *Cluster) followFollowers(r *running) {
	r.raft.RegisterObserver(raft.NewObserver(nil, false, func(o *raft.Observation) bool {
		if p, ok := o.Data.(raft.PeerObservation); ok { // called by raft itself: nothing here waits
			if p.Removed {
				r.tap.remove(p.Peer.ID)
				r.nudger.remove(p.Peer.ID)
			} else {
				r.tap.restore(p.Peer.ID)
			}
		}
		return false
	}))
}

// stopRaft ends raft. A leader hands over first, and calls under way get their outcome, so that
// nothing waits for raft when it is gone.
func (c *Cluster) stopRaft(ctx context.Context, r *running) {
	abrupt := errors.Is(context.Cause(ctx), errAbrupt)
	if !abrupt {
		if err := c.abdicate(r, c.timing.Election); err != nil {
			c.log.Info("leadership could not be handed over, the others will elect", "err", err)
		}
	}
	c.stop()
	if abrupt {
		c.world.stop(false)
	}
	c.endRaft(r, func() { c.world.stop(true) })
}

// endRaft shuts raft down after the calls to it have ended.
func (c *Cluster) endRaft(r *running, cut func()) {
	if !r.inflight.close(drainTime) {
		c.log.Warn("proposals are still under way at the end")
	}
	c.running.Store(nil)
	// Cutting the connections first lets raft's calls to peers end at once.
	cut()
	if err := r.raft.Shutdown().Error(); err != nil {
		c.log.Warn("raft did not shut down cleanly", "err", err)
	}
	r.tap.stop()
}

// stop tells everything that waits that the end has begun.
func (c *Cluster) stop() { c.stopOnce.Do(func() { close(c.stopping) }) }

// awaitReady closes ready once this node is up to date with a leader.
func (c *Cluster) awaitReady(ctx context.Context) {
	for {
		if s := c.Status(); s.Quorum && s.CaughtUp {
			close(c.ready)
			c.log.Info("up to date with the leader", "leader", s.Leader, "term", s.Term, "index", s.Applied)
			return
		}
		select {
		case <-ctx.Done():
			return
		case <-time.After(20 * time.Millisecond):
		}
	}
}

// greetLeaders opens the connection to every new leader before the first write needs it.
func (c *Cluster) greetLeaders(ctx context.Context, r *raft.Raft) {
	news := make(chan raft.Observation, 1)
	o := raft.NewObserver(news, false, func(o *raft.Observation) bool {
		_, changed := o.Data.(raft.LeaderObservation)
		return changed
	})
	r.RegisterObserver(o)
	defer r.DeregisterObserver(o)
	for {
		if id := c.leader(); id != "" && id != c.id {
			resp, err := c.helloTo(ctx, id) // the write tells if it can't be reached
			if err == nil && !resp.GetSealed() && c.identity != nil && c.identity.SealKey() != nil && c.voters()[id] {
				if err := c.entrust(ctx, id); err != nil {
					c.log.Warn("the leader has lost the seal key and could not be given it", "leader", id, "err", err)
				}
			}
		}
		select {
		case <-ctx.Done():
			return
		case <-news:
		}
	}
}
