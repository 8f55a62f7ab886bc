package fsm

import (
	"time"

	"github.com/palisade/palisade/fsm/internal/fsmpb"
)

func nodeStates() []NodeState { return []NodeState{NodeActive, NodeDrained, NodeRetired} }
func caStates() []CAState     { return []CAState{CACurrent, CATrusted} }
func gossipKeyStates() []GossipKeyState {
	return []GossipKeyState{GossipKeyAdded, GossipKeyPrimary, GossipKeyOld}
}

// encodeFleetOp returns nil for an op that is not about the fleet's identity.
func encodeFleetOp(op Op) *fsmpb.Op {
	switch op := op.(type) {
	case FormFleet:
		return &fsmpb.Op{Op: &fsmpb.Op_FormFleet{FormFleet: &fsmpb.FormFleet{
			Id: op.ID, Ca: encodeCA(op.CA), GossipKey: encodeGossipKey(op.GossipKey), Node: encodeAdmission(&op.Node),
		}}}
	case CreateJoinToken:
		return &fsmpb.Op{Op: &fsmpb.Op_CreateJoinToken{CreateJoinToken: &fsmpb.CreateJoinToken{
			Id: op.ID, Hash: encodeHash(op.Hash), Node: op.Node, Zone: op.Zone, Ttl: int64(op.TTL), Again: op.Again,
		}}}
	case DeleteJoinToken:
		return &fsmpb.Op{Op: &fsmpb.Op_DeleteJoinToken{DeleteJoinToken: &fsmpb.DeleteJoinToken{Id: op.ID}}}
	case AdmitNode:
		return &fsmpb.Op{Op: &fsmpb.Op_AdmitNode{AdmitNode: &fsmpb.AdmitNode{
			Token: op.Token, Hash: encodeHash(op.Hash), Node: encodeAdmission(&op.Node),
		}}}
	case RenewNode:
		return &fsmpb.Op{Op: &fsmpb.Op_RenewNode{RenewNode: &fsmpb.RenewNode{
			Id: op.ID, Using: op.Using, KeyHash: encodeHash(op.KeyHash), NotAfter: toNanos(op.NotAfter),
		}}}
	case ConfirmNode:
		return &fsmpb.Op{Op: &fsmpb.Op_ConfirmNode{ConfirmNode: &fsmpb.ConfirmNode{Id: op.ID, Serial: op.Serial}}}
	case StartCA:
		return &fsmpb.Op{Op: &fsmpb.Op_StartCa{StartCa: &fsmpb.StartCA{Ca: encodeCA(op.CA)}}}
	case FinishCA:
		return &fsmpb.Op{Op: &fsmpb.Op_FinishCa{FinishCa: &fsmpb.FinishCA{Id: op.ID}}}
	case AddGossipKey:
		return &fsmpb.Op{Op: &fsmpb.Op_AddGossipKey{AddGossipKey: &fsmpb.AddGossipKey{Key: encodeGossipKey(op.Key)}}}
	case UseGossipKey:
		return &fsmpb.Op{Op: &fsmpb.Op_UseGossipKey{UseGossipKey: &fsmpb.UseGossipKey{Id: op.ID}}}
	case RemoveGossipKey:
		return &fsmpb.Op{Op: &fsmpb.Op_RemoveGossipKey{RemoveGossipKey: &fsmpb.RemoveGossipKey{Id: op.ID}}}
	}
	return encodeLeaveOp(op)
}

// fleetOp returns nil for a message that is not about the fleet's identity.
func (d *decoder) fleetOp(m any) Op {
	switch m := m.(type) {
	case *fsmpb.Op_FormFleet:
		op := m.FormFleet
		d.known(op)
		return FormFleet{ID: op.Id, CA: d.ca(op.Ca), GossipKey: d.gossipKey(op.GossipKey), Node: d.admission(op.Node)}
	case *fsmpb.Op_CreateJoinToken:
		op := m.CreateJoinToken
		d.known(op)
		return CreateJoinToken{ID: op.Id, Hash: d.hash(op.Hash), Node: op.Node, Zone: op.Zone, TTL: time.Duration(op.Ttl), Again: op.Again}
	case *fsmpb.Op_DeleteJoinToken:
		d.known(m.DeleteJoinToken)
		return DeleteJoinToken{ID: m.DeleteJoinToken.Id}
	case *fsmpb.Op_AdmitNode:
		op := m.AdmitNode
		d.known(op)
		return AdmitNode{Token: op.Token, Hash: d.hash(op.Hash), Node: d.admission(op.Node)}
	case *fsmpb.Op_RenewNode:
		op := m.RenewNode
		d.known(op)
		return RenewNode{ID: intern(op.Id), Using: op.Using, KeyHash: d.hash(op.KeyHash), NotAfter: decodeTime(op.NotAfter)}
	case *fsmpb.Op_ConfirmNode:
		d.known(m.ConfirmNode)
		return ConfirmNode{ID: intern(m.ConfirmNode.Id), Serial: m.ConfirmNode.Serial}
	case *fsmpb.Op_StartCa:
		d.known(m.StartCa)
		return StartCA{CA: d.ca(m.StartCa.Ca)}
	case *fsmpb.Op_FinishCa:
		d.known(m.FinishCa)
		return FinishCA{ID: m.FinishCa.Id}
	case *fsmpb.Op_AddGossipKey:
		d.known(m.AddGossipKey)
		return AddGossipKey{Key: d.gossipKey(m.AddGossipKey.Key)}
	case *fsmpb.Op_UseGossipKey:
		d.known(m.UseGossipKey)
		return UseGossipKey{ID: m.UseGossipKey.Id}
	case *fsmpb.Op_RemoveGossipKey:
		d.known(m.RemoveGossipKey)
		return RemoveGossipKey{ID: m.RemoveGossipKey.Id}
	}
	return d.leaveOp(m)
}

