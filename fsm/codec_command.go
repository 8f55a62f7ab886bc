package fsm

import (
	"crypto/sha256"
	"errors"
	"fmt"

	"google.golang.org/protobuf/proto"

	"github.com/palisade/palisade/fsm/internal/fsmpb"
)

// UnsupportedError is what a newer build wrote and this one can't read. It is no refusal: newer nodes
// apply it.
type UnsupportedError struct {
	Index   uint64 // log index of the entry; 0 if it was not read from the log
	Version uint32 // format version that would be needed
	Reads   uint32 // highest format version that this build reads
	Detail  string // what was not known
}

func (e *UnsupportedError) Error() string {
	where := "data"
	if e.Index != 0 {
		where = fmt.Sprintf("log entry %d", e.Index)
	}
	return fmt.Sprintf("%s has format version %d, this build reads up to %d (%s): upgrade this node",
		where, e.Version, e.Reads, e.Detail)
}

// MarshalCommand encodes a command for the log. The error is an *Error: the command has a shape or a
// value that can't be encoded, and nothing was written.
func MarshalCommand(c Command) ([]byte, error) {
	op, refused := encodeOp(c.Op, false)
	if refused != nil {
		return nil, refused
	}
	b, err := proto.MarshalOptions{Deterministic: true}.Marshal(&fsmpb.Command{
		Version: FormatOf(c.Op), Time: toNanos(c.Time), Actor: c.Actor, From: c.From, Key: c.Key, Op: op,
	})
	if err != nil { // the only way for messages of ours
		return nil, &Error{CodeInvalid, "", "a text is not valid UTF-8"}
	}
	if len(b) > MaxCommandBytes {
		return nil, &Error{CodeInvalid, "",
			fmt.Sprintf("the command has %d bytes, at most %d are allowed", len(b), MaxCommandBytes)}
	}
	return b, nil
}

// UnmarshalCommand decodes and checks the shape of a command. It never panics on any input. The error
// is an *UnsupportedError for what a newer build wrote, and an *Error for what none did.
func UnmarshalCommand(b []byte) (Command, error) {
	c, _, _, err := decodeCommand(b)
	return c, err
}

// decodeCommand returns the encoded op and the format as well.
func decodeCommand(b []byte) (Command, *fsmpb.Op, uint32, error) {
	if len(b) > MaxCommandBytes {
		return Command{}, nil, 0, malformed(fmt.Errorf("has %d bytes, at most %d are allowed", len(b), MaxCommandBytes))
	}
	var m fsmpb.Command
	if err := proto.Unmarshal(b, &m); err != nil {
		// The wording of the library's errors differs from build to build; it must not be replicated.
		return Command{}, nil, 0, malformed(errors.New("is no protobuf message"))
	}
	d := decoder{version: m.Version, reads: Format}
	if m.Version > Format {
		d.unsupported("its version is newer")
	}
	d.known(&m)
	if m.Version == 0 {
		d.fail("has no version")
	}
	op := d.op(m.Op, false)
	if _, ok := errors.AsType[*UnsupportedError](d.err); ok {
		return Command{}, nil, 0, d.err
	}
	if d.err != nil {
		return Command{}, nil, 0, malformed(d.err)
	}
	return Command{Time: fromNanos(max(m.Time, 0)), Actor: intern(m.Actor), From: intern(m.From), Key: m.Key, Op: op}, m.Op, m.Version, nil
}

// malformed is the refusal of an entry that no build wrote.
func malformed(err error) *Error {
	return &Error{CodeInvalid, "", "the command " + err.Error()}
}

func opFingerprint(op *fsmpb.Op) [32]byte { return sha256.Sum256(appendCanonical(nil, op)) }

