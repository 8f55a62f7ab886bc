package login

import (
	"context"
	"crypto/rand"
	"crypto/subtle"
	"crypto/tls"
	"crypto/x509"
	"encoding/base64"
	"errors"
	"fmt"
	"net/http"
	"net/url"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"
	"unicode/utf8"

	"github.com/coreos/go-oidc/v3/oidc"
	"golang.org/x/oauth2"
)

// ErrRefused is wrapped by the error of a login that is refused for good: of this try nothing more will come.
var ErrRefused = errors.New("the login was refused")

const (
	// loginTime is how long somebody may take at the provider.
	loginTime = 10 * time.Minute
	// providerTime bounds one call to the provider.
	providerTime = 10 * time.Second
	// providerCalls is how many logins talk to the provider at once.
	providerCalls = 8
	// maxUsed bounds the states that are remembered, so that none is used twice. One that is forgotten is refused by the
	// provider, to which its code is known as used, and by its age.
	maxUsed = 16_384
	// maxUser bounds the name of a user, in bytes.
	maxUser = 200
)

// OIDCOptions say which OpenID Connect provider vouches for users.
type OIDCOptions struct {
	Issuer       string // https URL
	ClientID     string
	ClientSecret string // empty for a public client
	RedirectURL  string // https URL of /v1/login/oidc/callback, as browsers see it
	// UserClaim names the user; "sub" if empty, which no provider gives to another person. "email" must be verified.
	UserClaim string
	// ScopeClaim has the groups or roles of the user, as text or a list; "groups" if empty. Scopes maps them to scopes.
	// Of several, the one that comes first in Order counts. Who has none is refused.
	ScopeClaim string
	Scopes     map[string]string
	Order      []string
	RootCAs    *x509.CertPool   // that verify the provider; the system's if nil
	Now        func() time.Time // time.Now if nil
}

// Validate says what is wrong.
func (o *OIDCOptions) Validate() error {
	for name, text := range map[string]string{"issuer": o.Issuer, "redirect_url": o.RedirectURL} {
		if u, err := url.Parse(text); err != nil || u.Scheme != "https" || u.Host == "" || u.User != nil {
			return fmt.Errorf("%s: %q is no https URL", name, text)
		}
	}
	switch {
	case o.ClientID == "":
		return errors.New("client_id: is missing")
	case len(o.Scopes) == 0:
		return errors.New("scopes: is missing; nobody could log in")
	}
	for group, scope := range o.Scopes {
		if !slices.Contains(o.Order, scope) {
			return fmt.Errorf("scopes: %q of %q is none of %s", scope, group, strings.Join(o.Order, ", "))
		}
	}
	return nil
}

// OIDC logs users in by the authorization code flow with PKCE, a state and a nonce. It is safe for concurrent use.
type OIDC struct {
	opts   OIDCOptions
	client *http.Client
	calls  chan struct{}

	mu       sync.Mutex
	provider *oidc.Provider // nil until it was reached
	used     map[string]struct{}
	order    []string // of used, oldest first
}

// Identity is whom the provider has vouched for.
type Identity struct {
	User  string
	Scope string // empty if none of the user's groups has one
}

// NewOIDC returns a login by a provider. It does not talk to it yet: the provider may be away.
func NewOIDC(o OIDCOptions) (*OIDC, error) {
	if err := o.Validate(); err != nil {
		return nil, err
	}
	if o.UserClaim == "" {
		o.UserClaim = "sub"
	}
	if o.ScopeClaim == "" {
		o.ScopeClaim = "groups"
	}
	if o.Now == nil {
		o.Now = time.Now
	}
	tr := &http.Transport{
		Proxy: http.ProxyFromEnvironment, TLSClientConfig: &tls.Config{MinVersion: tls.VersionTLS12, RootCAs: o.RootCAs},
		MaxResponseHeaderBytes: 64 << 10, MaxConnsPerHost: providerCalls, IdleConnTimeout: time.Minute, ForceAttemptHTTP2: true,
	}
	return &OIDC{
		opts: o, client: &http.Client{Transport: tr, Timeout: providerTime}, calls: make(chan struct{}, providerCalls), used: map[string]struct{}{},
	}, nil
}

// Begin returns where to send the browser, and what it must bring back in a cookie of its own.
func (o *OIDC) Begin(ctx context.Context) (to, cookie string, err error) {
	p, err := o.reach(ctx)
	if err != nil {
		return "", "", err
	}
	state, nonce, verifier := random(), random(), oauth2.GenerateVerifier()
	to = o.config(p).AuthCodeURL(state, oidc.Nonce(nonce), oauth2.S256ChallengeOption(verifier))
	return to, strings.Join([]string{state, nonce, verifier, strconv.FormatInt(o.opts.Now().Unix(), 10)}, "."), nil
}

