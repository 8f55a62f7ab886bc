package agent

import (
	"archive/tar"
	"bytes"
	"compress/gzip"
	"context"
	"errors"
	"io"
	"strings"
	"testing"
	"time"

	"github.com/palisade/palisade/internal/logs"
)

// TestTheConfigOfABundleHasNoSecrets, nor hashes of them, and else all that was set.
func TestTheConfigOfABundleHasNoSecrets(t *testing.T) {
	b := &bundler{cfg: Config{DataDir: "/data/canary-dir"}}
	b.cfg.API.OIDC = OIDCConfig{ClientID: "billing", ClientSecretFile: "/etc/oidc.secret"}
	var out bytes.Buffer
	if err := b.config(t.Context(), &out); err != nil {
		t.Fatal(err)
	}
	if text := out.String(); !strings.Contains(text, "/data/canary-dir") || !strings.Contains(text, "billing") || !strings.Contains(text, "/etc/oidc.secret") {
		t.Errorf("it is\n%s", text)
	}
	keys := "sha256 = 'c4nary'\nclient_secret = 'c4nary'\n\tpassword = \"c4nary\"\n'smtp_password' = 'c4nary'\ntoken = 'c4nary'\nkey_file = '/etc/key'\ntls_key = '/etc/api.key'\n"
	if got := secretKey().ReplaceAllString(keys, "$1x"); strings.Contains(got, "c4nary") || !strings.Contains(got, "/etc/key") || !strings.Contains(got, "/etc/api.key") {
		t.Errorf("got\n%s", got)
	}
}

// TestABundleIsBounded: a part that is too large is cut, one that fails says why, and text is scrubbed.
func TestABundleIsBounded(t *testing.T) {
	b := &bundler{scrub: logs.NewScrubber(), now: time.Now}
	long := strings.Repeat("x", bundleFileMost)
	var out bytes.Buffer
	err := b.write(t.Context(), &out, []bundleFile{
		{"long.txt", false, func(_ context.Context, w io.Writer) error { _, err := io.WriteString(w, long+"yyy"); return err }},
		{"bad.txt", false, func(context.Context, io.Writer) error { return errors.New("get https://u:c4nary@h/") }},
		{"token.txt", false, func(_ context.Context, w io.Writer) error {
			_, err := io.WriteString(w, "Bearer c4naryc4nary")
			return err
		}},
	})
	if err != nil {
		t.Fatal(err)
	}
	z, err := gzip.NewReader(&out)
	if err != nil {
		t.Fatal(err)
	}
	got := map[string]string{}
	for r := tar.NewReader(z); ; {
		h, err := r.Next()
		if errors.Is(err, io.EOF) {
			break
		}
		text, rerr := io.ReadAll(r)
		if err != nil || rerr != nil || h.Mode != 0o600 {
			t.Fatal(err, rerr, h)
		}
		got[h.Name] = string(text)
	}
	if text := got["palisade-debug/long.txt"]; !strings.HasPrefix(text, long) || !strings.HasSuffix(text, "and 3 bytes more\n") || len(text) > bundleFileMost+100 {
		t.Errorf("the long part has %d bytes", len(text))
	}
	if text := got["palisade-debug/bad.txt.error"]; text != "this part could not be made: get https://…@h/\n" {
		t.Errorf("the bad part says %q", text)
	}
	if text := got["palisade-debug/token.txt"]; text != "Bearer …" {
		t.Errorf("the token is %q", text)
	}
}
