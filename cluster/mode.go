package cluster

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"slices"
	"time"

	"github.com/hashicorp/raft"

	"github.com/palisade/palisade/cluster/internal/peerpb"
	"github.com/palisade/palisade/fsm"
)

// shedBeats is after how many beats one follower too many is sent away.
const shedBeats = 8

// lonelyAsked is how many peers a voter without a leader asks whether it still is one.
const lonelyAsked = 3

// errExpelled ends raft on this node: it is no member any more.
var errExpelled = errors.New("this node is no member of raft any more")

// runFollower takes the log as a stream until ctx ends, something that serves the node fails, or this node is
// made a member of raft, which is errChosen.
func (c *Cluster) runFollower(ctx context.Context, d *disk, failed chan error) error {
	if err := d.setFollows(true); err != nil {
		return err
	}
	l, err := openFollowLog(d, c.applier, c.members, c.compaction(), c.log)
	if err != nil {
		return fmt.Errorf("follow with the store %s: %w", d.guard.where, errors.Join(err, d.guard.err()))
	}
	d.guard.quiet.Store(false)
	if err := d.guard.err(); err != nil { // failed between the last check and now
		c.fatal(err)
	}
	f := c.newFollower(l)
	c.follows.Store(f)
	c.log.Info("this node follows the log, it does not vote", "index", l.last.Load().index)
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	var end error
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		end = f.run(ctx)
	}()
	select {
	case <-ended:
		err = end
	case err = <-failed: // what failed counts
	case <-c.over:
		err = c.overErr
	}
	cancel(nil)
	<-ended
	if !errors.Is(err, errChosen) {
		c.stop()
		c.world.stop(!errors.Is(context.Cause(ctx), errAbrupt))
	}
	c.follows.Store(nil)
	return err
}

// compaction is as raft's.
func (c *Cluster) compaction() compaction {
	conf := c.raftConfig(&throne{})
	return compaction{threshold: conf.SnapshotThreshold, trailing: conf.TrailingLogs}
}

// leaveRaft ends raft while the node goes on.
func (c *Cluster) leaveRaft(r *running) {
	c.log.Info("this node is no voter any more, it follows")
	c.source.publish(func(p *pulse) { p.attached, p.beat = false, p.beat+1 })
	c.endRaft(r, c.world.cut)
	c.applier.committed.Store(nil)
}

// settle leaves only what is known to be committed in the log, before it is a follower's. Whatever this node
// acknowledged beyond counts for nothing, see membership.expelled; and what is committed of it, it gets again.
func (c *Cluster) settle(d *disk, r *running) error {
	keep := max(r.raft.CommitIndex(), c.applier.last.Load())
	if meta, err := d.newest(); err != nil {
		return err
	} else if meta != nil {
		keep = max(keep, meta.Index)
	}
	last, err := d.logs.LastIndex()
	if err != nil {
		return err
	}
	if last > keep {
		if err := d.logs.DeleteRange(keep+1, last); err != nil {
			return err
		}
	}
	return d.setFollows(true)
}

// awaitExpulsion closes gone once this node is known to be no member of raft any more. A voter that is cut
// off from its leader may have been removed without hearing of it: it asks others.
func (c *Cluster) awaitExpulsion(ctx context.Context, r *running, gone chan<- struct{}) {
	for {
		changed := c.members.change()
		if c.expelled(r) {
			close(gone)
			return
		}
		pause := c.timing.Election + rand.N(c.timing.Election)
		select {
		case <-ctx.Done():
			return
		case <-changed:
			continue
		case <-time.After(pause):
		}
		if time.Since(c.leaderSeen()) < 3*c.timing.Election {
			continue
		}
		asked := 0
		for _, id := range shuffled(c.peerIDs()) {
			if asked >= lonelyAsked || !c.aliveNow(id) {
				continue
			}
			asked++
			_, _ = c.helloTo(ctx, id) // it says who is a member
		}
		for _, id := range c.members.hints() { // one that votes can prove it
			if _, known := c.dir.peer(id); known && id != c.id {
				_, _ = c.helloTo(ctx, id)
			}
		}
	}
}

