package fsm

import (
	"iter"
	"strings"
	"time"
)

// Scope is what a caller of the API may do.
type Scope string

// The scopes.
const (
	ScopeAdmin Scope = "admin" // everything
	// ScopeOperator reads everything but the audit and access, blocks and lifts. It can't change what protects
	// from blocks: guards, settings, do_not_block_until and force.
	ScopeOperator Scope = "operator"
	// ScopeBilling adds, changes and lifts blocks of ReasonUnpaid on VMs and accounts, and reads what that takes.
	ScopeBilling Scope = "billing"
	ScopeViewer  Scope = "viewer"  // everything an operator reads, and changes nothing
	ScopeMetrics Scope = "metrics" // /metrics
)

// Scopes lists every scope, the widest first.
func Scopes() []Scope {
	return []Scope{ScopeAdmin, ScopeOperator, ScopeBilling, ScopeViewer, ScopeMetrics}
}

// Limits of access. They bound memory and what one login costs.
const (
	MaxTokens          = 4096
	MaxUsers           = 4096
	MaxSessions        = 16_384
	MaxUserSessions    = 20 // one more, and the one that was not used for the longest time ends
	MaxUserDevices     = 16 // one more, and the oldest is forgotten
	MaxAccessNameBytes = 64
	MaxPasswordBytes   = 256 // of User.Password
	MaxSessionTime     = 31 * 24 * time.Hour
	MaxRefusedLogins   = 20 // in one RefusedLogins
)

// ForeignUser begins the name of a user that another system vouches for. No User has such a name.
const ForeignUser = "oidc:"

// Token admits the holder of a bearer token. What the fleet keeps is the hash of its text.
type Token struct {
	Name      string // appears as actor "token:NAME"
	Scope     Scope
	Hash      [32]byte  // SHA-256 of the text; zero in results and events
	ExpiresAt time.Time // zero: never
	CreatedAt time.Time
	Actor     string // who created it
	Revision  uint64
}

// Expired says whether the token admits nobody any more.
func (t *Token) Expired(now time.Time) bool { return !t.ExpiresAt.IsZero() && !now.Before(t.ExpiresAt) }

// User may log in with a password.
type User struct {
	Name      string // appears as actor "user:NAME"
	Scope     Scope
	Password  string     // its argon2id hash in the PHC form; empty in results and events
	Devices   [][32]byte // SHA-256 of the ids of devices from which the user has logged in; likewise
	CreatedAt time.Time
	Actor     string // who changed it last
	// Revision is the log index of the last change; a login does not count as one.
	Revision uint64
}

// Session is one login.
type Session struct {
	ID        string   // to name it; no secret
	Hash      [32]byte // SHA-256 of the secret in the cookie; zero in results and events
	User      string   // name of a User, or with ForeignUser in front of it
	Scope     Scope
	From      string // where the login came from
	CreatedAt time.Time
	LastUsed  time.Time // to some minutes
	ExpiresAt time.Time
	Idle      time.Duration // ends the session when it was not used for so long
	Revision  uint64        // log index of the login
}

// Expired says whether the session admits nobody any more.
func (s *Session) Expired(now time.Time) bool {
	return !now.Before(s.ExpiresAt) || now.Sub(s.LastUsed) >= s.Idle
}

// CreateToken creates a token. It is refused with CodeConflict if there is one of that name.
type CreateToken struct {
	Name      string
	Scope     Scope
	Hash      [32]byte
	ExpiresAt time.Time
}

// DeleteToken deletes a token.
type DeleteToken struct {
	Name       string
	IfRevision uint64
}

// PutUser creates a user, who needs a scope and a password, or changes one: what is empty stays. A change ends
// all sessions of the user; a new password forgets the devices.
type PutUser struct {
	Name       string
	Scope      Scope
	Password   string // see User.Password
	IfRevision uint64
}

// DeleteUser deletes a user and ends all sessions of that name.
type DeleteUser struct {
	Name       string
	IfRevision uint64
}

