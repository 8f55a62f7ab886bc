package httpapi

import (
	"context"
	"crypto/rand"
	"crypto/sha256"
	"errors"
	"net/http"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/danielgtaylor/huma/v2"

	"github.com/palisade/palisade/fsm"
	"github.com/palisade/palisade/httpapi/login"
	"github.com/palisade/palisade/httpapi/wire"
)

// How often a login may be tried. There is no limit for a user as such: whoever knows a name could lock its owner out.
// A device from which the user has logged in before has a count of its own, and nobody else can use it up.
func sourceLimit() login.Limit { return login.Limit{Burst: 20, Every: 15 * time.Second} } // of an address, for all users
func pairLimit() login.Limit   { return login.Limit{Burst: 5, Every: time.Minute} }       // of an address, for one user
func deviceLimit() login.Limit { return login.Limit{Burst: 10, Every: time.Minute} }

func loginRoutes() []route {
	return []route{
		{op: operation(http.MethodGet, "/v1/login", "login-methods", "Say how one can log in", http.StatusOK), scope: scopeOpen, add: do((*Server).loginMethods)},
		{op: operation(http.MethodPost, "/v1/login", "login", "Log in with a password; the session is in a cookie", http.StatusOK), scope: scopeOpen, secret: true,
			codes: []wire.Code{wire.CodeLoginRefused, wire.CodeTooManyLogins, wire.CodeCrossOrigin}, add: do((*Server).login)},
		{op: operation(http.MethodPost, "/v1/password", "change-password", "Change the caller's own password, which ends all sessions of the user", http.StatusNoContent), scope: scopeAny, secret: true,
			codes: []wire.Code{wire.CodeLoginRefused, wire.CodeTooManyLogins, wire.CodeConflict}, add: do((*Server).changePassword)},
	}
}

type loginMethodsOutput struct{ Body wire.LoginMethods }

// loginMethods is for the login page, which nobody has logged in to see.
func (s *Server) loginMethods(context.Context, *struct{}) (*loginMethodsOutput, error) {
	return &loginMethodsOutput{wire.LoginMethods{Password: true, OIDC: s.opts.OIDC != nil}}, nil
}

type loginInput struct {
	Device string `cookie:"__Host-palisade-device" maxLength:"64" doc:"Set by a login before; its tries are counted apart"`
	Body   wire.LoginRequest
}

type loginOutput struct {
	SetCookie []http.Cookie `header:"Set-Cookie"`
	Body      wire.Whoami
}

// login checks a password and starts a session. What it answers to a wrong name and to a wrong password, and how long that
// takes, is the same.
func (s *Server) login(ctx context.Context, in *loginInput) (*loginOutput, error) {
	user, device, err := s.checkPassword(ctx, in.Body.User, in.Body.Password, in.Device)
	if err != nil {
		return nil, err
	}
	op := fsm.CreateSession{User: user.Name, UserRevision: user.Revision}
	var trusted []http.Cookie
	if !device {
		text, hash := newSecret()
		op.Device, trusted = hash, []http.Cookie{cookie(deviceCookie, text, deviceAge)}
	}
	who, session, err := s.startSession(ctx, op)
	if err != nil {
		return nil, err
	}
	return &loginOutput{SetCookie: append(trusted, session), Body: who}, nil
}

// startSession commits a login, the caller of which is known now.
func (s *Server) startSession(ctx context.Context, op fsm.CreateSession) (wire.Whoami, http.Cookie, error) {
	c := callerOf(ctx)
	c.actor = actorOf(op.User)
	text, hash := newSecret()
	op.ID, op.Hash = "s"+strings.ToLower(rand.Text()[:15]), hash
	op.ExpiresAt, op.Idle = s.clock().Add(s.opts.SessionLifetime), s.opts.SessionIdle
	res, err := s.commit(ctx, "", op)
	if err != nil {
		return wire.Whoami{}, http.Cookie{}, err
	}
	if res.Err != nil {
		if res.Err.Code == fsm.CodeRevision || res.Err.Code == fsm.CodeNotFound {
			return wire.Whoami{}, http.Cookie{}, loginRefused() // the user was changed meanwhile
		}
		return wire.Whoami{}, http.Cookie{}, refusalProblem(res.Err, sent{})
	}
	if res.Session == nil {
		return wire.Whoami{}, http.Cookie{}, problem(wire.CodeInternal, "the write was committed at index %d, but its result has no session", res.Index)
	}
	s.metrics.logins.WithLabelValues("done").Inc()
	c.session, c.scope = res.Session, res.Session.Scope
	return s.wireWhoami(c), cookie(sessionCookie, text, s.opts.SessionLifetime), nil
}

