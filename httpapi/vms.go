package httpapi

import (
	"context"
	"net/netip"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/palisade/palisade/fsm"
	"github.com/palisade/palisade/httpapi/wire"
)

type listVMsInput struct {
	ReadInput
	PageInput
	Node    string `query:"node" maxLength:"255" doc:"Only VMs on this node, or in flight to it"`
	Owner   string `query:"owner" maxLength:"255"`
	Name    string `query:"name" maxLength:"255" doc:"Only VMs with exactly this name"`
	Blocked string `query:"blocked" enum:"true,false" doc:"Only VMs that are (not) held by an active block"`
}

type listVMsOutput struct {
	ReadHeaders
	Body wire.Page[wire.VM]
}

func (s *Server) listVMs(ctx context.Context, in *listVMsInput) (*listVMsOutput, error) {
	after, err := decodeCursor("vm", in.Cursor)
	if err != nil {
		return nil, err
	}
	v, h, err := s.view(ctx, in.ReadInput)
	if err != nil {
		return nil, err
	}
	seq := v.VMs(after)
	if in.Node != "" {
		on := slices.Collect(v.VMsOn(in.Node))
		on = slices.DeleteFunc(on, func(vm *fsm.VM) bool { return vm.ID <= after })
		slices.SortFunc(on, func(a, b *fsm.VM) int { return strings.Compare(a.ID, b.ID) })
		seq = slices.Values(on)
	}
	p := page[wire.VM]{kind: "vm", limit: in.Limit}
	for vm := range seq {
		if (in.Owner != "" && vm.Owner != in.Owner) || (in.Name != "" && vm.Name != in.Name) ||
			(in.Blocked != "" && (len(v.Holding(vm)) > 0) != (in.Blocked == "true")) {
			continue
		}
		if !p.add(vm.ID, func() wire.VM { return s.wireVM(v, vm) }) {
			break
		}
	}
	return &listVMsOutput{ReadHeaders: h, Body: p.wire()}, nil
}

type getVMInput struct {
	ReadInput
	ID string `path:"id" maxLength:"255" doc:"VM id, or a name that only one VM has"`
}

type vmOutput struct {
	ReadHeaders
	ETag string `header:"ETag"`
	Body wire.VM
}

func (s *Server) getVM(ctx context.Context, in *getVMInput) (*vmOutput, error) {
	v, h, err := s.view(ctx, in.ReadInput)
	if err != nil {
		return nil, err
	}
	vm, ferr := v.ResolveVM("id", in.ID)
	if ferr != nil {
		return nil, refusalProblem(ferr, sent{"id": at("path.id", in.ID)})
	}
	return &vmOutput{ReadHeaders: h, ETag: etag(vm.Revision), Body: s.wireVM(v, vm)}, nil
}

type putVMInput struct {
	WriteInput
	MatchInput
	ID   string `path:"id" maxLength:"255" doc:"VM id"`
	Body wire.VMRequest
}

type putVMOutput struct {
	WriteHeaders
	Body wire.VM
}

func (s *Server) putVM(ctx context.Context, in *putVMInput) (*putVMOutput, error) {
	rev, err := in.revision()
	if err != nil {
		return nil, err
	}
	if n := len(in.Body.Addresses); n > fsm.MaxVMAddresses {
		return nil, fieldProblem("body.addresses", n, "%d addresses; a VM has at most %d", n, fsm.MaxVMAddresses)
	}
	v := s.opts.Backend.View()
	var was time.Time
	var declared []netip.Prefix
	if vm, ok := v.VM(in.ID); ok {
		was, declared = vm.DoNotBlockUntil, vm.Declared
	}
	if p := mayProtect(callerOf(ctx), was, in.Body.DoNotBlockUntil); p != nil {
		return nil, p
	}
	op := fsm.DeclareVM{ID: in.ID, DoNotBlockUntil: in.Body.DoNotBlockUntil, Name: in.Body.Name, Owner: in.Body.Owner, IfRevision: rev, Addresses: make([]netip.Prefix, 0, len(in.Body.Addresses))}
	fields := sent{
		"id":          at("path.id", in.ID),
		"name":        at("body.name", in.Body.Name),
		"owner":       at("body.owner", in.Body.Owner),
		"if_revision": at("header.If-Match", in.IfMatch),
	}
	for i, a := range in.Body.Addresses {
		field := "addresses[" + strconv.Itoa(i) + "]"
		fields[field] = at("body."+field, a)
		p, ferr := fsm.ParsePrefix(field, a)
		if ferr != nil {
			return nil, refusalProblem(ferr, fields)
		}
		op.Addresses = append(op.Addresses, p)
	}
	if _, guarded := v.GuardedVMs()[in.ID]; guarded {
		if p := mayGuard(callerOf(ctx), declared, op.Addresses); p != nil {
			return nil, p
		}
	}
	res, err := s.propose(ctx, in.WriteInput, op, fields.just)
	if err != nil {
		return nil, err
	}
	if res.VM == nil {
		return nil, problem(wire.CodeInternal, "the write was committed at index %d, but its result has no VM", res.Index)
	}
	return &putVMOutput{
		WriteHeaders: WriteHeaders{ETag: etag(res.VM.Revision), Index: res.Index, Replayed: replayed(res)},
		Body:         s.wireVM(s.opts.Backend.View(), res.VM),
	}, nil
}

// mayGuard refuses other addresses for a guarded VM by a caller who may not guard: they can't be blocked
// any more. Like mayProtect it compares with what this node knows.
func mayGuard(c *caller, was, is []netip.Prefix) *wire.Problem {
	other := func(in []netip.Prefix) func(netip.Prefix) bool {
		return func(p netip.Prefix) bool { return !slices.Contains(in, p) }
	}
	if allows(c.scope, ScopeAdmin) || !slices.ContainsFunc(is, other(was)) && !slices.ContainsFunc(was, other(is)) {
		return nil
	}
	p := problem(wire.CodeForbidden, "%s has scope %q; to change the addresses of a guarded VM needs %q", c.actor, c.scope, ScopeAdmin)
	p.Errors = []wire.FieldError{{Location: "body.addresses", Message: "only an admin may change them; send what is set"}}
	return p
}
