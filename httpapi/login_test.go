package httpapi

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"slices"
	"strconv"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/palisade/palisade/fsm"
	"github.com/palisade/palisade/httpapi/wire"
)

const rightPassword = "a password of the walk" // walkPassword is its hash

// browser sends requests with the cookies that it was given, as a page of the same origin does.
type browser struct {
	s       *Server
	cookies map[string]string
	from    string
	header  map[string]string // beside the usual
}

func newBrowser(s *Server) *browser {
	return &browser{s: s, cookies: map[string]string{}, from: "192.0.2.200:4000"}
}

func (b *browser) do(t *testing.T, method, path, body string) *http.Response {
	t.Helper()
	h := map[string]string{csrfHeader: "1", "Sec-Fetch-Site": "same-origin"}
	var cookies []string
	for k, v := range b.cookies {
		cookies = append(cookies, k+"="+v)
	}
	if len(cookies) > 0 {
		h["Cookie"] = strings.Join(cookies, "; ")
	}
	for k, v := range b.header {
		h[k] = v
	}
	res := b.s.do(t, request{method: method, path: path, body: body, token: "-", header: h, from: b.from})
	for _, c := range res.Cookies() {
		if c.MaxAge < 0 {
			delete(b.cookies, c.Name)
		} else {
			b.cookies[c.Name] = c.Value
		}
	}
	return res
}

func (b *browser) login(t *testing.T, user, password string) *http.Response {
	t.Helper()
	body, _ := json.Marshal(wire.LoginRequest{User: user, Password: password})
	return b.do(t, "POST", "/v1/login", string(body))
}

func withUser(t *testing.T, name string, scope Scope) *fleet {
	f := newFleet(t)
	f.Apply(fsm.PutUser{Name: name, Scope: scope, Password: walkPassword()})
	return f
}

func TestLoginAndLogout(t *testing.T) {
	f := withUser(t, "ann", ScopeOperator)
	here, there := newServer(t, f), newServer(t, f) // two nodes over one state
	b := newBrowser(here)
	res := b.login(t, "ann", rightPassword)
	who := decode[wire.Whoami](t, res, 200)
	if who.Actor != "user:ann" || who.Scope != "operator" || who.Session == nil || who.Session.From != "192.0.2.200" {
		t.Fatalf("logged in as %+v", who)
	}
	if m := decode[wire.LoginMethods](t, newBrowser(here).do(t, "GET", "/v1/login", ""), 200); !m.Password || m.OIDC {
		t.Errorf("one can log in by %+v", m)
	}
	if who.CSRFHeader != csrfHeader || who.Node != "n1" || who.Version != "test" || !slices.Contains(who.May, "add-block") || slices.Contains(who.May, "add-guard") || !slices.Contains(who.May, "whoami") {
		t.Fatalf("an operator is told %+v", who)
	}
	if n := len(res.Cookies()); n != 2 {
		t.Fatalf("%d cookies", n)
	}
	for _, c := range res.Cookies() {
		if !strings.HasPrefix(c.Name, "__Host-") || !c.Secure || !c.HttpOnly || c.SameSite != http.SameSiteStrictMode || c.Path != "/" || c.Domain != "" || len(c.Value) < 43 {
			t.Errorf("cookie %s", c)
		}
	}
	b.s = there
	made := decode[wire.Block](t, b.do(t, "POST", "/v1/blocks", `{"target":{"prefix":"203.0.113.7"}}`), 201)
	if made.Actor != "user:ann" {
		t.Errorf("blocked by %q", made.Actor)
	}
	decode[wire.Problem](t, b.do(t, "PUT", "/v1/settings", `{"max_vms":1,"max_addresses":1,"redirect":{"title":"","text":"","link":""}}`), 403)
	old := b.cookies[sessionCookie]
	if res := b.do(t, "POST", "/v1/logout", ""); res.StatusCode != http.StatusNoContent || b.cookies[sessionCookie] != "" || b.cookies[deviceCookie] == "" {
		t.Fatalf("logout: %d, cookies %v", res.StatusCode, b.cookies)
	}
	b.cookies[sessionCookie] = old
	decode[wire.Problem](t, b.do(t, "GET", "/v1/blocks", ""), 401)
	// A second login from the device keeps its cookie, and another browser's sessions end with "everywhere".
	device := b.cookies[deviceCookie]
	decode[wire.Whoami](t, b.login(t, "ann", rightPassword), 200)
	if b.cookies[deviceCookie] != device {
		t.Error("a device that was known got another name")
	}
	other := newBrowser(here)
	decode[wire.Whoami](t, other.login(t, "ann", rightPassword), 200)
	if res := b.do(t, "POST", "/v1/logout?everywhere=true", ""); res.StatusCode != http.StatusNoContent {
		t.Fatalf("logout everywhere: %d", res.StatusCode)
	}
	decode[wire.Problem](t, other.do(t, "GET", "/v1/whoami", ""), 401)
	// Each login is in the audit, with who and from where.
	var logins, ends int
	for _, r := range auditOf(t, f) {
		if r.Action == "session.login" && r.Actor == "user:ann" && r.From == "192.0.2.200" && r.Outcome == "done" {
			logins++
		}
		if r.Action == "session.end" {
			ends++
		}
	}
	if logins != 3 || ends != 3 {
		t.Errorf("%d logins and %d ends are in the audit", logins, ends)
	}
}