// expelled says that raft's members are committed to be others: a list without this node is, which it has applied
// or a peer knows of, and this node's log has no later one that names it again. Whatever this node has acknowledged
// beyond what it has applied counts for nothing then: that list is in the log of every leader to come.
func (c *Cluster) expelled(r *running) bool {
	applied, known := c.members.has(c.id)
	out := known && applied == follows
	if heard := c.members.later(); heard != nil && !slices.Contains(heard.GetMembers(), c.id) {
		var l raft.Log
		err := r.logs.GetLog(heard.GetIndex(), &l)
		if errors.Is(err, raft.ErrLogNotFound) || err == nil && !sameMembers(&l, heard.GetMembers()) {
			return true // it is ahead of this log, or this log is not the fleet's
		}
		out = true
	}
	latest := r.raft.GetConfiguration()
	return out && latest.Error() == nil && roleIn(latest.Configuration().Servers, c.id) == follows
}

func sameMembers(l *raft.Log, ids []string) bool {
	if l.Type != raft.LogConfiguration {
		return false
	}
	conf, err := decodeConfiguration(l.Data)
	return err == nil && slices.EqualFunc(conf.Servers, ids, func(s raft.Server, id string) bool { return string(s.ID) == id })
}

// tellFollowers says to the followers of a voter how far the log is committed, and what it knows of the leader.
func (c *Cluster) tellFollowers(ctx context.Context, r *running) {
	c.source.use(r.logs, r.disk.snaps)
	defer c.source.publish(func(p *pulse) { p.attached, p.beat = false, p.beat+1 })
	tick := time.NewTicker(c.timing.Heartbeat / beatsPerSilence)
	defer tick.Stop()
	for beats := 1; ; beats++ {
		c.pulse(r)
		if beats%shedBeats == 0 {
			c.source.shed()
		}
		select {
		case <-tick.C:
		case <-ctx.Done():
			return
		}
	}
}

func (c *Cluster) pulse(r *running) {
	leader, term, contact := c.leader(), r.raft.CurrentTerm(), r.tap.lastContact()
	commit, proven := r.tap.feed.committed()
	if r.throne.current() != nil {
		commit, proven, contact = r.raft.CommitIndex(), true, time.Now()
	}
	if !proven {
		commit = 0
	}
	applied := r.raft.AppliedIndex() // handed over to be applied: committed, and in the log
	c.source.publish(func(p *pulse) {
		p.beat++
		p.index = max(p.index, applied)
		p.leader, p.term, p.commit, p.contact = leader, term, commit, contact
		p.path, p.attached = []string{c.id}, true
	})
}

// onFollow serves a follower until it goes or this node stops.
func (c *Cluster) onFollow(ctx context.Context, first *peerpb.FollowUp, conn downstream) error {
	if _, ok := c.dir.now().all[first.GetNode()]; ok {
		c.ears.hear(first.GetNode())
	}
	err := c.source.serve(ctx, first, conn)
	c.log.Debug("a follower is served no more", "peer", first.GetNode(), "why", err)
	return err
}

// mayServe is how many followers this node serves at once.
func (c *Cluster) mayServe() int {
	most := cmp.Or(c.seams.fanOut, fanOut)
	if r := c.running.Load(); r != nil && r.throne.current() != nil {
		return max(most/3, 1)
	}
	return most
}

// voterIDs are the voters as this node has applied it, without itself.
func (c *Cluster) voterIDs() []string {
	out := c.members.voters()
	return slices.DeleteFunc(out, func(id string) bool { return id == c.id })
}

// peerIDs are all other nodes.
func (c *Cluster) peerIDs() []string {
	return c.dir.now().others(c.id)
}

// aliveNow says whether a member is seen alive.
func (c *Cluster) aliveNow(id string) bool {
	p, ok := c.dir.peer(id)
	return ok && c.alive(p, c.ears.last(id))
}

// status is Cluster.Status of a follower.
func (f *follower) status(s fsm.Status) fsm.Status {
	k := f.know.now()
	last := f.log.last.Load().index
	s.Term, s.LastContact = k.term, k.contact
	s.CommitIndex = max(k.commit, k.proof, last)
	if s.Quorum = k.fresh(f.c.timing.Heartbeat); s.Quorum {
		s.Leader = k.leader
	}
	s.CaughtUp = k.covers(last) && f.c.store.Halted() == nil
	return s
}
