package httpapi

import (
	"context"
	"crypto/x509"
	"encoding/hex"
	"errors"
	"net/http"
	"time"

	"github.com/palisade/palisade/fsm"
	"github.com/palisade/palisade/httpapi/wire"
	"github.com/palisade/palisade/pki"
)

// Rotations begin what leads the fleet to new keys. Both block until the rotation is begun, return a refusal as an
// *fsm.Error, and fsm.ErrUnavailable without a leader.
type Rotations interface {
	RotateCA(ctx context.Context, actor, from string) error
	RotateGossipKey(ctx context.Context, actor, from string) error
}

func fleetRoutes() []route {
	return []route{
		{op: operation(http.MethodGet, "/v1/join-tokens", "list-join-tokens", "List the join tokens", http.StatusOK), scope: ScopeAdmin, add: do((*Server).listJoinTokens)},
		{op: operation(http.MethodPost, "/v1/join-tokens", "create-join-token", "Create a join token; its text is shown once", http.StatusCreated), scope: ScopeAdmin,
			codes: []wire.Code{wire.CodeConflict, wire.CodeTooMany}, add: do((*Server).createJoinToken)},
		{op: operation(http.MethodDelete, "/v1/join-tokens/{id}", "delete-join-token", "Delete a join token", http.StatusNoContent), scope: ScopeAdmin,
			codes: []wire.Code{wire.CodeNotFound}, add: do((*Server).deleteJoinToken)},
		{op: operation(http.MethodGet, "/v1/ca", "get-ca", "Show the fleet's authorities and gossip keys, and how far a rotation is", http.StatusOK), scope: ScopeAdmin,
			codes: []wire.Code{wire.CodeNotFound}, add: do((*Server).getFleet)},
		{op: operation(http.MethodPost, "/v1/ca/rotate", "rotate-ca", "Begin the rotation of the fleet's authority", http.StatusOK), scope: ScopeAdmin,
			codes: []wire.Code{wire.CodeConflict}, add: do((*Server).rotateCA)},
		{op: operation(http.MethodPost, "/v1/gossip-key/rotate", "rotate-gossip-key", "Begin the rotation of the gossip key", http.StatusOK), scope: ScopeAdmin,
			codes: []wire.Code{wire.CodeConflict}, add: do((*Server).rotateGossipKey)},
	}
}

type listJoinTokensInput struct {
	ReadInput
	PageInput
}

type listJoinTokensOutput struct {
	ReadHeaders
	Body wire.Page[wire.JoinToken]
}

func (s *Server) listJoinTokens(ctx context.Context, in *listJoinTokensInput) (*listJoinTokensOutput, error) {
	after, err := decodeCursor("join-token", in.Cursor)
	if err != nil {
		return nil, err
	}
	v, h, err := s.view(ctx, in.ReadInput)
	if err != nil {
		return nil, err
	}
	p := page[wire.JoinToken]{kind: "join-token", limit: in.Limit}
	for t := range v.JoinTokens() {
		if t.ID > after && !p.add(t.ID, func() wire.JoinToken { return wireJoinToken(t, s.clock()) }) {
			break
		}
	}
	return &listJoinTokensOutput{ReadHeaders: h, Body: p.wire()}, nil
}

func wireJoinToken(t *fsm.JoinToken, now time.Time) wire.JoinToken {
	state := "open"
	switch {
	case t.UsedBy != "":
		state = "used"
	case !now.Before(t.ExpiresAt):
		state = "expired"
	}
	return wire.JoinToken{
		ID: t.ID, Node: t.Node, Zone: t.Zone, Again: t.Again, State: state, CreatedAt: t.CreatedAt, ExpiresAt: t.ExpiresAt,
		Actor: t.Actor, UsedBy: t.UsedBy, UsedAt: t.UsedAt,
	}
}

const defaultJoinTokenTTL = 15 * time.Minute

// createJoinTokenInput has no Idempotency-Key: the secret is not kept, so that no answer could be given twice.
type createJoinTokenInput struct{ Body wire.JoinTokenRequest }

type createJoinTokenOutput struct {
	WriteHeaders
	Body wire.NewJoinToken
}

func (s *Server) createJoinToken(ctx context.Context, in *createJoinTokenInput) (*createJoinTokenOutput, error) {
	ttl := defaultJoinTokenTTL
	if in.Body.TTL != "" {
		var err error
		if ttl, err = time.ParseDuration(in.Body.TTL); err != nil {
			return nil, fieldProblem("body.ttl", in.Body.TTL, `is no duration, which looks like "15m" or "2h"`)
		}
	}
	token, err := s.newJoinToken()
	if err != nil {
		return nil, err
	}
	op := fsm.CreateJoinToken{ID: token.ID(), Hash: token.SecretHash(), Node: in.Body.Node, Zone: in.Body.Zone, TTL: ttl, Again: in.Body.Again}
	res, err := s.propose(ctx, WriteInput{}, op, sent{
		"node": at("body.node", in.Body.Node), "zone": at("body.zone", in.Body.Zone), "ttl": at("body.ttl", in.Body.TTL),
	}.just)
	if err != nil {
		return nil, err
	}
	if res.JoinToken == nil {
		return nil, problem(wire.CodeInternal, "the write was committed at index %d, but its result has no join token", res.Index)
	}
	out := &createJoinTokenOutput{
		WriteHeaders: WriteHeaders{Index: res.Index},
		Body:         wire.NewJoinToken{JoinToken: wireJoinToken(res.JoinToken, s.clock()), Token: token.Text()},
	}
	if self, ok := s.opts.Backend.View().Node(s.opts.Backend.Status().Node); ok {
		out.Body.Address = self.Address
	}
	return out, nil
}

