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
	}
	for g := range v.Guards() {
		w := wireGuard(g)
		if in.All == "true" {
			if g.VM == "" {
				continue // is among the prefixes
			}
			w.Why = "guard: " + g.Note
		}
		id := w.Prefix
		if g.VM != "" {
			id = cursorText("vm " + g.VM)
		}
		if !each(id, w) {
			break
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
	fields := sent{"prefix": at("body.prefix", in.Body.Prefix), "vm": at("body.vm", in.Body.VM), "note": at("body.note", nil)}
	op := fsm.PutGuard{VM: in.Body.VM, Note: in.Body.Note}
	if (in.Body.Prefix == "") == (in.Body.VM == "") {
		return nil, fieldProblem("body", in.Body, "want exactly one of prefix and vm")
	}
	if in.Body.Prefix != "" {
		p, ferr := fsm.ParsePrefix("prefix", in.Body.Prefix)
		if ferr != nil {
			return nil, refusalProblem(ferr, fields)
		}
		op.Prefix = p
	}
	res, err := s.propose(ctx, in.WriteInput, op, fields.just)
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
	fields := sent{"prefix": at("path.prefix", in.Prefix)}
	p, ferr := fsm.ParsePrefix("prefix", strings.TrimSuffix(in.Prefix, "/"))
	if ferr != nil {
		return nil, refusalProblem(ferr, fields)
	}
	return s.deleteGuard(ctx, in.WriteInput, in.MatchInput, fsm.DeleteGuard{Prefix: p}, fields)
}

type removeVMGuardInput struct {
	WriteInput
	MatchInput
	VM string `path:"vm" maxLength:"255" doc:"VM id, or a name that only one VM has"`
}

func (s *Server) removeVMGuard(ctx context.Context, in *removeVMGuardInput) (*removeGuardOutput, error) {
	return s.deleteGuard(ctx, in.WriteInput, in.MatchInput, fsm.DeleteGuard{VM: in.VM}, sent{"vm": at("path.vm", in.VM)})
}

func (s *Server) deleteGuard(ctx context.Context, in WriteInput, match MatchInput, op fsm.DeleteGuard, fields sent) (*removeGuardOutput, error) {
	if match.IfMatch != "" {
		// Refused rather than ignored: the caller counts on it.
		return nil, fieldProblem("header.If-Match", match.IfMatch, "guards have no conditional removal; send it without")
	}
	res, err := s.propose(ctx, in, op, fields.just)
	if err != nil {
		return nil, err
	}
	return &removeGuardOutput{WriteHeaders{Index: res.Index, Replayed: replayed(res)}}, nil
}
