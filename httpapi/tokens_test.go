package httpapi

import (
	"crypto/sha256"
	"io"
	"net/http"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/palisade/palisade/fsm"
	"github.com/palisade/palisade/httpapi/wire"
)

func TestTokensAreShownOnceAndWorkAtOnce(t *testing.T) {
	f := newFleet(t)
	here, there := newServer(t, f), newServer(t, f) // two nodes over one state
	made := decode[wire.NewToken](t, here.do(t, request{method: "POST", path: "/v1/tokens", body: `{"name":"ci","scope":"viewer"}`}), 201)
	if !strings.HasPrefix(made.Secret, "plt_") || len(made.Secret) != 47 || made.Actor != "token:root" || made.Scope != "viewer" {
		t.Fatalf("created %+v", made)
	}
	again := decode[wire.NewToken](t, here.do(t, request{method: "POST", path: "/v1/tokens", body: `{"name":"ci2","scope":"viewer"}`}), 201)
	if again.Secret == made.Secret {
		t.Error("two tokens have one secret")
	}
	res := there.do(t, request{method: "GET", path: "/v1/blocks", token: made.Secret})
	decode[wire.Page[wire.Block]](t, res, 200) // on another node
	refused(t, there, request{method: "POST", path: "/v1/tokens", body: `{"name":"ci","scope":"admin"}`}, 409, wire.CodeConflict)
	refused(t, there, request{method: "POST", path: "/v1/tokens", token: made.Secret, body: `{"name":"mine","scope":"admin"}`}, 403, wire.CodeForbidden)
	refused(t, there, request{method: "POST", path: "/v1/tokens", body: `{"name":"a b","scope":"admin"}`}, 422, wire.CodeInvalid)
	refused(t, there, request{method: "POST", path: "/v1/tokens", body: `{"name":"x","scope":"root"}`}, 422, wire.CodeInvalid)
	refused(t, there, request{method: "POST", path: "/v1/tokens", body: `{"name":"x","scope":"admin","expires_at":"2020-01-01T00:00:00Z"}`}, 422, wire.CodeInvalid)
	body, _ := io.ReadAll(here.do(t, request{method: "GET", path: "/v1/tokens"}).Body)
	sum := sha256.Sum256([]byte(made.Secret))
	for _, secret := range []string{made.Secret, made.Secret[4:], string(sum[:])} {
		if strings.Contains(string(body), secret) {
			t.Error("the list shows a secret")
		}
	}
	if n := strings.Count(string(body), `"name"`); n != 6 { // four are the fleet's
		t.Errorf("%d tokens are listed: %s", n, body)
	}
	if res := here.do(t, request{method: "DELETE", path: "/v1/tokens/ci"}); res.StatusCode != http.StatusNoContent {
		t.Fatalf("deleting answers %d", res.StatusCode)
	}
	refused(t, there, request{method: "GET", path: "/v1/blocks", token: made.Secret}, 401, wire.CodeUnauthorized)
	refused(t, there, request{method: "DELETE", path: "/v1/tokens/ci"}, 404, wire.CodeNotFound)
}

// TestTokensExpire: by this node's clock or by state time, whichever is later.
func TestTokensExpire(t *testing.T) {
	f := newFleet(t)
	text, hash := NewToken()
	end := time.Now().Add(time.Hour)
	f.Apply(fsm.CreateToken{Name: "short", Scope: ScopeAdmin, Hash: hash, ExpiresAt: end})
	var now time.Time
	s := newServer(t, f, func(o *Options) { o.Now = func() time.Time { return now } })
	status := func() int { return s.do(t, request{method: "GET", path: "/v1/blocks", token: text}).StatusCode }
	for _, c := range []struct {
		at   time.Time
		want int
	}{
		{end.Add(-time.Second), http.StatusOK},
		{end, http.StatusUnauthorized},
		{end.Add(time.Hour), http.StatusUnauthorized},
		{end.AddDate(-10, 0, 0), http.StatusOK}, // a clock that is wrong, and the fleet's time is not past the end
	} {
		if now = c.at; status() != c.want {
			t.Errorf("at %s: want %d", c.at.Sub(end), c.want)
		}
	}
	f.Later(2 * time.Hour)
	f.Apply(fsm.DescribeList{Name: "x"}) // the leader's clock is stamped on it
	if status() != http.StatusUnauthorized {
		t.Error("a node whose clock stands still admits an expired token")
	}
}

// TestAccessIsNotInTheEventsOfOthers: only admins are told of tokens, users and sessions.
func TestAccessIsNotInTheEventsOfOthers(t *testing.T) {
	f := newFleet(t)
	s := serve(t, f)
	first := f.View().Index()
	f.Apply(fsm.CreateToken{Name: "canary", Scope: ScopeViewer, Hash: [32]byte{1}})
	f.Apply(fsm.PutGuard{Prefix: mustPrefix(t, "192.0.2.0/24")})
	for token, want := range map[string]string{viewerToken: "guard.added", operatorToken: "guard.added", adminToken: "token.created"} {
		e := openEvents(t, s, "/v1/events?from="+strconv.FormatUint(first, 10), "", "Authorization", "Bearer "+token)
		m, _ := e.next(t)
		e.close()
		if m.event != want {
			t.Errorf("%s is told of %s first", token, m.event)
		}
		if want == "token.created" && (m.data.Token == nil || m.data.Token.Name != "canary") {
			t.Errorf("the event says %+v", m.data)
		}
	}
}

// TestANodeWithoutTheStateSaysSo: a token that it can't know yet is no reason to give up.
func TestANodeWithoutTheStateSaysSo(t *testing.T) {
	f := newFleet(t)
	s := newServer(t, f)
	f.Set(func() { f.Standing.CaughtUp = false })
	refused(t, s, request{method: "GET", path: "/v1/blocks", token: "plt_made_a_moment_ago"}, 503, wire.CodeNotReady)
	if res := s.do(t, request{method: "GET", path: "/v1/blocks"}); res.StatusCode != http.StatusOK { // one that it knows
		t.Errorf("a known token: %d", res.StatusCode)
	}
	f.Set(func() { f.Standing.CaughtUp = true })
	refused(t, s, request{method: "GET", path: "/v1/blocks", token: "plt_made_a_moment_ago"}, 401, wire.CodeUnauthorized)
}
