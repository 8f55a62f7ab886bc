package httpapi

import (
	"context"
	"net/http"

	"github.com/palisade/palisade/fsm"
	"github.com/palisade/palisade/httpapi/wire"
)

func userRoutes() []route {
	notFound := []wire.Code{wire.CodeNotFound}
	return []route{
		{op: operation(http.MethodGet, "/v1/users", "list-users", "List the users that log in with a password", http.StatusOK), scope: ScopeAdmin, add: do((*Server).listUsers)},
		{op: operation(http.MethodGet, "/v1/users/{name}", "get-user", "Show a user", http.StatusOK), scope: ScopeAdmin, codes: notFound, add: do((*Server).getUser)},
		{op: operation(http.MethodPut, "/v1/users/{name}", "put-user", "Create a user, or change the scope or the password, which ends all sessions of the user", http.StatusOK), scope: ScopeAdmin, secret: true,
			codes: []wire.Code{wire.CodeRevision, wire.CodeConflict}, add: do((*Server).putUser)},
		{op: operation(http.MethodDelete, "/v1/users/{name}", "delete-user", "Delete a user, and end all sessions of the name", http.StatusNoContent), scope: ScopeAdmin,
			codes: []wire.Code{wire.CodeNotFound, wire.CodeRevision}, add: do((*Server).deleteUser)},
	}
}

type listUsersInput struct {
	ReadInput
	PageInput
}

type listUsersOutput struct {
	ReadHeaders
	Body wire.Page[wire.User]
}

func (s *Server) listUsers(ctx context.Context, in *listUsersInput) (*listUsersOutput, error) {
	after, err := decodeCursor("user", in.Cursor)
	if err != nil {
		return nil, err
	}
	v, h, err := s.view(ctx, in.ReadInput)
	if err != nil {
		return nil, err
	}
	p := page[wire.User]{kind: "user", limit: in.Limit}
	for u := range v.Users(after) {
		if !p.add(u.Name, func() wire.User { return wireUser(u) }) {
			break
		}
	}
	return &listUsersOutput{ReadHeaders: h, Body: p.wire()}, nil
}

type getUserInput struct {
	ReadInput
	Name string `path:"name" maxLength:"64" example:"ann"`
}

type userOutput struct {
	ReadHeaders
	ETag string `header:"ETag"`
	Body wire.User
}

func (s *Server) getUser(ctx context.Context, in *getUserInput) (*userOutput, error) {
	v, h, err := s.view(ctx, in.ReadInput)
	if err != nil {
		return nil, err
	}
	u, ok := v.User(in.Name)
	if !ok {
		p := problem(wire.CodeNotFound, "there is no user %q", echo(in.Name))
		p.Errors = []wire.FieldError{{Location: "path.name", Message: "no such user", Value: echo(in.Name)}}
		return nil, p
	}
	return &userOutput{ReadHeaders: h, ETag: etag(u.Revision), Body: wireUser(u)}, nil
}

// putUserInput has no Idempotency-Key: the hash of a password is another one each time, and to put the same again is safe.
type putUserInput struct {
	MatchInput
	Name string `path:"name" maxLength:"64" example:"ann"`
	Body wire.UserRequest
}

type putUserOutput struct {
	WriteHeaders
	Body wire.User
}

func (s *Server) putUser(ctx context.Context, in *putUserInput) (*putUserOutput, error) {
	rev, err := in.revision()
	if err != nil {
		return nil, err
	}
	op := fsm.PutUser{Name: in.Name, Scope: Scope(in.Body.Scope), IfRevision: rev}
	if in.Body.Password != "" {
		if op.Password, err = s.hashPassword(ctx, "body.password", in.Body.Password, in.Name); err != nil {
			return nil, err
		}
	}
	res, err := s.propose(ctx, WriteInput{}, op, sent{
		"name": at("path.name", in.Name), "scope": at("body.scope", in.Body.Scope), "password": at("body.password", nil),
		"if_revision": at("header.If-Match", in.IfMatch),
	}.just)
	if err != nil {
		return nil, err
	}
	if res.User == nil {
		return nil, problem(wire.CodeInternal, "the write was committed at index %d, but its result has no user", res.Index)
	}
	return &putUserOutput{WriteHeaders: WriteHeaders{ETag: etag(res.User.Revision), Index: res.Index}, Body: wireUser(res.User)}, nil
}

type deleteUserInput struct {
	WriteInput
	MatchInput
	Name string `path:"name" maxLength:"64" example:"ann"`
}

func (s *Server) deleteUser(ctx context.Context, in *deleteUserInput) (*deletedOutput, error) {
	rev, err := in.revision()
	if err != nil {
		return nil, err
	}
	res, err := s.propose(ctx, in.WriteInput, fsm.DeleteUser{Name: in.Name, IfRevision: rev}, sent{
		"name": at("path.name", in.Name), "if_revision": at("header.If-Match", in.IfMatch),
	}.just)
	if err != nil {
		return nil, err
	}
	return &deletedOutput{WriteHeaders{Index: res.Index, Replayed: replayed(res)}}, nil
}