// encodeHash gives nil for no hash.
func encodeHash(h [32]byte) []byte {
	if h == [32]byte{} {
		return nil
	}
	return h[:]
}

func (d *decoder) hash(b []byte) (h [32]byte) {
	if len(b) != 0 && len(b) != len(h) {
		d.fail("has a hash of %d bytes", len(b))
		return h
	}
	copy(h[:], b)
	return h
}

func encodeCA(c CA) *fsmpb.CA {
	return &fsmpb.CA{
		Id: c.ID, Certificate: c.Certificate, Cross: c.Cross, SealedKey: c.SealedKey, State: string(c.State), Index: c.Index,
	}
}

func (d *decoder) ca(m *fsmpb.CA) CA {
	if m == nil {
		return CA{}
	}
	d.known(m)
	return CA{
		ID: m.Id, Certificate: m.Certificate, Cross: m.Cross, SealedKey: m.SealedKey,
		State: known(d, "authority state", m.State, caStates, !d.stored), Index: m.Index,
	}
}

func encodeGossipKey(k GossipKey) *fsmpb.GossipKey {
	return &fsmpb.GossipKey{Id: k.ID, SealedKey: k.SealedKey, State: string(k.State), Index: k.Index}
}

func (d *decoder) gossipKey(m *fsmpb.GossipKey) GossipKey {
	if m == nil {
		return GossipKey{}
	}
	d.known(m)
	return GossipKey{
		ID: m.Id, SealedKey: m.SealedKey,
		State: known(d, "gossip key state", m.State, gossipKeyStates, !d.stored), Index: m.Index,
	}
}

func encodeAdmission(n *Admission) *fsmpb.Admission {
	return &fsmpb.Admission{
		Id: n.ID, Name: n.Name, Zone: n.Zone, Address: n.Address, Gossip: n.Gossip, Api: n.API,
		KeyHash: encodeHash(n.KeyHash), NotAfter: toNanos(n.NotAfter), Format: n.Format,
	}
}

func (d *decoder) admission(m *fsmpb.Admission) Admission {
	if m == nil {
		return Admission{}
	}
	d.known(m)
	return Admission{
		ID: intern(m.Id), Name: m.Name, Zone: intern(m.Zone), Address: m.Address, Gossip: m.Gossip, API: m.Api,
		KeyHash: d.hash(m.KeyHash), NotAfter: decodeTime(m.NotAfter), Format: m.Format,
	}
}

// encodeMembership adds what the fleet decided to a node.
func encodeMembership(n *fsmpb.Node, m *Membership) *fsmpb.Node {
	n.Address, n.Gossip, n.Api, n.Zone = m.Address, m.Gossip, m.API, m.Zone
	n.KeyHash, n.Serial, n.Confirmed, n.NotAfter = encodeHash(m.KeyHash), m.Serial, m.Confirmed, toNanos(m.NotAfter)
	n.Generation, n.State, n.JoinedAt = m.Generation, string(m.State), toNanos(m.JoinedAt)
	n.RetiredAt = toNanos(m.RetiredAt)
	return n
}

func (d *decoder) membership(m *fsmpb.Node) Membership {
	return Membership{
		Address: m.Address, Gossip: m.Gossip, API: m.Api, Zone: intern(m.Zone),
		KeyHash: d.hash(m.KeyHash), Serial: m.Serial, Confirmed: m.Confirmed, NotAfter: decodeTime(m.NotAfter),
		Generation: m.Generation, State: known(d, "node state", m.State, nodeStates, true), JoinedAt: decodeTime(m.JoinedAt), RetiredAt: decodeTime(m.RetiredAt),
	}
}

