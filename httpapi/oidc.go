package httpapi

import (
	"context"
	"errors"
	"net/http"
	"time"

	"github.com/danielgtaylor/huma/v2"

	"github.com/palisade/palisade/fsm"
	"github.com/palisade/palisade/httpapi/login"
	"github.com/palisade/palisade/httpapi/wire"
)

// oidcCookie has the state, the nonce and the PKCE verifier of one login, in the browser that began it. It must come along
// when the provider sends the browser back, so that it can't be Strict.
const (
	oidcCookie    = "__Host-palisade-oidc"
	oidcCookieAge = 10 * time.Minute
)

func oidcLimit() login.Limit { return login.Limit{Burst: 20, Every: 15 * time.Second} } // of an address

func oidcRoutes() []route {
	codes := []wire.Code{wire.CodeNotFound, wire.CodeTooManyLogins, wire.CodeProvider}
	return []route{
		{op: operation(http.MethodGet, "/v1/login/oidc", "login-oidc", "Log in by the identity provider: sends the browser there", http.StatusSeeOther), scope: scopeOpen, secret: true,
			codes: codes, add: do((*Server).beginOIDC)},
		{op: operation(http.MethodGet, "/v1/login/oidc/callback", "login-oidc-callback", "Where the identity provider sends the browser back", http.StatusSeeOther), scope: scopeOpen, secret: true,
			codes: append(codes, wire.CodeLoginRefused), add: do((*Server).finishOIDC)},
	}
}

type redirectOutput struct {
	Status    int
	Location  string        `header:"Location"`
	SetCookie []http.Cookie `header:"Set-Cookie"`
}

func (s *Server) beginOIDC(ctx context.Context, _ *struct{}) (*redirectOutput, error) {
	if s.opts.OIDC == nil {
		return nil, problem(wire.CodeNotFound, "no identity provider is configured on this node")
	}
	if err := s.limitOIDC(ctx); err != nil {
		return nil, err
	}
	to, value, err := s.opts.OIDC.Begin(ctx)
	if err != nil {
		return nil, s.oidcProblem(ctx, err)
	}
	c := cookie(oidcCookie, value, oidcCookieAge)
	c.SameSite = http.SameSiteLaxMode
	return &redirectOutput{Status: http.StatusSeeOther, Location: to, SetCookie: []http.Cookie{c}}, nil
}

type finishOIDCInput struct {
	Cookie string `cookie:"__Host-palisade-oidc" maxLength:"512"`
	State  string `query:"state" maxLength:"128"`
	Code   string `query:"code" maxLength:"4096"`
	Error  string `query:"error" maxLength:"256"`
	// What providers add, and nobody needs.
	Description string `query:"error_description" maxLength:"4096"`
	URI         string `query:"error_uri" maxLength:"4096"`
	Issuer      string `query:"iss" maxLength:"1024"`
	Session     string `query:"session_state" maxLength:"1024"`
	Scope       string `query:"scope" maxLength:"4096"`
}

// finishOIDC starts a session for whom the provider vouches.
func (s *Server) finishOIDC(ctx context.Context, in *finishOIDCInput) (*redirectOutput, error) {
	if s.opts.OIDC == nil {
		return nil, problem(wire.CodeNotFound, "no identity provider is configured on this node")
	}
	if err := s.limitOIDC(ctx); err != nil {
		return nil, err
	}
	if in.Error != "" || in.Code == "" {
		return nil, s.oidcProblem(ctx, login.ErrRefused)
	}
	who, err := s.opts.OIDC.Finish(ctx, in.Cookie, in.State, in.Code)
	if err != nil {
		return nil, s.oidcProblem(ctx, err)
	}
	user := fsm.ForeignUser + who.User
	if who.Scope == "" {
		s.refusals.note(user, callerOf(ctx).from)
		s.metrics.logins.WithLabelValues("refused").Inc()
		return nil, problem(wire.CodeLoginRefused, "the identity provider knows you, but none of your groups has a scope here")
	}
	_, session, err := s.startSession(ctx, fsm.CreateSession{User: user, Scope: Scope(who.Scope)})
	if err != nil {
		return nil, err
	}
	return &redirectOutput{Status: http.StatusSeeOther, Location: "/", SetCookie: []http.Cookie{session, cookie(oidcCookie, "", 0)}}, nil
}

// limitOIDC bounds how often one source makes this node talk to the provider.
func (s *Server) limitOIDC(ctx context.Context) error {
	wait := s.limiter.Try(map[string]login.Limit{"oidc " + login.Source(callerOf(ctx).from): oidcLimit()})
	if wait <= 0 {
		return nil
	}
	s.metrics.logins.WithLabelValues("limited").Inc()
	return huma.ErrorWithHeaders(problem(wire.CodeTooManyLogins, "too many logins were tried from here; try again in %s", wait.Round(time.Second)),
		http.Header{"Retry-After": {retryAfter(wait)}})
}

// oidcProblem answers a login that failed. The browser's user is told no more than whom to blame; the log says why.
func (s *Server) oidcProblem(ctx context.Context, err error) error {
	switch {
	case errors.Is(err, login.ErrBusy):
		s.metrics.logins.WithLabelValues("busy").Inc()
		return huma.ErrorWithHeaders(problem(wire.CodeTooManyLogins, "too many logins are tried at once; try again"), http.Header{"Retry-After": {"1"}})
	case errors.Is(err, login.ErrRefused):
		s.refusals.note("", callerOf(ctx).from)
		s.metrics.logins.WithLabelValues("refused").Inc()
		s.log.Info("a login by the identity provider was refused", "from", callerOf(ctx).from, "error", err)
		return problem(wire.CodeLoginRefused, "the login by the identity provider was refused; begin again at /v1/login/oidc")
	}
	s.log.Warn("the identity provider can't be asked", "error", err)
	return problem(wire.CodeProvider, "the identity provider can't be asked now")
}