// CreateSession records a login.
type CreateSession struct {
	ID   string // chosen by the caller, who makes it unique
	Hash [32]byte
	User string
	// UserRevision is that of the User whose password was checked: if it has changed since, the login is refused
	// with CodeRevision. It is 0 for a ForeignUser, whose Scope must be given; that of a User is the User's.
	UserRevision uint64
	Scope        Scope
	ExpiresAt    time.Time
	Idle         time.Duration
	Device       [32]byte // a device of the User from now on; zero: none
}

// TouchSession notes that a session is used. It changes nothing but LastUsed, and gives no event.
type TouchSession struct{ ID string }

// EndSessions ends one session, or all of a user. Exactly one field is set. Its Result has the sessions as Items.
type EndSessions struct {
	ID   string
	User string
}

// RefusedLogins puts logins that were refused into the audit. It changes nothing else.
type RefusedLogins struct {
	Total  uint64 // also those that are not listed
	Logins []RefusedLogin
}

// RefusedLogin is some logins that were refused.
type RefusedLogin struct {
	User  string // empty if there is none of that name: what was typed may be a password
	From  string
	Count uint64
}

func (CreateToken) isOp()   {}
func (DeleteToken) isOp()   {}
func (PutUser) isOp()       {}
func (DeleteUser) isOp()    {}
func (CreateSession) isOp() {}
func (TouchSession) isOp()  {}
func (EndSessions) isOp()   {}
func (RefusedLogins) isOp() {}

// access are the objects that say who may use the API. Its tables are of the state.
type access struct {
	tokens       table[*Token]   // by name
	tokenHashes  table[*Token]   // by hash
	users        table[*User]    // by name
	sessions     table[*Session] // by id
	secrets      table[*Session] // by hash
	userSessions table[*Session] // by user and id
	sessionEnds  table[*Session] // by ExpiresAt and id
}

func newAccess() access {
	return access{
		tokens: newTable[*Token](), tokenHashes: newTable[*Token](), users: newTable[*User](),
		sessions: newTable[*Session](), secrets: newTable[*Session](), userSessions: newTable[*Session](),
		sessionEnds: newTable[*Session](),
	}
}

func (a *access) freeze() {
	a.tokens.freeze()
	a.tokenHashes.freeze()
	a.users.freeze()
	a.sessions.freeze()
	a.secrets.freeze()
	a.userSessions.freeze()
	a.sessionEnds.freeze()
}

// Token returns a token by name.
func (v *View) Token(name string) (*Token, bool) { return v.access.tokens.get([]byte(name)) }

// TokenByHash returns the token whose text has the SHA-256. The caller looks whether it is expired.
func (v *View) TokenByHash(hash [32]byte) (*Token, bool) { return v.access.tokenHashes.get(hash[:]) }

// Tokens walks all tokens by name, starting after the name given ("" for all).
func (v *View) Tokens(after string) iter.Seq[*Token] {
	return walkAfter(&v.access.tokens, after, func(t *Token) string { return t.Name })
}

// User returns a user by name.
func (v *View) User(name string) (*User, bool) { return v.access.users.get([]byte(name)) }

// Users walks all users by name, starting after the name given ("" for all).
func (v *View) Users(after string) iter.Seq[*User] {
	return walkAfter(&v.access.users, after, func(u *User) string { return u.Name })
}

// Session returns a session by id.
func (v *View) Session(id string) (*Session, bool) { return v.access.sessions.get([]byte(id)) }

// SessionByHash returns the session whose secret has the SHA-256. The caller looks whether it is expired.
func (v *View) SessionByHash(hash [32]byte) (*Session, bool) { return v.access.secrets.get(hash[:]) }

// Sessions walks all sessions by id, starting after the id given ("" for all).
func (v *View) Sessions(after string) iter.Seq[*Session] {
	return walkAfter(&v.access.sessions, after, func(s *Session) string { return s.ID })
}

// SessionsOf walks the sessions of a user, by id.
func (v *View) SessionsOf(user string) iter.Seq[*Session] {
	return v.access.userSessions.under(groupKey(user))
}

func walkAfter[T any](in *table[T], after string, key func(T) string) iter.Seq[T] {
	return func(yield func(T) bool) {
		for o := range in.from([]byte(after)) {
			if key(o) != after && !yield(o) {
				return
			}
		}
	}
}

func isForeign(user string) bool { return strings.HasPrefix(user, ForeignUser) }