func encodeFleet(f *Fleet) *fsmpb.Fleet {
	return &fsmpb.Fleet{
		Id: f.ID, Epoch: f.Epoch, Cas: encodeList(f.CAs, encodeCA), GossipKeys: encodeList(f.GossipKeys, encodeGossipKey),
		FormedAt: toNanos(f.FormedAt), Revision: f.Revision,
		EpochAt: toNanos(f.Since.At), EpochNode: f.Since.Node, EpochHow: string(f.Since.How), EpochSettled: f.Since.Settled, EpochIndex: f.Since.Index,
	}
}

func (d *decoder) fleet(m *fsmpb.Fleet) *Fleet {
	if m == nil || m.Id == "" {
		d.fail("has no fleet")
		return &Fleet{}
	}
	d.known(m)
	return &Fleet{
		ID: m.Id, Epoch: m.Epoch, CAs: decodeList(m.Cas, d.ca), GossipKeys: decodeList(m.GossipKeys, d.gossipKey),
		FormedAt: decodeTime(m.FormedAt), Revision: m.Revision,
		Since: Epoch{
			At: decodeTime(m.EpochAt), Node: intern(m.EpochNode), How: known(d, "way to an epoch", m.EpochHow, epochHows, true), Settled: m.EpochSettled, Index: m.EpochIndex,
		},
	}
}

func encodeJoinToken(t *JoinToken) *fsmpb.JoinToken {
	return &fsmpb.JoinToken{
		Id: t.ID, Hash: encodeHash(t.Hash), Node: t.Node, Zone: t.Zone,
		CreatedAt: toNanos(t.CreatedAt), ExpiresAt: toNanos(t.ExpiresAt), Actor: t.Actor,
		UsedBy: t.UsedBy, UsedAt: toNanos(t.UsedAt), Revision: t.Revision, Again: t.Again,
	}
}

func (d *decoder) joinToken(m *fsmpb.JoinToken) *JoinToken {
	if m == nil || m.Id == "" {
		d.fail("has no join token")
		return &JoinToken{}
	}
	d.known(m)
	return &JoinToken{
		ID: m.Id, Hash: d.hash(m.Hash), Node: intern(m.Node), Zone: intern(m.Zone),
		CreatedAt: decodeTime(m.CreatedAt), ExpiresAt: decodeTime(m.ExpiresAt), Actor: intern(m.Actor),
		UsedBy: intern(m.UsedBy), UsedAt: decodeTime(m.UsedAt), Revision: m.Revision, Again: m.Again,
	}
}

func fleetRecord(f *Fleet) *fsmpb.Record {
	return &fsmpb.Record{Record: &fsmpb.Record_Fleet{Fleet: encodeFleet(f)}}
}

func joinTokenRecord(t *JoinToken) *fsmpb.Record {
	return &fsmpb.Record{Record: &fsmpb.Record_JoinToken{JoinToken: encodeJoinToken(t)}}
}

// fleet reads the fleet of a snapshot.
func (b *rebuild) fleet() error {
	r, d, err := b.in.decode()
	if err != nil {
		return err
	}
	f := d.fleet(r.GetFleet())
	a := &b.applier
	if a.fleet != nil {
		d.fail("it has a fleet twice")
	}
	if d.err == nil {
		a.setFleet(f)
	}
	return damage(d.err)
}

func (b *rebuild) joinToken() error {
	r, d, err := b.in.decode()
	if err != nil {
		return err
	}
	t := d.joinToken(r.GetJoinToken())
	a := &b.applier
	if _, again := a.joinTokens.get([]byte(t.ID)); again {
		d.fail("it has join token %s twice", quote(t.ID))
	}
	if d.err == nil {
		a.setJoinToken(nil, t)
	}
	return damage(d.err)
}

// setFleet and setJoinToken are like setNode.

func (a *applier) setFleet(is *Fleet) {
	a.was.fleet = a.fleet
	if a.fleet != nil {
		a.sum.subtract(a.digest(fleetRecord(a.fleet)))
	}
	a.fleet = is
	a.sum.add(a.digest(fleetRecord(is)))
}

func (a *applier) setJoinToken(was, is *JoinToken) {
	a.was.joinToken = was
	if was != nil {
		a.sum.subtract(a.digest(joinTokenRecord(was)))
	}
	if is == nil {
		a.joinTokens.remove([]byte(was.ID))
		return
	}
	a.joinTokens.put([]byte(is.ID), is)
	a.sum.add(a.digest(joinTokenRecord(is)))
}
