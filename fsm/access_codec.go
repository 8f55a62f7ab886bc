package fsm

import (
	"time"

	"github.com/palisade/palisade/fsm/internal/fsmpb"
)

func tokenRecord(t *Token) *fsmpb.Record {
	return &fsmpb.Record{Record: &fsmpb.Record_Token{Token: encodeToken(t)}}
}

func userRecord(u *User) *fsmpb.Record {
	return &fsmpb.Record{Record: &fsmpb.Record_User{User: encodeUser(u)}}
}

func sessionRecord(s *Session) *fsmpb.Record {
	return &fsmpb.Record{Record: &fsmpb.Record_Session{Session: encodeSession(s)}}
}

func encodeToken(t *Token) *fsmpb.Token {
	return &fsmpb.Token{
		Name: t.Name, Scope: string(t.Scope), Hash: encodeHash(t.Hash), ExpiresAt: toNanos(t.ExpiresAt),
		CreatedAt: toNanos(t.CreatedAt), Actor: t.Actor, Revision: t.Revision,
	}
}

func (d *decoder) token(m *fsmpb.Token) *Token {
	if m == nil {
		d.fail("has no token")
		return &Token{}
	}
	d.known(m)
	return &Token{
		Name: m.Name, Scope: known(d, "scope", m.Scope, Scopes, false), Hash: d.hash(m.Hash), ExpiresAt: decodeTime(m.ExpiresAt),
		CreatedAt: decodeTime(m.CreatedAt), Actor: intern(m.Actor), Revision: m.Revision,
	}
}

func encodeUser(u *User) *fsmpb.User {
	return &fsmpb.User{
		Name: u.Name, Scope: string(u.Scope), Password: u.Password, Devices: encodeList(u.Devices, encodeHash),
		CreatedAt: toNanos(u.CreatedAt), Actor: u.Actor, Revision: u.Revision,
	}
}

func (d *decoder) user(m *fsmpb.User) *User {
	if m == nil {
		d.fail("has no user")
		return &User{}
	}
	d.known(m)
	return &User{
		Name: m.Name, Scope: known(d, "scope", m.Scope, Scopes, false), Password: m.Password, Devices: decodeList(m.Devices, d.hash),
		CreatedAt: decodeTime(m.CreatedAt), Actor: intern(m.Actor), Revision: m.Revision,
	}
}

func encodeSession(s *Session) *fsmpb.Session {
	return &fsmpb.Session{
		Id: s.ID, Hash: encodeHash(s.Hash), User: s.User, Scope: string(s.Scope), From: s.From,
		CreatedAt: toNanos(s.CreatedAt), LastUsed: toNanos(s.LastUsed), ExpiresAt: toNanos(s.ExpiresAt),
		Idle: int64(s.Idle), Revision: s.Revision,
	}
}

func (d *decoder) session(m *fsmpb.Session) *Session {
	if m == nil {
		d.fail("has no session")
		return &Session{}
	}
	d.known(m)
	return &Session{
		ID: m.Id, Hash: d.hash(m.Hash), User: intern(m.User), Scope: known(d, "scope", m.Scope, Scopes, false), From: m.From,
		CreatedAt: decodeTime(m.CreatedAt), LastUsed: decodeTime(m.LastUsed), ExpiresAt: decodeTime(m.ExpiresAt),
		Idle: time.Duration(m.Idle), Revision: m.Revision,
	}
}

// scopeOf is the scope that an op of access gives somebody.
func scopeOf(op Op) Scope {
	switch op := op.(type) {
	case CreateToken:
		return op.Scope
	case PutUser:
		return op.Scope
	case CreateSession:
		return op.Scope
	}
	return ""
}

// encodeAccessOp gives nil for what is no op of access.
func encodeAccessOp(op Op) *fsmpb.Op {
	switch op := op.(type) {
	case CreateToken:
		return &fsmpb.Op{Op: &fsmpb.Op_CreateToken{CreateToken: &fsmpb.CreateToken{
			Name: op.Name, Scope: string(op.Scope), Hash: encodeHash(op.Hash), ExpiresAt: toNanos(op.ExpiresAt),
		}}}
	case DeleteToken:
		return &fsmpb.Op{Op: &fsmpb.Op_DeleteToken{DeleteToken: &fsmpb.DeleteToken{Name: op.Name, IfRevision: op.IfRevision}}}
	case PutUser:
		return &fsmpb.Op{Op: &fsmpb.Op_PutUser{PutUser: &fsmpb.PutUser{
			Name: op.Name, Scope: string(op.Scope), Password: op.Password, IfRevision: op.IfRevision,
		}}}
	case DeleteUser:
		return &fsmpb.Op{Op: &fsmpb.Op_DeleteUser{DeleteUser: &fsmpb.DeleteUser{Name: op.Name, IfRevision: op.IfRevision}}}
	case CreateSession:
		return &fsmpb.Op{Op: &fsmpb.Op_CreateSession{CreateSession: &fsmpb.CreateSession{
			Id: op.ID, Hash: encodeHash(op.Hash), User: op.User, UserRevision: op.UserRevision, Scope: string(op.Scope),
			ExpiresAt: toNanos(op.ExpiresAt), Idle: int64(op.Idle), Device: encodeHash(op.Device),
		}}}
	case TouchSession:
		return &fsmpb.Op{Op: &fsmpb.Op_TouchSession{TouchSession: &fsmpb.TouchSession{Id: op.ID}}}
	case EndSessions:
		return &fsmpb.Op{Op: &fsmpb.Op_EndSessions{EndSessions: &fsmpb.EndSessions{Id: op.ID, User: op.User}}}
	case RefusedLogins:
		return &fsmpb.Op{Op: &fsmpb.Op_RefusedLogins{RefusedLogins: &fsmpb.RefusedLogins{
			Total: op.Total, Logins: encodeList(op.Logins, func(l RefusedLogin) *fsmpb.RefusedLogin {
				return &fsmpb.RefusedLogin{User: l.User, From: l.From, Count: l.Count}
			}),
		}}}
	}
	return nil
}

