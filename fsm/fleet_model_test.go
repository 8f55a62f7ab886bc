package fsm

import (
	"bytes"
	"maps"
	"slices"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"
	"pgregory.net/rapid"
)

// fleetModel is what the ops on the fleet's identity do, without tables, hashes, events or texts.
type fleetModel struct {
	index  uint64
	time   time.Time
	fleet  *Fleet
	nodes  map[string]Node
	tokens map[string]JoinToken
}

// code is what an op is refused with, "" if it was done.
func (m *fleetModel) apply(index uint64, at time.Time, op Op) Code {
	m.index = index
	if at.After(m.time) {
		m.time = at
	}
	if form, ok := op.(FormFleet); ok {
		if m.fleet != nil {
			return CodeConflict
		}
		if code := m.checkNew(form.Node); code != "" {
			return code
		}
		form.CA.State, form.GossipKey.State, form.GossipKey.Index = CACurrent, GossipKeyPrimary, index
		m.fleet = &Fleet{
			ID: form.ID, Epoch: 1, CAs: []CA{form.CA}, GossipKeys: []GossipKey{form.GossipKey}, FormedAt: m.time, Revision: index,
		}
		m.admit(form.Node, FirstSerial)
		return ""
	}
	if put, ok := op.(PutNode); ok {
		return m.putNode(put.Node)
	}
	switch op := op.(type) {
	case RenewNode:
		n, known := m.nodes[op.ID]
		switch {
		case !known || n.Serial == 0:
			return CodeNotFound
		case n.State == NodeRetired:
			return CodeNodeRetired
		case op.Using < n.Confirmed || op.Using > n.Serial:
			return CodeStale
		}
		for _, other := range m.nodes {
			if other.ID != op.ID && other.KeyHash == op.KeyHash {
				return CodeConflict
			}
		}
		n.Serial, n.Confirmed, n.KeyHash, n.NotAfter, n.Revision = index, op.Using, op.KeyHash, op.NotAfter.UTC(), index
		m.nodes[op.ID] = n
		return ""
	case DrainNode, RetireNode:
		return m.leave(op)
	case ConfirmNode:
		n, known := m.nodes[op.ID]
		switch {
		case !known || n.Serial == 0:
			return CodeNotFound
		case n.State == NodeRetired:
			return CodeNodeRetired
		case op.Serial < n.Confirmed || op.Serial > n.Serial:
			return CodeStale
		case op.Serial > n.Confirmed:
			n.Confirmed, n.Revision = op.Serial, index
			m.nodes[op.ID] = n
		}
		return ""
	}
	if m.fleet == nil {
		if _, ok := op.(DeleteJoinToken); ok {
			return CodeNotFound
		}
		return CodeConflict
	}
	switch op := op.(type) {
	case CreateJoinToken:
		if _, known := m.tokens[op.ID]; known {
			return CodeConflict
		}
		switch n := m.nodes[op.Node]; {
		case op.Again && (op.Node == "" || op.Zone != ""):
			return CodeInvalid
		case op.Again && n.Serial == 0:
			return CodeNotFound
		case op.Again && n.State == NodeRetired:
			return CodeNodeRetired
		case !op.Again:
			if code := m.checkID(op.Node); code != "" {
				return code
			}
		}
		maps.DeleteFunc(m.tokens, func(_ string, t JoinToken) bool { return t.ExpiresAt.Add(24 * time.Hour).Before(m.time) })
		m.tokens[op.ID] = JoinToken{
			ID: op.ID, Hash: op.Hash, Node: op.Node, Zone: op.Zone, Again: op.Again, CreatedAt: m.time, ExpiresAt: m.time.Add(op.TTL),
			Actor: "a", Revision: index,
		}
	case DeleteJoinToken:
		if _, known := m.tokens[op.ID]; !known {
			return CodeNotFound
		}
		delete(m.tokens, op.ID)
	case AdmitNode:
		return m.admitNode(op)
	case BeginEpoch:
		return m.begin(op)
	case SettleEpoch:
		if op.Epoch != m.fleet.Epoch {
			return CodeConflict
		}
		if m.fleet.Since.Settled < op.Epoch {
			f := *m.fleet
			f.Since.Settled, f.Revision = op.Epoch, index
			m.fleet = &f
		}
	default:
		return m.rotate(op)
	}
	return ""
}