type auditLine struct {
	Action, Actor, From, Outcome string
	Asked                        struct {
		Total  int
		Logins []struct {
			User, From string
			Count      int
		}
	}
}

func auditOf(t *testing.T, f *fleet) (out []auditLine) {
	t.Helper()
	lines, _ := f.View().AuditSince(0)
	for _, l := range lines {
		var r auditLine
		if err := json.Unmarshal(l, &r); err != nil {
			t.Fatal(err)
		}
		out = append(out, r)
	}
	return out
}

// What a wrong name, a wrong password and a name that looks like one are answered is the same, byte by byte.
func TestRefusedLoginsLookTheSame(t *testing.T) {
	f := withUser(t, "ann", ScopeAdmin)
	s := newServer(t, f)
	var first string
	for _, c := range [][2]string{{"ann", "wrong-CANARY-wrong"}, {"bob", rightPassword}, {"", ""}, {"Ann", rightPassword}, {"ann ", rightPassword}, {"ann", ""}, {"oidc:x", "x"}} {
		res := newBrowser(s).login(t, c[0], c[1])
		b, _ := io.ReadAll(res.Body)
		if first == "" {
			first = string(b)
		}
		if res.StatusCode != http.StatusUnauthorized || string(b) != first || len(res.Cookies()) != 0 || strings.Contains(string(b), "CANARY") {
			t.Errorf("%q: %d %s", c, res.StatusCode, b)
		}
	}
	if n := len(slices.Collect(f.View().Sessions(""))); n != 0 {
		t.Errorf("%d sessions", n)
	}
	// A body that is not valid is not echoed.
	res := newBrowser(s).do(t, "POST", "/v1/login", `{"user":"ann","pasword":"CANARY"}`)
	if b, _ := io.ReadAll(res.Body); res.StatusCode != http.StatusUnprocessableEntity || strings.Contains(string(b), "CANARY") {
		t.Errorf("%d %s", res.StatusCode, b)
	}
}

func TestForgedRequestsAreRefused(t *testing.T) {
	f := withUser(t, "ann", ScopeAdmin)
	s := newServer(t, f)
	b := newBrowser(s)
	decode[wire.Whoami](t, b.login(t, "ann", rightPassword), 200)
	for name, header := range map[string]map[string]string{
		"another site":          {"Sec-Fetch-Site": "cross-site"},
		"another subdomain":     {"Sec-Fetch-Site": "same-site"},
		"a form of an old page": {"Sec-Fetch-Site": "", csrfHeader: ""},
		"another origin":        {"Sec-Fetch-Site": "", "Origin": "https://evil.example"},
		"no origin":             {"Sec-Fetch-Site": "", "Origin": "null"},
	} {
		b.header = header
		for _, q := range [][3]string{
			{"POST", "/v1/blocks", `{"target":{"prefix":"203.0.113.7"}}`}, {"POST", "/v1/logout", ""}, {"DELETE", "/v1/users/ann", ""},
			{"POST", "/v1/login", `{"user":"ann","password":"` + rightPassword + `"}`}, {"POST", "/v1/blocks/bulk", `{"target":{"prefix":"203.0.113.7"}}`},
		} {
			if p := decode[wire.Problem](t, b.do(t, q[0], q[1], q[2]), 403); p.Code != wire.CodeCrossOrigin {
				t.Errorf("%s: %s %s: %+v", name, q[0], q[1], p)
			}
		}
	}
	b.header = map[string]string{"Content-Type": "text/plain"}
	decode[wire.Problem](t, b.do(t, "POST", "/v1/blocks", `{"target":{"prefix":"203.0.113.7"}}`), 415)
	b.header = nil
	if f.View().CountBlocks() != 0 {
		t.Error("a forged request blocked something")
	}
	decode[wire.Whoami](t, b.do(t, "GET", "/v1/whoami", ""), 200)
	// A token needs no header: no browser adds it by itself.
	decode[wire.Block](t, s.do(t, request{method: "POST", path: "/v1/blocks", body: `{"target":{"prefix":"203.0.113.7"}}`}), 201)
}

