package httpapi

import (
	"context"

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
	Body wire.Page[wire.Block]
}

func (s *Server) listBlocks(ctx context.Context, in *listBlocksInput) (*listBlocksOutput, error) {
	after, err := decodeCursor("block", in.Cursor)
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
	p := page[*fsm.Block]{kind: "block", limit: in.Limit}
	for b := range v.Blocks(after) {
		if match(b) && billed(ctx, b) && !p.add(b.ID, func() *fsm.Block { return b }) {
			break
		}
	}
	out := &listBlocksOutput{ReadHeaders: h}
	out.Body = wire.Page[wire.Block]{Items: make([]wire.Block, len(p.items)), Next: p.next}
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
	return func(b *fsm.Block) bool {
		return (in.State == "all" || string(b.State) == in.State) &&
			(in.Reason == "" || b.Reason == in.Reason) &&
			(in.Actor == "" || b.Actor == in.Actor) &&
			(in.Kind == "" || string(b.Kind) == in.Kind) &&
			(target == fsm.Target{} || b.Target == target)
	}, nil
}

// askBlocks asks every member once what it knows of the blocks.
func (s *Server) askBlocks(ctx context.Context, ids []string) []*reply {
	return s.gather(ctx, fsm.Query{Blocks: ids}, s.opts.AskTimeout, false, nil)
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
