package cluster

import (
	"cmp"
	"context"
	"time"

	"github.com/hashicorp/raft"
)

const (
	// wantedVoters is how many voters a fleet has that is large enough.
	wantedVoters = 3
	// arrangeAgain is how soon the leader looks again while a change of raft's members is under way.
	arrangeAgain = 100 * time.Millisecond
)

// tendVoters brings raft's members in step with the fleet's while this node leads, one change at a time,
// until ctx ends.
func (c *Cluster) tendVoters(ctx context.Context, r *running) {
	entrusted := map[string]bool{} // since this node leads
	for {
		list, turned := c.dir.now(), r.throne.turned()
		var again <-chan time.Time
		if r.throne.current() == nil {
			clear(entrusted)
		} else {
			if !c.entrustVoters(ctx, entrusted) {
				again = time.After(sayAgain)
			}
			if !c.arrange(ctx, r, list) {
				again = time.After(arrangeAgain)
			}
		}
		select {
		case <-ctx.Done():
			return
		case <-list.superseded:
		case <-turned:
		case <-again:
		}
	}
}

// arrange makes the next change and says whether nothing is left to do.
func (c *Cluster) arrange(ctx context.Context, r *running, list *listing) (settled bool) {
	known := map[string]raft.ServerSuffrage{}
	voters := 0
	for _, s := range r.servers() {
		known[string(s.ID)] = s.Suffrage
		if s.Suffrage == raft.Voter {
			voters++
		}
	}
	for id := range known {
		if _, member := list.peer(id); !member && id != c.id {
			return c.change("remove a node that is no member any more", id, func() raft.IndexFuture {
				return r.raft.RemoveServer(raft.ServerID(id), 0, enqueueTime)
			})
		}
	}
	for _, id := range list.active {
		if _, in := known[id]; !in {
			return c.change("let a new node follow", id, func() raft.IndexFuture {
				return r.raft.AddNonvoter(raft.ServerID(id), raft.ServerAddress(id), 0, enqueueTime)
			})
		}
	}
	var ready []string
	waiting := false
	target := odd(min(cmp.Or(c.seams.voters, wantedVoters), len(list.active)))
	for _, id := range list.active {
		if voters >= target {
			break
		}
		if known[id] == raft.Nonvoter {
			waiting = true
			if c.caughtUpPeer(ctx, r, id) {
				ready = append(ready, id)
			}
		}
	}
	if len(ready) == 0 || odd(min(target, voters+len(ready))) <= voters {
		return !waiting
	}
	id := ready[0]
	if err := c.entrust(ctx, id); err != nil {
		c.log.Warn("a node that is to vote could not be given the seal key", "peer", id, "err", err)
		return false
	}
	c.change("let a node vote", id, func() raft.IndexFuture {
		return r.raft.AddVoter(raft.ServerID(id), raft.ServerAddress(id), 0, enqueueTime)
	})
	return false
}

// entrustVoters gives the seal key to voters that have lost theirs, and says whether all have it.
func (c *Cluster) entrustVoters(ctx context.Context, entrusted map[string]bool) (all bool) {
	if c.identity == nil || c.identity.SealKey() == nil {
		return true // another voter will give this node its own, see greetLeaders
	}
	all = true
	for id := range c.voters() {
		if id == c.id || entrusted[id] {
			continue
		}
		resp, err := c.helloTo(ctx, id)
		if err == nil && !resp.GetSealed() {
			err = c.entrust(ctx, id)
		}
		if entrusted[id] = err == nil; err != nil {
			all = false
		}
	}
	return all
}

// odd is the largest odd number that is not above n.
func odd(n int) int { return n - (n+1)%2 }

// change carries out one change of raft's members and waits for its commit, or for the end of the leadership.
// It returns false: something may be left to do.
func (c *Cluster) change(what, id string, begin func() raft.IndexFuture) bool {
	if !c.inflight.begin() {
		return false
	}
	defer c.inflight.end()
	if err := begin().Error(); err != nil {
		c.log.Warn("raft's members could not be changed", "change", what, "peer", id, "err", err)
		return false
	}
	c.log.Info("raft's members changed", "change", what, "peer", id)
	return false
}

// caughtUpPeer says whether a follower has all that this leader has applied.
func (c *Cluster) caughtUpPeer(ctx context.Context, r *running, id string) bool {
	index := r.raft.AppliedIndex()
	resp, err := c.helloTo(ctx, id)
	return err == nil && !resp.GetGated() && resp.GetLastIndex() >= index
}
