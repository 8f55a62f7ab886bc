package httpapi

import (
	"crypto"
	"crypto/rand"
	"crypto/rsa"
	"crypto/sha256"
	"crypto/x509"
	"encoding/base64"
	"encoding/json"
	"io"
	"math/big"
	"net/http"
	"net/http/httptest"
	"net/url"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/palisade/palisade/fsm"
	"github.com/palisade/palisade/httpapi/login"
	"github.com/palisade/palisade/httpapi/wire"
)

// provider is a small OpenID Connect provider over TLS, with keys of its own.
type provider struct {
	*httptest.Server
	key *rsa.PrivateKey

	mu    sync.Mutex
	codes map[string]url.Values // what was asked when the code was given; a code is good once
	calls int                   // of the token endpoint
	// The script.
	claims func(asked url.Values, claims map[string]any) // changes what is said
	sign   func(head, claims []byte) string              // instead of the right signature
	down   bool
}

func newProvider(t *testing.T) *provider {
	key, err := rsa.GenerateKey(rand.Reader, 2048)
	if err != nil {
		t.Fatal(err)
	}
	p := &provider{key: key, codes: map[string]url.Values{}}
	mux := http.NewServeMux()
	answer := func(w http.ResponseWriter, v any) {
		w.Header().Set("Content-Type", "application/json")
		_ = json.NewEncoder(w).Encode(v)
	}
	mux.HandleFunc("GET /.well-known/openid-configuration", func(w http.ResponseWriter, _ *http.Request) {
		p.mu.Lock()
		defer p.mu.Unlock()
		if p.down {
			http.Error(w, "down", http.StatusBadGateway)
			return
		}
		answer(w, map[string]any{
			"issuer": p.URL, "authorization_endpoint": p.URL + "/authorize", "token_endpoint": p.URL + "/token", "jwks_uri": p.URL + "/keys",
			"id_token_signing_alg_values_supported": []string{"RS256"}, "response_types_supported": []string{"code"}, "subject_types_supported": []string{"public"},
		})
	})
	mux.HandleFunc("GET /keys", func(w http.ResponseWriter, _ *http.Request) {
		answer(w, map[string]any{"keys": []any{map[string]any{
			"kty": "RSA", "kid": "k1", "alg": "RS256", "use": "sig",
			"n": b64(key.N.Bytes()), "e": b64(big.NewInt(int64(key.E)).Bytes()),
		}}})
	})
	mux.HandleFunc("GET /authorize", func(w http.ResponseWriter, r *http.Request) {
		q := r.URL.Query()
		p.mu.Lock()
		code := b64([]byte(q.Get("state"))[:12])
		p.codes[code] = q
		p.mu.Unlock()
		http.Redirect(w, r, q.Get("redirect_uri")+"?"+url.Values{"code": {code}, "state": {q.Get("state")}, "session_state": {"x"}}.Encode(), http.StatusFound)
	})
	mux.HandleFunc("POST /token", func(w http.ResponseWriter, r *http.Request) {
		p.mu.Lock()
		defer p.mu.Unlock()
		p.calls++
		asked, known := p.codes[r.PostFormValue("code")]
		delete(p.codes, r.PostFormValue("code"))
		id, secret, _ := r.BasicAuth()
		challenge := sha256.Sum256([]byte(r.PostFormValue("code_verifier")))
		if !known || id != "palisade" || secret != "client-secret-CANARY" || asked.Get("code_challenge_method") != "S256" || asked.Get("code_challenge") != b64(challenge[:]) ||
			r.PostFormValue("redirect_uri") != asked.Get("redirect_uri") {
			w.WriteHeader(http.StatusBadRequest)
			answer(w, map[string]any{"error": "invalid_grant"})
			return
		}
		claims := map[string]any{
			"iss": p.URL, "aud": "palisade", "sub": "u-17", "nonce": asked.Get("nonce"), "email": "ann@example.net", "email_verified": true,
			"groups": []string{"staff", "ops"}, "iat": time.Now().Unix(), "exp": time.Now().Add(time.Minute).Unix(),
		}
		if p.claims != nil {
			p.claims(asked, claims)
		}
		answer(w, map[string]any{"access_token": "at-CANARY", "token_type": "Bearer", "expires_in": 60, "id_token": p.token(claims)})
	})
	p.Server = httptest.NewTLSServer(mux)
	t.Cleanup(p.Close)
	return p
}

func b64(b []byte) string { return base64.RawURLEncoding.EncodeToString(b) }

