package cluster

import (
	"slices"
	"sync"

	"github.com/hashicorp/raft"

	"github.com/palisade/palisade/cluster/internal/peerpb"
)

// maxHinted is more members than raft ever has.
const maxHinted = 16

// membership is the committed list of raft's members, as the log says it to everyone who applies it: to
// voters and to followers alike.
type membership struct {
	mu      sync.Mutex
	index   uint64 // of the log entry, 0 if none is known
	servers []raft.Server
	heard   *peerpb.Membership // a later one that a peer told of and was believed, nil if none
	hinted  []string           // members by the word of a peer that was not: they can be asked
	changed chan struct{}      // closed with the next change
}

func newMembership() *membership { return &membership{changed: make(chan struct{})} }

// note takes what the log or a snapshot says. An older one than is known is passed over.
func (m *membership) note(index uint64, conf raft.Configuration) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if index <= m.index {
		return
	}
	m.index, m.servers = index, slices.Clone(conf.Servers)
	m.wake()
}

// hear takes what a peer says to be committed, which may be later than what this node has applied.
func (m *membership) hear(p *peerpb.Membership) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if p.GetIndex() <= max(m.index, m.heard.GetIndex()) {
		return
	}
	m.heard = p
	m.wake()
}

// hint takes what a peer says that nobody needs to believe.
func (m *membership) hint(p *peerpb.Membership) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if members := p.GetMembers(); p.GetIndex() > m.index && len(members) <= maxHinted {
		m.hinted = members
	}
}

func (m *membership) hints() []string {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.hinted
}

// wake tells of a change. The caller holds mu.
func (m *membership) wake() {
	close(m.changed)
	m.changed = make(chan struct{})
}

// has returns the role of a node in what this node has applied, and whether it has applied any.
func (m *membership) has(id string) (role, bool) {
	m.mu.Lock()
	defer m.mu.Unlock()
	return roleIn(m.servers, id), m.index > 0
}

func roleIn(servers []raft.Server, id string) role {
	for _, s := range servers {
		switch {
		case s.ID != raft.ServerID(id):
		case s.Suffrage == raft.Voter:
			return votes
		default:
			return staged
		}
	}
	return follows
}

// later returns what a peer said to be committed, if that is later than what this node has applied, else nil.
func (m *membership) later() *peerpb.Membership {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.heard.GetIndex() <= m.index {
		return nil
	}
	return m.heard
}

func (m *membership) change() <-chan struct{} {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.changed
}

// voters returns the ids of those that vote, as this node has applied it.
func (m *membership) voters() []string {
	m.mu.Lock()
	defer m.mu.Unlock()
	var out []string
	for _, s := range m.servers {
		if s.Suffrage == raft.Voter {
			out = append(out, string(s.ID))
		}
	}
	return out
}

func (m *membership) encode() *peerpb.Membership {
	m.mu.Lock()
	defer m.mu.Unlock()
	out := &peerpb.Membership{Index: m.index}
	for _, s := range m.servers {
		out.Members = append(out.Members, string(s.ID))
	}
	return out
}
