package httpapi

import (
	"context"
	"time"

	"github.com/palisade/palisade/fsm"
	"github.com/palisade/palisade/httpapi/wire"
)

type listAccountsInput struct {
	ReadInput
	PageInput
}

type listAccountsOutput struct {
	ReadHeaders
	Body wire.Page[wire.Account]
}

// listAccounts lists the accounts for which something is set.
func (s *Server) listAccounts(ctx context.Context, in *listAccountsInput) (*listAccountsOutput, error) {
	after, err := decodeCursor("account", in.Cursor)
	if err != nil {
		return nil, err
	}
	v, h, err := s.view(ctx, in.ReadInput)
	if err != nil {
		return nil, err
	}
	p := page[wire.Account]{kind: "account", limit: in.Limit}
	for a := range v.Accounts(after) {
		if !p.add(a.ID, func() wire.Account { return wireAccount(v, a) }) {
			break
		}
	}
	return &listAccountsOutput{ReadHeaders: h, Body: p.wire()}, nil
}

type getAccountInput struct {
	ReadInput
	ID string `path:"id" maxLength:"255" example:"acct-42"`
}

type accountOutput struct {
	ReadHeaders
	ETag string `header:"ETag"`
	Body wire.Account
}

// getAccount shows also an account for which nothing is set, if it owns a VM or is blocked.
func (s *Server) getAccount(ctx context.Context, in *getAccountInput) (*accountOutput, error) {
	v, h, err := s.view(ctx, in.ReadInput)
	if err != nil {
		return nil, err
	}
	a, known := v.Account(in.ID)
	if !known {
		a = &fsm.Account{ID: in.ID}
	}
	out := &accountOutput{ReadHeaders: h, ETag: etag(a.Revision), Body: wireAccount(v, a)}
	if !known && out.Body.VMs == 0 && len(out.Body.Blocks) == 0 {
		p := problem(wire.CodeNotFound, "nothing is known of the account %q", echo(in.ID))
		p.Errors = []wire.FieldError{{Location: "path.id", Message: "owns no VM, and nothing is set for it", Value: echo(in.ID)}}
		return nil, p
	}
	return out, nil
}

type putAccountInput struct {
	WriteInput
	MatchInput
	ID   string `path:"id" maxLength:"255" example:"acct-42"`
	Body wire.AccountRequest
}

type putAccountOutput struct {
	WriteHeaders
	Body wire.Account
}

func (s *Server) putAccount(ctx context.Context, in *putAccountInput) (*putAccountOutput, error) {
	rev, err := in.revision()
	if err != nil {
		return nil, err
	}
	var was time.Time
	if a, ok := s.opts.Backend.View().Account(in.ID); ok {
		was = a.DoNotBlockUntil
	}
	if p := mayProtect(callerOf(ctx), was, in.Body.DoNotBlockUntil); p != nil {
		return nil, p
	}
	op := fsm.PutAccount{ID: in.ID, DoNotBlockUntil: in.Body.DoNotBlockUntil, Note: in.Body.Note, IfRevision: rev}
	res, err := s.propose(ctx, in.WriteInput, op, sent{
		"id": at("path.id", in.ID), "note": at("body.note", nil), "if_revision": at("header.If-Match", in.IfMatch),
	}.just)
	if err != nil {
		return nil, err
	}
	if res.Account == nil {
		return nil, problem(wire.CodeInternal, "the write was committed at index %d, but its result has no account", res.Index)
	}
	return &putAccountOutput{
		WriteHeaders: WriteHeaders{ETag: etag(res.Account.Revision), Index: res.Index, Replayed: replayed(res)},
		Body:         wireAccount(s.opts.Backend.View(), res.Account),
	}, nil
}

// mayProtect refuses a change of do_not_block_until by a caller who may not protect from blocks. It compares
// with what this node knows: the check is for people, not against a race of an operator with an admin.
func mayProtect(c *caller, was, is time.Time) *wire.Problem {
	if p := checkTime("body.do_not_block_until", is); p != nil {
		return p
	}
	if was.Equal(is) || allows(c.scope, ScopeAdmin) {
		return nil
	}
	p := problem(wire.CodeForbidden, "%s has scope %q; to change do_not_block_until needs %q", c.actor, c.scope, ScopeAdmin)
	p.Errors = []wire.FieldError{{Location: "body.do_not_block_until", Message: "only an admin may change it; send what is set", Value: is.Format(time.RFC3339)}}
	return p
}