// accessOp gives nil for what is no op of access.
func (d *decoder) accessOp(m any) Op {
	switch m := m.(type) {
	case *fsmpb.Op_CreateToken:
		op := m.CreateToken
		d.known(op)
		return CreateToken{Name: op.Name, Scope: d.scope(op.Scope), Hash: d.hash(op.Hash), ExpiresAt: decodeTime(op.ExpiresAt)}
	case *fsmpb.Op_DeleteToken:
		d.known(m.DeleteToken)
		return DeleteToken{Name: m.DeleteToken.Name, IfRevision: m.DeleteToken.IfRevision}
	case *fsmpb.Op_PutUser:
		op := m.PutUser
		d.known(op)
		return PutUser{Name: op.Name, Scope: d.scope(op.Scope), Password: op.Password, IfRevision: op.IfRevision}
	case *fsmpb.Op_DeleteUser:
		d.known(m.DeleteUser)
		return DeleteUser{Name: m.DeleteUser.Name, IfRevision: m.DeleteUser.IfRevision}
	case *fsmpb.Op_CreateSession:
		op := m.CreateSession
		d.known(op)
		return CreateSession{
			ID: op.Id, Hash: d.hash(op.Hash), User: op.User, UserRevision: op.UserRevision, Scope: d.scope(op.Scope),
			ExpiresAt: decodeTime(op.ExpiresAt), Idle: time.Duration(op.Idle), Device: d.hash(op.Device),
		}
	case *fsmpb.Op_TouchSession:
		d.known(m.TouchSession)
		return TouchSession{ID: m.TouchSession.Id}
	case *fsmpb.Op_EndSessions:
		d.known(m.EndSessions)
		return EndSessions{ID: m.EndSessions.Id, User: m.EndSessions.User}
	case *fsmpb.Op_RefusedLogins:
		d.known(m.RefusedLogins)
		return RefusedLogins{Total: m.RefusedLogins.Total, Logins: decodeList(m.RefusedLogins.Logins, func(l *fsmpb.RefusedLogin) RefusedLogin {
			d.known(l)
			return RefusedLogin{User: l.User, From: l.From, Count: l.Count}
		})}
	}
	return nil
}

func (d *decoder) scope(s string) Scope { return known(d, "scope", s, Scopes, true) }

// The parts of a snapshot.

func (b *rebuild) token() error {
	r, d, err := b.in.decode()
	if err != nil {
		return err
	}
	t := d.token(r.GetToken())
	a := &b.applier
	_, again := a.access.tokens.get([]byte(t.Name))
	if _, same := a.access.tokenHashes.get(t.Hash[:]); again || same || t.Hash == [32]byte{} || checkAccessName("name", t.Name) != nil {
		d.fail("it has token %s twice or without what makes it one", quote(t.Name))
	}
	if d.err == nil {
		a.setToken(nil, t)
	}
	return damage(d.err)
}

func (b *rebuild) user() error {
	r, d, err := b.in.decode()
	if err != nil {
		return err
	}
	u := d.user(r.GetUser())
	a := &b.applier
	if _, again := a.access.users.get([]byte(u.Name)); again || checkAccessName("name", u.Name) != nil || checkPassword(u.Password) != nil {
		d.fail("it has user %s twice or without what makes one", quote(u.Name))
	}
	if d.err == nil {
		a.setUser(nil, u)
	}
	return damage(d.err)
}

func (b *rebuild) session() error {
	r, d, err := b.in.decode()
	if err != nil {
		return err
	}
	s := d.session(r.GetSession())
	a := &b.applier
	_, again := a.access.sessions.get([]byte(s.ID))
	if _, same := a.access.secrets.get(s.Hash[:]); again || same || s.Hash == [32]byte{} || checkAccessName("id", s.ID) != nil {
		d.fail("it has session %s twice or without what makes it one", quote(s.ID))
	}
	if d.err == nil {
		a.setSession(nil, s)
	}
	return damage(d.err)
}
