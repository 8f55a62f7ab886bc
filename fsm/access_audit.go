package fsm

// What the audit says of access. Hashes of secrets are no part of it.

func (j *auditJSON) token(k string, t *Token) {
	if t == nil {
		return
	}
	j.open(k, '{')
	j.text("name", t.Name)
	j.text("scope", string(t.Scope))
	j.time("expires_at", t.ExpiresAt)
	j.time("created_at", t.CreatedAt)
	j.text("actor", t.Actor)
	j.number("revision", t.Revision)
	j.close('}')
}

func (j *auditJSON) user(k string, u *User) {
	if u == nil {
		return
	}
	j.open(k, '{')
	j.text("name", u.Name)
	j.text("scope", string(u.Scope))
	j.time("created_at", u.CreatedAt)
	j.text("actor", u.Actor)
	j.number("revision", u.Revision)
	j.close('}')
}

func (j *auditJSON) session(k string, s *Session) {
	if s == nil {
		return
	}
	j.open(k, '{')
	j.text("id", s.ID)
	j.text("user", s.User)
	j.text("scope", string(s.Scope))
	j.text("from", s.From)
	j.time("created_at", s.CreatedAt)
	j.time("expires_at", s.ExpiresAt)
	j.duration("idle", s.Idle)
	j.number("revision", s.Revision)
	j.close('}')
}

func (j *auditJSON) refusedLogins(k string, op *RefusedLogins) {
	j.open(k, '{')
	j.number("total", op.Total)
	if len(op.Logins) > 0 {
		j.open("logins", '[')
		for _, l := range op.Logins {
			j.open("", '{')
			j.text("user", l.User)
			j.text("from", l.From)
			j.number("count", l.Count)
			j.close('}')
		}
		j.close(']')
	}
	j.close('}')
}

// accessEvent writes what an event says of access.
func (a *applier) accessEvent(j *auditJSON, e *Event, was *replaced) {
	switch {
	case e.Token != nil:
		j.text("object", e.Token.Name)
		j.token("before", was.token)
		if e.Type != EventTokenDeleted {
			j.token("after", e.Token)
		}
	case e.User != nil:
		j.text("object", e.User.Name)
		j.user("before", was.user)
		if e.Type != EventUserDeleted {
			j.user("after", e.User)
		}
	case e.Session != nil:
		j.text("object", e.Session.ID)
		j.session("before", was.session)
		if e.Type != EventSessionEnded {
			j.session("after", e.Session)
		}
	}
}

// askedForAccess is askedFor of access.
func askedForAccess(op Op) (action, object string, asked func(*auditJSON)) {
	switch op := op.(type) {
	case CreateToken:
		return "token.create", op.Name, func(j *auditJSON) {
			j.token("asked", &Token{Name: op.Name, Scope: op.Scope, ExpiresAt: op.ExpiresAt})
		}
	case DeleteToken:
		return "token.delete", op.Name, nil
	case PutUser:
		return "user.put", op.Name, func(j *auditJSON) { j.user("asked", &User{Name: op.Name, Scope: op.Scope}) }
	case DeleteUser:
		return "user.delete", op.Name, nil
	case CreateSession:
		return "session.login", op.ID, func(j *auditJSON) { j.session("asked", &Session{User: op.User, Scope: op.Scope}) }
	case EndSessions:
		return "session.end", op.ID, func(j *auditJSON) { j.session("asked", &Session{User: op.User}) }
	case RefusedLogins:
		return "session.login", "", nil
	}
	return "", "", nil
}
