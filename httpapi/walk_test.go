package httpapi

import (
	"context"
	"crypto/sha256"
	"fmt"
	"io"
	"maps"
	"net/http"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/palisade/palisade/fsm"
	"github.com/palisade/palisade/httpapi/login"
	"github.com/palisade/palisade/httpapi/wire"
)

// mayUse says who may use each route, beside the table of routes itself: a route that is added, or opened to more, needs
// a line here. "a" is admin, "o" operator, "b" billing, "v" viewer, "m" metrics, "-" nobody in particular.
func mayUse() map[string]string {
	const read, write = "aov", "ao"
	const billed = "b"
	return map[string]string{
		"list-blocks": read + billed, "get-block": read + billed, "block-receipts": read + billed,
		"add-block": write + billed, "lift-reason": write + billed, "bulk-blocks": write + billed,
		"patch-block": write + billed, "confirm-block": write + billed, "lift-block": write + billed,
		"list-vms": read + billed, "get-vm": read + billed, "list-accounts": read + billed, "get-account": read + billed,
		"put-vm": write, "put-account": write,
		"search": read + billed, "drops": read, "block-drops": read + billed, "vm-drops": read + billed, "overview": read, "schedule": read, "list-nodes": read, "get-node": read, "explain": read, "events": read, "status": read,
		"list-lists": read, "get-list": read, "list-entries": read,
		"put-list": write, "patch-list": write, "delete-list": write,
		"put-list-source": "a", "delete-list-source": "a",
		"list-guards": read, "add-guard": "a", "remove-guard": "a", "remove-vm-guard": "a",
		"get-settings": read, "put-settings": "a",
		"list-audit": "a", "export-audit": "a", "verify-audit": "a", "debug-bundle": "a", "backup": "a",
		"drain-node": "a", "undrain-node": "a", "retire-node": "a", "settle-epoch": "a",
		"login": "aobvm-", "login-methods": "aobvm-", "login-oidc": "aobvm-", "login-oidc-callback": "aobvm-",
		"logout": "aobvm", "whoami": "aobvm", "list-sessions": "aobvm", "end-session": "aobvm", "change-password": "aobvm",
		"list-users": "a", "get-user": "a", "put-user": "a", "delete-user": "a",
		"list-tokens": "a", "create-token": "a", "delete-token": "a",
		"list-join-tokens": "a", "create-join-token": "a", "delete-join-token": "a",
		"get-ca": "a", "rotate-ca": "a", "rotate-gossip-key": "a",
		"metrics":      "aovm",
		"libvirt-hook": "", // by the Unix socket alone, see hook_test.go
		"openapi":      "aobvm-", "healthz": "aobvm-", "readyz": "aobvm-",
	}
}

// credential is what a request shows.
type credential struct {
	name   string
	class  string // as in mayUse; "-" for what admits nobody
	token  string // "-": none
	cookie string // of a session
	bare   bool   // without the header against forged requests
}

// swap is a backend that can be replaced under a server, which is costly to make.
type swap struct{ Backend }

// newSwapServer returns a server, and where its backend is put. One that is shut answers admitted callers of streams at
// once: it is shutting down.
func newSwapServer(t *testing.T, shut bool) (*Server, *swap) {
	b := &swap{newFleet(t)}
	s, err := New(Options{Backend: b})
	if err != nil {
		t.Fatal(err)
	}
	if shut {
		s.shut()
	}
	return s, b
}

