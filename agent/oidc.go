package agent

import (
	"crypto/x509"
	"fmt"
	"os"
	"strings"

	"github.com/palisade/palisade/fsm"
	"github.com/palisade/palisade/httpapi/login"
)

// OIDCConfig says which OpenID Connect provider vouches for users. Without an issuer there is none.
type OIDCConfig struct {
	Issuer           string `toml:"issuer"`
	ClientID         string `toml:"client_id"`
	ClientSecretFile string `toml:"client_secret_file"` // readable by the agent alone; empty for a public client
	RedirectURL      string `toml:"redirect_url"`       // of this node's API, with the path /v1/login/oidc/callback
	CAFile           string `toml:"ca_file"`            // PEM, that verifies the provider; the system's if empty
	UserClaim        string `toml:"user_claim"`         // "sub" if empty
	ScopeClaim       string `toml:"scope_claim"`        // "groups" if empty
	// Scopes maps values of the claim to scopes; the widest of a user's counts.
	Scopes map[string]string `toml:"scopes"`
}

func (c *OIDCConfig) options() login.OIDCOptions {
	o := login.OIDCOptions{
		Issuer: c.Issuer, ClientID: c.ClientID, RedirectURL: c.RedirectURL, UserClaim: c.UserClaim, ScopeClaim: c.ScopeClaim, Scopes: c.Scopes,
	}
	for _, s := range fsm.Scopes() {
		o.Order = append(o.Order, string(s))
	}
	return o
}

func (c *OIDCConfig) validate(bad func(key, format string, args ...any)) {
	if c.Issuer == "" {
		if c.ClientID != "" || len(c.Scopes) > 0 {
			bad("api.oidc.issuer", "is missing")
		}
		return
	}
	o := c.options()
	if err := o.Validate(); err != nil {
		bad("api.oidc", "%s", err)
	}
}

// newOIDC returns nil if no provider is configured.
func newOIDC(c OIDCConfig) (*login.OIDC, error) {
	if c.Issuer == "" {
		return nil, nil //nolint:nilnil // no provider is a valid choice, and no error
	}
	o := c.options()
	if c.ClientSecretFile != "" {
		secret, err := readSecret(c.ClientSecretFile)
		if err != nil {
			return nil, fmt.Errorf("api.oidc.client_secret_file: %w", err)
		}
		o.ClientSecret = secret
	}
	if c.CAFile != "" {
		pem, err := os.ReadFile(c.CAFile)
		if err != nil {
			return nil, fmt.Errorf("api.oidc.ca_file: %w", err)
		}
		o.RootCAs = x509.NewCertPool()
		if !o.RootCAs.AppendCertsFromPEM(pem) {
			return nil, fmt.Errorf("api.oidc.ca_file: %s has no certificate in PEM form", c.CAFile)
		}
	}
	p, err := login.NewOIDC(o)
	if err != nil {
		return nil, fmt.Errorf("api.oidc: %w", err)
	}
	return p, nil
}

// readSecret reads a file of one line. One that others on the machine can read is refused.
func readSecret(path string) (string, error) {
	st, err := os.Stat(path)
	if err != nil {
		return "", err
	}
	if st.Mode().Perm()&0o077 != 0 {
		return "", fmt.Errorf("%s has mode %o: others can read it; run: chmod 600 %s", path, st.Mode().Perm(), path)
	}
	b, err := os.ReadFile(path)
	if err != nil {
		return "", err
	}
	secret := strings.TrimSpace(string(b))
	if secret == "" || strings.ContainsAny(secret, "\r\n") {
		return "", fmt.Errorf("%s does not hold one line", path)
	}
	return secret, nil
}
