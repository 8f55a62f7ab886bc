package browser

import (
	"bytes"
	"cmp"
	"crypto"
	"crypto/rand"
	"crypto/rsa"
	"crypto/sha256"
	"encoding/base64"
	"encoding/json"
	"encoding/pem"
	"errors"
	"fmt"
	"io/fs"
	"math/big"
	"net"
	"net/http"
	"net/http/httptest"
	"net/url"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// provider is a small OpenID Connect provider. The agent reaches it in the node's network namespace, the browser on this
// machine: on the same port of either loopback.
type provider struct {
	*httptest.Server
	key *rsa.PrivateKey

	mu     sync.Mutex
	codes  map[string]url.Values // what was asked when the code was given; a code is good once
	secret string                // that the agent showed last
}

func newProvider(t *testing.T, netns string) *provider {
	t.Helper()
	key, err := rsa.GenerateKey(rand.Reader, 2048)
	if err != nil {
		t.Fatal(err)
	}
	p := &provider{key: key, codes: map[string]url.Values{}}
	mux := http.NewServeMux()
	mux.HandleFunc("GET /.well-known/openid-configuration", func(w http.ResponseWriter, _ *http.Request) {
		// The browser is sent to another name than the node has: it comes back from another site.
		authorize := strings.Replace(p.URL, "127.0.0.1", "localhost", 1) + "/authorize"
		answer(w, map[string]any{
			"issuer": p.URL, "authorization_endpoint": authorize, "token_endpoint": p.URL + "/token", "jwks_uri": p.URL + "/keys",
			"id_token_signing_alg_values_supported": []string{"RS256"}, "response_types_supported": []string{"code"}, "subject_types_supported": []string{"public"},
		})
	})
	mux.HandleFunc("GET /keys", func(w http.ResponseWriter, _ *http.Request) {
		answer(w, map[string]any{"keys": []any{map[string]any{"kty": "RSA", "kid": "k1", "alg": "RS256", "use": "sig", "n": b64(key.N.Bytes()), "e": b64(big.NewInt(int64(key.E)).Bytes())}}})
	})
	mux.HandleFunc("GET /authorize", func(w http.ResponseWriter, r *http.Request) {
		q := r.URL.Query()
		code := b64([]byte(q.Get("state"))[:12])
		p.mu.Lock()
		p.codes[code] = q
		p.mu.Unlock()
		w.Header().Set("Content-Type", "text/html")
		_, _ = fmt.Fprintf(w, `<title>Provider</title><a id="agree" href="%s?%s">I am Ann</a>`, q.Get("redirect_uri"), url.Values{"code": {code}, "state": {q.Get("state")}}.Encode())
	})
	mux.HandleFunc("POST /token", p.token)
	p.Server = httptest.NewUnstartedServer(mux)
	p.StartTLS()
	t.Cleanup(p.Close)
	inside, err := listenIn(netns, p.Listener.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	there := &http.Server{Handler: mux, TLSConfig: p.TLS.Clone(), ReadHeaderTimeout: patience}
	ended := make(chan error, 1)
	go func() { ended <- there.ServeTLS(inside, "", "") }()
	t.Cleanup(func() {
		_ = there.Close()
		if err := <-ended; !errors.Is(err, http.ErrServerClosed) {
			t.Error(err)
		}
	})
	return p
}

func answer(w http.ResponseWriter, v any) {
	w.Header().Set("Content-Type", "application/json")
	_ = json.NewEncoder(w).Encode(v)
}

func b64(b []byte) string { return base64.RawURLEncoding.EncodeToString(b) }

func basicSecret(r *http.Request) string {
	_, secret, _ := r.BasicAuth()
	return secret
}

func (p *provider) token(w http.ResponseWriter, r *http.Request) {
	p.mu.Lock()
	p.secret = cmp.Or(basicSecret(r), r.PostFormValue("client_secret"))
	p.mu.Unlock()
	p.mu.Lock()
	asked, known := p.codes[r.PostFormValue("code")]
	delete(p.codes, r.PostFormValue("code"))
	p.mu.Unlock()
	challenge := sha256.Sum256([]byte(r.PostFormValue("code_verifier")))
	if !known || asked.Get("code_challenge") != b64(challenge[:]) {
		w.WriteHeader(http.StatusBadRequest)
		answer(w, map[string]any{"error": "invalid_grant"})
		return
	}
	body, _ := json.Marshal(map[string]any{
		"iss": p.URL, "aud": "palisade", "sub": "ann", "nonce": asked.Get("nonce"), "groups": []string{"noc"}, "iat": time.Now().Unix(), "exp": time.Now().Add(time.Minute).Unix(),
	})
	text := b64([]byte(`{"alg":"RS256","kid":"k1","typ":"JWT"}`)) + "." + b64(body)
	sum := sha256.Sum256([]byte(text))
	sig, err := rsa.SignPKCS1v15(rand.Reader, p.key, crypto.SHA256, sum[:])
	if err != nil {
		w.WriteHeader(http.StatusInternalServerError)
		return
	}
	answer(w, map[string]any{"access_token": "at", "token_type": "Bearer", "expires_in": 60, "id_token": text + "." + b64(sig)})
}

// listenIn listens in a network namespace. The socket stays there.
func listenIn(netns, address string) (l net.Listener, err error) {
	done := make(chan struct{})
	go func() {
		defer close(done)
		runtime.LockOSThread() // never unlocked: the thread ends with the goroutine
		if unix.Gettid() == os.Getpid() {
			l, err = listenIn(netns, address) // the first thread can't end: it must not go there
			runtime.UnlockOSThread()
			return
		}
		fd, oerr := unix.Open("/run/netns/"+netns, unix.O_RDONLY|unix.O_CLOEXEC, 0)
		if oerr != nil {
			err = fmt.Errorf("network namespace %s: %w", netns, oerr)
			return
		}
		if err = errors.Join(unix.Setns(fd, unix.CLONE_NEWNET), unix.Close(fd)); err == nil {
			l, err = net.Listen("tcp", address)
		}
	}()
	<-done
	return l, err
}

// TestALoginByAProvider goes from the button on the page to the provider and back, into a session of the scope that the
// provider's groups give. The secret that the node has for the provider is in none of the node's files.
func TestALoginByAProvider(t *testing.T) {
	l := lab(t)
	n, err := l.Node("node-3")
	if err != nil {
		t.Fatal(err)
	}
	b := open(t, l, "node-3")
	b.until("the login is shown", `document.querySelector('#password')`)
	const name = "Log in with the identity provider"
	var offered bool
	if b.js("!!"+button(name), &offered); offered {
		t.Error("a node without a provider offers one")
	}
	p := newProvider(t, n.Netns)
	ca := filepath.Join(t.TempDir(), "provider.pem")
	if err := os.WriteFile(ca, pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: p.Certificate().Raw}), 0o600); err != nil {
		t.Fatal(err)
	}
	const canary = "canary-OIDC-88888888"
	secret := filepath.Join(t.TempDir(), "secret")
	if err := os.WriteFile(secret, []byte(canary+"\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	file := filepath.Join(n.Dir, "agent.toml")
	was, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	restart := func(config []byte) {
		if err := errors.Join(os.WriteFile(file, config, 0o600), l.KillAgent(t.Context(), n.Name, syscall.SIGTERM), l.StartAgent(t.Context(), n.Name), l.AwaitReady(t.Context())); err != nil {
			t.Fatal(err)
		}
	}
	t.Cleanup(func() {
		if err := os.WriteFile(file, was, 0o600); err != nil {
			t.Error(err)
		}
	})
	restart(fmt.Appendf(was, "\n[api.oidc]\nissuer = %q\nclient_id = \"palisade\"\nclient_secret_file = %q\nredirect_url = %q\nca_file = %q\nscopes = {noc = \"operator\"}\n", p.URL, secret, n.API+"/v1/login/oidc/callback", ca))
	b.go_("/blacklist")
	b.until("the page offers the provider", button(name))
	b.shoot("login-provider")
	b.click(name)
	b.until("the provider asks", `document.querySelector('#agree') && location.hostname === 'localhost'`)
	b.js(`(document.querySelector('#agree').click(), true)`, new(bool))
	b.until("the fleet is shown", `location.hostname === '127.0.0.1' && document.querySelector('nav a[href="/nodes"]') && !document.querySelector('#password')`)
	var who struct{ Actor, Scope string }
	b.js(`fetch('/v1/whoami').then(r => r.json())`, &who)
	if who.Actor != "oidc:ann" || who.Scope != "operator" {
		t.Errorf("logged in as %+v", who)
	}
	b.until("an operator may block", button("Block"))
	b.js(`(document.querySelector('header summary').click(), true)`, new(bool))
	b.click("Log out")
	b.until("the login is shown", `document.querySelector('#password')`)
	var status int
	if b.js(`fetch('/v1/status').then(r => r.status)`, &status); status != 401 {
		t.Errorf("after the logout, the status is answered %d", status)
	}
	b.quiet()
	p.mu.Lock()
	if p.secret != canary {
		t.Errorf("the provider was shown the secret %q", p.secret)
	}
	p.mu.Unlock()
	searched := 0
	err = filepath.WalkDir(n.Dir, func(path string, d fs.DirEntry, err error) error {
		if err != nil || !d.Type().IsRegular() {
			return err
		}
		text, err := os.ReadFile(path)
		if errors.Is(err, fs.ErrNotExist) {
			return nil // it went while we looked
		}
		searched++
		if bytes.Contains(text, []byte(canary)) {
			t.Errorf("%s has the secret", path)
		}
		return err
	})
	if err != nil || searched < 10 {
		t.Errorf("%d files were searched, %v", searched, err)
	}
	restart(was)
}
