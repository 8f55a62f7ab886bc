package httpapi

import (
	"context"
	"strings"

	"github.com/palisade/palisade/fsm"
	"github.com/palisade/palisade/httpapi/wire"
)

type listGuardsInput struct {
	ReadInput
	PageInput
	All string `query:"all" enum:"true,false" doc:"true: also those that are built in or come from nodes, with who says so"`
}

type listGuardsOutput struct {
	ReadHeaders
	Body wire.Page[wire.Guard]
}

func (s *Server) listGuards(ctx context.Context, in *listGuardsInput) (*listGuardsOutput, error) {
	after, err := decodeCursor("guard", in.Cursor)
	if err != nil {
		return nil, err
	}
	v, h, err := s.view(ctx, in.ReadInput)
	if err != nil {
		return nil, err
	}
	p := page[wire.Guard]{kind: "guard", limit: in.Limit}
	// Guards are few. A cursor holds the prefix and, where several say the same, who says so; after it
	// is gone the list starts at its end.
	past := after == ""
	each := func(id string, g wire.Guard) bool {
		if !past {
			past = id == after
			return true
		}
		return p.add(id, func() wire.Guard { return g })
	}
	if in.All == "true" {
		for _, g := range v.GuardedPrefixes() {
			text := prefixText(g.Prefix)
			if !each(cursorText(text+" "+g.Why), wire.Guard{Prefix: text, Why: g.Why}) {
				break
			}
		}
	} else {
		for g := range v.Guards() {
			if !each(prefixText(g.Prefix), wireGuard(g)) {
				break
			}
		}
	}
	return &listGuardsOutput{ReadHeaders: h, Body: p.wire()}, nil
}

// cursorText cuts an id to what a cursor may hold.
func cursorText(s string) string { return s[:min(len(s), fsm.MaxNameBytes)] }

type addGuardInput struct {
	WriteInput
	Body wire.GuardRequest
}

type guardOutput struct {
	WriteHeaders
	Body wire.Guard
}

func (s *Server) addGuard(ctx context.Context, in *addGuardInput) (*guardOutput, error) {
	fields := sent{"prefix": at("body.prefix", in.Body.Prefix), "note": at("body.note", nil)}
	p, ferr := fsm.ParsePrefix("prefix", in.Body.Prefix)
	if ferr != nil {
		return nil, refusalProblem(ferr, fields)
	}
	res, err := s.propose(ctx, in.Key, fsm.PutGuard{Prefix: p, Note: in.Body.Note}, fields)
	if err != nil {
		return nil, err
	}
	if res.Guard == nil {
		return nil, problem(wire.CodeInternal, "the write was committed at index %d, but its result has no guard", res.Index)
	}
	return &guardOutput{
		WriteHeaders: WriteHeaders{Index: res.Index, Replayed: replayed(res)},
		Body:         wireGuard(res.Guard),
	}, nil
}

type removeGuardInput struct {
	WriteInput
	MatchInput
	Prefix string `path:"prefix" maxLength:"64" example:"192.0.2.0/24"`
}

type removeGuardOutput struct{ WriteHeaders }

func (s *Server) removeGuard(ctx context.Context, in *removeGuardInput) (*removeGuardOutput, error) {
	if in.IfMatch != "" {
		// Refused rather than ignored: the caller counts on it.
		return nil, fieldProblem("header.If-Match", in.IfMatch, "guards have no conditional removal; send it without")
	}
	fields := sent{"prefix": at("path.prefix", in.Prefix)}
	p, ferr := fsm.ParsePrefix("prefix", strings.TrimSuffix(in.Prefix, "/"))
	if ferr != nil {
		return nil, refusalProblem(ferr, fields)
	}
	res, err := s.propose(ctx, in.Key, fsm.DeleteGuard{Prefix: p}, fields)
	if err != nil {
		return nil, err
	}
	return &removeGuardOutput{WriteHeaders{Index: res.Index, Replayed: replayed(res)}}, nil
}
