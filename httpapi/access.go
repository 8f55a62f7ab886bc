package httpapi

import (
	"time"

	"github.com/palisade/palisade/fsm"
	"github.com/palisade/palisade/httpapi/wire"
)

// clock is the time by which tokens and sessions end. State time and this node's clock can each be slow: the later
// one decides, so that nothing is admitted for longer than was agreed.
func (s *Server) clock() time.Time {
	now := s.now()
	if t := s.opts.Backend.View().Time(); t.After(now) {
		return t
	}
	return now
}

func wireToken(t *fsm.Token, now time.Time) wire.Token {
	return wire.Token{
		Name: t.Name, Scope: string(t.Scope), ExpiresAt: t.ExpiresAt, Expired: t.Expired(now),
		CreatedAt: t.CreatedAt, Actor: t.Actor, Revision: t.Revision,
	}
}

func wireUser(u *fsm.User) wire.User {
	return wire.User{Name: u.Name, Scope: string(u.Scope), CreatedAt: u.CreatedAt, Actor: u.Actor, Revision: u.Revision}
}

func wireSession(s *fsm.Session, now time.Time) wire.Session {
	return wire.Session{
		ID: s.ID, User: s.User, Scope: string(s.Scope), From: s.From, CreatedAt: s.CreatedAt, LastUsed: s.LastUsed,
		ExpiresAt: s.ExpiresAt, Idle: s.Idle.String(), Expired: s.Expired(now),
	}
}
