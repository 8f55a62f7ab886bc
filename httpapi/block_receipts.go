package httpapi

import (
	"context"
	"time"

	"github.com/palisade/palisade/fsm"
	"github.com/palisade/palisade/httpapi/wire"
)

type blockReceiptsInput struct {
	ReadInput
	ID   string `path:"id" maxLength:"64" example:"b17"`
	Wait string `query:"wait" maxLength:"32" example:"5s" doc:"How long to wait until every live node confirmed it, 100ms to 60s; without it the answer comes at once"`
}

type blockReceiptsOutput struct {
	ReadHeaders
	ETag string `header:"ETag" doc:"Revision of the block"`
	Body wire.Receipts
}

// withContent is the block with the log index at which what it holds last changed: of a list also its content.
func withContent(v *fsm.View, b *fsm.Block) *fsm.Block {
	l, _, ok := v.List(b.Target.List)
	if !ok || b.State.Over() || l.Revision <= b.Index {
		return b
	}
	out := *b
	out.Index = l.Revision
	return &out
}

// blockReceipts says where the block's present state is in force, of a list with its present content.
func (s *Server) blockReceipts(ctx context.Context, in *blockReceiptsInput) (*blockReceiptsOutput, error) {
	var wait time.Duration
	if in.Wait != "" {
		d, err := time.ParseDuration(in.Wait)
		if err != nil || d < minWait || d > maxWait {
			return nil, fieldProblem("query.wait", in.Wait, "want a duration from 100ms to 60s, for example 5s")
		}
		wait = d
	}
	v, h, err := s.view(ctx, in.ReadInput)
	if err != nil {
		return nil, err
	}
	b, err := readBlock(ctx, v, in.ID)
	if err != nil {
		return nil, err
	}
	b = withContent(v, b)
	var replies []*reply
	if wait == 0 {
		replies = s.askBlocks(ctx, []string{b.ID})
	} else {
		replies = s.confirmed(ctx, b.Index, []*fsm.Block{b}, wait)
	}
	shown := wireBlock(v, b)
	out := &blockReceiptsOutput{ReadHeaders: h, ETag: etag(b.Revision)}
	out.Body = wire.Receipts{Index: b.Index, Complete: s.receipts(&shown, b, replies)}
	out.Body.Receipts, out.Body.Unconfirmed = shown.Receipts, shown.Unconfirmed
	out.Body.EnforcedIndex = s.lowestEnforced(func(yield func(string) bool) {
		for _, r := range replies {
			if !yield(r.member.ID) {
				return
			}
		}
	})
	return out, nil
}
