package cluster

import (
	"cmp"
	"context"
	"slices"
	"time"

	"github.com/hashicorp/raft"

	"github.com/palisade/palisade/fsm"
)

const (
	// tendEvery is how often the leader looks at its voters, and tendAgain how soon while a change is under way.
	tendEvery = time.Second
	tendAgain = 100 * time.Millisecond
	// stageTime is how long a node may take to come up as a member of raft before another is tried.
	stageTime = time.Minute
	// unfitFor is how long a node that could not become a voter is passed over.
	unfitFor = 2 * time.Minute
	// askedAgain is how soon a follower is asked again that was not up to date.
	askedAgain = 500 * time.Millisecond
	// handOverTime is how long a leader that is to leave waits for another to take over. Then it steps down.
	handOverTime = 10 * time.Second
)

// tender is what the leader remembers of those that are to vote, for the time that it leads.
type tender struct {
	c         *Cluster
	r         *running
	entrusted map[string]bool      // voters that have the seal key
	unfit     map[string]time.Time // until when a node is passed over
	staged    map[string]time.Time // since when
	leaving   time.Time            // since when this leader is to hand over
}

// tendVoters keeps raft's members what the state, the settings and the failures of nodes want them to be, while this
// node leads, one change at a time, until ctx ends.
func (c *Cluster) tendVoters(ctx context.Context, r *running) {
	var t *tender
	for {
		list, turned := c.dir.now(), r.throne.turned()
		var again <-chan time.Time
		switch reign := r.throne.current(); {
		case reign == nil:
			t = nil
		case t == nil:
			t = &tender{c: c, r: r, entrusted: map[string]bool{}, unfit: map[string]time.Time{}, staged: map[string]time.Time{}}
			fallthrough
		default:
			t.entrustVoters(ctx)
			pause := tendEvery
			if release, err := r.holdMembers(ctx); err == nil {
				if t.tend(ctx, list, reign) {
					pause = tendAgain
				}
				release()
			}
			again = time.After(pause)
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

// tend makes the next change, if there is one. It says whether to look again soon.
func (t *tender) tend(ctx context.Context, list *listing, reign *reign) (soon bool) {
	settings := t.c.store.View().Settings()
	want := cmp.Or(t.c.seams.voters, settings.WantedVoters())
	all := t.candidates(ctx, list, reign)
	s := planVoters(all, want, settings.VoterPatience())
	if s.kind != stepHandOver {
		t.leaving = time.Time{}
	}
	id := raft.ServerID(s.id)
	switch s.kind {
	case stepStage:
		if !t.fit(ctx, s.id) {
			t.unfit[s.id] = time.Now().Add(askedAgain)
			return true
		}
		t.staged[s.id] = time.Now()
		t.change("it becomes a member of raft", s, func() raft.IndexFuture {
			return t.r.raft.AddNonvoter(id, raft.ServerAddress(s.id), 0, enqueueTime)
		})
	case stepPromote:
		if !t.bear(ctx, all, func(c candidate) bool { return c.role == votes || c.id == s.id }) {
			return false
		}
		if err := t.c.entrust(ctx, s.id); err != nil {
			t.c.log.Warn("a node that is to vote could not be given the seal key", "peer", s.id, "err", err)
			return false
		}
		t.entrusted[s.id] = true
		delete(t.staged, s.id)
		t.change("it votes", s, func() raft.IndexFuture {
			return t.r.raft.AddVoter(id, raft.ServerAddress(s.id), 0, enqueueTime)
		})
	case stepRemove:
		if !t.bear(ctx, all, func(c candidate) bool { return c.role == votes && c.id != s.id }) {
			return false
		}
		t.remove(ctx, s)
	case stepHandOver:
		t.handOver(s, all)
	case stepNone:
		for _, c := range all {
			soon = soon || c.role == staged
		}
		return soon
	}
	return true
}

// candidates are all nodes of the fleet and all members of raft, as this leader sees them.
func (t *tender) candidates(ctx context.Context, list *listing, reign *reign) []candidate {
	now, view, servers := time.Now(), t.c.store.View(), t.r.servers()
	known := map[string]bool{}
	var out []candidate
	add := func(id string, is role) {
		known[id] = true
		c := candidate{id: id, role: is, leader: id == t.c.id, barred: true}
		if n, ok := view.Node(id); ok {
			c.zone, c.version, c.barred = n.Zone, n.Version, n.State == fsm.NodeDrained
		}
		if _, member := list.peer(id); !member {
			c.barred, c.retired = true, true
		}
		switch {
		case c.leader:
			c.alive, c.current = true, true
		case is == follows:
			c.alive = t.c.aliveNow(id)
			c.current = c.alive && now.After(t.unfit[id])
		default:
			// Nobody is taken for dead before this node has had the time to hear it as the leader. What counts is raft: who
			// is seen by gossip alone does not vote.
			heard := slices.MaxFunc([]time.Time{t.r.tap.answered(raft.ServerID(id)), reign.since, t.since(id, is)}, time.Time.Compare)
			c.dead = now.Sub(heard)
			if c.alive = c.dead < t.c.timing.Heartbeat; c.alive {
				c.dead = 0
			}
		}
		if is == staged {
			c.current = c.alive && t.filled(ctx, id)
			c.barred = c.barred || t.overdue(id, c.current)
		}
		out = append(out, c)
	}
	for _, s := range servers {
		add(string(s.ID), roleIn(servers, string(s.ID)))
	}
	for _, id := range list.active {
		if !known[id] {
			add(id, follows)
		}
	}
	return out
}

// since is when a node was staged, zero if it is not.
func (t *tender) since(id string, is role) time.Time {
	if _, known := t.staged[id]; !known && is == staged { // by an earlier leader
		t.staged[id] = time.Now()
	}
	return t.staged[id]
}

// overdue says that a staged node has had its time; then it is passed over for a while.
func (t *tender) overdue(id string, current bool) bool {
	if current || time.Since(t.staged[id]) < stageTime {
		return false
	}
	t.unfit[id] = time.Now().Add(unfitFor)
	return true
}

// bear asks those that will vote after a change whether they are there: a majority must answer. That a node was heard
// a moment ago is too little, as a change without a majority alive can't be taken back.
func (t *tender) bear(ctx context.Context, all []candidate, will func(candidate) bool) bool {
	var voters []string
	for _, v := range selected(all, will) {
		voters = append(voters, v.id)
	}
	return t.c.answering(ctx, voters) > len(voters)/2
}

// fit asks a follower whether it could begin as a member of raft now.
func (t *tender) fit(ctx context.Context, id string) bool {
	resp, err := t.c.helloTo(ctx, id)
	return err == nil && resp.GetFollows() && resp.GetCaughtUp()
}

// filled asks a staged node whether it has all that this leader has applied, in raft's log.
func (t *tender) filled(ctx context.Context, id string) bool {
	index := t.r.raft.AppliedIndex()
	resp, err := t.c.helloTo(ctx, id)
	return err == nil && !resp.GetFollows() && !resp.GetGated() && resp.GetLeader() == t.c.id && resp.GetLastIndex() >= index
}

// remove makes a member of raft a follower, and tells it: raft itself does not, once it has stopped to replicate.
func (t *tender) remove(ctx context.Context, s step) {
	delete(t.staged, s.id)
	delete(t.entrusted, s.id)
	if !t.change("it follows from now on", s, func() raft.IndexFuture {
		return t.r.raft.RemoveServer(raft.ServerID(s.id), 0, enqueueTime)
	}) {
		return
	}
	_, _ = t.c.helloTo(ctx, s.id) // one that does not hear it asks, see awaitExpulsion
}

// handOver lets another voter lead. It is tried once; after that the leader removes itself, which ends its reign.
func (t *tender) handOver(s step, all []candidate) {
	if t.leaving.IsZero() {
		t.leaving = time.Now()
	}
	heirs := selected(all, mayLead)
	if len(heirs) > 0 && t.r.handed.CompareAndSwap(false, true) {
		t.c.log.Info("handing over the leadership", "why", s.why, "to", heirs[0].id)
		id := raft.ServerID(heirs[0].id)
		if err := t.r.raft.LeadershipTransferToServer(id, raft.ServerAddress(id)).Error(); err != nil {
			t.c.log.Warn("the leadership could not be handed over", "to", heirs[0].id, "err", err)
		}
		return
	}
	if !s.stay && time.Since(t.leaving) > handOverTime {
		t.change("it steps down and follows", s, func() raft.IndexFuture {
			return t.r.raft.RemoveServer(raft.ServerID(s.id), 0, enqueueTime)
		})
	}
}

// change carries out one change of raft's members and waits for its commit, or for the end of the leadership.
func (t *tender) change(what string, s step, begin func() raft.IndexFuture) bool {
	if !t.r.inflight.begin() {
		return false
	}
	defer t.r.inflight.end()
	if err := begin().Error(); err != nil {
		t.c.log.Warn("raft's members could not be changed", "peer", s.id, "change", what, "err", err)
		return false
	}
	t.c.log.Info("raft's members changed", "peer", s.id, "change", what, "why", s.why)
	return true
}

// entrustVoters gives the seal key to voters that have lost theirs.
func (t *tender) entrustVoters(ctx context.Context) {
	if t.c.identity == nil || t.c.identity.SealKey() == nil {
		return // another voter will give this node its own, see greetLeaders
	}
	for id := range t.c.voters() {
		if id == t.c.id || t.entrusted[id] || !t.c.aliveNow(id) {
			continue
		}
		resp, err := t.c.helloTo(ctx, id)
		if err == nil && !resp.GetSealed() {
			err = t.c.entrust(ctx, id)
		}
		t.entrusted[id] = err == nil
	}
}
