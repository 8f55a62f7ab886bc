package logs

import (
	"bytes"
	"regexp"
	"slices"
)

// Scrubber takes out of text what looks like a secret: what our own begin with, and what others put into
// addresses and headers. It is the second line: what logs is not to log secrets. It is safe for concurrent use.
type Scrubber struct{ forms []form }

// form is how one kind of secret looks.
type form struct {
	hints []string // in small letters: text that has none of them is not searched
	find  *regexp.Regexp
}

// NewScrubber compiles the forms.
func NewScrubber() *Scrubber {
	s := &Scrubber{}
	add := func(find string, hints ...string) { // the groups of find stay
		s.forms = append(s.forms, form{hints, regexp.MustCompile(find)})
	}
	add(`\b(plt_|pls_|pjt1\.)[A-Za-z0-9_-]{8,}`, "plt_", "pls_", "pjt1.")                                 // API tokens, sessions, join tokens
	add(`(?i)\b((?:bearer|basic)\s+)[A-Za-z0-9._~+/=-]{8,}`, "bearer", "basic")                           // of the Authorization header
	add(`([a-z][a-z0-9+.-]*://)[^/?#@\s"']+(@)`, "://")                                                   // user and password of a URL
	add(`([a-z][a-z0-9+.-]*://[^\s"'?]+\?)[^\s"'#]+`, "://")                                              // its query, in which keys are given
	add(`(?i)((?:password|passwd|secret|api_?key|access_?token)\\?["']?\s*[=:]\s*\\?["']?)[^\s"',;}\\]+`, // assignments
		"passw", "secret", "api", "access")
	add(`(__Host-palisade[a-z-]*=)[^;\s"]+`, "__host-") // sessions
	add(`(-----BEGIN [A-Z ]*PRIVATE KEY-----)[^-]*`, "private key")
	add(`(AGE-SECRET-KEY-1)[A-Z0-9]+`, "age-secret")
	add(`(\$argon2id?\$)[^\s"]+`, "$argon2") // the hash of a password
	return s
}

// Scrub returns the text without them; the text itself is not changed.
func (s *Scrubber) Scrub(text []byte) []byte {
	small := bytes.ToLower(text)
	for _, f := range s.forms {
		if slices.ContainsFunc(f.hints, func(h string) bool { return bytes.Contains(small, []byte(h)) }) {
			text = f.find.ReplaceAll(text, []byte("${1}…${2}"))
		}
	}
	return text
}