func (m *fleetModel) putNode(n Node) Code {
	was, known := m.nodes[n.ID]
	switch {
	case m.fleet != nil && was.Serial == 0:
		return CodeNotFound
	case was.State == NodeRetired:
		return CodeNodeRetired
	case known && n.Generation != 0 && n.Generation < was.Generation:
		return CodeStale
	}
	is := was
	is.ID, is.Name, is.Format = n.ID, n.Name, n.Format
	for to, from := range map[*string]string{&is.Address: n.Address, &is.Gossip: n.Gossip, &is.API: n.API} {
		if from != "" {
			*to = from
		}
	}
	is.Generation = max(was.Generation, n.Generation)
	if !known || !equalNodes(&was, &is) {
		is.Revision = m.index
		m.nodes[n.ID] = is
	}
	return ""
}

func (m *fleetModel) admitNode(op AdmitNode) Code {
	t, known := m.tokens[op.Token]
	switch {
	case !known, t.Hash != op.Hash:
		return CodeTokenUnknown
	case t.UsedBy != "":
		if n := m.nodes[t.UsedBy]; n.ID == op.Node.ID && n.KeyHash == op.Node.KeyHash && n.State != NodeRetired {
			return ""
		}
		return CodeTokenUsed
	case !m.time.Before(t.ExpiresAt):
		return CodeTokenExpired
	case t.Node != "" && t.Node != op.Node.ID, t.Zone != "" && op.Node.Zone != "" && op.Node.Zone != t.Zone:
		return CodeTokenBound
	}
	if t.Again {
		if code := m.readmit(op.Node); code != "" {
			return code
		}
	} else {
		if code := m.checkNew(op.Node); code != "" {
			return code
		}
		if t.Zone != "" {
			op.Node.Zone = t.Zone
		}
		m.admit(op.Node, m.index)
	}
	t.UsedBy, t.UsedAt, t.Revision = op.Node.ID, m.time, m.index
	m.tokens[t.ID] = t
	return ""
}

func (m *fleetModel) readmit(a Admission) Code {
	n := m.nodes[a.ID]
	switch {
	case n.Serial == 0:
		return CodeNotFound
	case n.State == NodeRetired:
		return CodeNodeRetired
	case n.KeyHash != a.KeyHash:
		return CodeConflict
	}
	n.Address, n.Gossip, n.API, n.Format = a.Address, a.Gossip, a.API, a.Format
	n.Serial, n.NotAfter, n.Revision = m.index, a.NotAfter.UTC(), m.index
	m.nodes[a.ID] = n
	return ""
}

func (m *fleetModel) checkID(id string) Code {
	switch n := m.nodes[id]; {
	case n.Serial == 0:
		return ""
	case n.State == NodeRetired:
		return CodeNodeRetired
	}
	return CodeNodeExists
}

func (m *fleetModel) leave(op Op) Code {
	drain, draining := op.(DrainNode)
	retire, _ := op.(RetireNode)
	id, force := retire.ID, retire.Force
	if draining {
		id = drain.ID
	}
	n, known := m.nodes[id]
	switch {
	case !known || n.Serial == 0:
		return CodeNotFound
	case n.State == NodeRetired:
		return CodeNodeRetired
	}
	others := 0
	for _, o := range m.nodes {
		if o.ID != id && o.State == NodeActive {
			others++
		}
	}
	want := NodeDrained
	switch {
	case draining && drain.Undo:
		want = NodeActive
	case draining && n.State == NodeDrained:
	case others == 0, !draining && n.State != NodeDrained && !force:
		return CodeConflict
	}
	if !draining {
		m.retire(id)
	} else if n.State != want {
		n.State, n.Revision = want, m.index
		m.nodes[id] = n
	}
	return ""
}

func (m *fleetModel) retire(id string) {
	n := m.nodes[id]
	n.State, n.RetiredAt, n.Revision = NodeRetired, m.time, m.index
	m.nodes[id] = n
}

