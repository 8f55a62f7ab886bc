package fsm

import (
	"fmt"
	"slices"
	"strings"
)

// fleetOp applies what is about the fleet's identity, false for every other op.
func (a *applier) fleetOp(op Op) (r Result, ok bool) {
	r = Result{Index: a.index}
	switch op := op.(type) {
	case FormFleet:
		r.Fleet, r.Err = a.formFleet(&op)
	case StartCA:
		r.Fleet, r.Err = a.startCA(op.CA)
	case FinishCA:
		r.Fleet, r.Err = a.finishCA(op)
	case AddGossipKey:
		r.Fleet, r.Err = a.addGossipKey(op.Key)
	case UseGossipKey:
		r.Fleet, r.Err = a.useGossipKey(op)
	case RemoveGossipKey:
		r.Fleet, r.Err = a.removeGossipKey(op)
	case CreateJoinToken:
		r.JoinToken, r.Err = a.createJoinToken(&op)
	case DeleteJoinToken:
		r.JoinToken, r.Err = a.deleteJoinToken(op)
	case AdmitNode:
		r.Node, r.Err = a.admitNode(&op)
	case RenewNode:
		r.Node, r.Err = a.renewNode(&op)
	case ConfirmNode:
		r.Node, r.Err = a.confirmNode(op)
	default:
		return a.leaveOp(op)
	}
	return r, true
}

func (a *applier) formFleet(op *FormFleet) (*Fleet, *Error) {
	if a.fleet != nil {
		return nil, &Error{CodeConflict, "id", "the fleet " + a.fleet.ID + " is formed already"}
	}
	if refused := first(
		checkID("id", op.ID),
		checkCA("ca.", &op.CA),
		checkGossipKey("gossip_key.", &op.GossipKey),
		a.checkMember("node.", &op.Node),
	); refused != nil {
		return nil, refused
	}
	op.CA.State, op.CA.Index = CACurrent, 0
	op.GossipKey.State, op.GossipKey.Index = GossipKeyPrimary, a.index
	f := a.putFleet(&Fleet{
		ID: op.ID, Epoch: 1, CAs: []CA{op.CA}, GossipKeys: []GossipKey{op.GossipKey}, FormedAt: fromNanos(a.time),
	}, EventFleetFormed)
	a.admit(&op.Node, FirstSerial)
	return f, nil
}

// putFleet replaces the fleet and tells of it. It returns what may be shown.
func (a *applier) putFleet(is *Fleet, event EventType) *Fleet {
	is.Revision = a.index
	a.setFleet(is)
	shown := is.public()
	a.emit(Event{Type: event, Fleet: shown})
	return shown
}

// changedFleet is a copy to change.
func (a *applier) changedFleet() (*Fleet, *Error) {
	if a.fleet == nil {
		return nil, noFleet()
	}
	f := *a.fleet
	f.CAs, f.GossipKeys = slices.Clone(f.CAs), slices.Clone(f.GossipKeys)
	return &f, nil
}

func noFleet() *Error {
	return &Error{CodeConflict, "", `there is no fleet yet; "palisade init" on the first node forms it`}
}

func (a *applier) startCA(ca CA) (*Fleet, *Error) {
	f, refused := a.changedFleet()
	if refused == nil {
		refused = checkCA("ca.", &ca)
	}
	if refused != nil {
		return nil, refused
	}
	if slices.ContainsFunc(f.CAs, func(c CA) bool { return c.ID == ca.ID }) {
		return nil, &Error{CodeConflict, "ca.id", "authority " + ca.ID + " is trusted already"}
	}
	if len(f.CAs) > 1 {
		return nil, &Error{CodeConflict, "ca", "a rotation is under way: " + a.sayAwaiting()}
	}
	if len(ca.Cross) == 0 {
		return nil, &Error{CodeInvalid, "ca.cross", "is missing: nodes that have not heard of the new authority would refuse it"}
	}
	for i := range f.CAs {
		f.CAs[i].State, f.CAs[i].SealedKey = CATrusted, nil // it never signs again
	}
	ca.State, ca.Index = CACurrent, a.index
	f.CAs = append(f.CAs, ca)
	return a.putFleet(f, EventCAStarted), nil
}

func (a *applier) finishCA(op FinishCA) (*Fleet, *Error) {
	f, refused := a.changedFleet()
	if refused != nil {
		return nil, refused
	}
	i := slices.IndexFunc(f.CAs, func(c CA) bool { return c.ID == op.ID })
	switch {
	case i < 0:
		return nil, &Error{CodeNotFound, "id", "no authority " + quote(op.ID) + " is trusted"}
	case f.CAs[i].State == CACurrent:
		return nil, &Error{CodeConflict, "id", "authority " + op.ID + " is the current one"}
	case len(a.awaitingCA()) > 0:
		return nil, &Error{CodeConflict, "id", a.sayAwaiting()}
	}
	f.CAs = slices.Delete(f.CAs, i, i+1)
	return a.putFleet(f, EventCAFinished), nil
}

