package fsm

import (
	"iter"

	"github.com/palisade/palisade/fsm/internal/fsmpb"
)

// A record is one object with its kind: what is hashed, and what a snapshot consists of.

func nodeRecord(n *Node) *fsmpb.Record {
	return &fsmpb.Record{Record: &fsmpb.Record_Node{Node: encodeNode(n)}}
}

func vmRecord(v *VM) *fsmpb.Record {
	return &fsmpb.Record{Record: &fsmpb.Record_Vm{Vm: encodeVM(v)}}
}

func blockRecord(b *Block) *fsmpb.Record {
	return &fsmpb.Record{Record: &fsmpb.Record_Block{Block: encodeBlock(b)}}
}

func guardRecord(g *Guard) *fsmpb.Record {
	return &fsmpb.Record{Record: &fsmpb.Record_Guard{Guard: encodeGuard(g)}}
}

func accountRecord(a *Account) *fsmpb.Record {
	return &fsmpb.Record{Record: &fsmpb.Record_Account{Account: encodeAccount(a)}}
}

// headerRecord leaves the version out: it is no part of the state.
func headerRecord(s *state) *fsmpb.Record {
	var head []byte
	if s.audit.head.Seq != 0 {
		head = s.audit.head.Head[:]
	}
	var settings *fsmpb.Settings
	if s.settings != nil {
		settings = encodeSettings(s.settings)
	}
	var fleets uint64
	if s.fleet != nil {
		fleets = 1
	}
	return &fsmpb.Record{Record: &fsmpb.Record_Header{Header: &fsmpb.Header{
		Index: s.index, Time: s.time,
		LastBlock: s.lastBlock, LastResult: s.lastResult, LastEvent: s.lastEvent, EventsAfter: s.eventsAfter,
		Nodes: uint64(s.nodes.n), Vms: uint64(s.vms.n), Blocks: uint64(s.blocks.n), Guards: uint64(s.guards.n),
		Results: uint64(len(s.order)), Events: uint64(len(s.events)),
		Accounts: uint64(s.accounts.n), Settings: settings,
		Lists: uint64(s.lists.n), Uploads: uint64(s.uploads.n),
		Fleets: fleets, JoinTokens: uint64(s.joinTokens.n),
		LastAudit: s.audit.head.Seq, AuditHead: head, Audits: uint64(s.audit.kept),
		Format: s.format,
		Tokens: uint64(s.access.tokens.n), Users: uint64(s.access.users.n), Sessions: uint64(s.access.sessions.n),
	}}}
}

func eventRecord(seq uint64, e *Event) *fsmpb.Record {
	m := &fsmpb.Event{Seq: seq, Index: e.Index, Time: toNanos(e.Time), Type: string(e.Type), Actor: e.Actor}
	switch {
	case e.Block != nil:
		m.Object = &fsmpb.Event_Block{Block: encodeBlock(e.Block)}
	case e.VM != nil:
		m.Object = &fsmpb.Event_Vm{Vm: encodeVM(e.VM)}
	case e.Node != nil:
		m.Object = &fsmpb.Event_Node{Node: encodeNode(e.Node)}
	case e.Guard != nil:
		m.Object = &fsmpb.Event_Guard{Guard: encodeGuard(e.Guard)}
	case e.Account != nil:
		m.Object = &fsmpb.Event_Account{Account: encodeAccount(e.Account)}
	case e.Settings != nil:
		m.Object = &fsmpb.Event_Settings{Settings: encodeSettings(e.Settings)}
	case e.List != nil:
		m.Object = &fsmpb.Event_List{List: encodeListObject(e.List)}
	case e.Fleet != nil:
		m.Object = &fsmpb.Event_Fleet{Fleet: encodeFleet(e.Fleet)}
	case e.JoinToken != nil:
		m.Object = &fsmpb.Event_JoinToken{JoinToken: encodeJoinToken(e.JoinToken)}
	case e.Token != nil:
		m.Object = &fsmpb.Event_Token{Token: encodeToken(e.Token)}
	case e.User != nil:
		m.Object = &fsmpb.Event_User{User: encodeUser(e.User)}
	case e.Session != nil:
		m.Object = &fsmpb.Event_Session{Session: encodeSession(e.Session)}
	case e.Incident != nil:
		m.Object = &fsmpb.Event_Incident{Incident: encodeIncident(e.Incident)}
	}
	return &fsmpb.Record{Record: &fsmpb.Record_Event{Event: m}}
}

func (d *decoder) event(m *fsmpb.Event) Event {
	d.known(m)
	e := Event{
		Index: m.Index, Time: fromNanos(max(m.Time, 0)), Actor: intern(m.Actor),
		Type: known(d, "event type", m.Type, eventTypes, false),
	}
	switch o := m.Object.(type) {
	case *fsmpb.Event_Block:
		e.Block = d.block(o.Block)
	case *fsmpb.Event_Vm:
		e.VM = d.vm(o.Vm)
	case *fsmpb.Event_Node:
		e.Node = d.node(o.Node)
	case *fsmpb.Event_Guard:
		e.Guard = d.guard(o.Guard)
	case *fsmpb.Event_Account:
		e.Account = d.account(o.Account)
	case *fsmpb.Event_Settings:
		e.Settings = d.settings(o.Settings)
	case *fsmpb.Event_List:
		e.List = d.list(o.List)
	case *fsmpb.Event_Fleet:
		e.Fleet = d.fleet(o.Fleet)
	case *fsmpb.Event_JoinToken:
		e.JoinToken = d.joinToken(o.JoinToken)
	case *fsmpb.Event_Token:
		e.Token = d.token(o.Token)
	case *fsmpb.Event_User:
		e.User = d.user(o.User)
	case *fsmpb.Event_Session:
		e.Session = d.session(o.Session)
	case *fsmpb.Event_Incident:
		e.Incident = d.incident(o.Incident)
	default:
		d.fail("has an event without an object")
	}
	return e
}

