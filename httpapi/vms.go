package httpapi

import (
	"context"
	"iter"
	"net/netip"
	"slices"
	"strconv"
	"time"

	"github.com/palisade/palisade/fsm"
	"github.com/palisade/palisade/httpapi/wire"
)

type listVMsInput struct {
	ReadInput
	PageInput
	Search  string `query:"search" maxLength:"255" doc:"Only VMs in whose id, name, owner or MAC each word is found, or one of whose addresses begins with it; a whole address or CIDR finds the VMs that have it" example:"192.0.2.7"`
	Node    string `query:"node" maxLength:"255" doc:"Only VMs on this node, or in flight to it"`
	Owner   string `query:"owner" maxLength:"255"`
	Name    string `query:"name" maxLength:"255" doc:"Only VMs with exactly this name"`
	State   string `query:"state" enum:"declared,running,migrating,stopped,lost"`
	Blocked string `query:"blocked" enum:"true,false" doc:"Only VMs that are (not) held by an active block"`
	Sort    string `query:"sort" enum:"id,name,node,owner,state,holds" default:"id" doc:"holds: by how many active blocks hold it"`
	Order   string `query:"order" enum:"asc,desc" default:"asc"`
}

type listVMsOutput struct {
	ReadHeaders
	Body wire.CountedPage[wire.VM]
}

func (s *Server) listVMs(ctx context.Context, in *listVMsInput) (*listVMsOutput, error) {
	v, h, err := s.view(ctx, in.ReadInput)
	if err != nil {
		return nil, err
	}
	holds := &holdCount{view: v}
	order := &vmOrder{by: in.Sort, desc: in.Order == "desc", holds: holds}
	p := vmPage{order: order, limit: in.Limit}
	if p.from, p.begun, err = order.after(in.Cursor); err != nil {
		return nil, err
	}
	if in.all() {
		for vm := range v.VMs(p.from.id) {
			if p.add(vm); p.after > p.limit {
				break
			}
		}
		p.total = v.CountVMs()
	} else {
		candidates := in.candidates(v)
		if in.Search != "" || candidates == nil {
			var found []*fsm.VM
			v, found = s.index.find(ctx, newVMSearch(in.Search)) // a view that is as new or newer
			holds.view, h.Index, candidates = v, v.Index(), slices.Values(found)
		}
		for vm := range candidates {
			if in.keeps(vm) && (in.Blocked == "" || (holds.of(vm) > 0) == (in.Blocked == "true")) {
				p.add(vm)
			}
		}
	}
	p.cut()
	out := &listVMsOutput{ReadHeaders: h}
	out.Body.Items, out.Body.Total = make([]wire.VM, 0, len(p.items)), p.total
	for _, at := range p.items {
		out.Body.Items = append(out.Body.Items, s.wireVM(v, at.vm))
	}
	if p.after > len(p.items) {
		out.Body.Next = new(order.cursor(p.items[len(p.items)-1].vmPlace))
	}
	return out, nil
}

// all says that every VM is asked for, by id: the order in which they are kept, so that only a page is walked.
func (in *listVMsInput) all() bool {
	return in.Search == "" && in.Node == "" && in.Owner == "" && in.Name == "" && in.State == "" && in.Blocked == "" && in.Sort == "id" && in.Order == "asc"
}

// candidates walks what the narrowest index of the state has; nil if none does.
func (in *listVMsInput) candidates(v *fsm.View) iter.Seq[*fsm.VM] {
	switch {
	case in.Node != "":
		return v.VMsOn(in.Node)
	case in.Owner != "":
		return v.VMsOf(in.Owner)
	}
	return nil
}

func (in *listVMsInput) keeps(vm *fsm.VM) bool {
	return (in.Node == "" || vm.Node == in.Node || vm.Destination == in.Node) && (in.Owner == "" || vm.Owner == in.Owner) && (in.Name == "" || vm.Name == in.Name) && (in.State == "" || string(vm.State) == in.State)
}

type getVMInput struct {
	ReadInput
	ID string `path:"id" maxLength:"255" doc:"VM id, or a name that only one VM has"`
}

type vmOutput struct {
	ReadHeaders
	ETag string `header:"ETag"`
	Body wire.VMDetail
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
	return &vmOutput{ReadHeaders: h, ETag: etag(vm.Revision), Body: s.wireVMDetail(ctx, v, vm)}, nil
}

// wireVMDetail shows a VM with its blocks, as far as the caller may read them, and where it was.
func (s *Server) wireVMDetail(ctx context.Context, v *fsm.View, vm *fsm.VM) wire.VMDetail {
	const most = 50
	out := wire.VMDetail{VM: s.wireVM(v, vm), Holds: []wire.Block{}, Pending: []wire.Block{}, History: []wire.VMMove{}}
	for _, b := range v.Holding(vm) {
		if billed(ctx, b) {
			out.Holds = append(out.Holds, wireBlock(v, b))
		}
	}
	targets := []fsm.Target{{VM: vm.ID}}
	if vm.Owner != "" {
		targets = append(targets, fsm.Target{Account: vm.Owner})
	}
	for _, t := range targets {
		for b := range v.OpenOn(t) {
			if b.State == fsm.BlockPending && billed(ctx, b) {
				out.Pending = append(out.Pending, wireBlock(v, b))
			}
		}
	}
	moves, since := v.History(vm.ID, most+1)
	out.HistorySince = since
	out.GuardedSource = s.guardedSource(ctx, v, vm)
	for i := range moves {
		e := &moves[i]
		m := wire.VMMove{At: e.Time, Index: e.Index, Type: string(e.Type), Node: e.VM.Node, Destination: e.VM.Destination, State: string(e.VM.State)}
		if i > 0 && moves[i-1].VM.Node != m.Node {
			m.From = moves[i-1].VM.Node
		}
		out.History = append(out.History, m)
	}
	slices.Reverse(out.History)
	out.History = out.History[:min(len(out.History), most)]
	return out
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
	var guard fsm.SourceGuard
	if vm, ok := v.VM(in.ID); ok {
		was, declared, guard = vm.DoNotBlockUntil, vm.Declared, vm.SourceGuard
	}
	if p := mayBind(callerOf(ctx), guard, in.Body.SourceGuard); p != nil {
		return nil, p
	}
	if p := mayProtect(callerOf(ctx), was, in.Body.DoNotBlockUntil); p != nil {
		return nil, p
	}
	op := fsm.DeclareVM{ID: in.ID, DoNotBlockUntil: in.Body.DoNotBlockUntil, Name: in.Body.Name, Owner: in.Body.Owner, SourceGuard: fsm.SourceGuard(in.Body.SourceGuard), IfRevision: rev, Addresses: make([]netip.Prefix, 0, len(in.Body.Addresses))}
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
