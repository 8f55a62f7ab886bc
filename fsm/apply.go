package fsm

import (
	"errors"
	"fmt"
)

// limits are the retention limits of the package; tests make them small.
type limits struct{ results, over, events, audits int }

func defaultLimits() limits {
	return limits{results: RetainedResults, over: RetainedLifted, events: RetainedEvents, audits: RetainedAudit}
}

// applier changes one copy of the state. Every op checks everything before it changes anything, so
// that a refused op leaves no trace.
type applier struct {
	state
	limits limits
	actor  string // of the entry being applied
	from   string // likewise
	was    replaced
	held   uint64             // audit lines after this number stay
	listed map[string]touches // see countTouched; nil once VMs, guards, lists or settings change
	json   auditJSON          // for encoding what is audited
	buf    []byte             // for encoding what is hashed
}

// entry applies one log entry. The error is an *UnsupportedError: nothing was changed.
func (a *applier) entry(e Entry) (Result, error) {
	cmd, op, format, err := decodeCommand(e.Data)
	if unsupported, ok := errors.AsType[*UnsupportedError](err); ok {
		unsupported.Index = e.Index
		return Result{}, unsupported
	}
	a.index = e.Index
	if refused, ok := errors.AsType[*Error](err); ok {
		return Result{Index: e.Index, Err: refused}, nil
	}
	a.time = max(a.time, toNanos(cmd.Time))
	if format > 1 {
		a.format = max(a.format, format)
	}
	a.actor, a.from = cmd.Actor, cmd.From
	if refused := first(
		checkText("actor", cmd.Actor, MaxNameBytes),
		checkText("from", cmd.From, MaxNameBytes),
		checkText("key", cmd.Key, MaxKeyBytes),
	); refused != nil {
		return Result{Index: e.Index, Err: refused}, nil //nolint:nilerr // a refusal is the result of an entry; the error stops the log
	}
	if cmd.Key == "" {
		result := a.op(cmd.Op)
		a.recordRefusals(cmd.Op, &result)
		return result, nil
	}
	fingerprint := opFingerprint(op)
	if known, ok := a.results.get(pairKey(cmd.Actor, cmd.Key)); ok {
		return known.replay(e.Index, fingerprint), nil
	}
	result := a.op(cmd.Op)
	a.recordRefusals(cmd.Op, &result)
	a.remember(&remembered{actor: cmd.Actor, key: cmd.Key, fingerprint: fingerprint, result: result})
	return result, nil
}

func (a *applier) op(op Op) Result {
	r := Result{Index: a.index}
	switch op := op.(type) {
	case AddBlock:
		r.Block, r.Err = a.addBlock(op)
	case LiftBlock:
		r.Block, r.Err = a.liftBlock(op)
	case LiftReason:
		r.Items, r.Err = a.liftReason(op)
	case PatchBlock:
		r.Block, r.Err = a.patchBlock(op)
	case FireBlock:
		r.Block, r.Err = a.fireBlock(op)
	case PutAccount:
		r.Account, r.Err = a.putAccount(op)
	case PutSettings:
		r.Settings, r.Err = a.putSettings(op)
	case DeclareVM:
		r.VM, r.Err = a.declareVM(op)
	case ObserveVM:
		r.VM, r.Err = a.observeVM(op)
	case PutNode:
		r.Node, r.Err = a.putNode(op)
	case PutGuard:
		r.Guard, r.Err = a.putGuard(op)
	case DeleteGuard:
		r.Guard, r.Err = a.deleteGuard(op)
	case BeginList:
		r.Err = a.beginList(op)
	case AddListChunk:
		r.Err = a.addListChunk(op)
	case CommitList:
		r.List, r.Err = a.commitList(op)
	case AbortList:
		a.abortList(op)
	case PatchList:
		r.List, r.Err = a.patchList(op)
	case DescribeList:
		r.List, r.Err = a.describeList(op)
	case DeleteList:
		r.List, r.Err = a.deleteList(op)
	case CreateToken:
		r.Token, r.Err = a.createToken(op)
	case DeleteToken:
		r.Token, r.Err = a.deleteToken(op)
	case PutUser:
		r.User, r.Err = a.putUser(op)
	case DeleteUser:
		r.User, r.Err = a.deleteUser(op)
	case CreateSession:
		r.Session, r.Err = a.createSession(op)
	case TouchSession:
		r.Session, r.Err = a.touchSession(op)
	case EndSessions:
		r.Items, r.Err = a.endSessions(op)
	case RefusedLogins:
		r.Err = a.refusedLogins(op)
	case ReportIncident:
		r.Err = a.reportIncident(&op)
	case Batch:
		if r.Err = checkBatch(op); r.Err != nil {
			return r
		}
		r.Items = a.batch(op)
	default:
		if done, ok := a.fleetOp(op); ok {
			return done
		}
	}
	return r
}

func (a *applier) batch(op Batch) []Result {
	items := make([]Result, len(op.Ops))
	if !op.Atomic {
		for i, item := range op.Ops {
			items[i] = a.op(item)
		}
		return items
	}
	// Frozen, the copy keeps what the tables were. Events and results beyond its ends were seen by
	// nobody and are written over.
	a.freeze()
	before := a.state
	for i, item := range op.Ops {
		if items[i] = a.op(item); items[i].Err == nil {
			continue
		}
		a.state, a.listed = before, nil
		for k := range items {
			if k != i {
				items[k] = Result{Index: a.index, Err: &Error{CodeAborted, "",
					fmt.Sprintf("was not done, because element %d of the batch was refused", i)}}
			}
		}
		break
	}
	return items
}

func checkBatch(b Batch) *Error {
	if len(b.Ops) == 0 {
		return &Error{CodeInvalid, "ops", "is empty"}
	}
	return checkCount("ops", len(b.Ops), MaxBatchOps)
}

// replay gives the result of the first time, or the refusal of another request under the same key.
func (m *remembered) replay(index uint64, fingerprint [32]byte) Result {
	if m.fingerprint != fingerprint {
		return Result{Index: index, Err: &Error{CodeKeyReused, "key",
			fmt.Sprintf("%s was used for another request at log index %d", quote(m.key), m.result.Index)}}
	}
	r := m.result
	r.Replayed = true
	return r
}

func (a *applier) remember(m *remembered) {
	if len(a.order) >= a.limits.results {
		oldest := a.order[0]
		a.order = a.order[1:]
		a.results.remove(pairKey(oldest.actor, oldest.key))
		a.hashResult(oldest, a.sum.subtract)
	}
	a.lastResult++
	m.seq = a.lastResult
	a.order = append(a.order, m)
	a.results.put(pairKey(m.actor, m.key), m)
	a.hashResult(m, a.sum.add)
}

func (a *applier) hashResult(m *remembered, into func([32]byte)) {
	for record := range resultRecords(m, forHash) {
		into(a.digest(record))
	}
}

// emit appends to the feed. The object is set by the caller.
func (a *applier) emit(e Event) {
	e.Index, e.Time, e.Actor = a.index, fromNanos(a.time), a.actor
	a.recordEvent(&e)
	a.lastEvent++
	a.events = append(a.events, e)
	a.sum.add(a.digest(eventRecord(a.lastEvent, &e)))
	if len(a.events) <= a.limits.events {
		return
	}
	oldest := &a.events[0]
	a.sum.subtract(a.digest(eventRecord(a.lastEvent-uint64(len(a.events))+1, oldest)))
	a.eventsAfter = oldest.Index
	a.events = a.events[1:]
}
