package fsm

import (
	"fmt"
	"slices"
	"strings"
	"time"
)

func (a *applier) createToken(op CreateToken) (*Token, *Error) {
	now := fromNanos(a.time)
	is := &Token{
		Name: op.Name, Scope: op.Scope, Hash: op.Hash, ExpiresAt: utc(op.ExpiresAt),
		CreatedAt: now, Actor: a.actor, Revision: a.index,
	}
	if refused := first(checkAccessName("name", op.Name), checkScope(op.Scope), checkHash(op.Hash)); refused != nil {
		return nil, refused
	}
	if is.Expired(now) {
		return nil, &Error{CodeInvalid, "expires_at", "has passed"}
	}
	if _, known := a.access.tokens.get([]byte(op.Name)); known {
		return nil, &Error{CodeConflict, "name", "there is a token " + quote(op.Name) + "; delete it first, or choose another name"}
	}
	if _, known := a.access.tokenHashes.get(op.Hash[:]); known {
		return nil, &Error{CodeConflict, "hash", "another token has the same text"}
	}
	if a.access.tokens.n >= MaxTokens {
		return nil, &Error{CodeConflict, "name", fmt.Sprintf("there are %d tokens, more are not possible", MaxTokens)}
	}
	a.setToken(nil, is)
	a.emit(Event{Type: EventTokenCreated, Token: is.public()})
	return is.public(), nil
}

func (a *applier) deleteToken(op DeleteToken) (*Token, *Error) {
	was, known := a.access.tokens.get([]byte(op.Name))
	if !known {
		return nil, &Error{CodeNotFound, "name", "there is no token " + quote(op.Name)}
	}
	if refused := checkRevision(op.IfRevision, was.Revision); refused != nil {
		return nil, refused
	}
	a.setToken(was, nil)
	a.emit(Event{Type: EventTokenDeleted, Token: was.public()})
	return was.public(), nil
}

func (a *applier) putUser(op PutUser) (*User, *Error) {
	was, known := a.access.users.get([]byte(op.Name))
	is := &User{CreatedAt: fromNanos(a.time)}
	if known {
		is = new(*was)
	}
	is.Name, is.Actor = op.Name, a.actor
	if op.Scope != "" {
		is.Scope = op.Scope
	}
	if op.Password != "" && op.Password != is.Password {
		is.Password, is.Devices = op.Password, nil
	}
	if refused := first(checkAccessName("name", op.Name), checkScope(is.Scope), checkPassword(is.Password)); refused != nil {
		return nil, refused
	}
	if refused := checkRevision(op.IfRevision, is.Revision); refused != nil {
		return nil, refused
	}
	if known && was.Scope == is.Scope && was.Password == is.Password {
		return was.public(), nil
	}
	if !known && a.access.users.n >= MaxUsers {
		return nil, &Error{CodeConflict, "name", fmt.Sprintf("there are %d users, more are not possible", MaxUsers)}
	}
	is.Revision = a.index
	a.setUser(was, is)
	a.emit(Event{Type: EventUserChanged, User: is.public()})
	a.endSessionsOf(op.Name)
	return is.public(), nil
}

func (a *applier) deleteUser(op DeleteUser) (*User, *Error) {
	was, known := a.access.users.get([]byte(op.Name))
	if !known {
		return nil, noUser("name", op.Name)
	}
	if refused := checkRevision(op.IfRevision, was.Revision); refused != nil {
		return nil, refused
	}
	a.setUser(was, nil)
	a.emit(Event{Type: EventUserDeleted, User: was.public()})
	a.endSessionsOf(op.Name)
	return was.public(), nil
}

func (a *applier) createSession(op CreateSession) (*Session, *Error) {
	now := fromNanos(a.time)
	is := &Session{
		ID: op.ID, Hash: op.Hash, User: op.User, Scope: op.Scope, From: a.from,
		CreatedAt: now, LastUsed: now, ExpiresAt: utc(op.ExpiresAt), Idle: op.Idle, Revision: a.index,
	}
	if refused := first(checkAccessName("id", op.ID), checkHash(op.Hash), checkSessionTime(now, is)); refused != nil {
		return nil, refused
	}
	user, refused := a.userOf(op)
	if refused != nil {
		return nil, refused
	}
	if user != nil {
		is.Scope = user.Scope
	}
	_, known := a.access.sessions.get([]byte(op.ID))
	_, same := a.access.secrets.get(op.Hash[:])
	if known || same {
		return nil, &Error{CodeConflict, "id", "there is such a session"}
	}
	a.forgetSessions()
	of := slices.Collect(a.access.userSessions.under(groupKey(op.User)))
	if a.access.sessions.n >= MaxSessions && len(of) < MaxUserSessions {
		return nil, &Error{CodeConflict, "user", fmt.Sprintf("there are %d sessions, more are not possible", MaxSessions)}
	}
	if len(of) >= MaxUserSessions {
		oldest := slices.MinFunc(of, func(x, y *Session) int { return x.LastUsed.Compare(y.LastUsed) })
		a.endSession(oldest)
	}
	if user != nil && op.Device != [32]byte{} && !slices.Contains(user.Devices, op.Device) {
		next := new(*user)
		next.Devices = append(slices.Clone(user.Devices[max(0, len(user.Devices)+1-MaxUserDevices):]), op.Device)
		a.setUser(user, next)
	}
	a.setSession(nil, is)
	a.emit(Event{Type: EventSessionStarted, Session: is.public()})
	return is.public(), nil
}