// purpose of an encoding of results.
type purpose bool

const (
	forSnapshot purpose = false
	// forHash leaves out the wording of refusals, which may differ between builds.
	forHash purpose = true
)

// resultRecords gives one record for the result and one for each of its items, so that none is large.
func resultRecords(m *remembered, why purpose) iter.Seq[*fsmpb.Record] {
	return func(yield func(*fsmpb.Record) bool) {
		if !yield(&fsmpb.Record{Record: &fsmpb.Record_Result{Result: &fsmpb.Result{
			Seq: m.seq, Actor: m.actor, Key: m.key, Fingerprint: m.fingerprint[:],
			Outcome: encodeOutcome(&m.result, why), Items: uint32(len(m.result.Items)),
		}}}) {
			return
		}
		itemRecords(m.seq, m.result.Items, why, yield)
	}
}

// itemRecords gives a record for each item, and after it those of its own items: what one LiftReason in a batch lifted.
func itemRecords(seq uint64, items []Result, why purpose, yield func(*fsmpb.Record) bool) bool {
	for i := range items {
		if !yield(&fsmpb.Record{Record: &fsmpb.Record_ResultItem{ResultItem: &fsmpb.ResultItem{
			Seq: seq, Position: uint32(i), Outcome: encodeOutcome(&items[i], why), Items: uint32(len(items[i].Items)),
		}}}) || !itemRecords(seq, items[i].Items, why, yield) {
			return false
		}
	}
	return true
}

func encodeOutcome(r *Result, why purpose) *fsmpb.Outcome {
	m := &fsmpb.Outcome{Index: r.Index}
	if r.Err != nil {
		m.Err = &fsmpb.Error{Code: string(r.Err.Code), Field: r.Err.Field, Detail: r.Err.Detail}
		if why == forHash {
			m.Err.Detail = ""
		}
	}
	switch {
	case r.Block != nil:
		m.Object = &fsmpb.Outcome_Block{Block: encodeBlock(r.Block)}
	case r.VM != nil:
		m.Object = &fsmpb.Outcome_Vm{Vm: encodeVM(r.VM)}
	case r.Node != nil:
		m.Object = &fsmpb.Outcome_Node{Node: encodeNode(r.Node)}
	case r.Guard != nil:
		m.Object = &fsmpb.Outcome_Guard{Guard: encodeGuard(r.Guard)}
	case r.Account != nil:
		m.Object = &fsmpb.Outcome_Account{Account: encodeAccount(r.Account)}
	case r.Settings != nil:
		m.Object = &fsmpb.Outcome_Settings{Settings: encodeSettings(r.Settings)}
	case r.List != nil:
		m.Object = &fsmpb.Outcome_List{List: encodeListObject(r.List)}
	case r.Fleet != nil:
		m.Object = &fsmpb.Outcome_Fleet{Fleet: encodeFleet(r.Fleet)}
	case r.JoinToken != nil:
		m.Object = &fsmpb.Outcome_JoinToken{JoinToken: encodeJoinToken(r.JoinToken)}
	case r.Token != nil:
		m.Object = &fsmpb.Outcome_Token{Token: encodeToken(r.Token)}
	case r.User != nil:
		m.Object = &fsmpb.Outcome_User{User: encodeUser(r.User)}
	case r.Session != nil:
		m.Object = &fsmpb.Outcome_Session{Session: encodeSession(r.Session)}
	}
	return m
}

func (d *decoder) outcome(m *fsmpb.Outcome) Result {
	if m == nil {
		d.fail("has a result without an outcome")
		return Result{}
	}
	d.known(m)
	r := Result{Index: m.Index}
	if m.Err != nil {
		d.known(m.Err)
		r.Err = &Error{Code: Code(intern(m.Err.Code)), Field: intern(m.Err.Field), Detail: m.Err.Detail}
	}
	switch o := m.Object.(type) {
	case *fsmpb.Outcome_Block:
		r.Block = d.block(o.Block)
	case *fsmpb.Outcome_Vm:
		r.VM = d.vm(o.Vm)
	case *fsmpb.Outcome_Node:
		r.Node = d.node(o.Node)
	case *fsmpb.Outcome_Guard:
		r.Guard = d.guard(o.Guard)
	case *fsmpb.Outcome_Account:
		r.Account = d.account(o.Account)
	case *fsmpb.Outcome_Settings:
		r.Settings = d.settings(o.Settings)
	case *fsmpb.Outcome_List:
		r.List = d.list(o.List)
	case *fsmpb.Outcome_Fleet:
		r.Fleet = d.fleet(o.Fleet)
	case *fsmpb.Outcome_JoinToken:
		r.JoinToken = d.joinToken(o.JoinToken)
	case *fsmpb.Outcome_Token:
		r.Token = d.token(o.Token)
	case *fsmpb.Outcome_User:
		r.User = d.user(o.User)
	case *fsmpb.Outcome_Session:
		r.Session = d.session(o.Session)
	}
	return r
}