func TestOwnPasswordAndSessions(t *testing.T) {
	f := withUser(t, "ann", ScopeBilling) // the narrowest that has a password of its own
	f.Apply(fsm.PutUser{Name: "bob", Scope: ScopeViewer, Password: walkPassword()})
	s := newServer(t, f)
	ann, anns, bob := newBrowser(s), newBrowser(s), newBrowser(s)
	for b, name := range map[*browser]string{ann: "ann", anns: "ann", bob: "bob"} {
		decode[wire.Whoami](t, b.login(t, name, rightPassword), 200)
	}
	list := decode[wire.Page[wire.Session]](t, ann.do(t, "GET", "/v1/sessions", ""), 200)
	if len(list.Items) != 2 || list.Items[0].Current == list.Items[1].Current {
		t.Fatalf("ann sees %+v", list.Items)
	}
	other := list.Items[slices.IndexFunc(list.Items, func(se wire.Session) bool { return !se.Current })].ID
	decode[wire.Problem](t, bob.do(t, "DELETE", "/v1/sessions/"+other, ""), 404)
	if res := ann.do(t, "DELETE", "/v1/sessions/"+other, ""); res.StatusCode != http.StatusNoContent {
		t.Errorf("ending one's own: %d", res.StatusCode)
	}
	decode[wire.Problem](t, anns.do(t, "GET", "/v1/whoami", ""), 401)
	for body, status := range map[string]int{
		`{"old":"quite wrong indeed","new":"correct horse battery"}`: 401,
		`{"old":"` + rightPassword + `","new":"short"}`:              422,
		`{"old":"` + rightPassword + `","new":"aaaaaaaaaaaaaaaa"}`:   422,
	} {
		if res := ann.do(t, "POST", "/v1/password", body); res.StatusCode != status {
			t.Errorf("%s: %d", body, res.StatusCode)
		}
	}
	if res := ann.do(t, "POST", "/v1/password", `{"old":"`+rightPassword+`","new":"correct horse battery"}`); res.StatusCode != http.StatusNoContent {
		t.Fatalf("changing the password: %d", res.StatusCode)
	}
	decode[wire.Problem](t, ann.do(t, "GET", "/v1/whoami", ""), 401)
	decode[wire.Problem](t, ann.login(t, "ann", rightPassword), 401)
	decode[wire.Whoami](t, ann.login(t, "ann", "correct horse battery"), 200)
	decode[wire.Whoami](t, bob.do(t, "GET", "/v1/whoami", ""), 200)
	// What an admin changes ends the sessions too.
	u := decode[wire.User](t, s.do(t, request{method: "PUT", path: "/v1/users/ann", body: `{"scope":"viewer"}`}), 200)
	if u.Scope != "viewer" {
		t.Errorf("the user is %+v", u)
	}
	decode[wire.Problem](t, ann.do(t, "GET", "/v1/whoami", ""), 401)
	refused(t, s, request{method: "PUT", path: "/v1/users/new", body: `{"scope":"viewer"}`}, 422, wire.CodeInvalid)
	refused(t, s, request{method: "PUT", path: "/v1/users/new", body: `{"scope":"viewer","password":"short"}`}, 422, wire.CodeInvalid)
	made := decode[wire.User](t, s.do(t, request{method: "PUT", path: "/v1/users/new", body: `{"scope":"viewer","password":"a good one, I think"}`}), 200)
	refused(t, s, request{method: "PUT", path: "/v1/users/new", body: `{"scope":"admin"}`, header: map[string]string{"If-Match": `"1"`}}, 412, wire.CodeRevision)
	if kept, _ := f.View().User("new"); !strings.HasPrefix(kept.Password, "$argon2id$v=19$m=19456,t=2,p=1$") || made.Revision == 0 {
		t.Error("the password is not kept as OWASP recommends")
	}
}