// userOf checks whom a session is for. The user is nil for a foreign one.
func (a *applier) userOf(op CreateSession) (*User, *Error) {
	if isForeign(op.User) {
		if op.UserRevision != 0 {
			return nil, &Error{CodeInvalid, "user_revision", "a foreign user has none"}
		}
		return nil, first(checkForeignUser(op.User), checkScope(op.Scope))
	}
	user, known := a.access.users.get([]byte(op.User))
	if !known {
		return nil, noUser("user", op.User)
	}
	if op.UserRevision == 0 {
		return nil, &Error{CodeInvalid, "user_revision", "is missing"}
	}
	return user, checkRevision(op.UserRevision, user.Revision)
}

func (a *applier) touchSession(op TouchSession) (*Session, *Error) {
	was, known := a.access.sessions.get([]byte(op.ID))
	now := fromNanos(a.time)
	if !known || was.Expired(now) {
		return nil, noSession(op.ID)
	}
	is := new(*was)
	is.LastUsed = now
	a.setSession(was, is)
	a.was = replaced{} // no event tells of it
	return is.public(), nil
}

func (a *applier) endSessions(op EndSessions) ([]Result, *Error) {
	if (op.ID == "") == (op.User == "") {
		return nil, &Error{CodeInvalid, "id", "give either a session or a user"}
	}
	if op.User != "" {
		return a.endSessionsOf(op.User), nil
	}
	was, known := a.access.sessions.get([]byte(op.ID))
	if !known {
		return nil, noSession(op.ID)
	}
	return []Result{a.endSession(was)}, nil
}

func (a *applier) endSessionsOf(user string) (ended []Result) {
	for _, s := range slices.Collect(a.access.userSessions.under(groupKey(user))) {
		ended = append(ended, a.endSession(s))
	}
	return ended
}

func (a *applier) endSession(s *Session) Result {
	a.setSession(s, nil)
	a.emit(Event{Type: EventSessionEnded, Session: s.public()})
	return Result{Index: a.index, Session: s.public()}
}

// forgetSessions removes some sessions that are over by themselves.
func (a *applier) forgetSessions() {
	const most = 100 // each login adds one, so this keeps up
	for range most {
		s, ok := a.access.sessionEnds.first()
		if !ok || fromNanos(a.time).Before(s.ExpiresAt) {
			return
		}
		a.setSession(s, nil)
		a.was = replaced{}
		a.emit(Event{Type: EventSessionForgotten, Session: s.public()})
	}
}

func (a *applier) refusedLogins(op RefusedLogins) *Error {
	if refused := checkCount("logins", len(op.Logins), MaxRefusedLogins); refused != nil {
		return refused
	}
	if op.Total == 0 {
		return &Error{CodeInvalid, "total", "is missing"}
	}
	for i, l := range op.Logins {
		if refused := first(
			checkText(fmt.Sprintf("logins[%d].user", i), l.User, MaxNameBytes),
			checkText(fmt.Sprintf("logins[%d].from", i), l.From, MaxAccessNameBytes),
		); refused != nil {
			return refused
		}
	}
	j := a.openRecord(auditAction(EventSessionStarted))
	j.refusedLogins("asked", &op)
	a.closeRecord(j, "refused")
	return nil
}

// Index the objects, as those in state.go.

func (a *applier) setToken(was, is *Token) {
	a.was.token = was
	if was != nil {
		a.sum.subtract(a.digest(tokenRecord(was)))
		a.access.tokens.remove([]byte(was.Name))
		a.access.tokenHashes.remove(was.Hash[:])
	}
	if is != nil {
		a.access.tokens.put([]byte(is.Name), is)
		a.access.tokenHashes.put(slices.Clone(is.Hash[:]), is)
		a.sum.add(a.digest(tokenRecord(is)))
	}
}

