package fsm

import (
	"crypto/sha256"
	"slices"
)

// auditDone is the outcome of what was done; that of a refusal is its code.
const auditDone = "done"

// maxAskedBytes bounds what a refused request may add to the audit: its texts can be longer than any
// that is accepted. What is longer is left out.
const maxAskedBytes = 8 << 10

// auditActions names what an event says happened, as it was asked for. Events that are no one's deed have no action
// and no record.
func auditAction(t EventType) string {
	switch t {
	case EventBlockAdded:
		return "block.add"
	case EventBlockStarted:
		return "block.start"
	case EventBlockChanged:
		return "block.change"
	case EventBlockLifted:
		return "block.lift"
	case EventBlockEnded:
		return "block.end"
	case EventVMDeclared:
		return "vm.declare"
	case EventVMObserved:
		return "vm.observe"
	case EventVMMigrating:
		return "vm.migrate"
	case EventVMMigration:
		return "vm.migration"
	case EventVMMoved:
		return "vm.move"
	case EventNodeChanged:
		return "node.register"
	case EventGuardAdded:
		return "guard.put"
	case EventGuardRemoved:
		return "guard.delete"
	case EventAccountChanged:
		return "account.put"
	case EventSettings:
		return "settings.put"
	case EventListChanged:
		return "list.put"
	case EventListRemoved:
		return "list.delete"
	case EventFleetFormed:
		return "fleet.form"
	case EventCAStarted:
		return "fleet.start_ca"
	case EventCAFinished:
		return "fleet.finish_ca"
	case EventGossipKeyChanged:
		return "fleet.rotate_gossip_key"
	case EventNodeAdmitted:
		return "node.admit"
	case EventNodeRenewed:
		return "node.renew"
	case EventNodeDrained:
		return "node.drain"
	case EventNodeUndrained:
		return "node.undrain"
	case EventNodeRetired:
		return "node.retire"
	case EventVMLost:
		return "vm.lose"
	case EventFleetRecovered:
		return "fleet.recover"
	case EventFleetRestored:
		return "fleet.restore"
	case EventFleetSettled:
		return "fleet.settle"
	case EventJoinTokenCreated:
		return "join_token.create"
	case EventJoinTokenUsed:
		return "join_token.use"
	case EventJoinTokenDeleted:
		return "join_token.delete"
	case EventTokenCreated:
		return "token.create"
	case EventTokenDeleted:
		return "token.delete"
	case EventUserChanged:
		return "user.put"
	case EventUserDeleted:
		return "user.delete"
	case EventSessionStarted:
		return "session.login"
	case EventSessionEnded:
		return "session.end"
	case EventIncident:
		return "incident.report"
	case EventBlockForgotten, EventJoinTokenForgotten, EventSessionForgotten:
	}
	return ""
}

// replaced holds the objects that were just replaced in the state, until the event that tells of it
// is recorded.
type replaced struct {
	block    *Block
	vm       *VM
	node     *Node
	guard    *Guard
	account  *Account
	settings *Settings
	list     *List

	fleet     *Fleet
	joinToken *JoinToken
	token     *Token
	user      *User
	session   *Session
}

// recordEvent writes the audit record of a change.
func (a *applier) recordEvent(e *Event) {
	action := auditAction(e.Type)
	if action == "" {
		a.was = replaced{}
		return
	}
	was := a.was
	a.was = replaced{}
	j := a.openRecord(action)
	gone := e.Type == EventGuardRemoved || e.Type == EventListRemoved || e.Type == EventJoinTokenDeleted
	switch {
	case e.Block != nil:
		j.text("object", e.Block.ID)
		j.block("before", was.block)
		j.block("after", e.Block)
	case e.VM != nil:
		j.text("object", e.VM.ID)
		j.vm("before", was.vm)
		j.vm("after", e.VM)
	case e.Node != nil:
		j.text("object", e.Node.ID)
		j.node("before", was.node)
		j.node("after", e.Node)
	case e.Guard != nil:
		j.text("object", e.Guard.target().String())
		j.guard("before", was.guard)
		if !gone {
			j.guard("after", e.Guard)
		}
	case e.Account != nil:
		j.text("object", e.Account.ID)
		j.account("before", was.account)
		if e.Account.Revision != 0 {
			j.account("after", e.Account)
		}
	case e.Settings != nil:
		j.settings("before", was.settings)
		j.settings("after", e.Settings)
	case e.List != nil:
		j.text("object", e.List.Name)
		j.list("before", was.list)
		if !gone {
			j.list("after", e.List)
		}
	case e.Fleet != nil:
		j.text("object", e.Fleet.ID)
		j.fleet("before", was.fleet)
		j.fleet("after", e.Fleet)
	case e.JoinToken != nil:
		j.text("object", e.JoinToken.ID)
		j.joinToken("before", was.joinToken)
		if !gone {
			j.joinToken("after", e.JoinToken)
		}
	case e.Incident != nil:
		j.text("object", e.Incident.Node)
		j.incident("after", e.Incident)
	default:
		a.accessEvent(j, e, &was)
	}
	a.closeRecord(j, auditDone)
}

