package httpapi

import (
	"context"
	"crypto/rand"
	"crypto/sha256"
	"encoding/base64"
	"net/http"

	"github.com/palisade/palisade/fsm"
	"github.com/palisade/palisade/httpapi/wire"
)

// tokenPrefix tells a token of Palisade to people, and to what looks for secrets in places where they should not be.
const tokenPrefix = "plt_"

// NewToken makes the text of a token and the hash of it that the fleet keeps (fsm.CreateToken). The text has 256
// random bits: nothing slower than SHA-256 is needed to keep it from being guessed.
func NewToken() (text string, hash [sha256.Size]byte) {
	secret := make([]byte, 32)
	_, _ = rand.Read(secret) // never fails
	text = tokenPrefix + base64.RawURLEncoding.EncodeToString(secret)
	return text, sha256.Sum256([]byte(text))
}

func tokenRoutes() []route {
	return []route{
		{op: operation(http.MethodGet, "/v1/tokens", "list-tokens", "List the API tokens", http.StatusOK), scope: ScopeAdmin, add: do((*Server).listTokens)},
		{op: operation(http.MethodPost, "/v1/tokens", "create-token", "Create an API token; its secret is shown once", http.StatusCreated), scope: ScopeAdmin,
			codes: []wire.Code{wire.CodeConflict}, add: do((*Server).createToken)},
		{op: operation(http.MethodDelete, "/v1/tokens/{name}", "delete-token", "Delete an API token, on every node at once", http.StatusNoContent), scope: ScopeAdmin,
			codes: []wire.Code{wire.CodeNotFound, wire.CodeRevision}, add: do((*Server).deleteToken)},
	}
}

type listTokensInput struct {
	ReadInput
	PageInput
}

type listTokensOutput struct {
	ReadHeaders
	Body wire.Page[wire.Token]
}

func (s *Server) listTokens(ctx context.Context, in *listTokensInput) (*listTokensOutput, error) {
	after, err := decodeCursor("token", in.Cursor)
	if err != nil {
		return nil, err
	}
	v, h, err := s.view(ctx, in.ReadInput)
	if err != nil {
		return nil, err
	}
	p := page[wire.Token]{kind: "token", limit: in.Limit}
	for t := range v.Tokens(after) {
		if !p.add(t.Name, func() wire.Token { return wireToken(t, s.clock()) }) {
			break
		}
	}
	return &listTokensOutput{ReadHeaders: h, Body: p.wire()}, nil
}

// createTokenInput has no Idempotency-Key: the secret is not kept, so that no answer could be given twice.
type createTokenInput struct{ Body wire.TokenRequest }

type createTokenOutput struct {
	WriteHeaders
	Body wire.NewToken
}

func (s *Server) createToken(ctx context.Context, in *createTokenInput) (*createTokenOutput, error) {
	if p := checkTime("body.expires_at", in.Body.ExpiresAt); p != nil {
		return nil, p
	}
	text, hash := NewToken()
	op := fsm.CreateToken{Name: in.Body.Name, Scope: Scope(in.Body.Scope), Hash: hash, ExpiresAt: in.Body.ExpiresAt}
	res, err := s.propose(ctx, WriteInput{}, op, sent{
		"name": at("body.name", in.Body.Name), "scope": at("body.scope", in.Body.Scope), "expires_at": at("body.expires_at", nil),
	}.just)
	if err != nil {
		return nil, err
	}
	if res.Token == nil {
		return nil, problem(wire.CodeInternal, "the write was committed at index %d, but its result has no token", res.Index)
	}
	return &createTokenOutput{
		WriteHeaders: WriteHeaders{ETag: etag(res.Token.Revision), Index: res.Index},
		Body:         wire.NewToken{Token: wireToken(res.Token, s.clock()), Secret: text},
	}, nil
}

type deleteTokenInput struct {
	WriteInput
	MatchInput
	Name string `path:"name" maxLength:"64" example:"billing"`
}

type deletedOutput struct{ WriteHeaders }

func (s *Server) deleteToken(ctx context.Context, in *deleteTokenInput) (*deletedOutput, error) {
	rev, err := in.revision()
	if err != nil {
		return nil, err
	}
	res, err := s.propose(ctx, in.WriteInput, fsm.DeleteToken{Name: in.Name, IfRevision: rev}, sent{
		"name": at("path.name", in.Name), "if_revision": at("header.If-Match", in.IfMatch),
	}.just)
	if err != nil {
		return nil, err
	}
	return &deletedOutput{WriteHeaders{Index: res.Index, Replayed: replayed(res)}}, nil
}
