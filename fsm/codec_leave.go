package fsm

import (
	"slices"

	"github.com/palisade/palisade/fsm/internal/fsmpb"
)

func epochHows() []EpochHow { return []EpochHow{EpochRecovered, EpochRestored} }

// encodeLeaveOp returns nil for an op that is not about leaving or going on.
func encodeLeaveOp(op Op) *fsmpb.Op {
	switch op := op.(type) {
	case DrainNode:
		return &fsmpb.Op{Op: &fsmpb.Op_DrainNode{DrainNode: &fsmpb.DrainNode{Id: op.ID, Undo: op.Undo}}}
	case RetireNode:
		return &fsmpb.Op{Op: &fsmpb.Op_RetireNode{RetireNode: &fsmpb.RetireNode{Id: op.ID, Force: op.Force}}}
	case BeginEpoch:
		m := &fsmpb.BeginEpoch{
			Fleet: op.Fleet, Epoch: op.Epoch, How: string(op.How), Node: op.Node, Address: op.Address, Gossip: op.Gossip, Api: op.API,
			GossipKeys: encodeList(op.GossipKeys, encodeGossipKey), Retire: op.Retire,
		}
		if op.Admit != nil {
			m.Admit = encodeAdmission(op.Admit)
		}
		if op.CA != nil {
			m.Ca = encodeCA(*op.CA)
		}
		return &fsmpb.Op{Op: &fsmpb.Op_BeginEpoch{BeginEpoch: m}}
	case SettleEpoch:
		return &fsmpb.Op{Op: &fsmpb.Op_SettleEpoch{SettleEpoch: &fsmpb.SettleEpoch{Epoch: op.Epoch}}}
	}
	return nil
}

// leaveOp returns nil for a message that is not about leaving or going on.
func (d *decoder) leaveOp(m any) Op {
	switch m := m.(type) {
	case *fsmpb.Op_DrainNode:
		d.known(m.DrainNode)
		return DrainNode{ID: intern(m.DrainNode.Id), Undo: m.DrainNode.Undo}
	case *fsmpb.Op_RetireNode:
		d.known(m.RetireNode)
		return RetireNode{ID: intern(m.RetireNode.Id), Force: m.RetireNode.Force}
	case *fsmpb.Op_BeginEpoch:
		op := m.BeginEpoch
		d.known(op)
		out := BeginEpoch{
			Fleet: op.Fleet, Epoch: op.Epoch, How: known(d, "way to an epoch", op.How, epochHows, false), Node: intern(op.Node),
			Address: op.Address, Gossip: op.Gossip, API: op.Api, GossipKeys: decodeList(op.GossipKeys, d.gossipKey), Retire: slices.Clone(op.Retire),
		}
		if op.Admit != nil {
			a := d.admission(op.Admit)
			out.Admit = &a
		}
		if op.Ca != nil {
			ca := d.ca(op.Ca)
			out.CA = &ca
		}
		return out
	case *fsmpb.Op_SettleEpoch:
		d.known(m.SettleEpoch)
		return SettleEpoch{Epoch: m.SettleEpoch.Epoch}
	}
	return nil
}