// Finish takes what the browser brought back. An error that wraps ErrRefused is about this login, any other about the
// provider. Errors hold no secrets.
func (o *OIDC) Finish(ctx context.Context, cookie, state, code string) (Identity, error) {
	parts := strings.Split(cookie, ".")
	if len(parts) != 4 || state == "" || subtle.ConstantTimeCompare([]byte(parts[0]), []byte(state)) != 1 {
		return Identity{}, fmt.Errorf("%w: it was not begun in this browser", ErrRefused)
	}
	began, err := strconv.ParseInt(parts[3], 10, 64)
	if age := o.opts.Now().Sub(time.Unix(began, 0)); err != nil || age > loginTime || age < -time.Minute {
		return Identity{}, fmt.Errorf("%w: it took longer than %s", ErrRefused, loginTime)
	}
	if !o.use(state) {
		return Identity{}, fmt.Errorf("%w: it was used already", ErrRefused)
	}
	p, err := o.reach(ctx)
	if err != nil {
		return Identity{}, err
	}
	leave, err := o.call(ctx)
	if err != nil {
		return Identity{}, err
	}
	defer leave()
	ctx = oidc.ClientContext(ctx, o.client)
	token, err := o.config(p).Exchange(ctx, code, oauth2.VerifierOption(parts[2]))
	if refused := (*oauth2.RetrieveError)(nil); errors.As(err, &refused) && refused.Response.StatusCode/100 == 4 {
		return Identity{}, fmt.Errorf("%w: the provider does not take the code (%s)", ErrRefused, printable(refused.ErrorCode))
	}
	if err != nil {
		return Identity{}, errors.New("the provider did not exchange the code")
	}
	raw, _ := token.Extra("id_token").(string)
	verified, err := p.Verifier(&oidc.Config{ClientID: o.opts.ClientID, Now: o.opts.Now}).Verify(ctx, raw)
	if err != nil {
		return Identity{}, fmt.Errorf("%w: the provider's word is not valid: %s", ErrRefused, printable(err.Error()))
	}
	if subtle.ConstantTimeCompare([]byte(verified.Nonce), []byte(parts[1])) != 1 {
		return Identity{}, fmt.Errorf("%w: the provider's word is for another login", ErrRefused)
	}
	return o.identity(verified)
}

// identity reads what the provider says of the user.
func (o *OIDC) identity(t *oidc.IDToken) (Identity, error) {
	var claims map[string]any
	if err := t.Claims(&claims); err != nil {
		return Identity{}, fmt.Errorf("%w: the claims can't be read", ErrRefused)
	}
	if azp, _ := claims["azp"].(string); len(t.Audience) > 1 && azp != o.opts.ClientID {
		return Identity{}, fmt.Errorf("%w: the provider's word is for another party", ErrRefused)
	}
	user, _ := claims[o.opts.UserClaim].(string)
	if user == "" || len(user) > maxUser || printable(user) != user {
		return Identity{}, fmt.Errorf("%w: the claim %s names no user", ErrRefused, o.opts.UserClaim)
	}
	if verified, _ := claims["email_verified"].(bool); o.opts.UserClaim == "email" && !verified {
		return Identity{}, fmt.Errorf("%w: the address is not verified", ErrRefused)
	}
	is := Identity{User: user}
	granted := map[string]bool{}
	switch groups := claims[o.opts.ScopeClaim].(type) {
	case string:
		granted[o.opts.Scopes[groups]] = true
	case []any:
		for _, g := range groups {
			if text, ok := g.(string); ok {
				granted[o.opts.Scopes[text]] = true
			}
		}
	}
	for _, scope := range o.opts.Order {
		if granted[scope] {
			is.Scope = scope
			break
		}
	}
	return is, nil
}

func (o *OIDC) config(p *oidc.Provider) *oauth2.Config {
	return &oauth2.Config{
		ClientID: o.opts.ClientID, ClientSecret: o.opts.ClientSecret, Endpoint: p.Endpoint(), RedirectURL: o.opts.RedirectURL,
		Scopes: []string{oidc.ScopeOpenID, "profile", "email"},
	}
}

// reach returns the provider, which it asks for its endpoints the first time.
func (o *OIDC) reach(ctx context.Context) (*oidc.Provider, error) {
	o.mu.Lock()
	p := o.provider
	o.mu.Unlock()
	if p != nil {
		return p, nil
	}
	leave, err := o.call(ctx)
	if err != nil {
		return nil, err
	}
	defer leave()
	p, err = oidc.NewProvider(oidc.ClientContext(ctx, o.client), o.opts.Issuer)
	if err != nil {
		return nil, fmt.Errorf("the provider %s does not say where it is: %s", o.opts.Issuer, printable(err.Error()))
	}
	o.mu.Lock()
	defer o.mu.Unlock()
	o.provider = p
	return p, nil
}

// call takes a place to talk to the provider.
func (o *OIDC) call(ctx context.Context) (leave func(), err error) {
	select {
	case o.calls <- struct{}{}:
		return func() { <-o.calls }, nil
	default:
	}
	if ctx.Err() != nil {
		return nil, ctx.Err()
	}
	return nil, ErrBusy
}

// use notes that a state is used, and says whether it was not before.
func (o *OIDC) use(state string) bool {
	o.mu.Lock()
	defer o.mu.Unlock()
	if _, again := o.used[state]; again {
		return false
	}
	if len(o.order) >= maxUsed {
		delete(o.used, o.order[0])
		o.order = o.order[1:]
	}
	o.used[state] = struct{}{}
	o.order = append(o.order, state)
	return true
}

func random() string {
	b := make([]byte, 32)
	_, _ = rand.Read(b) // never fails
	return base64.RawURLEncoding.EncodeToString(b)
}

// printable cuts text from elsewhere to one line of ordinary length.
func printable(s string) string {
	s = strings.Map(func(r rune) rune {
		if r < ' ' || r == 0x7f || r == utf8.RuneError || r >= 0x80 && r < 0xa0 || r >= 0x2028 && r <= 0x202e || r >= 0x2066 && r <= 0x2069 {
			return -1
		}
		return r
	}, s)
	const most = 300
	if len(s) > most {
		s = strings.ToValidUTF8(s[:most], "")
	}
	return s
}
