package httpapi

import (
	"context"
	"crypto/rand"
	"crypto/sha256"
	"encoding/base64"
	"net/http"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/palisade/palisade/fsm"
	"github.com/palisade/palisade/httpapi/wire"
)

// A session is a random secret in a cookie of the browser. The fleet keeps its hash, so that it is known on every node.

const (
	sessionCookie = "__Host-palisade"
	// deviceCookie tells a browser from which a user has logged in before (OWASP, "Slow Down Online Guessing Attacks with
	// Device Cookies"): its tries are counted apart from those of everybody else.
	deviceCookie = "__Host-palisade-device"
	deviceAge    = 365 * 24 * time.Hour
)

// csrfHeader must be on every request that changes something and is authorized by a cookie. A page of another origin
// can't send it without asking first (CORS), which is never allowed.
const csrfHeader = "Palisade-CSRF"

// newSecret makes the text of a cookie, and the hash that is kept.
func newSecret() (text string, hash [sha256.Size]byte) {
	b := make([]byte, 32)
	_, _ = rand.Read(b) // never fails
	text = base64.RawURLEncoding.EncodeToString(b)
	return text, sha256.Sum256([]byte(text))
}

func cookie(name, value string, age time.Duration) http.Cookie {
	c := http.Cookie{
		Name: name, Value: value, Path: "/", MaxAge: int(age / time.Second),
		Secure: true, HttpOnly: true, SameSite: http.SameSiteStrictMode,
	}
	if value == "" {
		c.MaxAge = -1
	}
	return c
}

// uses notes when sessions were used on this node. A node without quorum can't tell the fleet, and its users go on.
type uses struct {
	mu    sync.Mutex
	last  map[string]time.Time // by id, of sessions in the state
	asked map[string]time.Time // when the fleet was told
}

// at returns when a session was used last, as far as this node knows.
func (u *uses) at(se *fsm.Session) time.Time {
	u.mu.Lock()
	defer u.mu.Unlock()
	if t := u.last[se.ID]; t.After(se.LastUsed) {
		return t
	}
	return se.LastUsed
}

// note notes a use, and says whether the fleet should be told: twelve times in the time after which an idle session ends.
func (u *uses) note(v *fsm.View, se *fsm.Session, now time.Time) (tell bool) {
	every := se.Idle / 12
	u.mu.Lock()
	defer u.mu.Unlock()
	if u.last == nil {
		u.last, u.asked = map[string]time.Time{}, map[string]time.Time{}
	}
	const many = 1024
	if _, known := u.last[se.ID]; !known && len(u.last) >= many {
		for id := range u.last {
			if _, lives := v.Session(id); !lives {
				delete(u.last, id)
				delete(u.asked, id)
			}
		}
	}
	u.last[se.ID] = now
	if now.Sub(se.LastUsed) < every || now.Sub(u.asked[se.ID]) < every {
		return false
	}
	u.asked[se.ID] = now
	return true
}

// sessionOver says whether a session admits nobody any more.
func (s *Server) sessionOver(se *fsm.Session) bool {
	now := *se
	now.LastUsed = s.uses.at(se)
	return now.Expired(s.clock())
}

// identifySession finds out who calls by the cookie of a session.
func (s *Server) identifySession(r *http.Request, secret string) (caller, *wire.Problem) {
	v := s.opts.Backend.View()
	se, ok := v.SessionByHash(sha256.Sum256([]byte(secret)))
	if !ok && !s.opts.Backend.Status().CaughtUp {
		// As with tokens: a node that has just started must not send its users to the login.
		return caller{}, problem(wire.CodeNotReady, "this node does not have the fleet's state yet, and does not know the session")
	}
	if !ok || s.sessionOver(se) {
		return caller{}, problem(wire.CodeUnauthorized, "the session has ended; log in again")
	}
	if s.uses.note(v, se, s.clock()) {
		s.touch(r.Context(), se)
	}
	return caller{actor: actorOf(se.User), scope: se.Scope, from: remote(r), session: se}, nil
}

// touch tells the fleet that a session is used. If that fails, the next use after a time tells it.
func (s *Server) touch(ctx context.Context, se *fsm.Session) {
	select {
	case <-s.closing:
		return
	default:
	}
	c := fsm.Command{Actor: actorOf(se.User), Op: fsm.TouchSession{ID: se.ID}}
	s.asks.Go(func() {
		ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), s.opts.ProposeTimeout)
		defer cancel()
		if _, err := s.opts.Backend.Propose(ctx, c); err != nil {
			s.log.Debug("the use of a session was not noted", "session", se.ID, "error", err)
		}
	})
}

// actorOf is a session's user as an actor. A foreign user's name has its kind in front already.
func actorOf(user string) string {
	if strings.HasPrefix(user, fsm.ForeignUser) {
		return user
	}
	return "user:" + user
}

// stillValid says whether what admitted a caller still does: for answers that go on for long.
func (s *Server) stillValid(c *caller) bool {
	v := s.opts.Backend.View()
	switch {
	case c.session != nil:
		se, ok := v.Session(c.session.ID)
		return ok && se.Revision == c.session.Revision && !s.sessionOver(se)
	case c.token != nil:
		t, ok := v.Token(c.token.Name)
		return ok && t.Revision == c.token.Revision && !t.Expired(s.clock())
	}
	return true
}

// sameOrigin refuses what a page of another origin had a browser send: by what the browser says of the origin, and by a
// header that only a page of this origin can set. Either would do; old browsers say nothing of the origin.
func sameOrigin(r *http.Request) *wire.Problem {
	if err := http.NewCrossOriginProtection().Check(r); err != nil {
		return problem(wire.CodeCrossOrigin, "the browser says that another site sent this request")
	}
	if r.Header.Get(csrfHeader) == "" {
		return problem(wire.CodeCrossOrigin, "a request that is authorized by a cookie needs the header %s: 1", csrfHeader)
	}
	return nil
}