func (m *fleetModel) begin(op BeginEpoch) Code {
	switch {
	case op.Fleet != m.fleet.ID, op.Epoch <= m.fleet.Epoch:
		return CodeConflict
	case op.Admit != nil && op.Admit.ID != op.Node:
		return CodeInvalid
	case op.Admit != nil:
		if code := m.checkNew(*op.Admit); code != "" {
			return code
		}
	case m.nodes[op.Node].Serial == 0:
		return CodeNotFound
	case m.nodes[op.Node].State == NodeRetired:
		return CodeNodeRetired
	}
	clear(m.tokens)
	f := *m.fleet
	f.CAs = slices.Clone(f.CAs)
	if op.CA != nil {
		for i := range f.CAs {
			f.CAs[i].State, f.CAs[i].SealedKey = CATrusted, nil
		}
		ca := *op.CA
		ca.State, ca.Index = CACurrent, m.index
		f.CAs = append(f.CAs, ca)
	}
	if op.GossipKeys != nil {
		f.GossipKeys = slices.Clone(op.GossipKeys)
		for i := range f.GossipKeys {
			f.GossipKeys[i].Index = m.index
		}
	}
	f.Epoch, f.Since, f.Revision = op.Epoch, Epoch{At: m.time, Node: op.Node, Index: m.index, How: op.How, Settled: f.Since.Settled}, m.index
	m.fleet = &f
	if op.Admit != nil {
		m.admit(*op.Admit, m.index)
	}
	n := m.nodes[op.Node]
	if is := n; op.Address != "" || n.State != NodeActive {
		is.State = NodeActive
		if op.Address != "" {
			is.Address = op.Address
		}
		if is.Membership != n.Membership {
			is.Revision = m.index
			m.nodes[op.Node] = is
		}
	}
	for _, id := range op.Retire {
		if n := m.nodes[id]; n.Serial != 0 && n.State != NodeRetired && id != op.Node {
			m.retire(id)
		}
	}
	return ""
}

func (m *fleetModel) checkNew(a Admission) Code {
	if code := m.checkID(a.ID); code != "" {
		return code
	}
	for _, n := range m.nodes {
		if n.KeyHash == a.KeyHash || n.State != NodeRetired && n.ID != a.ID && (n.Address == a.Address || n.Gossip == a.Gossip) {
			return CodeConflict
		}
	}
	return ""
}

func (m *fleetModel) admit(a Admission, serial uint64) {
	n := m.nodes[a.ID]
	n.ID, n.Name, n.Format, n.Revision = a.ID, a.Name, a.Format, m.index
	n.Membership = Membership{
		Address: a.Address, Gossip: a.Gossip, API: a.API, Generation: n.Generation, Zone: a.Zone, KeyHash: a.KeyHash,
		Serial: serial, Confirmed: serial, NotAfter: a.NotAfter.UTC(), State: NodeActive, JoinedAt: m.time,
	}
	m.nodes[a.ID] = n
}