func (p *provider) token(claims map[string]any) string {
	head := []byte(`{"alg":"RS256","kid":"k1","typ":"JWT"}`)
	body, _ := json.Marshal(claims)
	if p.sign != nil {
		return p.sign(head, body)
	}
	return p.signed(head, body)
}

func (p *provider) signed(head, body []byte) string {
	text := b64(head) + "." + b64(body)
	sum := sha256.Sum256([]byte(text))
	sig, _ := rsa.SignPKCS1v15(rand.Reader, p.key, crypto.SHA256, sum[:])
	return text + "." + b64(sig)
}

// newOIDCServer is a server whose users log in by the provider.
func newOIDCServer(t *testing.T, f *fleet, p *provider, change ...func(*login.OIDCOptions)) *Server {
	roots := x509.NewCertPool()
	roots.AddCert(p.Certificate())
	o := login.OIDCOptions{
		Issuer: p.URL, ClientID: "palisade", ClientSecret: "client-secret-CANARY", RedirectURL: "https://node-1.example/v1/login/oidc/callback",
		Scopes: map[string]string{"ops": "operator", "staff": "viewer", "root": "admin"}, RootCAs: roots,
	}
	for _, s := range fsm.Scopes() {
		o.Order = append(o.Order, string(s))
	}
	for _, c := range change {
		c(&o)
	}
	provider, err := login.NewOIDC(o)
	if err != nil {
		t.Fatal(err)
	}
	return newServer(t, f, func(o *Options) { o.OIDC = provider })
}

// visit is the browser's way to the provider and back: it returns the path and query of the callback.
func visit(t *testing.T, b *browser, p *provider) string {
	t.Helper()
	res := b.do(t, "GET", "/v1/login/oidc", "")
	if res.StatusCode != http.StatusSeeOther {
		body, _ := io.ReadAll(res.Body)
		t.Fatalf("begin: %d %s", res.StatusCode, body)
	}
	to, err := url.Parse(res.Header.Get("Location"))
	if err != nil || to.Query().Get("code_challenge_method") != "S256" || len(to.Query().Get("state")) < 40 || len(to.Query().Get("nonce")) < 40 {
		t.Fatalf("it sends the browser to %s", to)
	}
	for _, c := range res.Cookies() {
		if c.Name == oidcCookie && (!c.Secure || !c.HttpOnly || c.SameSite != http.SameSiteLaxMode || strings.Contains(to.String(), c.Value)) {
			t.Errorf("cookie %s", c)
		}
	}
	client := p.Client()
	client.CheckRedirect = func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse }
	back, err := client.Get(to.String())
	if err != nil {
		t.Fatal(err)
	}
	defer back.Body.Close()
	at, err := url.Parse(back.Header.Get("Location"))
	if err != nil || at.Host != "node-1.example" {
		t.Fatalf("the provider sends the browser to %s", at)
	}
	return at.RequestURI()
}

func TestLoginByAProvider(t *testing.T) {
	p, f := newProvider(t), newFleet(t)
	here, there := newOIDCServer(t, f, p), newOIDCServer(t, f, p)
	b := newBrowser(here)
	path := visit(t, b, p)
	b.s = there // it may come back to another node
	b.header = map[string]string{"Sec-Fetch-Site": "cross-site", csrfHeader: ""}
	res := b.do(t, "GET", path, "")
	if res.StatusCode != http.StatusSeeOther || res.Header.Get("Location") != "/" || b.cookies[sessionCookie] == "" || b.cookies[oidcCookie] != "" {
		body, _ := io.ReadAll(res.Body)
		t.Fatalf("%d %s, cookies %v", res.StatusCode, body, b.cookies)
	}
	b.header = nil
	who := decode[wire.Whoami](t, b.do(t, "GET", "/v1/whoami", ""), 200)
	if who.Actor != "oidc:u-17" || who.Scope != "operator" || who.Session.From != "192.0.2.200" {
		t.Errorf("logged in as %+v", who)
	}
	made := decode[wire.Block](t, b.do(t, "POST", "/v1/blocks", `{"target":{"prefix":"203.0.113.7"}}`), 201)
	if made.Actor != "oidc:u-17" {
		t.Errorf("blocked by %s", made.Actor)
	}
	decode[wire.Problem](t, b.do(t, "POST", "/v1/password", `{"old":"x","new":"correct horse battery"}`), 409)
	last := auditOf(t, f)
	if r := last[len(last)-2]; r.Action != "session.login" || r.Actor != "oidc:u-17" || r.Outcome != "done" {
		t.Errorf("the audit says %+v", r)
	}
}