func loginRefused() *wire.Problem {
	return problem(wire.CodeLoginRefused, "the user name or the password is wrong")
}

// checkPassword returns the user whose password it is, and whether the caller's device is one of the user's. The error
// is a problem.
func (s *Server) checkPassword(ctx context.Context, name, password, device string) (user *fsm.User, known bool, err error) {
	from := callerOf(ctx).from
	user, exists := s.opts.Backend.View().User(name)
	hash := ""
	if exists {
		hash = user.Password
		known = device != "" && slices.Contains(user.Devices, sha256.Sum256([]byte(device)))
	}
	source := login.Source(from)
	limits := map[string]login.Limit{"source " + source: sourceLimit(), "pair " + source + " " + name: pairLimit()}
	if known {
		limits = map[string]login.Limit{"device " + device: deviceLimit()}
	}
	if wait := s.limiter.Try(limits); wait > 0 {
		s.refusals.note(refusedName(user), from)
		s.metrics.logins.WithLabelValues("limited").Inc()
		p := problem(wire.CodeTooManyLogins, "too many logins were tried from here; try again in %s", wait.Round(time.Second))
		return nil, false, huma.ErrorWithHeaders(p, http.Header{"Retry-After": {retryAfter(wait)}})
	}
	ok, err := s.passwords.Verify(ctx, hash, password, known)
	switch {
	case errors.Is(err, login.ErrBusy), errors.Is(err, context.Canceled), errors.Is(err, context.DeadlineExceeded):
		s.limiter.Return(limits) // nothing was tried
		s.metrics.logins.WithLabelValues("busy").Inc()
		return nil, false, huma.ErrorWithHeaders(problem(wire.CodeTooManyLogins, "too many logins are tried at once; try again"), http.Header{"Retry-After": {"1"}})
	case err != nil:
		s.log.Error("a password could not be checked", "user", name, "error", err)
		return nil, false, problem(wire.CodeInternal, "the password could not be checked")
	case !ok:
		s.refusals.note(refusedName(user), from)
		s.metrics.logins.WithLabelValues("refused").Inc()
		return nil, false, loginRefused()
	}
	s.limiter.Return(limits)
	return user, known, nil
}

// retryAfter is a time to wait in whole seconds, rounded up.
func retryAfter(wait time.Duration) string { return strconv.Itoa(int(wait/time.Second) + 1) }

// refusedName is what the audit says of who was tried. A name that does not exist is left out: it may be a password.
func refusedName(user *fsm.User) string {
	if user == nil {
		return ""
	}
	return user.Name
}

type changePasswordInput struct {
	Device string `cookie:"__Host-palisade-device" maxLength:"64" doc:"Set by a login before; its tries are counted apart"`
	Body   wire.PasswordRequest
}

// changePassword wants the old password too: a browser that was left alone must not be enough.
func (s *Server) changePassword(ctx context.Context, in *changePasswordInput) (*cookiesOutput, error) {
	c := callerOf(ctx)
	if c.session == nil || strings.HasPrefix(c.session.User, fsm.ForeignUser) {
		return nil, problem(wire.CodeConflict, "%s has no password here", c.actor)
	}
	user, _, err := s.checkPassword(ctx, c.session.User, in.Body.Old, in.Device)
	if err != nil {
		return nil, err
	}
	hash, err := s.hashPassword(ctx, "body.new", in.Body.New, user.Name)
	if err != nil {
		return nil, err
	}
	op := fsm.PutUser{Name: user.Name, Password: hash, IfRevision: user.Revision}
	res, err := s.commit(ctx, "", op)
	if err != nil {
		return nil, err
	}
	if res.Err != nil {
		return nil, refusalProblem(res.Err, sent{"password": at("body.new", nil)})
	}
	return &cookiesOutput{SetCookie: []http.Cookie{cookie(sessionCookie, "", 0)}}, nil
}

// hashPassword hashes a password that somebody wants to have. The error is a problem.
func (s *Server) hashPassword(ctx context.Context, location, password, user string) (string, error) {
	if wrong := login.Check(password, user); wrong != "" {
		return "", fieldProblem(location, nil, "%s", wrong)
	}
	hash, err := s.passwords.Hash(ctx, password)
	if err != nil {
		return "", huma.ErrorWithHeaders(problem(wire.CodeTooManyLogins, "too many logins are tried at once; try again"), http.Header{"Retry-After": {"1"}})
	}
	return hash, nil
}
