package pki

import (
	"encoding/base64"
	"errors"
	"fmt"
	"log/slog"
	"strings"
	"testing"
)

func TestJoinTokens(t *testing.T) {
	token := must(NewJoinToken([32]byte{1, 2, 3}))
	again := must(ParseJoinToken(" " + token.Text() + "\n"))
	if again != token || again.Pin() != [32]byte{1, 2, 3} || len(token.ID()) != 16 {
		t.Errorf("%v became %v", token, again)
	}
	if other := must(NewJoinToken([32]byte{1, 2, 3})); other.ID() == token.ID() || other.SecretHash() == token.SecretHash() {
		t.Error("two tokens are alike")
	}
	var log strings.Builder
	slog.New(slog.NewTextHandler(&log, nil)).Info("x", "t", token, "p", &token)
	secret := base64.RawURLEncoding.EncodeToString(token.secret[:])
	for _, shown := range []string{fmt.Sprintf("%+v %#v %v", token, token, &token), log.String()} {
		if strings.Contains(shown, secret[:8]) || strings.Contains(shown, token.Text()) ||
			strings.Contains(shown, fmt.Sprintf("%d", token.secret[:4])[1:]) || !strings.Contains(shown, token.ID()) {
			t.Errorf("shown as %s", shown)
		}
	}
}

func TestTextsThatAreNoTokens(t *testing.T) {
	good := must(NewJoinToken([32]byte{})).Text()
	body := good[len(tokenPrefix):]
	for in, says := range map[string]string{
		"":                                     "begins with pjt1.",
		"hello":                                "begins with pjt1.",
		"pjt2." + body:                         "begins with pjt1.",
		"pjt1.":                                "was it cut",
		good[:len(good)-1]:                     "was it cut",
		good + "A":                             "was it cut",
		good[:40] + "\n":                       "was it cut",
		"pjt1." + body[:85] + "=":              "other characters",
		"pjt1." + body[:84] + "++":             "other characters",
		"pjt1." + body[:40] + "\n" + body[41:]: "other characters",
		"pjt1." + body[:85] + "B":              "other characters", // bits beyond the last byte
	} {
		_, err := ParseJoinToken(in)
		if !errors.Is(err, ErrToken) || !strings.Contains(fmt.Sprint(err), says) {
			t.Errorf("%q: got %v, want %q in it", in, err, says)
		}
		if strings.Contains(fmt.Sprint(err), body[:20]) {
			t.Errorf("the error holds the token: %v", err)
		}
	}
}

// FuzzParseJoinToken: no text panics, and what is read has exactly one text.
func FuzzParseJoinToken(f *testing.F) {
	f.Add(must(NewJoinToken([32]byte{9})).Text())
	f.Add("pjt1.")
	f.Add("pjt1." + strings.Repeat("_", 86))
	f.Fuzz(func(t *testing.T, text string) {
		token, err := ParseJoinToken(text)
		if err != nil {
			if !errors.Is(err, ErrToken) {
				t.Fatalf("error of another kind: %v", err)
			}
			return
		}
		if token.Text() != strings.TrimSpace(text) {
			t.Fatalf("%q is read as %q", text, token.Text())
		}
	})
}
