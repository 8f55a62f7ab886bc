package agent

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
)

const oidcText = `
[api.oidc]
issuer = "https://idp.example"
client_id = "palisade"
client_secret_file = "SECRET"
redirect_url = "https://node-1.example:8440/v1/login/oidc/callback"
[api.oidc.scopes]
ops = "admin"
`

func TestOIDCConfig(t *testing.T) {
	secret := filepath.Join(t.TempDir(), "secret")
	if err := os.WriteFile(secret, []byte("CANARY\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	text := goodConfig + strings.Replace(oidcText, "SECRET", secret, 1)
	cfg, err := parseConfig([]byte(text))
	if err != nil {
		t.Fatal(err)
	}
	if p, err := newOIDC(cfg.API.OIDC); p == nil || err != nil {
		t.Errorf("%v, %v", p, err)
	}
	if err := os.Chmod(secret, 0o644); err != nil {
		t.Fatal(err)
	}
	if _, err := newOIDC(cfg.API.OIDC); err == nil || !strings.Contains(err.Error(), "chmod 600") || strings.Contains(err.Error(), "CANARY") {
		t.Errorf("a secret that others can read: %v", err)
	}
	if err := os.WriteFile(secret, []byte("CANARY\nSECRET\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.Chmod(secret, 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := newOIDC(cfg.API.OIDC); err == nil || strings.Contains(err.Error(), "CANARY") {
		t.Errorf("a secret of two lines: %v", err)
	}
	for old, c := range map[string][2]string{
		`"https://idp.example"`: {`"http://idp.example"`, "no https URL"}, `"palisade"`: {`""`, "client_id"}, `"admin"`: {`"root"`, "none of admin"},
		`"https://node-1`: {`"http://node-1`, "no https URL"},
	} {
		bad := goodConfig + strings.Replace(oidcText, old, c[0], 1)
		if _, err := parseConfig([]byte(bad)); err == nil || !strings.Contains(err.Error(), c[1]) {
			t.Errorf("%s instead of %s: %v, want %q", c[0], old, err, c[1])
		}
	}
	if cfg, err = parseConfig([]byte(goodConfig)); err != nil {
		t.Fatal(err)
	}
	if p, err := newOIDC(cfg.API.OIDC); p != nil || err != nil {
		t.Errorf("without a provider: %v, %v", p, err)
	}
}