// TestLimitsOfLogins: nobody can lock a user out, and nobody can try for long.
func TestLimitsOfLogins(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := withUser(t, "ann", ScopeAdmin)
		s := newServer(t, f)
		mine := newBrowser(s)
		decode[wire.Whoami](t, mine.login(t, "ann", rightPassword), 200)
		evil := newBrowser(s)
		evil.from = "198.51.100.1:1"
		tried := 0
		for evil.login(t, "ann", "guess after guess").StatusCode == http.StatusUnauthorized {
			tried++
		}
		if tried != 5 {
			t.Errorf("one source has %d tries for one user", tried)
		}
		res := evil.login(t, "ann", rightPassword)
		if p := decode[wire.Problem](t, res, 429); p.Code != wire.CodeTooManyLogins || res.Header.Get("Retry-After") != "61" {
			t.Errorf("%+v, Retry-After %q", p, res.Header.Get("Retry-After"))
		}
		for i := range 30 { // other names, same source
			evil.login(t, fmt.Sprint("user", i), "guess after guess")
		}
		decode[wire.Problem](t, evil.login(t, "never tried", "x"), 429)
		// All of a customer's IPv6 addresses are one source.
		for i := range 6 {
			evil.from = fmt.Sprintf("[2001:db8:1:2::%x]:1", i+1)
			res = evil.login(t, "ann", "guess after guess")
		}
		if res.StatusCode != http.StatusTooManyRequests {
			t.Errorf("another address of the same network: %d", res.StatusCode)
		}
		// Others, and the user's own device even from the same address, still get in.
		decode[wire.Whoami](t, newBrowser(s).login(t, "ann", rightPassword), 200)
		mine.from = "198.51.100.1:2"
		decode[wire.Whoami](t, mine.login(t, "ann", rightPassword), 200)
		// A stolen device cookie has a limit of its own.
		tried = 0
		for mine.login(t, "ann", "guess after guess").StatusCode == http.StatusUnauthorized {
			tried++
		}
		if tried != 10 {
			t.Errorf("a known device has %d tries", tried)
		}
		// It helps for no other user.
		f.Apply(fsm.PutUser{Name: "bob", Scope: ScopeAdmin, Password: walkPassword()})
		decode[wire.Problem](t, mine.login(t, "bob", rightPassword), 429) // counted as what it is: that source
		time.Sleep(5 * time.Minute)
		evil.from = "198.51.100.1:1"
		decode[wire.Whoami](t, evil.login(t, "ann", rightPassword), 200)
		// Good logins are no tries.
		for range 40 {
			decode[wire.Whoami](t, mine.login(t, "ann", rightPassword), 200)
		}
	})
}

// TestSessionsEndByThemselves: by idleness, by age, and by whichever clock is later.
func TestSessionsEndByThemselves(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := withUser(t, "ann", ScopeViewer)
		s := newServer(t, f)
		b := newBrowser(s)
		status := func() int { return b.do(t, "GET", "/v1/whoami", "").StatusCode }
		b.login(t, "ann", rightPassword)
		begun := time.Now()
		for time.Since(begun) < 11*time.Hour+30*time.Minute { // used now and then
			time.Sleep(50 * time.Minute)
			if time.Since(begun) < 12*time.Hour && status() != 200 {
				t.Fatalf("a session in use ended after %s", time.Since(begun))
			}
			synctest.Wait()
		}
		if time.Sleep(time.Until(begun.Add(12 * time.Hour))); status() != 401 {
			t.Error("a session goes on for longer than 12 hours")
		}
		b.login(t, "ann", rightPassword)
		if time.Sleep(time.Hour); status() != 401 {
			t.Error("an idle session goes on")
		}
		// Its use on one node keeps it alive on others; without a leader at least on this one.
		b.login(t, "ann", rightPassword)
		time.Sleep(40 * time.Minute)
		status()
		synctest.Wait()
		there := newBrowser(newServer(t, f))
		there.cookies = b.cookies
		time.Sleep(40 * time.Minute)
		if res := there.do(t, "GET", "/v1/whoami", ""); res.StatusCode != http.StatusOK {
			t.Error("the use on another node is not known")
		}
		synctest.Wait()
		f.Set(func() { f.FailWith = func(fsm.Command) error { return fsm.ErrUnavailable } })
		for range 3 {
			time.Sleep(40 * time.Minute)
			if status() != 200 {
				t.Error("without quorum a session in use ended")
			}
			synctest.Wait()
		}
	})
}