// TestHostileProviders: whatever is wrong with what comes back, nobody is logged in, and nothing of it is told.
func TestHostileProviders(t *testing.T) {
	set := func(key string, v any) func(url.Values, map[string]any) {
		return func(_ url.Values, c map[string]any) {
			if v == nil {
				delete(c, key)
			} else {
				c[key] = v
			}
		}
	}
	other, err := rsa.GenerateKey(rand.Reader, 2048)
	if err != nil {
		t.Fatal(err)
	}
	for name, c := range map[string]struct {
		claims func(url.Values, map[string]any)
		sign   func(p *provider) func(head, body []byte) string
		path   func(path string) string // changes what the browser brings back
		cookie func(b *browser)
		opts   func(*login.OIDCOptions)
		status int
	}{
		"wrong nonce":      {claims: set("nonce", "another")},
		"no nonce":         {claims: set("nonce", nil)},
		"wrong audience":   {claims: set("aud", "another")},
		"no audience":      {claims: set("aud", nil)},
		"many audiences":   {claims: set("aud", []string{"palisade", "another"})},
		"expired":          {claims: set("exp", time.Now().Add(-time.Minute).Unix())},
		"never expires":    {claims: set("exp", nil)},
		"not valid yet":    {claims: set("nbf", time.Now().Add(time.Hour).Unix())},
		"wrong issuer":     {claims: set("iss", "https://evil.example")},
		"no subject":       {claims: set("sub", nil)},
		"hidden subject":   {claims: set("sub", "a\u202eb")},
		"long subject":     {claims: set("sub", strings.Repeat("x", 300))},
		"no group":         {claims: set("groups", nil)},
		"strange groups":   {claims: set("groups", []any{1, map[string]any{}, "nobody", "admin"})},
		"unverified email": {claims: set("email_verified", false), opts: func(o *login.OIDCOptions) { o.UserClaim = "email" }},
		"no signature": {sign: func(*provider) func(h, b []byte) string {
			return func(h, b []byte) string { return b64(h) + "." + b64(b) + "." }
		}},
		"algorithm none": {sign: func(*provider) func(h, b []byte) string {
			return func(_, b []byte) string { return b64([]byte(`{"alg":"none"}`)) + "." + b64(b) + "." }
		}},
		"symmetric": {sign: func(p *provider) func(h, b []byte) string {
			return func(_, b []byte) string { return p.signed([]byte(`{"alg":"HS256","kid":"k1"}`), b) }
		}},
		"another key": {sign: func(*provider) func(h, b []byte) string { return (&provider{key: other}).signed }},
		"changed": {sign: func(p *provider) func(h, b []byte) string {
			return func(h, b []byte) string {
				return strings.Replace(p.signed(h, b), b64(b), b64([]byte(strings.Replace(string(b), "u-17", "u-18", 1))), 1)
			}
		}},
		"no token":        {sign: func(*provider) func(h, b []byte) string { return func(_, _ []byte) string { return "" } }},
		"wrong state":     {path: func(s string) string { return strings.Replace(s, "&state=", "&state=x", 1) }},
		"no state":        {path: func(s string) string { s, _, _ = strings.Cut(s, "?"); return s + "?code=x" }},
		"wrong code":      {path: func(s string) string { return strings.Replace(s, "code=", "code=x", 1) }},
		"an error":        {path: func(s string) string { return s + "&error=access_denied&error_description=%3Cscript%3E" }},
		"no cookie":       {cookie: func(b *browser) { delete(b.cookies, oidcCookie) }},
		"a forged cookie": {cookie: func(b *browser) { b.cookies[oidcCookie] = "a.b.c.d" }},
		"an old cookie": {cookie: func(b *browser) {
			c := b.cookies[oidcCookie]
			b.cookies[oidcCookie] = c[:strings.LastIndex(c, ".")] + ".1700000000"
		}},
		"another verifier": {cookie: func(b *browser) {
			c := strings.Split(b.cookies[oidcCookie], ".")
			c[2] = strings.Repeat("x", 43)
			b.cookies[oidcCookie] = strings.Join(c, ".")
		}},
		"wrong secret":      {opts: func(o *login.OIDCOptions) { o.ClientSecret = "wrong" }},
		"untrusted TLS":     {opts: func(o *login.OIDCOptions) { o.RootCAs = x509.NewCertPool() }, status: 502},
		"another's issuer":  {opts: func(o *login.OIDCOptions) { o.Issuer += "/" }, status: 502},
		"nothing is wrong":  {status: 303},
		"many, azp is ours": {claims: func(_ url.Values, c map[string]any) { c["aud"], c["azp"] = []string{"palisade", "another"}, "palisade" }, status: 303},
		"one group as text": {claims: set("groups", "root"), status: 303},
	} {
		t.Run(name, func(t *testing.T) {
			p, f := newProvider(t), newFleet(t)
			p.claims = c.claims
			if c.sign != nil {
				p.sign = c.sign(p)
			}
			var opts []func(*login.OIDCOptions)
			if c.opts != nil {
				opts = append(opts, c.opts)
			}
			b := newBrowser(newOIDCServer(t, f, p, opts...))
			status := c.status
			if status == 0 {
				status = 401
			}
			var res *http.Response
			if status == 502 {
				res = b.do(t, "GET", "/v1/login/oidc", "")
			} else {
				path := visit(t, b, p)
				if c.path != nil {
					path = c.path(path)
				}
				if c.cookie != nil {
					c.cookie(b)
				}
				res = b.do(t, "GET", path, "")
			}
			body, _ := io.ReadAll(res.Body)
			if res.StatusCode != status || strings.Contains(string(body), "CANARY") || strings.Contains(string(body), "<script") {
				t.Errorf("%d %s", res.StatusCode, body)
			}
			sessions := 0
			for range f.View().Sessions("") {
				sessions++
			}
			if (sessions == 1) != (status == 303) || (b.cookies[sessionCookie] != "") != (status == 303) {
				t.Errorf("%d sessions, cookies %v", sessions, b.cookies)
			}
		})
	}
}

