package fsm

import (
	"bytes"
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"
)

func session(id, user string, revision uint64, s *Store) CreateSession {
	var hash [32]byte
	copy(hash[:], id)
	return CreateSession{
		ID: id, Hash: hash, User: user, UserRevision: revision, ExpiresAt: s.View().Time().Add(time.Hour), Idle: 10 * time.Minute,
	}
}

// TestSecretsStayInTheirObjects plants hashes that can be told, and looks for them everywhere but in the objects.
func TestSecretsStayInTheirObjects(t *testing.T) {
	s := NewStore()
	log := newLog(s)
	canary := func(name string) (h [32]byte) { copy(h[:], "CANARY-"+name); return h }
	password := testPassword + "CANARY"
	results := []Result{log.ok(t, CreateToken{Name: "ci", Scope: ScopeAdmin, Hash: canary("token")})}
	user := log.ok(t, PutUser{Name: "ann", Scope: ScopeOperator, Password: password})
	login := session("s1", "ann", user.User.Revision, s)
	login.Hash, login.Device = canary("session"), canary("device")
	log.key = "k"
	results = append(results, user, log.ok(t, login), log.ok(t, TouchSession{"s1"}), log.ok(t, PutUser{Name: "ann", Scope: ScopeViewer}),
		log.ok(t, DeleteUser{Name: "ann"}), log.ok(t, DeleteToken{Name: "ci"}))
	events, _ := s.View().eventsSince(0)
	lines, _ := s.View().AuditSince(0)
	for what, said := range map[string]string{
		"results": said(results), "events": said(events), "audit": string(bytes.Join(lines, nil)), "snapshot": string(snapshot(t, s.View())),
	} {
		if strings.Contains(said, "CANARY") {
			t.Errorf("a secret is in the %s", what)
		}
	}
	if len(events) != 7 { // the change of the scope ended the session
		t.Errorf("%d events", len(events))
	}
}

// said shows what a list of structs holds, pointers followed, hashes as text.
func said[T any](list []T) string {
	var b strings.Builder
	for _, v := range list {
		var e Event
		switch v := any(v).(type) {
		case Event:
			e = v
		case Result:
			e = Event{Token: v.Token, User: v.User, Session: v.Session}
		}
		if e.Token != nil {
			fmt.Fprintf(&b, "%s %s\n", e.Token.Name, e.Token.Hash[:])
		}
		if e.User != nil {
			fmt.Fprintf(&b, "%s %s %s\n", e.User.Name, e.User.Password, e.User.Devices)
		}
		if e.Session != nil {
			fmt.Fprintf(&b, "%s %s\n", e.Session.ID, e.Session.Hash[:])
		}
	}
	return b.String()
}

func TestAChangeOfAUserEndsTheSessions(t *testing.T) {
	for name, change := range map[string]Op{
		"password": PutUser{Name: "ann", Password: testPassword + "2"}, "scope": PutUser{Name: "ann", Scope: ScopeViewer},
		"deletion": DeleteUser{Name: "ann"}, "logout everywhere": EndSessions{User: "ann"},
	} {
		s := NewStore()
		log := newLog(s)
		ann := log.ok(t, PutUser{Name: "ann", Scope: ScopeAdmin, Password: testPassword}).User
		anna := log.ok(t, PutUser{Name: "anna", Scope: ScopeAdmin, Password: testPassword}).User
		log.ok(t, session("s1", "ann", ann.Revision, s))
		log.ok(t, session("s2", "ann", ann.Revision, s))
		log.ok(t, session("s3", "anna", anna.Revision, s))
		log.ok(t, PutUser{Name: "ann", Scope: ScopeAdmin}) // changes nothing
		if n := len(slices.Collect(s.View().Sessions(""))); n != 3 {
			t.Fatalf("%s: %d sessions before", name, n)
		}
		log.ok(t, change)
		left := slices.Collect(s.View().Sessions(""))
		if len(left) != 1 || left[0].ID != "s3" {
			t.Errorf("%s left %d sessions", name, len(left))
		}
		// The password that was right before the change does not log in after it.
		if name == "password" {
			log.refused(t, session("s4", "ann", ann.Revision, s), CodeRevision, "if_revision")
		}
	}
}

func TestSessionsEnd(t *testing.T) {
	s := NewStore()
	log := newLog(s)
	u := log.ok(t, PutUser{Name: "ann", Scope: ScopeAdmin, Password: testPassword}).User
	start := s.View().Time()
	log.ok(t, session("s1", "ann", u.Revision, s))
	is, _ := s.View().Session("s1")
	began := is.CreatedAt
	for after, want := range map[time.Duration]bool{
		0: false, 10*time.Minute - 1: false, 10 * time.Minute: true, 2 * time.Hour: true, -time.Hour: false,
	} {
		if is.Expired(began.Add(after)) != want {
			t.Errorf("after %s: expired is %v", after, !want)
		}
	}
	log.time = start.Add(9 * time.Minute)
	log.ok(t, TouchSession{"s1"})
	is, _ = s.View().Session("s1")
	if is.Expired(start.Add(18*time.Minute)) || !is.Expired(start.Add(61*time.Minute)) {
		t.Error("a session in use ends at its end, and not before")
	}
	log.time = start.Add(30 * time.Minute)
	log.refused(t, TouchSession{"s1"}, CodeNotFound, "id") // nothing wakes a session that was idle for too long
	log.time = start.Add(2 * time.Hour)
	again := session("s2", "ann", u.Revision, s)
	again.ExpiresAt = start.Add(3 * time.Hour)
	log.ok(t, again)
	if _, known := s.View().Session("s1"); known {
		t.Error("a session that is over is kept for ever")
	}
	if n := len(audited(t, s.View())); n != 3 {
		t.Errorf("%d audit records, want those of the user and two logins", n)
	}
}

