package httpapi

import (
	"context"
	"errors"
	"slices"
	"strings"
	"sync"
	"syscall"
	"time"

	"github.com/palisade/palisade/fsm"
	"github.com/palisade/palisade/httpapi/wire"
)

const (
	retryAsk     = 25 * time.Millisecond  // between two calls to a member that failed
	recheckAlive = 100 * time.Millisecond // how soon a member that died is no longer waited for
)

// reply is what asking one member gave.
type reply struct {
	member  fsm.Member
	report  fsm.Report
	ok      bool // report is set
	refused bool // nothing listens there: the member is down, whatever gossip says
	err     error
}

// live says whether the member counts as up: an answer is due from it.
func (r *reply) live() bool { return r.member.Self || (r.member.Alive && !r.refused) }

// ask asks a member once, or all if node is empty, and returns the replies in the order of the ids, after AskTimeout at the latest. Who is
// no member has none.
func (s *Server) ask(ctx context.Context, q fsm.Query, node string) []*reply {
	members := s.opts.Backend.Members()
	if node != "" {
		members = slices.DeleteFunc(slices.Clone(members), func(m fsm.Member) bool { return m.ID != node })
	}
	return s.gatherFrom(ctx, members, q, s.opts.AskTimeout, false, nil)
}

// gather asks every member in parallel and returns when each that is live has given an answer that is
// enough, or after limit. A member that gossip calls dead, or that refuses the connection, is asked
// but not waited for. With retry, an answer that failed or is not enough is asked for again. There is
// one reply for each member, in the order of their ids.
func (s *Server) gather(ctx context.Context, q fsm.Query, limit time.Duration, retry bool, enough func(*fsm.Report) bool) []*reply {
	return s.gatherFrom(ctx, s.opts.Backend.Members(), q, limit, retry, enough)
}

func (s *Server) gatherFrom(ctx context.Context, members []fsm.Member, q fsm.Query, limit time.Duration, retry bool, enough func(*fsm.Report) bool) []*reply {
	ctx, cancel := context.WithTimeout(ctx, limit)
	defer cancel()
	replies := make(map[string]*reply, len(members))
	got := make(chan reply, len(members))
	take := func(r reply) {
		r.member = replies[r.member.ID].member // may have been rechecked since
		*replies[r.member.ID] = r
	}
	for _, m := range members {
		replies[m.ID] = &reply{member: m}
		s.asks.Go(func() { s.askOne(ctx, m, q, retry, enough, got) })
	}
	recheck := time.NewTicker(recheckAlive)
	defer recheck.Stop()
	due := func(r *reply) bool { return r.live() && !r.ok && r.err == nil }
	for ctx.Err() == nil {
		pending := false
		for _, r := range replies {
			pending = pending || due(r)
		}
		if !pending {
			break
		}
		select {
		case r := <-got:
			take(r)
		case <-recheck.C:
			for _, m := range s.opts.Backend.Members() {
				if r := replies[m.ID]; r != nil {
					r.member = m
				}
			}
		case <-ctx.Done():
		case <-s.closing:
			cancel()
		}
	}
	for more := true; more; { // what came in at the last moment
		select {
		case r := <-got:
			take(r)
		default:
			more = false
		}
	}
	out := make([]*reply, 0, len(replies))
	for _, r := range replies {
		out = append(out, r)
	}
	slices.SortFunc(out, func(a, b *reply) int { return strings.Compare(a.member.ID, b.member.ID) })
	return out
}

// askOne asks until the answer is enough, and sends one reply. It ends soon after ctx does.
func (s *Server) askOne(ctx context.Context, m fsm.Member, q fsm.Query, retry bool, enough func(*fsm.Report) bool, got chan<- reply) {
	r := reply{member: m}
	for {
		rep, err := s.opts.Backend.Ask(ctx, m.ID, q)
		if err == nil {
			s.memory.note(m.ID, &rep, s.now())
			r.report, r.ok, r.err = rep, true, nil
			if !retry || enough(&rep) {
				break
			}
		} else {
			r.err = err
			if r.refused = errors.Is(err, syscall.ECONNREFUSED); r.refused || !retry {
				break
			}
		}
		select {
		case <-time.After(retryAsk):
			continue
		case <-ctx.Done():
		}
		break
	}
	got <- r
}