// walked is a fleet with one of everything, and what callers may show to it.
func walked(t *testing.T) (f *fleet, who []credential) {
	f = newFleet(t)
	f.RunVM("vm-1", "web", "n1", "192.0.2.7")
	f.Apply(fsm.DeclareVM{ID: "vm-2", Owner: "alice"})
	f.Apply(fsm.PutGuard{Prefix: mustPrefix(t, "198.51.100.0/24")})
	f.Apply(fsm.PutGuard{VM: "vm-2"})
	f.Apply(fsm.AddBlock{Target: fsm.Target{VM: "vm-1"}, Reason: fsm.ReasonUnpaid})
	f.Apply(fsm.DescribeList{Name: "feed"})
	f.Form()
	f.Admit("n2")
	f.Apply(fsm.CreateJoinToken{ID: "b1", Hash: [32]byte{1}, TTL: time.Minute})
	f.Apply(fsm.CreateToken{Name: "feed", Scope: ScopeViewer, Hash: [32]byte{1}})
	f.Apply(fsm.PutUser{Name: "feed", Scope: ScopeViewer, Password: walkPassword()})
	token := func(name string, scope Scope, end time.Time) string {
		text := name + "-of-the-walk"
		f.Apply(fsm.CreateToken{Name: name, Scope: scope, Hash: sha256.Sum256([]byte(text)), ExpiresAt: end})
		return text
	}
	who = []credential{{name: "nobody", class: "-", token: "-"}, {name: "a wrong token", class: "-", token: "no-such-token-0123"}}
	for _, scope := range fsm.Scopes() {
		who = append(who, credential{name: "scope " + string(scope), class: string(scope)[:1], token: token(string(scope), scope, time.Time{})})
	}
	session := func(name string, scope Scope) string {
		text := name + "-of-the-walk"
		u := f.Apply(fsm.PutUser{Name: name, Scope: scope, Password: walkPassword()}).User
		f.Apply(fsm.CreateSession{ID: name, Hash: sha256.Sum256([]byte(text)), User: name, UserRevision: u.Revision, ExpiresAt: time.Now().AddDate(0, 0, 1), Idle: 12 * time.Hour})
		return text
	}
	for _, scope := range fsm.Scopes() {
		secret := session("user-"+string(scope), scope)
		who = append(who, credential{name: "a session of scope " + string(scope), class: string(scope)[:1], token: "-", cookie: secret},
			credential{name: "a forged request, scope " + string(scope), class: string(scope)[:1], token: "-", cookie: secret, bare: true})
	}
	who = append(who, credential{name: "a session that was ended", class: "-", token: "-", cookie: session("gone", ScopeAdmin)})
	f.Apply(fsm.EndSessions{ID: "gone"})
	who = append(who, credential{name: "a session of a changed user", class: "-", token: "-", cookie: session("changed", ScopeAdmin)})
	f.Apply(fsm.PutUser{Name: "changed", Scope: ScopeOperator})
	who = append(who, credential{name: "the secret of a session as a token", class: "-", token: "user-admin-of-the-walk"},
		credential{name: "a token in a cookie", class: "-", token: "-", cookie: "admin-of-the-walk"})
	who = append(who, credential{name: "a deleted token", class: "-", token: token("deleted", ScopeAdmin, time.Time{})})
	f.Apply(fsm.DeleteToken{Name: "deleted"})
	who = append(who, credential{name: "an expired token", class: "-", token: token("expired", ScopeAdmin, time.Now().Add(time.Minute))})
	f.Later(time.Hour) // sessions of the walk go on for longer
	f.Apply(fsm.PutAccount{ID: "alice", Note: "the time is stamped"})
	return f, who
}

// walkPassword is the hash of "a password of the walk", made once.
func walkPassword() string {
	return "$argon2id$v=19$m=8,t=1,p=1$c2FsdHNhbHRzYWx0$Q+tIyJCYIphOyna2YclveOtS2cfWnBUmWM8li1Sg3JY"
}

// walkSample is sample with what the scope billing may send too.
func walkSample(rt route) request {
	q := sample(rt)
	switch rt.op.OperationID {
	case "add-block":
		q.body = `{"target":{"vm":"vm-1"},"reason":"unpaid"}`
	case "create-join-token":
		q.body = `{}`
	case "bulk-blocks":
		q.body = `{"add":{"target":{"account":"alice"},"reason":"unpaid"}}`
	case "login":
		q.body = `{"user":"user-viewer","password":"a password of the walk"}`
	case "change-password":
		q.body = `{"old":"a password of the walk","new":"another one of the walk"}`
	case "end-session":
		q.path = "/v1/sessions/user-viewer"
	case "put-user":
		q.body = `{"scope":"viewer"}`
	case "lift-reason":
		q.path = "/v1/blocks?vm=vm-1&reason=unpaid"
	}
	return q
}

