package fsm

import (
	"cmp"
	"maps"
	"slices"
	"strings"
	"time"

	"pgregory.net/rapid"
)

// modelAccess is who may use the API, as maps that are scanned.
type modelAccess struct {
	tokens   map[string]Token
	users    map[string]User
	sessions map[string]Session
}

func newModelAccess() modelAccess {
	return modelAccess{map[string]Token{}, map[string]User{}, map[string]Session{}}
}

func (m modelAccess) clone() modelAccess {
	return modelAccess{maps.Clone(m.tokens), maps.Clone(m.users), maps.Clone(m.sessions)}
}

func (m *model) accessOp(op Op) Result {
	r := Result{Index: m.index}
	no := func(code Code, field string) Result {
		r.Err = &Error{Code: code, Field: field}
		return r
	}
	switch op := op.(type) {
	case CreateToken:
		_, named := m.access.tokens[op.Name]
		switch {
		case !op.ExpiresAt.IsZero() && !op.ExpiresAt.After(m.time):
			return no(CodeInvalid, "expires_at")
		case named:
			return no(CodeConflict, "name")
		}
		for _, t := range m.access.tokens {
			if t.Hash == op.Hash {
				return no(CodeConflict, "hash")
			}
		}
		t := Token{op.Name, op.Scope, op.Hash, utc(op.ExpiresAt), m.time, m.actor, m.index}
		m.access.tokens[op.Name] = t
		r.Token = m.tellToken(EventTokenCreated, t)
	case DeleteToken:
		t, known := m.access.tokens[op.Name]
		switch {
		case !known:
			return no(CodeNotFound, "name")
		case op.IfRevision != 0 && op.IfRevision != t.Revision:
			return no(CodeRevision, "if_revision")
		}
		delete(m.access.tokens, op.Name)
		r.Token = m.tellToken(EventTokenDeleted, t)
	case PutUser:
		was, known := m.access.users[op.Name]
		u := was
		if !known {
			u = User{Name: op.Name, CreatedAt: m.time}
		}
		u.Scope = cmp.Or(op.Scope, u.Scope)
		if op.Password != "" && op.Password != u.Password {
			u.Password, u.Devices = op.Password, nil
		}
		changed := !known || u.Scope != was.Scope || u.Password != was.Password
		switch {
		case u.Scope == "":
			return no(CodeInvalid, "scope")
		case u.Password == "":
			return no(CodeInvalid, "password")
		case op.IfRevision != 0 && op.IfRevision != was.Revision:
			return no(CodeRevision, "if_revision")
		case !changed:
			r.User = new(bare(u))
			return r
		}
		u.Actor, u.Revision = m.actor, m.index
		m.access.users[op.Name] = u
		r.User = new(bare(u))
		m.emit(Event{Type: EventUserChanged, User: r.User})
		m.endSessions(func(s Session) bool { return s.User == op.Name })
	case DeleteUser:
		u, known := m.access.users[op.Name]
		switch {
		case !known:
			return no(CodeNotFound, "name")
		case op.IfRevision != 0 && op.IfRevision != u.Revision:
			return no(CodeRevision, "if_revision")
		}
		delete(m.access.users, op.Name)
		r.User = new(bare(u))
		m.emit(Event{Type: EventUserDeleted, User: r.User})
		m.endSessions(func(s Session) bool { return s.User == op.Name })
	case CreateSession:
		return m.createSession(op)
	case TouchSession:
		s, known := m.access.sessions[op.ID]
		if !known || s.Expired(m.time) {
			return no(CodeNotFound, "id")
		}
		s.LastUsed = m.time
		m.access.sessions[op.ID] = s
		s.Hash = [32]byte{}
		r.Session = &s
	case EndSessions:
		if _, known := m.access.sessions[op.ID]; op.User == "" && !known {
			return no(CodeNotFound, "id")
		}
		r.Items = m.endSessions(func(s Session) bool { return s.ID == op.ID || s.User == op.User })
	case RefusedLogins:
	}
	return r
}

func (m *model) createSession(op CreateSession) Result {
	r := Result{Index: m.index}
	no := func(code Code, field string) Result {
		r.Err = &Error{Code: code, Field: field}
		return r
	}
	u, known := m.access.users[op.User]
	scope := u.Scope
	if strings.HasPrefix(op.User, ForeignUser) {
		scope = op.Scope
	}
	switch {
	case !op.ExpiresAt.After(m.time):
		return no(CodeInvalid, "expires_at")
	case !strings.HasPrefix(op.User, ForeignUser) && !known:
		return no(CodeNotFound, "user")
	case known && op.UserRevision != u.Revision:
		return no(CodeRevision, "if_revision")
	}
	for _, s := range m.access.sessions {
		if s.ID == op.ID || s.Hash == op.Hash {
			return no(CodeConflict, "id")
		}
	}
	for _, s := range slices.SortedFunc(maps.Values(m.access.sessions), func(a, b Session) int {
		return cmp.Or(a.ExpiresAt.Compare(b.ExpiresAt), strings.Compare(a.ID, b.ID))
	}) {
		if !m.time.Before(s.ExpiresAt) {
			delete(m.access.sessions, s.ID)
			s.Hash = [32]byte{}
			m.emit(Event{Type: EventSessionForgotten, Session: &s})
		}
	}
	if known && op.Device != [32]byte{} && !slices.Contains(u.Devices, op.Device) {
		u.Devices = append(slices.Clone(u.Devices), op.Device)
		m.access.users[op.User] = u
	}
	s := Session{op.ID, op.Hash, op.User, scope, "", m.time, m.time, utc(op.ExpiresAt), op.Idle, m.index}
	m.access.sessions[op.ID] = s
	s.Hash = [32]byte{}
	r.Session = &s
	m.emit(Event{Type: EventSessionStarted, Session: &s})
	return r
}