// sayAwaiting names who keeps a rotation from its end.
func (s *state) sayAwaiting() string {
	const most = 10
	ids := s.awaitingCA()
	if len(ids) == 0 {
		return "every node has a certificate of the current authority"
	}
	more := ""
	if len(ids) > most {
		ids, more = ids[:most], fmt.Sprintf(" and %d more", len(ids)-most)
	}
	return "without a certificate of the current authority: " + strings.Join(ids, ", ") + more +
		"; start their agents, or retire them if they are gone for good"
}

func (a *applier) addGossipKey(key GossipKey) (*Fleet, *Error) {
	f, refused := a.changedFleet()
	if refused == nil {
		refused = checkGossipKey("key.", &key)
	}
	switch {
	case refused != nil:
		return nil, refused
	case slices.ContainsFunc(f.GossipKeys, func(k GossipKey) bool { return k.ID == key.ID }):
		return nil, &Error{CodeConflict, "key.id", "there is a gossip key " + key.ID + " already"}
	case slices.ContainsFunc(f.GossipKeys, func(k GossipKey) bool { return k.State == GossipKeyAdded }):
		return nil, &Error{CodeConflict, "key", "a rotation of the gossip key is under way"}
	case len(f.GossipKeys) >= maxGossipKeys:
		return nil, &Error{CodeConflict, "key", "the rotations before have not ended yet"}
	}
	key.State, key.Index = GossipKeyAdded, a.index
	f.GossipKeys = append(f.GossipKeys, key)
	return a.putFleet(f, EventGossipKeyChanged), nil
}

func (a *applier) gossipKey(id string) (f *Fleet, at int, refused *Error) {
	if f, refused = a.changedFleet(); refused != nil {
		return nil, 0, refused
	}
	at = slices.IndexFunc(f.GossipKeys, func(k GossipKey) bool { return k.ID == id })
	if at < 0 {
		return nil, 0, &Error{CodeNotFound, "id", "there is no gossip key " + quote(id)}
	}
	return f, at, nil
}

func (a *applier) useGossipKey(op UseGossipKey) (*Fleet, *Error) {
	f, at, refused := a.gossipKey(op.ID)
	if refused != nil {
		return nil, refused
	}
	if f.GossipKeys[at].State != GossipKeyAdded {
		return nil, &Error{CodeConflict, "id", "gossip key " + op.ID + " is " + string(f.GossipKeys[at].State)}
	}
	if a.lastRetired() > f.GossipKeys[at].Index {
		return nil, &Error{CodeConflict, "id", "a node was retired after gossip key " + op.ID + " was added, and may have it"}
	}
	for i := range f.GossipKeys {
		if f.GossipKeys[i].State == GossipKeyPrimary {
			f.GossipKeys[i].State, f.GossipKeys[i].Index = GossipKeyOld, a.index
		}
	}
	f.GossipKeys[at].State, f.GossipKeys[at].Index = GossipKeyPrimary, a.index
	return a.putFleet(f, EventGossipKeyChanged), nil
}

func (a *applier) removeGossipKey(op RemoveGossipKey) (*Fleet, *Error) {
	f, at, refused := a.gossipKey(op.ID)
	if refused != nil {
		return nil, refused
	}
	if f.GossipKeys[at].State == GossipKeyPrimary {
		return nil, &Error{CodeConflict, "id", "gossip key " + op.ID + " is the primary one"}
	}
	f.GossipKeys = slices.Delete(f.GossipKeys, at, at+1)
	return a.putFleet(f, EventGossipKeyChanged), nil
}

func checkCA(front string, ca *CA) *Error {
	return first(
		checkID(front+"id", ca.ID),
		checkBytes(front+"certificate", ca.Certificate, 1, MaxCertificateBytes),
		checkBytes(front+"cross", ca.Cross, 0, MaxCertificateBytes),
		checkBytes(front+"sealed_key", ca.SealedKey, 1, MaxSealedBytes),
	)
}

func checkGossipKey(front string, k *GossipKey) *Error {
	return first(checkID(front+"id", k.ID), checkBytes(front+"sealed_key", k.SealedKey, 1, MaxSealedBytes))
}

func checkBytes(field string, b []byte, least, most int) *Error {
	if len(b) < least {
		return &Error{CodeInvalid, field, "is missing"}
	}
	if len(b) > most {
		return &Error{CodeInvalid, field, fmt.Sprintf("has %d bytes, at most %d are allowed", len(b), most)}
	}
	return nil
}
