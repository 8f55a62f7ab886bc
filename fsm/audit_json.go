package fsm

import (
	"encoding/hex"
	"net/netip"
	"strconv"
	"strings"
	"time"
	"unicode/utf8"
)

// auditJSON writes JSON in one order, without what is empty. It is written by hand because every block
// waits for it, and because its bytes are hashed: no library may ever improve them.
//
// What it writes is part of the replicated state. Another field, order or form needs what every changed semantics
// of an old command needs, see DESIGN.md.
type auditJSON struct{ b []byte }

func (j *auditJSON) key(k string) {
	if k == "" {
		j.comma()
		return
	}
	j.comma()
	j.b = append(j.b, '"')
	j.b = append(j.b, k...)
	j.b = append(j.b, '"', ':')
}

// comma parts what follows from what was written, unless that only opened something.
func (j *auditJSON) comma() {
	if last := j.b[len(j.b)-1]; last != '{' && last != '[' {
		j.b = append(j.b, ',')
	}
}

// open begins an object or a list; in a list the key is empty.
func (j *auditJSON) open(k string, bracket byte) {
	j.key(k)
	j.b = append(j.b, bracket)
}

func (j *auditJSON) close(bracket byte) { j.b = append(j.b, bracket) }

func (j *auditJSON) number(k string, n uint64) {
	if n != 0 {
		j.key(k)
		j.b = strconv.AppendUint(j.b, n, 10)
	}
}

func (j *auditJSON) flag(k string, set bool) {
	if set {
		j.key(k)
		j.b = append(j.b, "true"...)
	}
}

func (j *auditJSON) hex(k string, data []byte) {
	j.key(k)
	j.b = append(j.b, '"')
	j.b = hex.AppendEncode(j.b, data)
	j.b = append(j.b, '"')
}

func (j *auditJSON) time(k string, t time.Time) {
	if !t.IsZero() {
		j.key(k)
		j.b = t.UTC().AppendFormat(append(j.b, '"'), time.RFC3339Nano)
		j.b = append(j.b, '"')
	}
}

func (j *auditJSON) text(k, s string) {
	if s != "" {
		j.key(k)
		j.quote(s)
	}
}

// quote writes a string. What is no UTF-8 becomes U+FFFD, as encoding/json does it.
func (j *auditJSON) quote(s string) {
	const digits = "0123456789abcdef"
	j.b = append(j.b, '"')
	from := 0
	for i := 0; i < len(s); {
		c := s[i]
		if c >= ' ' && c < utf8.RuneSelf && c != '"' && c != '\\' && c != 0x7f {
			i++
			continue
		}
		size := 1
		if c >= utf8.RuneSelf {
			var r rune
			if r, size = utf8.DecodeRuneInString(s[i:]); r != utf8.RuneError || size > 1 {
				i += size
				continue
			}
		}
		j.b = append(j.b, s[from:i]...)
		switch {
		case c >= utf8.RuneSelf:
			j.b = append(j.b, "\uFFFD"...)
		case c == '"', c == '\\':
			j.b = append(j.b, '\\', c)
		case c == '\n':
			j.b = append(j.b, '\\', 'n')
		default:
			j.b = append(j.b, '\\', 'u', '0', '0', digits[c>>4], digits[c&15])
		}
		i += size
		from = i
	}
	j.b = append(append(j.b, s[from:]...), '"')
}

func (j *auditJSON) prefix(k string, p netip.Prefix) {
	if p.IsValid() {
		j.key(k)
		j.b = p.AppendTo(append(j.b, '"'))
		j.b = append(j.b, '"')
	}
}

func (j *auditJSON) prefixes(k string, list []netip.Prefix) {
	if len(list) == 0 {
		return
	}
	j.open(k, '[')
	for _, p := range list {
		j.prefix("", p)
	}
	j.close(']')
}

func (j *auditJSON) addrs(k string, list []netip.Addr) {
	if len(list) == 0 {
		return
	}
	j.open(k, '[')
	for _, a := range list {
		j.key("")
		j.b = a.AppendTo(append(j.b, '"'))
		j.b = append(j.b, '"')
	}
	j.close(']')
}

// cutText cuts a text that may be longer than any that is accepted.
func cutText(s string, most int) string {
	if len(s) > most {
		return strings.ToValidUTF8(s[:most], "")
	}
	return s
}
