package pki

import (
	"bytes"
	"crypto/rand"
	"crypto/sha256"
	"encoding/base64"
	"encoding/hex"
	"errors"
	"fmt"
	"log/slog"
	"strings"
)

const (
	tokenPrefix  = "pjt1."
	tokenIDBytes = 8
	secretBytes  = 24
	tokenBytes   = tokenIDBytes + secretBytes + sha256.Size
)

// ErrToken is wrapped by the error of a text that is no join token.
var ErrToken = errors.New("this is no join token")

// JoinToken admits one node to a fleet once, and lets it know that the fleet is the right one. It never
// prints its secret; only Text has it.
type JoinToken struct {
	id     [tokenIDBytes]byte
	secret [secretBytes]byte
	pin    [sha256.Size]byte
}

// NewJoinToken makes a token for the fleet whose authority has this KeyHash.
func NewJoinToken(pin [32]byte) (JoinToken, error) {
	t := JoinToken{pin: pin}
	if _, err := rand.Read(t.id[:]); err != nil {
		return JoinToken{}, fmt.Errorf("make a join token: %w", err)
	}
	if _, err := rand.Read(t.secret[:]); err != nil {
		return JoinToken{}, fmt.Errorf("make a join token: %w", err)
	}
	return t, nil
}

// ParseJoinToken reads the text of a token; space around it is ignored. The error wraps ErrToken and never
// holds what was read.
func ParseJoinToken(text string) (JoinToken, error) {
	encoded, ok := strings.CutPrefix(strings.TrimSpace(text), tokenPrefix)
	if !ok {
		return JoinToken{}, fmt.Errorf("%w: a join token begins with %s", ErrToken, tokenPrefix)
	}
	// Line breaks inside would be skipped by the decoder; one token has one text.
	if want := base64.RawURLEncoding.EncodedLen(tokenBytes); len(encoded) != want {
		return JoinToken{}, fmt.Errorf("%w: it has %d characters after %s, a join token has %d; was it cut?",
			ErrToken, len(encoded), tokenPrefix, want)
	}
	raw, err := base64.RawURLEncoding.Strict().DecodeString(encoded)
	if err != nil || len(raw) != tokenBytes {
		return JoinToken{}, fmt.Errorf("%w: it has other characters than A-Z a-z 0-9 - _, or was changed", ErrToken)
	}
	var t JoinToken
	r := bytes.NewReader(raw)
	for _, part := range [][]byte{t.id[:], t.secret[:], t.pin[:]} {
		if _, err := r.Read(part); err != nil {
			return JoinToken{}, fmt.Errorf("%w: %w", ErrToken, err)
		}
	}
	return t, nil
}

// Text is the whole token with its secret.
func (t JoinToken) Text() string {
	raw := bytes.Join([][]byte{t.id[:], t.secret[:], t.pin[:]}, nil)
	return tokenPrefix + base64.RawURLEncoding.EncodeToString(raw)
}

// ID names the token among those of its fleet, in hex. It is no secret.
func (t JoinToken) ID() string { return hex.EncodeToString(t.id[:]) }

// SecretHash is what the fleet knows of the secret.
func (t JoinToken) SecretHash() [32]byte { return sha256.Sum256(t.secret[:]) }

// Secret is what the joining node sends. It owns the result.
func (t JoinToken) Secret() []byte { return bytes.Clone(t.secret[:]) }

// Pin is the KeyHash of the fleet's authority.
func (t JoinToken) Pin() [32]byte { return t.pin }

// String names the token without its secret.
func (t JoinToken) String() string { return "join token " + t.ID() }

// GoString is String, so that no verb prints the secret.
func (t JoinToken) GoString() string { return t.String() }

// LogValue is String.
func (t JoinToken) LogValue() slog.Value { return slog.StringValue(t.String()) }