// TestEveryRouteWithEveryCredential asks each route with each scope and with what admits nobody, on a leader and on a
// follower. A refused request must have written nothing, and must not say what the token was.
func TestEveryRouteWithEveryCredential(t *testing.T) {
	table := mayUse()
	known := map[string]bool{}
	open, backend := newSwapServer(t, false)
	shut, shutBackend := newSwapServer(t, true)
	for _, rt := range routes() {
		id := rt.op.OperationID
		known[id] = true
		allowed, ok := table[id]
		if !ok {
			t.Errorf("%s %s (%s) has no line in mayUse: decide who may use it", rt.op.Method, rt.op.Path, id)
			continue
		}
		for _, node := range []string{"leader", "follower"} {
			_, all := walked(t)
			for i := range all {
				f, who := walked(t)
				c, s := who[i], open
				var b Backend = f
				if node == "follower" {
					b = f.Follow()
				}
				open.asks.Wait() // the note that a session is used
				shut.asks.Wait()
				backend.Backend, shutBackend.Backend = b, b
				open.limiter = login.NewLimiter(time.Now) // each is the first to try
				q := walkSample(rt)
				q.token = c.token
				if rt.op.OperationID == "patch-block" {
					q.header = map[string]string{"If-Match": `"6"`}
				}
				if c.cookie != "" {
					q.header = maps.Clone(q.header)
					if q.header == nil {
						q.header = map[string]string{}
					}
					q.header["Cookie"] = sessionCookie + "=" + c.cookie
				}
				if !c.bare {
					if q.header == nil {
						q.header = map[string]string{}
					}
					q.header[csrfHeader] = "1"
				}
				if rt.stream {
					s = shut
				}
				before := writes(f.Proposals())
				res := s.do(t, q)
				want := "forbidden"
				switch {
				case strings.Contains(allowed, c.class):
					want = "admitted"
				case c.class == "-":
					want = "unauthorized"
				}
				if strings.Contains(allowed, "-") {
					want = "admitted"
				}
				if c.bare && rt.op.Method != http.MethodGet {
					want = "forbidden"
				}
				check := fmt.Sprintf("%s: %s %s with %s", node, q.method, q.path, c.name)
				wasAnswered(t, check, res, want, c.token, rt.stream)
				if n := writes(f.Proposals()); want != "admitted" && n != before {
					t.Errorf("%s was refused and still written", check)
				}
			}
		}
	}
	for id := range table {
		if !known[id] {
			t.Errorf("%s is no route", id)
		}
	}
}

// writes counts commands, without the note that a session is used: any request may bring that, and it goes out on
// its own time.
func writes(proposed []fsm.Command) (n int) {
	for _, c := range proposed {
		if _, noted := c.Op.(fsm.TouchSession); !noted {
			n++
		}
	}
	return n
}

// wasAnswered compares how a request was answered with what it should be.
func wasAnswered(t *testing.T, check string, res *http.Response, want, secret string, stream bool) {
	t.Helper()
	body, _ := io.ReadAll(res.Body)
	got := "admitted"
	switch {
	case res.StatusCode == http.StatusUnauthorized:
		got = "unauthorized"
		if res.Header.Get("WWW-Authenticate") == "" {
			t.Errorf("%s: 401 without WWW-Authenticate", check)
		}
	case res.StatusCode == http.StatusForbidden:
		got = "forbidden"
	case strings.Contains(check, "/v1/login/oidc") && res.StatusCode == http.StatusNotFound: // none is configured
	case strings.Contains(check, "/v1/sessions/") && res.StatusCode == http.StatusNotFound, res.StatusCode == http.StatusConflict &&
		(strings.Contains(check, "/v1/logout") || strings.Contains(check, "/v1/password")): // who has no session of its own
	case res.StatusCode/100 != 2 && !stream:
		t.Errorf("%s: %d %s", check, res.StatusCode, body)
	}
	if got != want {
		t.Errorf("%s: %s, want %s: %s", check, got, want, body)
	}
	if len(secret) > 1 && strings.Contains(string(body), secret) {
		t.Errorf("%s: the answer repeats the token: %s", check, body)
	}
}