func encodeOp(op Op, nested bool) (*fsmpb.Op, *Error) {
	switch op := op.(type) {
	case AddBlock:
		return encodeAddBlock(op)
	case PatchBlock:
		return encodePatchBlock(op), nil
	case FireBlock:
		return &fsmpb.Op{Op: &fsmpb.Op_FireBlock{FireBlock: &fsmpb.FireBlock{
			Id: op.ID, Revision: op.Revision, At: toNanos(op.At),
		}}}, nil
	case LiftReason:
		return &fsmpb.Op{Op: &fsmpb.Op_LiftReason{LiftReason: &fsmpb.LiftReason{
			Target: encodeTarget(op.Target), Reason: op.Reason,
		}}}, nil
	case PutAccount:
		return &fsmpb.Op{Op: &fsmpb.Op_PutAccount{PutAccount: &fsmpb.PutAccount{
			Id: op.ID, DoNotBlockUntil: toNanos(op.DoNotBlockUntil), Note: op.Note, IfRevision: op.IfRevision,
		}}}, nil
	case PutSettings:
		return &fsmpb.Op{Op: &fsmpb.Op_PutSettings{PutSettings: &fsmpb.PutSettings{
			Settings: encodeSettings(&op.Settings), IfRevision: op.IfRevision,
		}}}, nil
	case LiftBlock:
		return &fsmpb.Op{Op: &fsmpb.Op_LiftBlock{LiftBlock: &fsmpb.LiftBlock{
			Id: op.ID, IfRevision: op.IfRevision,
		}}}, nil
	case DeclareVM:
		if !contains(sourceGuards, op.SourceGuard) {
			return nil, &Error{CodeUnsupported, "source_guard", "there is no source guard " + quote(string(op.SourceGuard))}
		}
		return &fsmpb.Op{Op: &fsmpb.Op_DeclareVm{DeclareVm: &fsmpb.DeclareVM{
			Id: op.ID, Name: op.Name, Owner: op.Owner, Addresses: encodeList(op.Addresses, encodePrefix),
			IfRevision: op.IfRevision, DoNotBlockUntil: toNanos(op.DoNotBlockUntil), SourceGuard: string(op.SourceGuard),
		}}}, nil
	case ObserveVM:
		if op.Phase != "" && !contains(phases, op.Phase) {
			return nil, &Error{CodeUnsupported, "phase", "there is no phase " + quote(string(op.Phase))}
		}
		if op.Migration != "" && !contains(migrationPhases, op.Migration) {
			return nil, &Error{CodeUnsupported, "migration", "there is no migration phase " + quote(string(op.Migration))}
		}
		return &fsmpb.Op{Op: &fsmpb.Op_ObserveVm{ObserveVm: &fsmpb.ObserveVM{
			Id: op.ID, Name: []byte(op.Name), Kind: op.Kind, Node: op.Node, Phase: string(op.Phase),
			Nics: encodeList(op.NICs, encodeNIC), Epoch: op.Epoch, Migration: string(op.Migration),
		}}}, nil
	case PutNode:
		return &fsmpb.Op{Op: &fsmpb.Op_PutNode{PutNode: &fsmpb.PutNode{Node: encodeNode(&op.Node)}}}, nil
	case PutGuard:
		return &fsmpb.Op{Op: &fsmpb.Op_PutGuard{PutGuard: &fsmpb.PutGuard{
			Prefix: encodePrefix(op.Prefix), Vm: op.VM, Note: op.Note,
		}}}, nil
	case DeleteGuard:
		return &fsmpb.Op{Op: &fsmpb.Op_DeleteGuard{DeleteGuard: &fsmpb.DeleteGuard{
			Prefix: encodePrefix(op.Prefix), Vm: op.VM,
		}}}, nil
	case ReportIncident:
		return &fsmpb.Op{Op: &fsmpb.Op_ReportIncident{ReportIncident: &fsmpb.ReportIncident{Incident: encodeIncident(&op.Incident)}}}, nil
	case Batch:
		if nested {
			return nil, &Error{CodeInvalid, "ops", "a batch can't hold a batch"}
		}
		if refused := checkBatch(op); refused != nil {
			return nil, refused
		}
		return encodeBatch(op)
	default:
		if m := encodeListOp(op); m != nil {
			return m, nil
		}
		if m := encodeFleetOp(op); m != nil {
			return m, nil
		}
		if s := scopeOf(op); s != "" && checkScope(s) != nil {
			return nil, &Error{CodeUnsupported, "scope", checkScope(s).Detail}
		}
		if access := encodeAccessOp(op); access != nil {
			return access, nil
		}
		return nil, &Error{CodeUnsupported, "op", fmt.Sprintf("%T is no op", op)}
	}
}