func (a *applier) setUser(was, is *User) {
	a.was.user = was
	if was != nil {
		a.sum.subtract(a.digest(userRecord(was)))
	}
	if is == nil {
		a.access.users.remove([]byte(was.Name))
		return
	}
	a.access.users.put([]byte(is.Name), is)
	a.sum.add(a.digest(userRecord(is)))
}

func (a *applier) setSession(was, is *Session) {
	a.was.session = was
	if was != nil {
		a.sum.subtract(a.digest(sessionRecord(was)))
		a.access.sessions.remove([]byte(was.ID))
		a.access.secrets.remove(was.Hash[:])
		a.access.userSessions.remove(pairKey(was.User, was.ID))
		a.access.sessionEnds.remove(sessionEndKey(was))
	}
	if is != nil {
		a.access.sessions.put([]byte(is.ID), is)
		a.access.secrets.put(slices.Clone(is.Hash[:]), is)
		a.access.userSessions.put(pairKey(is.User, is.ID), is)
		a.access.sessionEnds.put(sessionEndKey(is), is)
		a.sum.add(a.digest(sessionRecord(is)))
	}
}

func sessionEndKey(s *Session) []byte {
	return append(numberKey(uint64(toNanos(s.ExpiresAt))), s.ID...)
}

// public is what results and events say of an object: they are kept for long, and shown to many.

func (t *Token) public() *Token {
	c := *t
	c.Hash = [32]byte{}
	return &c
}

func (u *User) public() *User {
	c := *u
	c.Password, c.Devices = "", nil
	return &c
}

func (s *Session) public() *Session {
	c := *s
	c.Hash = [32]byte{}
	return &c
}

func noUser(field, name string) *Error {
	return &Error{CodeNotFound, field, "there is no user " + quote(name)}
}

func noSession(id string) *Error {
	return &Error{CodeNotFound, "id", "there is no session " + quote(id)}
}

func checkScope(s Scope) *Error {
	if slices.Contains(Scopes(), s) {
		return nil
	}
	if s == "" {
		return &Error{CodeInvalid, "scope", "is missing"}
	}
	return &Error{CodeInvalid, "scope", quote(string(s)) + " is none of admin, operator, billing, viewer, metrics"}
}

func checkHash(h [32]byte) *Error {
	if h == [32]byte{} {
		return &Error{CodeInvalid, "hash", "is missing"}
	}
	return nil
}

// checkAccessName checks what names a token, a user or a session. It has no colon, which would let one actor look
// like another.
func checkAccessName(field, s string) *Error {
	switch {
	case s == "":
		return &Error{CodeInvalid, field, "is missing"}
	case len(s) > MaxAccessNameBytes:
		return &Error{CodeInvalid, field, fmt.Sprintf("has %d bytes, at most %d are allowed", len(s), MaxAccessNameBytes)}
	}
	for _, c := range []byte(s) {
		if !alphanumeric(c) && strings.IndexByte("._@+-", c) < 0 {
			return &Error{CodeInvalid, field, quote(s) + " has other characters than A-Z a-z 0-9 . _ @ + -"}
		}
	}
	return nil
}

func checkForeignUser(s string) *Error {
	if s == ForeignUser {
		return &Error{CodeInvalid, "user", "is missing"}
	}
	return checkText("user", s, MaxNameBytes)
}

// checkPassword takes only what looks like an argon2id hash, so that no password in clear text gets into the log.
func checkPassword(s string) *Error {
	switch {
	case s == "":
		return &Error{CodeInvalid, "password", "is missing"}
	case len(s) > MaxPasswordBytes, !strings.HasPrefix(s, "$argon2id$v=19$"), strings.ContainsFunc(s, func(r rune) bool { return r <= ' ' || r > '~' }):
		return &Error{CodeInvalid, "password", "is no argon2id hash"}
	}
	return nil
}

func checkSessionTime(now time.Time, s *Session) *Error {
	switch {
	case !now.Before(s.ExpiresAt):
		return &Error{CodeInvalid, "expires_at", "has passed"}
	case s.ExpiresAt.Sub(now) > MaxSessionTime:
		return &Error{CodeInvalid, "expires_at", fmt.Sprintf("is more than %s away", MaxSessionTime)}
	case s.Idle <= 0 || s.Idle > MaxSessionTime:
		return &Error{CodeInvalid, "idle", fmt.Sprintf("is not between 0 and %s", MaxSessionTime)}
	}
	return nil
}