// TestAStateIsGoodOnce: whoever got hold of the browser's way back, cookie and all, comes too late, and the provider is
// not even asked.
func TestAStateIsGoodOnce(t *testing.T) {
	p, f := newProvider(t), newFleet(t)
	s := newOIDCServer(t, f, p)
	b, thief := newBrowser(s), newBrowser(s)
	path := visit(t, b, p)
	thief.cookies[oidcCookie] = b.cookies[oidcCookie]
	if res := b.do(t, "GET", path, ""); res.StatusCode != http.StatusSeeOther {
		t.Fatalf("%d", res.StatusCode)
	}
	calls := p.calls
	decode[wire.Problem](t, thief.do(t, "GET", path, ""), 401)
	if p.calls != calls {
		t.Error("the provider was asked for a state that was used")
	}
	// On another node the provider refuses its code.
	thief.s = newOIDCServer(t, f, p)
	decode[wire.Problem](t, thief.do(t, "GET", path, ""), 401)
}

func TestAProviderMayBeAway(t *testing.T) {
	p, f := newProvider(t), newFleet(t)
	p.down = true
	s := newOIDCServer(t, f, p)
	b := newBrowser(s)
	if got := decode[wire.Problem](t, b.do(t, "GET", "/v1/login/oidc", ""), 502); got.Code != wire.CodeProvider {
		t.Errorf("%+v", got)
	}
	p.mu.Lock()
	p.down = false
	p.mu.Unlock()
	path := visit(t, b, p)
	if res := b.do(t, "GET", path, ""); res.StatusCode != http.StatusSeeOther {
		t.Errorf("%d", res.StatusCode)
	}
	// Nobody makes this node ask it without end.
	var last int
	for range 30 {
		last = b.do(t, "GET", "/v1/login/oidc", "").StatusCode
	}
	if last != http.StatusTooManyRequests {
		t.Errorf("the 30th begin is answered %d", last)
	}
	without := newBrowser(newServer(t, f))
	decode[wire.Problem](t, without.do(t, "GET", "/v1/login/oidc", ""), 404)
	decode[wire.Problem](t, without.do(t, "GET", "/v1/login/oidc/callback?code=x&state=y", ""), 404)
	for name, change := range map[string]func(*login.OIDCOptions){
		"clear text": func(o *login.OIDCOptions) { o.Issuer = "http://idp.example" }, "no client": func(o *login.OIDCOptions) { o.ClientID = "" },
		"no way back": func(o *login.OIDCOptions) { o.RedirectURL = "" }, "nobody": func(o *login.OIDCOptions) { o.Scopes = nil },
		"no such scope": func(o *login.OIDCOptions) { o.Scopes = map[string]string{"x": "root"} },
	} {
		o := login.OIDCOptions{Issuer: "https://idp.example", ClientID: "x", RedirectURL: "https://n/", Scopes: map[string]string{"x": "admin"}, Order: []string{"admin"}}
		change(&o)
		if _, err := login.NewOIDC(o); err == nil {
			t.Errorf("%s is taken", name)
		}
	}
}
