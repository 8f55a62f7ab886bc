package cluster

import (
	"errors"
	"sync"
	"time"

	"github.com/hashicorp/raft"

	"github.com/palisade/palisade/fsm"
)

// Status returns this node's standing. It never blocks on the network.
func (c *Cluster) Status() fsm.Status {
	s := fsm.Status{Node: c.id, Applied: c.store.View().Index()}
	if aside := c.aside.Load(); aside != nil {
		s.Aside = *aside
	}
	r := c.running.Load()
	if r == nil {
		return s
	}
	s.Leader = c.leader()
	s.Term = r.raft.CurrentTerm()
	s.CommitIndex = r.raft.CommitIndex()
	if r.raft.State() == raft.Leader {
		// Raft itself steps down when its lease is over.
		s.Quorum = r.throne.current() != nil
		s.CaughtUp = s.Quorum && c.store.Halted() == nil
		if s.Quorum {
			s.LastContact = time.Now()
		}
		return s
	}
	s.LastContact = r.tap.lastContact()
	if r.throne.endedAt().After(s.LastContact) {
		s.LastContact = r.throne.endedAt()
	}
	s.Quorum = s.Leader != "" && time.Since(s.LastContact) < c.timing.Heartbeat
	s.CaughtUp = r.caughtUp(c.store)
	return s
}

func (t *throne) endedAt() time.Time {
	t.mu.Lock()
	defer t.mu.Unlock()
	return t.ended
}

// caughtUp says that a follower's store holds everything its leader had committed at the last
// contact. It is false until the current leader has proven a commit of its own, so that a node that
// has just started, whose raft knows of no commit, is never taken for up to date.
func (r *running) caughtUp(store *fsm.Store) bool {
	commit, proven := r.tap.feed.committed()
	if !proven || store.Halted() != nil || r.raft.AppliedIndex() < commit {
		return false
	}
	// Raft has handed everything over. Entries without a command never reach the store (an idle
	// leader's barriers, mostly), so what lies behind the store's last one is looked at, once.
	seen := max(r.applier.last.Load(), r.bare.Load())
	for i := commit; i > seen; i-- {
		var l raft.Log
		err := r.logs.GetLog(i, &l)
		if errors.Is(err, raft.ErrLogNotFound) {
			break // compacted: it went into a snapshot, taken from this store or restored to it
		}
		if err != nil || l.Type == raft.LogCommand || l.Type == raft.LogConfiguration {
			return false
		}
	}
	r.bare.Store(max(commit, seen))
	return true
}

// leader is the id of the leader as far as this node knows, "" if there is none. Raft goes on naming one that
// has fallen silent until it stands for election itself; a call to it would end with nobody knowing what
// became of it.
func (c *Cluster) leader() string {
	r := c.running.Load()
	if r == nil {
		return ""
	}
	_, id := r.raft.LeaderWithID()
	if string(id) != c.id && time.Since(c.leaderSeen()) > c.timing.Heartbeat {
		return ""
	}
	return string(id)
}

// leaderSeen is when this node last led or heard a leader, at the earliest its start.
func (c *Cluster) leaderSeen() time.Time {
	seen := c.started
	r := c.running.Load()
	if r == nil {
		return seen
	}
	if r.throne.current() != nil {
		return time.Now()
	}
	for _, t := range []time.Time{r.tap.lastContact(), r.throne.endedAt(), r.began} {
		if t.After(seen) {
			seen = t
		}
	}
	return seen
}

// Members returns every peer of the list, in order of ids, as this node sees it now.
func (c *Cluster) Members() []fsm.Member {
	leader := c.leader()
	out := make([]fsm.Member, 0, len(c.order))
	for _, id := range c.order {
		p := c.peers[id]
		m := fsm.Member{
			ID: id, Name: p.Name, Address: p.Address, Voter: p.Voter,
			Leader: id == leader, Self: id == c.id,
			LastHeard: c.ears.last(id),
		}
		if m.Self {
			m.LastHeard = time.Now()
		}
		m.Alive = m.Self || c.alive(id, m.LastHeard)
		out = append(out, m)
	}
	return out
}

func (c *Cluster) alive(id string, heard time.Time) bool {
	if c.peers[id].GossipAddress == "" || c.gossip == nil {
		return !heard.IsZero() && time.Since(heard) < 4*c.timing.Heartbeat
	}
	return c.gossip.alive(id)
}

// ears remember who was heard when, over whatever way.
type ears struct {
	mu sync.Mutex
	at map[string]time.Time
}

func newEars(peers map[string]Peer) *ears {
	e := &ears{at: make(map[string]time.Time, len(peers))}
	for id := range peers {
		e.at[id] = time.Time{}
	}
	return e
}

func (e *ears) hear(id string) {
	e.mu.Lock()
	defer e.mu.Unlock()
	if _, known := e.at[id]; known {
		e.at[id] = time.Now()
	}
}

func (e *ears) last(id string) time.Time {
	e.mu.Lock()
	defer e.mu.Unlock()
	return e.at[id]
}