func encodeBatch(op Batch) (*fsmpb.Op, *Error) {
	ops := make([]*fsmpb.Op, len(op.Ops))
	for i, item := range op.Ops {
		var refused *Error
		if ops[i], refused = encodeOp(item, true); refused != nil {
			return nil, &Error{refused.Code, fmt.Sprintf("ops[%d].%s", i, refused.Field), refused.Detail}
		}
	}
	return &fsmpb.Op{Op: &fsmpb.Op_Batch{Batch: &fsmpb.Batch{Ops: ops, Atomic: op.Atomic}}}, nil
}

func (d *decoder) op(m *fsmpb.Op, nested bool) Op {
	if m == nil {
		d.fail("has no op")
		return nil
	}
	d.known(m)
	switch m := m.Op.(type) {
	case *fsmpb.Op_AddBlock:
		return d.addBlock(m.AddBlock)
	case *fsmpb.Op_PatchBlock:
		return d.patchBlock(m.PatchBlock)
	case *fsmpb.Op_ReportIncident:
		d.known(m.ReportIncident)
		return ReportIncident{*d.incident(m.ReportIncident.Incident)}
	case *fsmpb.Op_FireBlock:
		d.known(m.FireBlock)
		return FireBlock{ID: m.FireBlock.Id, Revision: m.FireBlock.Revision, At: decodeTime(m.FireBlock.At)}
	case *fsmpb.Op_LiftReason:
		d.known(m.LiftReason)
		return LiftReason{Target: d.target(m.LiftReason.Target), Reason: intern(m.LiftReason.Reason)}
	case *fsmpb.Op_PutAccount:
		op := m.PutAccount
		d.known(op)
		return PutAccount{ID: intern(op.Id), DoNotBlockUntil: decodeTime(op.DoNotBlockUntil), Note: op.Note, IfRevision: op.IfRevision}
	case *fsmpb.Op_PutSettings:
		d.known(m.PutSettings)
		return PutSettings{Settings: *d.settings(m.PutSettings.Settings), IfRevision: m.PutSettings.IfRevision}
	case *fsmpb.Op_LiftBlock:
		d.known(m.LiftBlock)
		return LiftBlock{ID: m.LiftBlock.Id, IfRevision: m.LiftBlock.IfRevision}
	case *fsmpb.Op_DeclareVm:
		op := m.DeclareVm
		d.known(op)
		return DeclareVM{
			ID: op.Id, Name: op.Name, Owner: intern(op.Owner),
			Addresses: decodeList(op.Addresses, d.prefix), IfRevision: op.IfRevision,
			DoNotBlockUntil: decodeTime(op.DoNotBlockUntil), SourceGuard: known(d, "source_guard", op.SourceGuard, sourceGuards, true),
		}
	case *fsmpb.Op_ObserveVm:
		op := m.ObserveVm
		d.known(op)
		return ObserveVM{
			ID: op.Id, Name: string(op.Name), Kind: intern(op.Kind), Node: intern(op.Node),
			Phase: known(d, "phase", op.Phase, phases, true), NICs: decodeList(op.Nics, d.nic), Epoch: op.Epoch,
			Migration: known(d, "migration phase", op.Migration, migrationPhases, true),
		}
	case *fsmpb.Op_PutNode:
		d.known(m.PutNode)
		return PutNode{Node: *d.node(m.PutNode.Node)}
	case *fsmpb.Op_PutGuard:
		d.known(m.PutGuard)
		return PutGuard{Prefix: d.prefix(m.PutGuard.Prefix), VM: m.PutGuard.Vm, Note: m.PutGuard.Note}
	case *fsmpb.Op_DeleteGuard:
		d.known(m.DeleteGuard)
		return DeleteGuard{Prefix: d.prefix(m.DeleteGuard.Prefix), VM: m.DeleteGuard.Vm}
	case *fsmpb.Op_Batch:
		d.known(m.Batch)
		if nested {
			d.fail("has a batch in a batch")
			return nil
		}
		ops := make([]Op, len(m.Batch.Ops))
		for i, item := range m.Batch.Ops {
			ops[i] = d.op(item, true)
		}
		return Batch{Ops: ops, Atomic: m.Batch.Atomic}
	default:
		if op := d.listOp(m); op != nil {
			return op
		}
		if op := d.fleetOp(m); op != nil {
			return op
		}
		if op := d.accessOp(m); op != nil {
			return op
		}
		// Of the kind of an op there is either a field unknown here, or nothing at all.
		d.fail("has an empty op")
		return nil
	}
}