// memory keeps the last report of every member: what this node knows of a member that is silent now.
type memory struct {
	mu sync.Mutex
	m  map[string]heard
}

// heard is what a member last said of itself.
type heard struct {
	applied, enforced uint64
	at                time.Time // this node's clock; zero if it never answered
}

func (m *memory) note(id string, r *fsm.Report, now time.Time) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.m == nil {
		m.m = map[string]heard{}
	}
	if h := m.m[id]; now.After(h.at) || h.at.IsZero() {
		m.m[id] = heard{applied: r.Applied, enforced: r.Enforced, at: now}
	}
}

func (m *memory) of(id string) heard {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.m[id]
}

// confirms returns the member's receipt for the block's present state. A receipt from before the
// block's last change is none.
func confirms(r *fsm.Report, b *fsm.Block) (fsm.BlockReport, bool) {
	br, ok := r.Blocks[b.ID]
	return br, ok && br.Enforced && br.Index >= b.Index
}

// changedAt is when the block's state last changed.
func changedAt(b *fsm.Block) time.Time {
	switch {
	case b.State.Over():
		return b.LiftedAt
	case b.State == fsm.BlockPending:
		return b.CreatedAt
	}
	return b.Since()
}

// since says from when on there is no evidence that a silent member holds the block's state:
//   - its last report, if that covered the block's index;
//   - else, for a member that is down and said nothing since the block's last change, the last sign
//     of life by gossip: until then there was no reason to doubt it;
//   - else the block's last change. A member that is up, or that once said that its kernel was
//     behind, is in doubt from the start; a later sign of life proves nothing.
//
// The block's change carries the fleet's time, the others this node's clock.
func (s *Server) since(b *fsm.Block, m *fsm.Member, live bool) time.Time {
	t := changedAt(b)
	changed := t
	switch h := s.memory.of(m.ID); {
	case !h.at.IsZero() && h.enforced >= b.Index:
		t = h.at
	case !live && h.at.Before(changed):
		t = m.LastHeard
	}
	if t.Before(changed) {
		t = changed
	}
	return t.UTC()
}

// receipts fills in where the block is in force, where not, and what it dropped. It reports whether
// every live member confirmed.
func (s *Server) receipts(out *wire.Block, b *fsm.Block, replies []*reply) (all bool) {
	out.Counters = &wire.Counters{}
	out.Receipts = []wire.Receipt{}
	out.Unconfirmed = []wire.Unconfirmed{}
	all = true
	for _, r := range replies {
		if r.ok {
			br, ok := confirms(&r.report, b)
			out.Counters.Packets += br.Packets
			out.Counters.Bytes += br.Bytes
			if ok {
				out.Receipts = append(out.Receipts, wire.Receipt{Node: r.member.ID, Index: br.Index, At: br.At.UTC()})
				continue
			}
		}
		all = all && !r.live()
		out.Unconfirmed = append(out.Unconfirmed, wire.Unconfirmed{Node: r.member.ID, Since: s.since(b, &r.member, r.live()), Why: r.report.Blocks[b.ID].Open})
	}
	return all && len(out.Receipts) > 0
}

// unasked is receipts where no member was asked: nobody has confirmed anything yet.
func (s *Server) unasked(out *wire.Block, b *fsm.Block) {
	replies := make([]*reply, 0, 8)
	for _, m := range s.opts.Backend.Members() {
		replies = append(replies, &reply{member: m})
	}
	slices.SortFunc(replies, func(a, b *reply) int { return strings.Compare(a.member.ID, b.member.ID) })
	s.receipts(out, b, replies)
}