// recordRefusals writes the records of the refusals in a result. In an atomic batch that is the one that
// undid the rest.
func (a *applier) recordRefusals(op Op, r *Result) {
	if r.Err != nil {
		if r.Err.Code != CodeAborted {
			a.recordRefusal(op, r.Err)
		}
		return
	}
	if batch, ok := op.(Batch); ok {
		for i := range batch.Ops {
			a.recordRefusals(batch.Ops[i], &r.Items[i])
		}
	}
}

// recordRefusal writes the audit record of what somebody asked for and did not get. Nodes and the
// schedule are not somebody: what they propose in vain was overtaken, and is proposed again if it matters.
func (a *applier) recordRefusal(op Op, refused *Error) {
	action, object, asked := askedFor(op)
	if action == "" {
		return
	}
	j := a.openRecord(action)
	j.text("object", cutText(object, MaxNameBytes))
	if asked != nil {
		before := len(j.b)
		asked(j)
		if len(j.b)-before > maxAskedBytes {
			j.b = j.b[:before]
		}
	}
	a.closeRecord(j, string(refused.Code))
}

// askedFor names the op as auditAction names its event. asked writes what was asked for, where the name of
// the object does not say it.
func askedFor(op Op) (action, object string, asked func(*auditJSON)) {
	switch op := op.(type) {
	case AddBlock:
		return "block.add", "", func(j *auditJSON) { j.addBlock("asked", &op) }
	case LiftBlock:
		return "block.lift", op.ID, nil
	case LiftReason:
		return "block.lift", "", func(j *auditJSON) {
			j.open("asked", '{')
			j.target(op.Target)
			j.text("reason", op.Reason)
			j.close('}')
		}
	case PatchBlock:
		return "block.change", op.ID, func(j *auditJSON) { j.patchBlock("asked", &op) }
	case DeclareVM:
		return "vm.declare", op.ID, func(j *auditJSON) {
			j.vm("asked", &VM{
				ID: op.ID, Name: op.Name, Owner: op.Owner, Declared: op.Addresses, DoNotBlockUntil: op.DoNotBlockUntil,
				SourceGuard: op.SourceGuard,
			})
		}
	case PutAccount:
		return "account.put", op.ID, func(j *auditJSON) {
			j.account("asked", &Account{ID: op.ID, DoNotBlockUntil: op.DoNotBlockUntil, Note: op.Note})
		}
	case PutGuard:
		g := Guard{Prefix: op.Prefix, VM: op.VM, Note: op.Note}
		return "guard.put", g.target().String(), func(j *auditJSON) { j.guard("asked", &g) }
	case DeleteGuard:
		return "guard.delete", Target{Prefix: op.Prefix, VM: op.VM}.String(), nil
	case PutSettings:
		return "settings.put", "", func(j *auditJSON) { j.settings("asked", &op.Settings) }
	case CommitList:
		return "list.put", "", nil
	case PatchList:
		return "list.put", op.Name, nil
	case DescribeList:
		return "list.put", op.Name, nil
	case DeleteList:
		return "list.delete", op.Name, nil
	case Batch:
		return "batch", "", nil
	}
	if action, object, asked = askedForFleet(op); action != "" {
		return action, object, asked
	}
	return askedForAccess(op)
}

func (g *Guard) target() Target { return Target{Prefix: g.Prefix, VM: g.VM} }

// openRecord begins a line. The line is in the applier's buffer until closeRecord.
func (a *applier) openRecord(action string) *auditJSON {
	j := &a.json
	j.b = append(j.b[:0], '{')
	j.number("seq", a.audit.head.Seq+1)
	j.hex("prev", a.audit.head.Head[:])
	j.number("index", a.index)
	j.time("time", fromNanos(a.time))
	j.text("actor", a.actor)
	j.text("from", a.from)
	j.text("action", action)
	return j
}

func (a *applier) closeRecord(j *auditJSON, outcome string) {
	j.text("outcome", outcome)
	j.close('}')
	line := slices.Clone(j.b)
	a.audit.add(line, AuditChain{Seq: a.audit.head.Seq + 1, Head: sha256.Sum256(line)}, a.limits.audits, a.held)
}