func (m *fleetModel) rotate(op Op) Code {
	f := *m.fleet
	f.CAs, f.GossipKeys, f.Revision = slices.Clone(f.CAs), slices.Clone(f.GossipKeys), m.index
	ca := func(id string) int { return slices.IndexFunc(f.CAs, func(c CA) bool { return c.ID == id }) }
	key := func(id string) int {
		return slices.IndexFunc(f.GossipKeys, func(k GossipKey) bool { return k.ID == id })
	}
	switch op := op.(type) {
	case StartCA:
		if len(f.CAs) >= 2 || ca(op.CA.ID) >= 0 {
			return CodeConflict
		}
		f.CAs[0].State, f.CAs[0].SealedKey = CATrusted, nil
		op.CA.State, op.CA.Index = CACurrent, m.index
		f.CAs = append(f.CAs, op.CA)
	case FinishCA:
		at := ca(op.ID)
		switch {
		case at < 0:
			return CodeNotFound
		case at == len(f.CAs)-1:
			return CodeConflict
		}
		for _, n := range m.nodes {
			if n.State != NodeRetired && n.Confirmed <= f.CAs[len(f.CAs)-1].Index {
				return CodeConflict
			}
		}
		f.CAs = slices.Delete(f.CAs, at, at+1)
	case AddGossipKey:
		added := slices.ContainsFunc(f.GossipKeys, func(k GossipKey) bool { return k.State == GossipKeyAdded })
		if key(op.Key.ID) >= 0 || added || len(f.GossipKeys) == 3 {
			return CodeConflict
		}
		op.Key.State, op.Key.Index = GossipKeyAdded, m.index
		f.GossipKeys = append(f.GossipKeys, op.Key)
	case UseGossipKey:
		at := key(op.ID)
		switch {
		case at < 0:
			return CodeNotFound
		case f.GossipKeys[at].State != GossipKeyAdded:
			return CodeConflict
		}
		for _, n := range m.nodes {
			if n.State == NodeRetired && n.Revision > f.GossipKeys[at].Index {
				return CodeConflict
			}
		}
		for i := range f.GossipKeys {
			if f.GossipKeys[i].State == GossipKeyPrimary {
				f.GossipKeys[i].State, f.GossipKeys[i].Index = GossipKeyOld, m.index
			}
		}
		f.GossipKeys[at].State, f.GossipKeys[at].Index = GossipKeyPrimary, m.index
	case RemoveGossipKey:
		at := key(op.ID)
		switch {
		case at < 0:
			return CodeNotFound
		case f.GossipKeys[at].State == GossipKeyPrimary:
			return CodeConflict
		}
		f.GossipKeys = slices.Delete(f.GossipKeys, at, at+1)
	}
	m.fleet = &f
	return ""
}

// TestTheFleetAgainstItsModel applies random ops on identity and membership to a store, to one that is restored
// from snapshots on the way, and to the model.
func TestTheFleetAgainstItsModel(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		lived, restored := NewStore(), NewStore()
		m := &fleetModel{nodes: map[string]Node{}, tokens: map[string]JoinToken{}}
		at := time.Unix(1_700_000_000, 0).UTC()
		for i := range uint64(rapid.IntRange(1, 80).Draw(t, "entries")) {
			at = at.Add(rapid.SampledFrom([]time.Duration{0, time.Second, 20 * time.Second, 30 * time.Hour}).Draw(t, "later"))
			op := genFleetOp(i+1).Draw(t, "op")
			if i == 0 && rapid.IntRange(0, 9).Draw(t, "formed") > 0 {
				op = forming()
			}
			data, err := MarshalCommand(Command{Time: at, Actor: "a", Op: op})
			if err != nil {
				t.Fatal(err)
			}
			want := m.apply(i+1, at, op)
			for _, s := range []*Store{lived, restored} {
				got, err := s.ApplyBatch([]Entry{{i + 1, data}})
				if err != nil {
					t.Fatal(err)
				}
				var code Code
				if got[0].Err != nil {
					code = got[0].Err.Code
				}
				if code != want {
					t.Fatalf("%+v: got %q (%v), want %q", op, code, got[0].Err, want)
				}
			}
			m.compare(t, lived.View())
			if rapid.IntRange(0, 4).Draw(t, "restore") == 0 {
				var b bytes.Buffer
				if err := restored.View().WriteSnapshot(&b); err != nil {
					t.Fatal(err)
				}
				restored = NewStore()
				if err := restored.Restore(&b); err != nil {
					t.Fatal(err)
				}
			}
			if lived.View().Hash() != restored.View().Hash() || recomputed(lived.View()) != lived.View().sum {
				t.Fatal("the hashes differ")
			}
		}
	})
}

func (m *fleetModel) compare(t *rapid.T, v *View) {
	fleet, _ := v.Fleet()
	nodes, tokens := map[string]Node{}, map[string]JoinToken{}
	for n := range v.Nodes() {
		nodes[n.ID] = *n
	}
	for token := range v.JoinTokens() {
		tokens[token.ID] = *token
	}
	if diff := cmp.Diff([]any{m.fleet, m.nodes, m.tokens}, []any{fleet, nodes, tokens}, cmpopts.EquateEmpty()); diff != "" {
		t.Fatalf("(-model +view)\n%s", diff)
	}
}
