// Package login checks passwords and identity providers, and bounds how often that is tried. It knows no users and no
// HTTP of ours: package httpapi does.
package login

import (
	"context"
	"crypto/rand"
	"crypto/subtle"
	"encoding/base64"
	"errors"
	"fmt"
	"runtime"
	"strings"
	"sync/atomic"
	"time"
	"unicode/utf8"

	"golang.org/x/crypto/argon2"
)

// The parameters of argon2id, as OWASP's Password Storage Cheat Sheet recommends them: 19 MiB, two passes.
const (
	memoryKiB = 19 * 1024
	passes    = 2
	threads   = 1
	saltBytes = 16
	keyBytes  = 32
)

// Limits of a password, in characters and bytes.
const (
	MinPassword      = 12
	MaxPasswordBytes = 1024
)

const (
	// mostSlots bounds how many passwords are checked at once for each of two sorts of callers: 4 x 19 MiB at most.
	mostSlots = 2
	// queued is how many callers of one sort wait for a slot.
	queued = 16
	// waits is how long one of them waits. Those before it take some 40 ms each.
	waits = 5 * time.Second
)

// ErrBusy says that too many passwords are being checked.
var ErrBusy = errors.New("too many logins at once")

// Passwords hashes and checks passwords. It is safe for concurrent use. What it costs is bounded: two sorts of
// callers, known devices and all others, have a few slots each, so that a flood of the others keeps nobody out who has
// logged in before.
type Passwords struct {
	known, others gate
	nobody        string // the hash of a password that nobody has
}

// gate admits a few at once.
type gate struct {
	slots   chan struct{}
	waiting atomic.Int64
}

// NewPasswords returns a checker. It hashes once, which takes some 40 ms.
func NewPasswords() *Passwords {
	// A quarter of the processors: the rest is for what must not wait for a flood of logins.
	slots := min(max(runtime.GOMAXPROCS(0)/4, 1), mostSlots)
	p := &Passwords{known: gate{slots: make(chan struct{}, slots)}, others: gate{slots: make(chan struct{}, slots)}}
	p.nobody = encode(salted(rand.Text()))
	return p
}

// Check says what is wrong with a password that somebody wants to have, "" if nothing is.
func Check(password, user string) string {
	switch {
	case !utf8.ValidString(password):
		return "is not valid UTF-8"
	case utf8.RuneCountInString(password) < MinPassword:
		return fmt.Sprintf("has fewer than %d characters", MinPassword)
	case len(password) > MaxPasswordBytes:
		return fmt.Sprintf("has more than %d bytes", MaxPasswordBytes)
	case strings.Contains(strings.ToLower(password), strings.ToLower(user)) && len(password) < len(user)+MinPassword:
		return "is little more than the name of the user"
	case strings.Count(password, password[:1]) == len(password):
		return "is one character again and again"
	}
	return ""
}

// Hash returns the argon2id hash of a password in the PHC form. It waits for a slot; the error is ErrBusy or that of ctx.
func (p *Passwords) Hash(ctx context.Context, password string) (string, error) {
	leave, err := p.known.enter(ctx) // who sets a password is known already
	if err != nil {
		return "", err
	}
	defer leave()
	return encode(salted(password)), nil
}

// Verify says whether the password has the hash. An empty hash stands for a user that does not exist: it takes as long,
// and the answer is no. Known is set for a caller whose device has logged in before. The error is ErrBusy or that of ctx.
func (p *Passwords) Verify(ctx context.Context, hash, password string, known bool) (bool, error) {
	g := &p.others
	if known {
		g = &p.known
	}
	leave, err := g.enter(ctx)
	if err != nil {
		return false, err
	}
	defer leave()
	nobody := hash == ""
	if nobody {
		hash = p.nobody
	}
	h, err := decode(hash)
	if err != nil {
		return false, err
	}
	got := argon2.IDKey([]byte(password), h.salt, h.passes, h.memory, h.threads, uint32(len(h.key)))
	return subtle.ConstantTimeCompare(got, h.key) == 1 && !nobody, nil
}

// enter waits for a slot.
func (g *gate) enter(ctx context.Context) (leave func(), err error) {
	if g.waiting.Add(1) > queued {
		g.waiting.Add(-1)
		return nil, ErrBusy
	}
	defer g.waiting.Add(-1)
	t := time.NewTimer(waits)
	defer t.Stop()
	select {
	case g.slots <- struct{}{}:
		return func() { <-g.slots }, nil
	case <-t.C:
		return nil, ErrBusy
	case <-ctx.Done():
		return nil, ctx.Err()
	}
}

// hashed is a hash in its parts.
type hashed struct {
	memory, passes uint32
	threads        uint8
	salt, key      []byte
}

func salted(password string) hashed {
	h := hashed{memory: memoryKiB, passes: passes, threads: threads, salt: make([]byte, saltBytes)}
	_, _ = rand.Read(h.salt) // never fails
	h.key = argon2.IDKey([]byte(password), h.salt, h.passes, h.memory, h.threads, keyBytes)
	return h
}

func encode(h hashed) string {
	b64 := base64.RawStdEncoding
	return fmt.Sprintf("$argon2id$v=%d$m=%d,t=%d,p=%d$%s$%s",
		argon2.Version, h.memory, h.passes, h.threads, b64.EncodeToString(h.salt), b64.EncodeToString(h.key))
}

// decode reads a hash. One that would cost much more than ours is refused: it was not made here.
func decode(s string) (h hashed, err error) {
	var version int
	parts := strings.Split(s, "$")
	if len(parts) != 6 || parts[0] != "" || parts[1] != "argon2id" {
		return h, errors.New("login: what is kept is no argon2id hash")
	}
	_, err1 := fmt.Sscanf(parts[2], "v=%d", &version)
	_, err2 := fmt.Sscanf(parts[3], "m=%d,t=%d,p=%d", &h.memory, &h.passes, &h.threads)
	var err3, err4 error
	h.salt, err3 = base64.RawStdEncoding.Strict().DecodeString(parts[4])
	h.key, err4 = base64.RawStdEncoding.Strict().DecodeString(parts[5])
	switch {
	case errors.Join(err1, err2, err3, err4) != nil, version != argon2.Version, len(h.salt) < 8, len(h.key) < 16:
		return h, errors.New("login: what is kept is no argon2id hash")
	case h.memory > 4*memoryKiB, h.memory < 8, h.passes == 0, h.passes > 10, h.threads == 0, h.threads > 4:
		return h, errors.New("login: what is kept is an argon2id hash of other costs than are used here")
	}
	return h, nil
}