// newJoinToken makes a token that pins the authority which is current on this node. A rotation that this node has not
// heard of yet does no harm: members present all that are trusted.
func (s *Server) newJoinToken() (pki.JoinToken, error) {
	f, ok := s.opts.Backend.View().Fleet()
	if !ok {
		return pki.JoinToken{}, noFleet()
	}
	ca, _ := f.CurrentCA()
	cert, err := x509.ParseCertificate(ca.Certificate)
	if err != nil {
		return pki.JoinToken{}, problem(wire.CodeInternal, "the fleet's authority can't be read")
	}
	token, err := pki.NewJoinToken(pki.KeyHash(cert))
	if err != nil {
		return pki.JoinToken{}, problem(wire.CodeInternal, "%s", err)
	}
	return token, nil
}

func noFleet() error {
	return problem(wire.CodeNotFound, "this node does not know of a fleet yet")
}

type deleteJoinTokenInput struct {
	WriteInput
	ID string `path:"id" maxLength:"255"`
}

func (s *Server) deleteJoinToken(ctx context.Context, in *deleteJoinTokenInput) (*deletedOutput, error) {
	res, err := s.propose(ctx, in.WriteInput, fsm.DeleteJoinToken{ID: in.ID}, sent{"id": at("path.id", in.ID)}.just)
	if err != nil {
		return nil, err
	}
	return &deletedOutput{WriteHeaders{Index: res.Index, Replayed: replayed(res)}}, nil
}

type getFleetInput struct{ ReadInput }

type fleetOutput struct {
	ReadHeaders
	ETag string `header:"ETag"`
	Body wire.Fleet
}

func (s *Server) getFleet(ctx context.Context, in *getFleetInput) (*fleetOutput, error) {
	v, h, err := s.view(ctx, in.ReadInput)
	if err != nil {
		return nil, err
	}
	f, ok := v.Fleet()
	if !ok {
		return nil, noFleet()
	}
	return &fleetOutput{ReadHeaders: h, ETag: etag(f.Revision), Body: wireFleet(v, f)}, nil
}

func wireFleet(v *fsm.View, f *fsm.Fleet) wire.Fleet {
	out := wire.Fleet{
		ID: f.ID, Epoch: f.Epoch, FormedAt: f.FormedAt, Revision: f.Revision,
		Authorities: []wire.Authority{}, Awaiting: v.AwaitingCA(), GossipKeys: []wire.GossipKey{},
	}
	if out.Awaiting == nil {
		out.Awaiting = []string{}
	}
	if f.Since.Index != 0 {
		out.Since = &wire.Epoch{At: f.Since.At, Node: f.Since.Node, How: string(f.Since.How), Settled: f.Since.Settled >= f.Epoch}
	}
	for _, ca := range f.CAs {
		a := wire.Authority{SHA256: ca.ID, State: string(ca.State), Certificate: string(pki.EncodeChain([][]byte{ca.Certificate}))}
		if cert, err := x509.ParseCertificate(ca.Certificate); err == nil {
			h := pki.KeyHash(cert)
			a.SHA256, a.NotAfter = hex.EncodeToString(h[:]), cert.NotAfter
		}
		out.Authorities = append(out.Authorities, a)
	}
	for _, k := range f.GossipKeys {
		out.GossipKeys = append(out.GossipKeys, wire.GossipKey{ID: k.ID, State: string(k.State)})
	}
	return out
}

type rotateOutput struct{ Body wire.Fleet }

func (s *Server) rotateCA(ctx context.Context, _ *struct{}) (*rotateOutput, error) {
	return s.rotate(ctx, Rotations.RotateCA)
}

func (s *Server) rotateGossipKey(ctx context.Context, _ *struct{}) (*rotateOutput, error) {
	return s.rotate(ctx, Rotations.RotateGossipKey)
}

// rotate begins a rotation and answers with the fleet as this node knows it then.
func (s *Server) rotate(ctx context.Context, begin func(r Rotations, ctx context.Context, actor, from string) error) (*rotateOutput, error) {
	ctx, cancel := context.WithTimeout(ctx, s.opts.ProposeTimeout)
	defer cancel()
	c := callerOf(ctx)
	if err := begin(s.opts.Backend, ctx, c.actor, c.from); err != nil {
		return nil, s.rotationProblem(err)
	}
	v := s.opts.Backend.View()
	f, ok := v.Fleet()
	if !ok {
		return nil, noFleet()
	}
	return &rotateOutput{Body: wireFleet(v, f)}, nil
}

// rotationProblem is outcomeProblem for what has no idempotency key: one rotation at a time is enough of one.
func (s *Server) rotationProblem(err error) error {
	if refused, ok := errors.AsType[*fsm.Error](err); ok {
		return refusalProblem(refused, nil)
	}
	if errors.Is(err, fsm.ErrUnknown) || errors.Is(err, context.DeadlineExceeded) || errors.Is(err, context.Canceled) {
		return problem(wire.CodeUnknownOutcome, "%s; /v1/ca shows whether the rotation began, and a second one is refused while one is under way", err)
	}
	return s.outcomeProblem(err, "")
}