func (m *model) endSessions(which func(Session) bool) (ended []Result) {
	for _, id := range slices.Sorted(maps.Keys(m.access.sessions)) {
		if s := m.access.sessions[id]; which(s) {
			delete(m.access.sessions, id)
			s.Hash = [32]byte{}
			m.emit(Event{Type: EventSessionEnded, Session: &s})
			ended = append(ended, Result{Index: m.index, Session: &s})
		}
	}
	return ended
}

func (m *model) tellToken(e EventType, t Token) *Token {
	t.Hash = [32]byte{}
	m.emit(Event{Type: e, Token: &t})
	return &t
}

func bare(u User) User {
	u.Password, u.Devices = "", nil
	return u
}

// checkAccess compares tokens, users and sessions, and how they are found.
func (f *replicas) checkAccess(t *rapid.T, v *View, equal func(what string, want, got any)) {
	got := newModelAccess()
	for token := range v.Tokens("") {
		got.tokens[token.Name] = *token
		if found, ok := v.TokenByHash(token.Hash); !ok || found != token {
			t.Fatalf("token %s is not found by its hash", token.Name)
		}
	}
	for u := range v.Users("") {
		got.users[u.Name] = *u
	}
	ofUsers := 0
	for s := range v.Sessions("") {
		got.sessions[s.ID] = *s
		if found, ok := v.SessionByHash(s.Hash); !ok || found != s {
			t.Fatalf("session %s is not found by its hash", s.ID)
		}
		if slices.Contains(slices.Collect(v.SessionsOf(s.User)), s) {
			ofUsers++
		}
	}
	equal("tokens", f.model.access.tokens, got.tokens)
	equal("users", f.model.access.users, got.users)
	equal("sessions", f.model.access.sessions, got.sessions)
	if n := len(got.sessions); v.access.tokenHashes.n != len(got.tokens) || v.access.secrets.n != n || v.access.userSessions.n != n ||
		v.access.sessionEnds.n != n || ofUsers != n {
		t.Fatal("what is gone is still found")
	}
}

// genAccess is an op of access that Apply takes or refuses for what it finds.
func genAccess() *rapid.Generator[Op] {
	name := rapid.SampledFrom([]string{"ann", "bob"})
	hash := rapid.Map(rapid.SampledFrom([]byte{1, 2, 3, 4}), func(b byte) [32]byte { return [32]byte{b} })
	revision := rapid.Uint64Range(0, 12)
	scope := rapid.SampledFrom(Scopes())
	return rapid.Custom(func(t *rapid.T) Op {
		switch rapid.IntRange(0, 7).Draw(t, "op") {
		case 0:
			return CreateToken{name.Draw(t, "name"), scope.Draw(t, "scope"), hash.Draw(t, "hash"), genTime().Draw(t, "end")}
		case 1:
			return DeleteToken{name.Draw(t, "name"), revision.Draw(t, "revision")}
		case 2:
			return PutUser{
				name.Draw(t, "name"), rapid.SampledFrom(append(Scopes(), "")).Draw(t, "scope"),
				rapid.SampledFrom([]string{"", testPassword, testPassword + "2"}).Draw(t, "password"), rapid.SampledFrom([]uint64{0, 0, 0, 3}).Draw(t, "revision"),
			}
		case 3:
			return DeleteUser{name.Draw(t, "name"), revision.Draw(t, "revision")}
		case 4:
			return TouchSession{name.Draw(t, "id")}
		case 5:
			if rapid.Bool().Draw(t, "all") {
				return EndSessions{User: name.Draw(t, "user")}
			}
			return EndSessions{ID: name.Draw(t, "id")}
		case 6:
			op := CreateSession{
				ID: rapid.SampledFrom([]string{"ann", "bob", "s1"}).Draw(t, "id"), Hash: hash.Draw(t, "hash"), User: name.Draw(t, "user"),
				UserRevision: rapid.Uint64Range(1, 12).Draw(t, "revision"), ExpiresAt: genTime().Draw(t, "end"), Idle: 5 * time.Second,
				Device: rapid.SampledFrom([][32]byte{{}, {1}, {2}}).Draw(t, "device"),
			}
			if rapid.Bool().Draw(t, "foreign") {
				op.User, op.UserRevision, op.Scope = "oidc:eve", 0, scope.Draw(t, "scope")
			}
			return op
		}
		return RefusedLogins{Total: 3, Logins: []RefusedLogin{{"ann", "192.0.2.9", 2}}}
	})
}

// testPassword has the form of an argon2id hash.
const testPassword = "$argon2id$v=19$m=19456,t=2,p=1$c2FsdHNhbHRzYWx0$aGFzaGhhc2hoYXNoaGFzaA"
