package httpapi

import (
	"context"
	"strconv"
	"strings"
	"time"

	"github.com/palisade/palisade/fsm"
	"github.com/palisade/palisade/httpapi/wire"
)

type scheduleInput struct {
	ReadInput
	PageInput
}

type scheduleOutput struct {
	ReadHeaders
	Body wire.Page[wire.Due]
}

// schedule lists what starts and ends by itself, soonest first.
func (s *Server) schedule(ctx context.Context, in *scheduleInput) (*scheduleOutput, error) {
	after, err := decodeCursor("due", in.Cursor)
	if err != nil {
		return nil, err
	}
	v, h, err := s.view(ctx, in.ReadInput)
	if err != nil {
		return nil, err
	}
	seq := v.Due()
	if after != "" {
		due, id, ok := parsePlace(after)
		if !ok {
			return nil, fieldProblem("query.cursor", in.Cursor, "not a cursor of this list; send the next of the page before, or none")
		}
		seq = v.DueAfter(due, id)
	}
	p := page[wire.Due]{kind: "due", limit: in.Limit}
	for b := range seq {
		if !p.add(place(b), func() wire.Due { return wireDue(v, b) }) {
			break
		}
	}
	return &scheduleOutput{ReadHeaders: h, Body: p.wire()}, nil
}

// place is where a block stands in the schedule; a cursor holds it.
func place(b *fsm.Block) string { return strconv.FormatInt(b.Due().UnixNano(), 10) + " " + b.ID }

func parsePlace(s string) (due time.Time, id string, ok bool) {
	nanos, id, _ := strings.Cut(s, " ")
	n, err := strconv.ParseInt(nanos, 10, 64)
	_, isID := fsm.ParseBlockID(id)
	return time.Unix(0, n).UTC(), id, err == nil && isID
}

func wireDue(v *fsm.View, b *fsm.Block) wire.Due {
	out := wire.Due{At: b.Due(), What: wire.DueEnd, Block: wireBlock(v, b)}
	switch {
	case b.State == fsm.BlockPending:
		out.What = wire.DueStart
	case b.Due().Equal(b.ConfirmBy):
		out.What = wire.DueUnconfirmed
	}
	return out
}