func TestAccessIsBounded(t *testing.T) {
	s := NewStore()
	log := newLog(s)
	u := log.ok(t, PutUser{Name: "ann", Scope: ScopeAdmin, Password: testPassword}).User
	for i := range MaxUserSessions + 5 {
		op := session(fmt.Sprintf("s%d", i), "ann", u.Revision, s)
		op.Device[0] = byte(i + 1)
		log.ok(t, op)
		log.ok(t, TouchSession{"s0"})
	}
	v := s.View()
	if n := len(slices.Collect(v.SessionsOf("ann"))); n != MaxUserSessions {
		t.Errorf("%d sessions of one user", n)
	}
	if _, ok := v.Session("s0"); !ok {
		t.Error("the session that is used was ended")
	}
	if _, ok := v.Session("s1"); ok {
		t.Error("the session that was not used for the longest time goes on")
	}
	ann, _ := v.User("ann")
	if n := len(ann.Devices); n != MaxUserDevices || ann.Devices[n-1][0] != MaxUserSessions+5 {
		t.Errorf("%d devices are kept", n)
	}
	if ann.Revision != u.Revision {
		t.Error("a login changed the user's revision")
	}
	log.ok(t, PutUser{Name: "ann", Password: testPassword + "2"})
	if ann, _ = s.View().User("ann"); len(ann.Devices) != 0 {
		t.Error("a new password trusts the old devices")
	}
}

func TestAccessRefuses(t *testing.T) {
	s := NewStore()
	log := newLog(s)
	log.refused(t, CreateToken{Scope: ScopeAdmin, Hash: [32]byte{1}}, CodeInvalid, "name")
	log.refused(t, CreateToken{Name: "user:ann", Scope: ScopeAdmin, Hash: [32]byte{1}}, CodeInvalid, "name")
	log.refused(t, CreateToken{Name: strings.Repeat("x", 65), Scope: ScopeAdmin, Hash: [32]byte{1}}, CodeInvalid, "name")
	log.refused(t, CreateToken{Name: "ci", Hash: [32]byte{1}}, CodeInvalid, "scope")
	log.refused(t, CreateToken{Name: "ci", Scope: ScopeAdmin}, CodeInvalid, "hash")
	log.refused(t, CreateToken{Name: "ci", Scope: ScopeAdmin, Hash: [32]byte{1}, ExpiresAt: log.time}, CodeInvalid, "expires_at")
	log.refused(t, PutUser{Name: "ann", Scope: ScopeAdmin, Password: "correct horse"}, CodeInvalid, "password")
	log.refused(t, PutUser{Name: "oidc:ann", Scope: ScopeAdmin, Password: testPassword}, CodeInvalid, "name")
	u := log.ok(t, PutUser{Name: "ann", Scope: ScopeViewer, Password: testPassword}).User
	bad := func(change func(*CreateSession)) CreateSession {
		op := session("s1", "ann", u.Revision, s)
		change(&op)
		return op
	}
	log.refused(t, bad(func(op *CreateSession) { op.UserRevision = 0 }), CodeInvalid, "user_revision")
	log.refused(t, bad(func(op *CreateSession) { op.User, op.UserRevision = "oidc:", 0 }), CodeInvalid, "user")
	log.refused(t, bad(func(op *CreateSession) { op.User = "oidc:ann" }), CodeInvalid, "user_revision")
	log.refused(t, bad(func(op *CreateSession) { op.User, op.UserRevision = "oidc:ann", 0 }), CodeInvalid, "scope")
	log.refused(t, bad(func(op *CreateSession) { op.Idle = 0 }), CodeInvalid, "idle")
	log.refused(t, bad(func(op *CreateSession) { op.ExpiresAt = op.ExpiresAt.AddDate(0, 2, 0) }), CodeInvalid, "expires_at")
	log.refused(t, EndSessions{}, CodeInvalid, "id")
	log.refused(t, RefusedLogins{}, CodeInvalid, "total")
	log.refused(t, RefusedLogins{Total: 99, Logins: make([]RefusedLogin, 21)}, CodeInvalid, "logins")
	// A local user's scope is the user's, whatever the login asks for.
	if got := log.ok(t, bad(func(op *CreateSession) { op.Scope = ScopeAdmin })).Session; got.Scope != ScopeViewer {
		t.Errorf("a login gave the scope %q", got.Scope)
	}
	if _, err := MarshalCommand(Command{Op: CreateToken{Name: "x", Scope: "root", Hash: [32]byte{1}}}); err == nil {
		t.Error("a scope that nobody knows got into the log")
	}
}

func TestRefusedLoginsAreOneRecord(t *testing.T) {
	s := NewStore()
	log := newLog(s)
	log.ok(t, RefusedLogins{Total: 7, Logins: []RefusedLogin{{"ann", "192.0.2.9", 5}, {"", "2001:db8::/64", 1}}})
	records := audited(t, s.View())
	want := `{"total":7,"logins":[{"user":"ann","from":"192.0.2.9","count":5},{"from":"2001:db8::/64","count":1}]}`
	if len(records) != 1 || records[0].Action != "session.login" || records[0].Outcome != "refused" || string(records[0].Asked) != want {
		t.Errorf("got %+v", records)
	}
}
