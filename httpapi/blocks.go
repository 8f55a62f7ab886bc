package httpapi

import (
	"context"
	"net/http"
	"time"

	"github.com/palisade/palisade/fsm"
	"github.com/palisade/palisade/httpapi/wire"
)

type listBlocksInput struct {
	ReadInput
	PageInput
	VM     string `query:"vm" maxLength:"255" doc:"Only blocks on this VM itself, by id or unique name"`
	Prefix string `query:"prefix" maxLength:"64" doc:"Only blocks on exactly this address or prefix"`
	Reason string `query:"reason" maxLength:"64"`
	State  string `query:"state" enum:"active,lifted,all" default:"active"`
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
		if match(b) && !p.add(b.ID, func() *fsm.Block { return b }) {
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
		out.Body.Items[i] = wireBlock(b)
		s.receipts(&out.Body.Items[i], b, replies)
	}
	return out, nil
}

// matcher resolves the filters against the view.
func (in *listBlocksInput) matcher(v *fsm.View) (func(*fsm.Block) bool, error) {
	if in.VM != "" && in.Prefix != "" {
		return nil, fieldProblem("query.prefix", in.Prefix, "a block has one target: filter by vm or by prefix, not by both")
	}
	var target fsm.Target
	if in.VM != "" {
		vm, ferr := v.ResolveVM("vm", in.VM)
		if ferr != nil {
			return nil, refusalProblem(ferr, sent{"vm": at("query.vm", in.VM)})
		}
		target.VM = vm.ID
	}
	if in.Prefix != "" {
		p, ferr := fsm.ParsePrefix("prefix", in.Prefix)
		if ferr != nil {
			return nil, refusalProblem(ferr, sent{"prefix": at("query.prefix", in.Prefix)})
		}
		target.Prefix = p
	}
	return func(b *fsm.Block) bool {
		return (in.State == "all" || string(b.State) == in.State) &&
			(in.Reason == "" || b.Reason == in.Reason) &&
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
	b, ok := v.Block(in.ID)
	if !ok {
		p := problem(wire.CodeNotFound, "there is no block %q", in.ID)
		p.Errors = []wire.FieldError{{Location: "path.id", Message: "no such block; lifted blocks are forgotten after a time", Value: echo(in.ID)}}
		return nil, p
	}
	out := &getBlockOutput{ReadHeaders: h, ETag: etag(b.Revision), Body: wireBlock(b)}
	s.receipts(&out.Body, b, s.askBlocks(ctx, []string{b.ID}))
	return out, nil
}

type addBlockInput struct {
	WriteInput
	WaitInput
	Body wire.BlockRequest
}

type blockOutput struct {
	Status int
	WriteHeaders
	Body wire.Block
}

func (s *Server) addBlock(ctx context.Context, in *addBlockInput) (*blockOutput, error) {
	wait, err := in.wait()
	if err != nil {
		return nil, err
	}
	op := fsm.AddBlock{Target: fsm.Target{VM: in.Body.Target.VM}, Reason: in.Body.Reason, Note: in.Body.Note}
	switch t := in.Body.Target; {
	case (t.VM == "") == (t.Prefix == ""):
		return nil, fieldProblem("body.target", t, "want exactly one of vm and prefix")
	case t.Prefix != "":
		p, ferr := fsm.ParsePrefix("target.prefix", t.Prefix)
		if ferr != nil {
			return nil, refusalProblem(ferr, sent{"target.prefix": at("body.target.prefix", t.Prefix)})
		}
		op.Target.Prefix = p
	}
	res, err := s.propose(ctx, in.Key, op, sent{
		"target.vm":     at("body.target.vm", in.Body.Target.VM),
		"target.prefix": at("body.target.prefix", in.Body.Target.Prefix),
		"target":        at("body.target", in.Body.Target.String()),
		"reason":        at("body.reason", in.Body.Reason),
		"note":          at("body.note", nil),
	})
	if err != nil {
		return nil, err
	}
	return s.blockResult(ctx, res, http.StatusCreated, wait)
}

type liftBlockInput struct {
	WriteInput
	WaitInput
	MatchInput
	ID string `path:"id" maxLength:"64" example:"b17"`
}

func (s *Server) liftBlock(ctx context.Context, in *liftBlockInput) (*blockOutput, error) {
	wait, err := in.wait()
	if err != nil {
		return nil, err
	}
	rev, err := in.revision()
	if err != nil {
		return nil, err
	}
	res, err := s.propose(ctx, in.Key, fsm.LiftBlock{ID: in.ID, IfRevision: rev}, sent{
		"id":          at("path.id", in.ID),
		"if_revision": at("header.If-Match", in.IfMatch),
	})
	if err != nil {
		return nil, err
	}
	return s.blockResult(ctx, res, http.StatusOK, wait)
}

// blockResult answers a write of a block; if asked to, after the members confirmed it.
func (s *Server) blockResult(ctx context.Context, res fsm.Result, status int, wait time.Duration) (*blockOutput, error) {
	b := res.Block
	if b == nil {
		return nil, problem(wire.CodeInternal, "the write was committed at index %d, but its result has no block", res.Index)
	}
	out := &blockOutput{
		Status:       status,
		WriteHeaders: WriteHeaders{ETag: etag(b.Revision), Index: res.Index, Replayed: replayed(res)},
		Body:         wireBlock(b),
	}
	if wait == 0 {
		s.unasked(&out.Body, b)
		return out, nil
	}
	q := fsm.Query{WaitIndex: res.Index, Blocks: []string{b.ID}}
	replies := s.gather(ctx, q, wait, true, func(r *fsm.Report) bool { _, ok := confirms(r, b); return ok })
	if now, ok := s.opts.Backend.View().Block(b.ID); res.Replayed && ok && now.Index > b.Index {
		// The answer is that of the first time, but what it tells has ended since: the members now
		// vouch for the state that came after it.
		s.unasked(&out.Body, b)
		out.Status = http.StatusAccepted
		return out, nil
	}
	if !s.receipts(&out.Body, b, replies) {
		out.Status = http.StatusAccepted
	}
	return out, nil
}
