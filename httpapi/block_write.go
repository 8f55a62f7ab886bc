package httpapi

import (
	"context"
	"net/http"
	"slices"
	"time"

	"github.com/palisade/palisade/fsm"
	"github.com/palisade/palisade/httpapi/wire"
)

type blockOutput struct {
	Status int
	WriteHeaders
	Body wire.Block
}

type addBlockInput struct {
	WriteInput
	WaitInput
	Body wire.BlockRequest
}

func (s *Server) addBlock(ctx context.Context, in *addBlockInput) (*blockOutput, error) {
	wait, err := in.wait()
	if err != nil {
		return nil, err
	}
	op, p := addOp(callerOf(ctx), &in.Body)
	if p != nil {
		return nil, p
	}
	res, err := s.propose(ctx, in.WriteInput, op, func() sent { return addFields(&in.Body) })
	if err != nil {
		return nil, err
	}
	return s.blockResult(ctx, res, http.StatusCreated, wait)
}

type patchBlockInput struct {
	WriteInput
	ChangeInput
	ID   string `path:"id" maxLength:"64" example:"b17"`
	Body wire.BlockPatch
}

// patchBlock insists on If-Match: who moves a time must know which time it is.
func (s *Server) patchBlock(ctx context.Context, in *patchBlockInput) (*blockOutput, error) {
	wait, rev, err := in.change()
	if err != nil {
		return nil, err
	}
	if in.IfMatch == "" {
		p := problem(wire.CodePrecondition, "header.If-Match: is missing; send the ETag of the block as you read it, so that nobody else's change is lost")
		p.Errors = []wire.FieldError{{Location: "header.If-Match", Message: `is missing; for example "17", with its quotes`}}
		return nil, p
	}
	op, p := patchOp(in.ID, rev, &in.Body)
	if p != nil {
		return nil, p
	}
	fields := patchFields(in.ID, &in.Body)
	fields["if_revision"] = at("header.If-Match", in.IfMatch)
	res, err := s.propose(ctx, in.WriteInput, op, fields.just)
	if err != nil {
		return nil, err
	}
	return s.blockResult(ctx, res, http.StatusOK, wait)
}

type oneBlockInput struct {
	WriteInput
	ChangeInput
	ID string `path:"id" maxLength:"64" example:"b17"`
}

func (s *Server) liftBlock(ctx context.Context, in *oneBlockInput) (*blockOutput, error) {
	return s.changeBlock(ctx, in, func(rev uint64) fsm.Op { return fsm.LiftBlock{ID: in.ID, IfRevision: rev} })
}

func (s *Server) confirmBlock(ctx context.Context, in *oneBlockInput) (*blockOutput, error) {
	return s.changeBlock(ctx, in, func(rev uint64) fsm.Op { return fsm.PatchBlock{ID: in.ID, IfRevision: rev, Confirm: true} })
}

// changeBlock makes a write that has no body.
func (s *Server) changeBlock(ctx context.Context, in *oneBlockInput, op func(revision uint64) fsm.Op) (*blockOutput, error) {
	wait, rev, err := in.change()
	if err != nil {
		return nil, err
	}
	res, err := s.propose(ctx, in.WriteInput, op(rev), sent{
		"id":          at("path.id", in.ID),
		"if_revision": at("header.If-Match", in.IfMatch),
	}.just)
	if err != nil {
		return nil, err
	}
	return s.blockResult(ctx, res, http.StatusOK, wait)
}

type liftReasonInput struct {
	WriteInput
	WaitInput
	TargetInput
	Reason string `query:"reason" required:"true" minLength:"1" maxLength:"64" doc:"Only blocks with this reason are lifted"`
}

type liftReasonOutput struct {
	Status int
	WriteHeaders
	Body wire.Page[wire.Block]
}

// liftReason lifts what one reason holds on exactly one target.
func (s *Server) liftReason(ctx context.Context, in *liftReasonInput) (*liftReasonOutput, error) {
	wait, err := in.wait()
	if err != nil {
		return nil, err
	}
	t, p := targetOf("query", in.target())
	if p != nil {
		return nil, p
	}
	fields := targetFields("query", in.target())
	fields["reason"] = at("query.reason", in.Reason)
	res, err := s.propose(ctx, in.WriteInput, fsm.LiftReason{Target: t, Reason: in.Reason}, fields.just)
	if err != nil {
		return nil, err
	}
	blocks := make([]*fsm.Block, len(res.Items))
	for i := range res.Items {
		blocks[i] = res.Items[i].Block
	}
	out := &liftReasonOutput{Status: http.StatusOK, WriteHeaders: WriteHeaders{Index: res.Index, Replayed: replayed(res)}}
	items, all := s.written(ctx, res, blocks, wait)
	out.Body.Items = items
	if !all {
		out.Status = http.StatusAccepted
	}
	return out, nil
}

// blockResult answers a write of a block; if asked to, after the members confirmed it.
func (s *Server) blockResult(ctx context.Context, res fsm.Result, status int, wait time.Duration) (*blockOutput, error) {
	b := res.Block
	if b == nil {
		return nil, problem(wire.CodeInternal, "the write was committed at index %d, but its result has no block", res.Index)
	}
	items, all := s.written(ctx, res, []*fsm.Block{b}, wait)
	if !all {
		status = http.StatusAccepted
	}
	return &blockOutput{
		Status:       status,
		WriteHeaders: WriteHeaders{ETag: etag(b.Revision), Index: res.Index, Replayed: replayed(res)},
		Body:         items[0],
	}, nil
}

// written shows blocks that were just written, with receipts if wait is not 0, and whether every live
// member confirmed all of them, which is true without a wait.
func (s *Server) written(ctx context.Context, res fsm.Result, blocks []*fsm.Block, wait time.Duration) (out []wire.Block, all bool) {
	all, end := true, time.Now().Add(wait)
	out = make([]wire.Block, 0, len(blocks))
	for some := range slices.Chunk(blocks, fsm.MaxQueryBlocks) {
		var replies []*reply
		if wait != 0 {
			replies = s.confirmed(ctx, res.Index, some, time.Until(end))
		}
		now := s.opts.Backend.View()
		for _, b := range some {
			w := wireBlock(now, b)
			switch later, ok := now.Block(b.ID); {
			case wait == 0:
				s.unasked(&w, b)
			case res.Replayed && ok && later.Index > b.Index:
				// The answer is that of the first time, but what it tells has ended since: the members now
				// vouch for the state that came after it.
				s.unasked(&w, b)
				all = false
			default:
				all = s.receipts(&w, b, replies) && all
			}
			out = append(out, w)
		}
	}
	return out, all
}

// confirmed asks the members for receipts of the blocks until each live one gave them all, or the
// limit. An index of 0 asks for no particular log index.
func (s *Server) confirmed(ctx context.Context, index uint64, blocks []*fsm.Block, limit time.Duration) []*reply {
	q := fsm.Query{WaitIndex: index, Blocks: make([]string, len(blocks))}
	for i, b := range blocks {
		q.Blocks[i] = b.ID
	}
	return s.gather(ctx, q, limit, true, func(r *fsm.Report) bool {
		return !slices.ContainsFunc(blocks, func(b *fsm.Block) bool { _, ok := confirms(r, b); return !ok })
	})
}