// TestTheAuditIsNotFlooded: many refused logins are few records, and none is lost.
func TestTheAuditIsNotFlooded(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := withUser(t, "ann", ScopeAdmin)
		s := newServer(t, f)
		ctx, stop := context.WithCancel(t.Context())
		done := make(chan struct{})
		go func() { defer close(done); s.tellRefusals(ctx) }()
		records := func() (n, total int, first auditLine) {
			for _, r := range auditOf(t, f) {
				if r.Outcome == "refused" {
					if n == 0 {
						first = r
					}
					n++
					total += r.Asked.Total
				}
			}
			return n, total, first
		}
		b := newBrowser(s)
		b.login(t, "ann", "quite wrong indeed")
		b.login(t, "hunter2hunter2", "x")
		time.Sleep(2 * time.Second)
		n, total, first := records()
		if n != 1 || total != 2 || len(first.Asked.Logins) != 2 || first.Action != "session.login" || first.Actor != "node:n1" {
			t.Fatalf("after the first: %d records of %d, %+v", n, total, first)
		}
		for _, l := range first.Asked.Logins {
			if l.User != "ann" && l.User != "" || l.From != "192.0.2.200" {
				t.Errorf("the audit has %+v: what was typed as a name may be a password", l)
			}
		}
		for i := range 3600 { // an hour of it, from everywhere
			s.refusals.note("ann", fmt.Sprintf("198.51.%d.%d", i/256, i%256))
			time.Sleep(time.Second)
		}
		stop()
		<-done
		if n, total, _ = records(); n > 25 || total != 3602 {
			t.Errorf("%d records of %d refused logins", n, total)
		}
	})
}

// TestAStreamEndsWithItsSession: who is logged out sees nothing any more.
func TestAStreamEndsWithItsSession(t *testing.T) {
	f := withUser(t, "ann", ScopeViewer)
	text, hash := NewToken()
	f.Apply(fsm.CreateToken{Name: "short", Scope: ScopeViewer, Hash: hash})
	s := serve(t, f)
	b := newBrowser(s.Server)
	who := decode[wire.Whoami](t, b.login(t, "ann", rightPassword), 200)
	from := strconv.FormatUint(f.View().Index(), 10)
	session := openEvents(t, s, "/v1/events?from="+from, "", "Authorization", "", "Cookie", sessionCookie+"="+b.cookies[sessionCookie])
	token := openEvents(t, s, "/v1/events?from="+from, "", "Authorization", "Bearer "+text)
	waitFor(t, "the streams", func() bool { return s.streams.Load() == 2 })
	f.Apply(fsm.EndSessions{ID: who.Session.ID})
	f.Apply(fsm.DeleteToken{Name: "short"})
	f.Apply(fsm.PutGuard{Prefix: mustPrefix(t, "192.0.2.0/24"), Note: "CANARY"})
	for _, e := range []*sse{session, token} {
		for e.lines.Scan() {
			if strings.Contains(e.lines.Text(), "CANARY") {
				t.Error("a stream goes on after its credential has ended")
			}
		}
	}
	waitFor(t, "the end of the streams", func() bool { return s.streams.Load() == 0 })
}

// TestAFloodOfLoginsIsBounded: passwords are checked a few at once, and who is known is not kept out.
func TestAFloodOfLoginsIsBounded(t *testing.T) {
	f := withUser(t, "ann", ScopeAdmin)
	s := newServer(t, f)
	mine := newBrowser(s)
	decode[wire.Whoami](t, mine.login(t, "ann", rightPassword), 200)
	results := make(chan int, 200)
	for i := range 200 {
		go func() {
			b := newBrowser(s)
			b.from = fmt.Sprintf("198.51.100.%d:1", i)
			results <- b.login(t, "nobody", "guess after guess").StatusCode
		}()
	}
	began := time.Now()
	decode[wire.Whoami](t, mine.login(t, "ann", rightPassword), 200)
	t.Logf("a known device logged in after %s", time.Since(began))
	counts := map[int]int{}
	for range 200 {
		counts[<-results]++
	}
	if counts[429] < 100 || counts[401] == 0 || counts[401]+counts[429] != 200 {
		t.Errorf("answers %v; a few are checked, the rest are told to come again", counts)
	}
}

// TestANodeThatHasJustStartedEndsNoSession: what it does not know yet, it can't say to have ended.
func TestANodeThatHasJustStartedEndsNoSession(t *testing.T) {
	f := withUser(t, "ann", ScopeOperator)
	b := newBrowser(newServer(t, f))
	decode[wire.Whoami](t, b.login(t, "ann", rightPassword), 200)
	empty := newFleet(t)
	empty.Set(func() { empty.Standing.CaughtUp = false })
	there := newBrowser(newServer(t, empty))
	there.cookies = b.cookies
	if p := decode[wire.Problem](t, there.do(t, "GET", "/v1/whoami", ""), 503); p.Code != wire.CodeNotReady {
		t.Errorf("%+v", p)
	}
	empty.Set(func() { empty.Standing.CaughtUp = true })
	decode[wire.Problem](t, there.do(t, "GET", "/v1/whoami", ""), 401)
}
