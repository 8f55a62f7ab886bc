package httpapi

import (
	"context"
	"slices"
	"strings"

	"github.com/palisade/palisade/fsm"
	"github.com/palisade/palisade/httpapi/wire"
)

type listBlocksInput struct {
	ReadInput
	PageInput
	TargetInput
	Reason string `query:"reason" maxLength:"64"`
	Actor  string `query:"actor" maxLength:"255" doc:"Only blocks that this caller asked for"`
	Kind   string `query:"kind" enum:"drop,reject,limit,ports,redirect"`
	State  string `query:"state" enum:"pending,active,lifted,ended,all" default:"active"`
	Search string `query:"search" maxLength:"255" doc:"Only blocks in whose id, target, VM name, reason, note or actor this is found"`
	Order  string `query:"order" enum:"asc,desc" default:"asc" doc:"desc: the newest first"`
}

// TargetInput names one target in the parameters of a request.
type TargetInput struct {
	VM      string `query:"vm" maxLength:"255" doc:"Blocks on this VM itself, by id or unique name"`
	Prefix  string `query:"prefix" maxLength:"64" doc:"Blocks on exactly this address or prefix"`
	Account string `query:"account" maxLength:"255" doc:"Blocks on this account itself"`
	List    string `query:"list" maxLength:"255" doc:"Blocks on this list"`
}

func (in TargetInput) target() wire.Target {
	return wire.Target{VM: in.VM, Prefix: in.Prefix, Account: in.Account, List: in.List}
}

type listBlocksOutput struct {
	ReadHeaders
	Body wire.CountedPage[wire.Block]
}

func (s *Server) listBlocks(ctx context.Context, in *listBlocksInput) (*listBlocksOutput, error) {
	kind, desc := "block", in.Order == "desc"
	if desc {
		kind = "block-desc"
	}
	after, err := decodeCursor(kind, in.Cursor)
	if err != nil {
		return nil, err
	}
	v, h, err := s.view(ctx, in.ReadInput)
	if err != nil {
		return nil, err
	}
	match, err := in.matcher(v)
	if err != nil {
		return nil, err
	}
	var all []*fsm.Block
	for b := range v.Blocks("") {
		if match(b) && billed(ctx, b) {
			all = append(all, b)
		}
	}
	if desc {
		slices.Reverse(all)
	}
	p := page[*fsm.Block]{kind: kind, limit: in.Limit}
	last, _ := fsm.ParseBlockID(after)
	for _, b := range all {
		number, _ := fsm.ParseBlockID(b.ID)
		if past := after == "" || number > last && !desc || number < last && desc; past && !p.add(b.ID, func() *fsm.Block { return b }) {
			break
		}
	}
	out := &listBlocksOutput{ReadHeaders: h}
	out.Body.Page = wire.Page[wire.Block]{Items: make([]wire.Block, len(p.items)), Next: p.next}
	out.Body.Total = len(all)
	if len(p.items) == 0 {
		return out, nil
	}
	ids := make([]string, len(p.items))
	for i, b := range p.items {
		ids[i] = b.ID
	}
	replies := s.askBlocks(ctx, ids)
	for i, b := range p.items {
		out.Body.Items[i] = wireBlock(v, b)
		s.receipts(&out.Body.Items[i], b, replies)
	}
	return out, nil
}

// matcher resolves the filters against the view.
func (in *listBlocksInput) matcher(v *fsm.View) (func(*fsm.Block) bool, error) {
	var target fsm.Target
	if sentTarget := in.target(); sentTarget != (wire.Target{}) {
		var p *wire.Problem
		if target, p = targetOf("query", sentTarget); p != nil {
			return nil, p
		}
		if in.VM != "" {
			vm, ferr := v.ResolveVM("target.vm", in.VM)
			if ferr != nil {
				return nil, refusalProblem(ferr, targetFields("query", sentTarget))
			}
			target.VM = vm.ID
		}
	}
	search := strings.ToLower(strings.TrimSpace(in.Search))
	return func(b *fsm.Block) bool {
		return (in.State == "all" || string(b.State) == in.State) &&
			(in.Reason == "" || b.Reason == in.Reason) &&
			(in.Actor == "" || b.Actor == in.Actor) &&
			(in.Kind == "" || string(b.Kind) == in.Kind) &&
			(target == fsm.Target{} || b.Target == target) &&
			(search == "" || blockHas(v, b, search))
	}, nil
}

// blockHas says whether a text in lower case is anywhere in what a person would look for a block by.
func blockHas(v *fsm.View, b *fsm.Block, text string) bool {
	for _, s := range [...]string{b.ID, b.Target.VM, b.Target.Account, b.Target.List, b.Reason, b.Note, b.Actor} {
		if containsFold(s, text) {
			return true
		}
	}
	if b.Target.Prefix.IsValid() {
		return strings.Contains(prefixText(b.Target.Prefix), text)
	}
	vm, ok := v.VM(b.Target.VM)
	return ok && containsFold(vm.Name, text)
}

// askBlocks asks every member once what it knows of the blocks.
func (s *Server) askBlocks(ctx context.Context, ids []string) []*reply {
	return s.ask(ctx, fsm.Query{Blocks: ids}, "")
}

type getBlockInput struct {
	ReadInput
	ID string `path:"id" maxLength:"64" example:"b17"`
}

type getBlockOutput struct {
	ReadHeaders
	ETag string `header:"ETag"`
	Body wire.Block
}

func (s *Server) getBlock(ctx context.Context, in *getBlockInput) (*getBlockOutput, error) {
	v, h, err := s.view(ctx, in.ReadInput)
	if err != nil {
		return nil, err
	}
	b, err := readBlock(ctx, v, in.ID)
	if err != nil {
		return nil, err
	}
	out := &getBlockOutput{ReadHeaders: h, ETag: etag(b.Revision), Body: wireBlock(v, b)}
	s.receipts(&out.Body, b, s.askBlocks(ctx, []string{b.ID}))
	return out, nil
}

// readBlock is findBlock for a caller who wants to see the block.
func readBlock(ctx context.Context, v *fsm.View, id string) (*fsm.Block, error) {
	b, err := findBlock(v, id)
	if err == nil && !billed(ctx, b) {
		return nil, notBillable(callerOf(ctx), "path.id", id)
	}
	return b, err
}

func findBlock(v *fsm.View, id string) (*fsm.Block, error) {
	b, ok := v.Block(id)
	if !ok {
		p := problem(wire.CodeNotFound, "there is no block %q", id)
		p.Errors = []wire.FieldError{{Location: "path.id", Message: "no such block; blocks that are over are forgotten after a time", Value: echo(id)}}
		return nil, p
	}
	return b, nil
}