// Nothing that protects from blocks, says who may do what, or tells who did what is for less than admin, and nothing that
// writes is for viewers: a line in mayUse that is too generous fails here.
func TestTheTableIsNotGenerous(t *testing.T) {
	for _, rt := range routes() {
		allowed := mayUse()[rt.op.OperationID]
		if rt.op.Method != http.MethodGet && strings.ContainsAny(allowed, "vm-") {
			switch rt.op.OperationID {
			case "login", "logout", "change-password", "end-session": // of the caller alone
			default:
				t.Errorf("%s %s is open to %s", rt.op.Method, rt.op.Path, allowed)
			}
		}
		protects := strings.HasPrefix(rt.op.Path, "/v1/guards") || rt.op.Path == "/v1/settings" || strings.HasSuffix(rt.op.Path, "/source")
		if rt.op.Method != http.MethodGet && protects && allowed != "a" {
			t.Errorf("%s %s is open to %s", rt.op.Method, rt.op.Path, allowed)
		}
		for _, prefix := range []string{"/v1/tokens", "/v1/join-tokens", "/v1/ca", "/v1/gossip-key", "/v1/audit", "/v1/users"} {
			if strings.HasPrefix(rt.op.Path, prefix) && allowed != "a" {
				t.Errorf("%s %s is open to %s", rt.op.Method, rt.op.Path, allowed)
			}
		}
	}
	for _, bad := range [][2]Scope{
		{"", ScopeViewer}, {ScopeAdmin, ""}, {ScopeAdmin, "root"}, {"root", scopeAny}, {ScopeMetrics, ScopeViewer}, {ScopeOperator, ScopeAdmin},
		{ScopeViewer, ScopeOperator}, {ScopeBilling, ScopeOperator}, {ScopeBilling, ScopeViewer}, {ScopeBilling, ScopeMetrics}, {"", scopeAny},
	} {
		if allows(bad[0], bad[1]) {
			t.Errorf("%q is allowed what needs %q", bad[0], bad[1])
		}
	}
}

// TestBillingMayOnlyBill tries everything that the scope billing must not do, alone and as one element among others.
func TestBillingMayOnlyBill(t *testing.T) {
	for _, node := range []string{"leader", "follower"} {
		f, who := walked(t)
		s, backend := newSwapServer(t, false)
		backend.Backend = f
		if node == "follower" {
			backend.Backend = f.Follow()
		}
		bill := who[slices.IndexFunc(who, func(c credential) bool { return c.class == "b" })].token
		abuse := f.Apply(fsm.AddBlock{Target: fsm.Target{VM: "vm-1"}, Reason: "abuse", Note: "CANARY"}).Block.ID
		prefix := f.Apply(fsm.AddBlock{Target: fsm.Target{Prefix: mustPrefix(t, "203.0.113.9/32")}, Reason: "unpaid"}).Block.ID
		f.Apply(fsm.AddBlock{Target: fsm.Target{List: "feed"}, Reason: "unpaid"})
		before := f.View()
		for _, body := range []string{
			`{"target":{"vm":"vm-1"}}`, `{"target":{"vm":"vm-1"},"reason":"abuse"}`, `{"target":{"vm":"vm-1"},"reason":"Unpaid"}`,
			`{"target":{"prefix":"203.0.113.5"},"reason":"unpaid"}`, `{"target":{"list":"feed"},"reason":"unpaid"}`,
			`{"target":{"vm":"vm-1"},"reason":"unpaid","force":true}`,
			`{"target":{"vm":"vm-1"},"reason":"unpaid","kind":"redirect","redirect_to":"192.0.2.80:80"}`,
		} {
			refused(t, s, request{method: "POST", path: "/v1/blocks", token: bill, body: body}, 403, wire.CodeForbidden)
			refused(t, s, request{method: "POST", path: "/v1/blocks?dry_run=true", token: bill, body: body}, 403, wire.CodeForbidden)
			billElement(t, s, bill, `{"add":`+body+`}`)
			billElement(t, s, bill, body)
		}
		for _, q := range []request{
			{method: "DELETE", path: "/v1/blocks/" + abuse}, {method: "DELETE", path: "/v1/blocks/" + prefix},
			{method: "POST", path: "/v1/blocks/" + abuse + "/confirm"}, {method: "GET", path: "/v1/blocks/" + abuse},
			{method: "GET", path: "/v1/blocks/" + abuse + "/receipts"},
			{method: "PATCH", path: "/v1/blocks/" + abuse, body: `{"note":"x"}`, header: map[string]string{"If-Match": `"1"`}},
			{method: "DELETE", path: "/v1/blocks?vm=vm-1&reason=abuse"}, {method: "DELETE", path: "/v1/blocks?prefix=203.0.113.9&reason=unpaid"},
			{method: "DELETE", path: "/v1/blocks?list=feed&reason=unpaid"},
		} {
			q.token = bill
			refused(t, s, q, 403, wire.CodeForbidden)
		}
		for _, line := range []string{
			`{"lift":{"id":"` + abuse + `"}}`, `{"patch":{"id":"` + prefix + `","note":"x"}}`,
			`{"lift":{"target":{"vm":"vm-1"},"reason":"abuse"}}`, `{"lift":{"target":{"prefix":"203.0.113.9"},"reason":"unpaid"}}`,
		} {
			billElement(t, s, bill, line)
		}
		if f.View().CountActive() != before.CountActive() {
			t.Errorf("%s: %d blocks are active, %d were", node, f.View().CountActive(), before.CountActive())
		}
		// What it may read has no more than its own.
		for _, path := range []string{"/v1/blocks?state=all", "/v1/vms/vm-1", "/v1/accounts/alice"} {
			b, _ := io.ReadAll(s.do(t, request{method: "GET", path: path, token: bill}).Body)
			if strings.Contains(string(b), "CANARY") || path == "/v1/blocks?state=all" && strings.Count(string(b), `"id":"b`) != 1 {
				t.Errorf("%s: %s shows %s", node, path, b)
			}
		}
		b, _ := io.ReadAll(s.do(t, request{method: "POST", path: "/v1/blocks?dry_run=true", token: bill, body: `{"target":{"vm":"vm-1"},"reason":"unpaid"}`}).Body)
		if strings.Contains(string(b), "CANARY") || !strings.Contains(string(b), `"impact"`) {
			t.Errorf("%s: a preview shows %s", node, b)
		}
	}
}

