package fsm

import (
	"fmt"
	"slices"
	"strconv"
	"strings"
	"unicode/utf8"
)

const (
	maxIDBytes  = 255
	maxTapBytes = 15 // IFNAMSIZ without the NUL
	replacement = '\uFFFD'
)

// hidden says whether a rune may not stand in a name: control characters, line separators, and marks
// that turn the direction of the text around them. The list is written out because the tables of
// package unicode change from one Go release to the next, and every build must decide alike.
func hidden(r rune) bool {
	switch {
	case r < 0x20, r >= 0x7f && r <= 0x9f:
		return true
	case r == 0x200e, r == 0x200f, r >= 0x2028 && r <= 0x202e, r >= 0x2066 && r <= 0x2069:
		return true
	}
	return false
}

func checkText(field, s string, maxBytes int) *Error {
	switch {
	case len(s) > maxBytes:
		return &Error{CodeInvalid, field, fmt.Sprintf("has %d bytes, at most %d are allowed", len(s), maxBytes)}
	case !utf8.ValidString(s):
		return &Error{CodeInvalid, field, "is not valid UTF-8"}
	case strings.ContainsFunc(s, hidden):
		return &Error{CodeInvalid, field, "has control characters"}
	}
	return nil
}

// checkNote is checkText for the field note, which may have several lines.
func checkNote(s string) *Error {
	return checkText("note", strings.ReplaceAll(s, "\n", " "), MaxNoteBytes)
}

func checkID(field, s string) *Error {
	if s == "" {
		return &Error{CodeInvalid, field, "is missing"}
	}
	if len(s) > maxIDBytes {
		return &Error{CodeInvalid, field, fmt.Sprintf("has %d bytes, at most %d are allowed", len(s), maxIDBytes)}
	}
	for _, c := range []byte(s) {
		if !alphanumeric(c) && c != '.' && c != '_' && c != ':' && c != '-' {
			return &Error{CodeInvalid, field, quote(s) + " has other characters than A-Z a-z 0-9 . _ : -"}
		}
	}
	return nil
}

// checkWord checks a reason or a VM's kind.
func checkWord(field, s string) *Error {
	if len(s) > MaxReasonBytes {
		return &Error{CodeInvalid, field, fmt.Sprintf("has %d bytes, at most %d are allowed", len(s), MaxReasonBytes)}
	}
	for _, c := range []byte(s) {
		if !alphanumeric(c) && c != '_' && c != '-' || c >= 'A' && c <= 'Z' {
			return &Error{CodeInvalid, field, quote(s) + " has other characters than a-z 0-9 _ -"}
		}
	}
	return nil
}

func checkTap(field, s string) *Error {
	if len(s) > maxTapBytes {
		return &Error{CodeInvalid, field, fmt.Sprintf("has %d bytes, an interface name has at most %d", len(s), maxTapBytes)}
	}
	for _, c := range []byte(s) {
		if c <= ' ' || c >= 0x7f || c == '/' {
			return &Error{CodeInvalid, field, quote(s) + " is no interface name"}
		}
	}
	return nil
}

func checkCount(field string, n, most int) *Error {
	if n > most {
		return &Error{CodeInvalid, field, fmt.Sprintf("has %d elements, at most %d are allowed", n, most)}
	}
	return nil
}

// checkRevision compares a condition with an object's revision; an object that does not exist has
// revision 0 and meets no condition.
func checkRevision(want, have uint64) *Error {
	if want != 0 && want != have {
		return &Error{CodeRevision, "if_revision",
			fmt.Sprintf("revision %d was expected, the object is at revision %d", want, have)}
	}
	return nil
}

// cleanName makes any bytes a name that checkText accepts. A guest's owner may choose its name, and a
// VM must be known (to be blocked) whatever it is called.
func cleanName(s string) string {
	s = strings.ToValidUTF8(s, string(replacement))
	s = strings.Map(func(r rune) rune {
		if hidden(r) {
			return replacement
		}
		return r
	}, s)
	for len(s) > MaxNameBytes {
		cut := MaxNameBytes
		for !utf8.RuneStart(s[cut]) {
			cut--
		}
		s = s[:cut]
	}
	return s
}

func alphanumeric(c byte) bool {
	return c >= 'a' && c <= 'z' || c >= 'A' && c <= 'Z' || c >= '0' && c <= '9'
}

// quote shows foreign text in a message: escaped and cut to a readable length.
func quote(s string) string {
	const most = 64
	if len(s) > most {
		s = strings.ToValidUTF8(s[:most], "") + "..."
	}
	return strconv.QuoteToASCII(s)
}

// oneLine cuts a note to what fits in a message.
func oneLine(s string) string {
	const most = 100
	line, _, more := strings.Cut(s, "\n")
	if len(line) > most {
		line, more = strings.ToValidUTF8(line[:most], ""), true
	}
	if more {
		line += "..."
	}
	return line
}

// first returns the first refusal; checks are listed in the order of the fields.
func first(errs ...*Error) *Error {
	if i := slices.IndexFunc(errs, func(e *Error) bool { return e != nil }); i >= 0 {
		return errs[i]
	}
	return nil
}
