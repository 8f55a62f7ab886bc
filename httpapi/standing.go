package httpapi

import (
	"context"
	"encoding/json"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/palisade/palisade/fsm"
	"github.com/palisade/palisade/httpapi/wire"
)

const (
	standingLook = time.Second     // how often a live stream looks how the fleet stands
	standingBeat = 3 * time.Second // how often it tells, whether or not something has changed
	// standingEach is what asking a member may cost: a large fleet is asked less often.
	standingEach = 10 * time.Millisecond
)

// pulse asks the members how they stand, at most as often as is fit for their number, for all streams together. Without a
// live stream it asks nobody. It is safe for concurrent use.
type pulse struct {
	mu    sync.Mutex
	at    time.Time
	nodes []wire.NodeStanding // by id; not changed once it is here
}

// of returns how the members stand. It blocks until they have answered, AskTimeout at most.
func (p *pulse) of(ctx context.Context, s *Server) []wire.NodeStanding {
	p.mu.Lock()
	defer p.mu.Unlock()
	if every := max(standingLook, time.Duration(len(p.nodes))*standingEach); !p.at.IsZero() && time.Since(p.at) < every {
		return p.nodes
	}
	var nodes []wire.NodeStanding
	for _, r := range s.ask(ctx, fsm.Query{}, "") {
		n := s.wireNode(nil, &r.member, r)
		nodes = append(nodes, wire.NodeStanding{
			ID: n.ID, Alive: r.member.Alive || r.member.Self, Voter: n.Voter, Leader: n.Leader, Healthy: n.Healthy,
			AppliedIndex: n.AppliedIndex, EnforcedIndex: n.EnforcedIndex, Problem: n.Problem,
		})
	}
	if ctx.Err() == nil { // else the members had no time to answer, and others should ask again
		p.nodes, p.at = nodes, time.Now()
	}
	return nodes
}

// teller tells one stream how the fleet stands.
type teller struct {
	s    *Server
	next time.Time // when it looks again
	told time.Time
	last wire.Standing
	node map[string]wire.NodeStanding
}

// due is how long until the next look.
func (t *teller) due() time.Duration { return max(0, time.Until(t.next)) }

// tell sends what has changed, if it is time to look; and that nothing has, if it is time for that.
func (t *teller) tell(ctx context.Context, out *sseWriter) error {
	if t.due() > 0 {
		return nil
	}
	nodes := t.s.pulse.of(ctx, t.s)
	t.next = time.Now().Add(standingLook)
	now := t.s.standing()
	now.Nodes, now.Gone = t.changed(nodes)
	quiet := len(now.Nodes)+len(now.Gone) == 0 && sameStanding(&now, &t.last)
	if quiet && time.Since(t.told) < standingBeat-standingLook/2 {
		return nil
	}
	t.last, t.told = now, time.Now()
	data, err := json.Marshal(now)
	if err != nil {
		return err
	}
	return out.send("event: " + wire.EventStanding + "\ndata: " + string(data) + "\n\n")
}

func sameStanding(a, b *wire.Standing) bool {
	return a.Fleet == b.Fleet && a.Epoch == b.Epoch && a.Index == b.Index && a.CommitIndex == b.CommitIndex && a.Leader == b.Leader &&
		a.Term == b.Term && a.Quorum == b.Quorum && a.CaughtUp == b.CaughtUp
}

// changed returns the members that stand otherwise than was told, and those that are gone.
func (t *teller) changed(nodes []wire.NodeStanding) (changed []wire.NodeStanding, gone []string) {
	changed, gone = []wire.NodeStanding{}, []string{}
	here := make(map[string]wire.NodeStanding, len(nodes))
	for _, n := range nodes {
		here[n.ID] = n
		if was, known := t.node[n.ID]; !known || was != n {
			changed = append(changed, n)
		}
	}
	for id := range t.node {
		if _, is := here[id]; !is {
			gone = append(gone, id)
		}
	}
	slices.SortFunc(gone, strings.Compare)
	t.node = here
	return changed, gone
}

// standing is how this node stands, without the others.
func (s *Server) standing() wire.Standing {
	st := s.opts.Backend.Status()
	age := s.age(st)
	v := s.opts.Backend.View()
	out := wire.Standing{
		Type: wire.EventStanding, At: s.now().UTC(), Node: st.Node, Version: s.opts.Version, Index: v.Index(), CommitIndex: st.CommitIndex,
		Leader: st.Leader, Term: st.Term, Quorum: st.Quorum, CaughtUp: st.CaughtUp, AgeMS: age,
	}
	if f, ok := v.Fleet(); ok {
		out.Fleet, out.Epoch = f.ID, f.Epoch
	}
	return out
}