func changes(r *http.Request) bool {
	return r.Method != http.MethodGet && r.Method != http.MethodHead && r.Method != http.MethodOptions
}

func sessionRoutes() []route {
	notFound := []wire.Code{wire.CodeNotFound}
	return []route{
		{op: operation(http.MethodGet, "/v1/whoami", "whoami", "Say as whom the caller is known", http.StatusOK), scope: scopeAny, add: do((*Server).whoami)},
		{op: operation(http.MethodPost, "/v1/logout", "logout", "End the caller's session, or all of its user", http.StatusNoContent), scope: scopeAny,
			codes: []wire.Code{wire.CodeConflict}, add: do((*Server).logout)},
		{op: operation(http.MethodGet, "/v1/sessions", "list-sessions", "List sessions: an admin all, others their own", http.StatusOK), scope: scopeAny, add: do((*Server).listSessions)},
		{op: operation(http.MethodDelete, "/v1/sessions/{id}", "end-session", "End a session: an admin any, others their own", http.StatusNoContent), scope: scopeAny,
			codes: notFound, add: do((*Server).endSession)},
	}
}

type whoamiOutput struct{ Body wire.Whoami }

func (s *Server) whoami(ctx context.Context, _ *struct{}) (*whoamiOutput, error) {
	return &whoamiOutput{s.wireWhoami(callerOf(ctx))}, nil
}

func (s *Server) wireWhoami(c *caller) wire.Whoami {
	out := wire.Whoami{Actor: c.actor, Scope: string(c.scope), May: mayDo(c.scope), Node: s.opts.Backend.Status().Node, Version: s.opts.Version}
	if f, ok := s.opts.Backend.View().Fleet(); ok {
		out.Fleet, out.Epoch = f.ID, f.Epoch
	}
	if c.session != nil {
		se := wireSession(c.session, s.clock())
		se.Current = true
		out.Session, out.CSRFHeader = &se, csrfHeader
	}
	return out
}

// mayDo lists the operations that a scope admits.
func mayDo(scope Scope) []string {
	ids := []string{}
	for _, rt := range routes() {
		if rt.scope == scopeOpen || rt.admits(scope) {
			ids = append(ids, rt.op.OperationID)
		}
	}
	slices.Sort(ids)
	return ids
}

type logoutInput struct {
	Everywhere bool `query:"everywhere" doc:"true: all sessions of the user"`
}

type cookiesOutput struct {
	SetCookie []http.Cookie `header:"Set-Cookie"`
}

func (s *Server) logout(ctx context.Context, in *logoutInput) (*cookiesOutput, error) {
	c := callerOf(ctx)
	if c.session == nil {
		return nil, problem(wire.CodeConflict, "%s has no session", c.actor)
	}
	op := fsm.EndSessions{ID: c.session.ID}
	if in.Everywhere {
		op = fsm.EndSessions{User: c.session.User}
	}
	res, err := s.commit(ctx, "", op)
	if err != nil {
		return nil, err
	}
	if res.Err != nil && res.Err.Code != fsm.CodeNotFound { // it has ended meanwhile
		return nil, refusalProblem(res.Err, sent{})
	}
	return &cookiesOutput{SetCookie: []http.Cookie{cookie(sessionCookie, "", 0)}}, nil
}

type listSessionsInput struct {
	ReadInput
	PageInput
	User string `query:"user" maxLength:"255" doc:"Only those of this user"`
}

type listSessionsOutput struct {
	ReadHeaders
	Body wire.Page[wire.Session]
}

func (s *Server) listSessions(ctx context.Context, in *listSessionsInput) (*listSessionsOutput, error) {
	after, err := decodeCursor("session", in.Cursor)
	if err != nil {
		return nil, err
	}
	v, h, err := s.view(ctx, in.ReadInput)
	if err != nil {
		return nil, err
	}
	c, now := callerOf(ctx), s.clock()
	p := page[wire.Session]{kind: "session", limit: in.Limit}
	for se := range v.Sessions(after) {
		if !mine(c, se) || in.User != "" && se.User != in.User {
			continue
		}
		if !p.add(se.ID, func() wire.Session {
			out := wireSession(se, now)
			out.Current = c.session != nil && c.session.ID == se.ID
			return out
		}) {
			break
		}
	}
	return &listSessionsOutput{ReadHeaders: h, Body: p.wire()}, nil
}

// mine says whether a caller may see and end a session.
func mine(c *caller, se *fsm.Session) bool {
	return allows(c.scope, ScopeAdmin) || c.session != nil && c.session.User == se.User
}

type endSessionInput struct {
	ID string `path:"id" maxLength:"64"`
}

func (s *Server) endSession(ctx context.Context, in *endSessionInput) (*deletedOutput, error) {
	fields := sent{"id": at("path.id", in.ID)}
	if c := callerOf(ctx); !allows(c.scope, ScopeAdmin) {
		// One's own are known here, or the session that asks would not be.
		if se, ok := s.opts.Backend.View().Session(in.ID); !ok || !mine(c, se) {
			return nil, refusalProblem(&fsm.Error{Code: fsm.CodeNotFound, Field: "id", Detail: "you have no session of this id"}, fields)
		}
	}
	res, err := s.commit(ctx, "", fsm.EndSessions{ID: in.ID})
	if err != nil {
		return nil, err
	}
	if res.Err != nil {
		return nil, refusalProblem(res.Err, fields)
	}
	return &deletedOutput{WriteHeaders{Index: res.Index}}, nil
}