// billElement sends an element that billing must not, between two that it may.
func billElement(t *testing.T, s *Server, token, line string) {
	t.Helper()
	good := `{"patch":{"id":"b1","note":"paid soon"}}`
	q := request{method: "POST", path: "/v1/blocks/bulk", token: token, body: good + "\n" + line + "\n" + good}
	res := s.do(t, q)
	body, _ := io.ReadAll(res.Body)
	lines := strings.Split(strings.TrimSpace(string(body)), "\n")
	if res.StatusCode != http.StatusOK || len(lines) != 3 || !strings.Contains(lines[1], `"status":403`) || !strings.Contains(lines[0], `"status":200`) || !strings.Contains(lines[2], `"status":200`) {
		t.Errorf("%s among others: %d %s", line, res.StatusCode, body)
	}
	q.path += "?atomic=true"
	if res := s.do(t, q); res.StatusCode != http.StatusConflict {
		t.Errorf("%s in an atomic request: %d", line, res.StatusCode)
	}
}

// TestBillingFindsWhatWasJustMadeElsewhere: a node that lags behind asks the fleet before it says that there is no such
// block, and refuses if it can't.
func TestBillingFindsWhatWasJustMadeElsewhere(t *testing.T) {
	f, who := walked(t)
	bill := who[slices.IndexFunc(who, func(c credential) bool { return c.class == "b" })].token
	node := f.Follow()
	s, b := newSwapServer(t, false)
	b.Backend = node
	node.View()
	node.Cut(true)
	made := f.Apply(fsm.AddBlock{Target: fsm.Target{Account: "alice"}, Reason: "unpaid"}).Block.ID
	f.Set(func() { f.StrongRead = func(ctx context.Context) (uint64, error) { return 0, fsm.ErrUnavailable } })
	refused(t, s, request{method: "DELETE", path: "/v1/blocks/" + made, token: bill}, 503, wire.CodeNoQuorum)
	f.Set(func() { f.StrongRead = nil })
	node.Cut(false)
	if res := s.do(t, request{method: "DELETE", path: "/v1/blocks/" + made, token: bill}); res.StatusCode != http.StatusOK {
		t.Errorf("lifting answers %d", res.StatusCode)
	}
}
