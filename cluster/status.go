package cluster

import (
	"cmp"
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
	if f := c.follows.Load(); f != nil {
		return f.status(s)
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
	s.CaughtUp = r.caughtUp(c.applier)
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
func (r *running) caughtUp(a *applier) bool {
	commit, proven := r.tap.feed.committed()
	if !proven || a.store.Halted() != nil || r.raft.AppliedIndex() < commit {
		return false
	}
	// Raft has handed everything over. Entries without a command never reach the store (an idle
	// leader's barriers, mostly), so what lies behind the store's last one is looked at, once.
	seen := max(a.last.Load(), r.bare.Load())
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
	if f := c.follows.Load(); f != nil {
		if k := f.know.now(); k.fresh(c.timing.Heartbeat) {
			return k.leader
		}
		return ""
	}
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
	if f := c.follows.Load(); f != nil {
		if k := f.know.now(); k.contact.After(seen) {
			return k.contact
		}
		return seen
	}
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

// Members returns every node of the fleet that is not retired, in order of ids, as this node sees it now.
func (c *Cluster) Members() []fsm.Member {
	leader, list, voters := c.leader(), c.dir.now(), c.voters()
	out := make([]fsm.Member, 0, len(list.active))
	for _, id := range list.active {
		p := list.all[id]
		m := fsm.Member{
			ID: id, Name: cmp.Or(p.Name, id), Address: p.Address, Voter: voters[id],
			Leader: id == leader, Self: id == c.id,
			LastHeard: c.ears.last(id),
		}
		if m.Self {
			m.LastHeard = time.Now()
		}
		m.Alive = m.Self || c.alive(p, m.LastHeard)
		out = append(out, m)
	}
	return out
}

// voters are the ids of raft's voters, as this node's log has them.
func (c *Cluster) voters() map[string]bool {
	out := map[string]bool{}
	if c.follows.Load() != nil {
		for _, id := range c.members.voters() {
			out[id] = true
		}
		return out
	}
	if r := c.running.Load(); r != nil {
		for _, s := range r.servers() {
			if s.Suffrage == raft.Voter {
				out[string(s.ID)] = true
			}
		}
	}
	return out
}

// servers is the latest raft configuration in this node's log, committed or not.
func (r *running) servers() []raft.Server {
	f := r.raft.GetConfiguration() // never fails and does not wait
	if f.Error() != nil {
		return nil
	}
	return f.Configuration().Servers
}

func (c *Cluster) alive(p Peer, heard time.Time) bool {
	if p.Gossip == "" || c.gossip == nil {
		return !heard.IsZero() && time.Since(heard) < 4*c.timing.Heartbeat
	}
	return c.gossip.alive(p.ID)
}

// ears remember who was heard when, over whatever way.
type ears struct {
	dir *directory
	mu  sync.Mutex
	at  map[string]time.Time
}

func newEars(dir *directory) *ears { return &ears{dir: dir, at: map[string]time.Time{}} }

// hear notes a member; who is none leaves no trace.
func (e *ears) hear(id string) {
	if _, ok := e.dir.peer(id); !ok {
		return
	}
	e.mu.Lock()
	defer e.mu.Unlock()
	e.at[id] = time.Now()
}

func (e *ears) last(id string) time.Time {
	e.mu.Lock()
	defer e.mu.Unlock()
	return e.at[id]
}

// tidy forgets who is no member any more.
func (e *ears) tidy() {
	e.mu.Lock()
	defer e.mu.Unlock()
	for id := range e.at {
		if _, ok := e.dir.peer(id); !ok {
			delete(e.at, id)
		}
	}
}
