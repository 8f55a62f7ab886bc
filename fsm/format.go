package fsm

import (
	"fmt"
	"slices"
	"strings"
)

// FormatOf returns the lowest command format that can apply an op. A command is written in that format, so
// that a fleet in which the newest build is not everywhere goes on with what all of it can read.
func FormatOf(op Op) uint32 {
	least := uint32(1)
	if b, ok := op.(Batch); ok {
		for _, o := range b.Ops {
			least = max(least, FormatOf(o))
		}
		return least
	}
	if f, ok := newerThan1(op); ok {
		least = f
	}
	return least
}

// reads is the highest command format that a node reports to read. One that never said so has format 1.
func (n *Node) reads() uint32 { return max(n.Format, 1) }

// Format returns the highest command format that the log has needed so far. A build that reads less can't follow
// this fleet any more.
func (v *View) Format() uint32 { return max(v.format, 1) }

// Readable returns nil if every node of the fleet reads the op, else a refusal with CodeUpgrade that names those
// which don't: an entry that a node can't read stops its state, and is never written. The leader asks before it appends.
func (v *View) Readable(op Op) *Error { return v.readable(FormatOf(op)) }

func (v *View) readable(needed uint32) *Error {
	if needed <= 1 {
		return nil
	}
	var behind []string
	for n := range v.Members() {
		if reads := n.reads(); reads < needed {
			behind = append(behind, fmt.Sprintf("%s (reads %d%s)", n.ID, reads, ofVersion(n.Version)))
		}
	}
	if len(behind) == 0 {
		return nil
	}
	const named = 10
	slices.Sort(behind)
	if more := len(behind) - named; more > 0 {
		behind = append(behind[:named], fmt.Sprintf("and %d more", more))
	}
	return &Error{CodeUpgrade, "", fmt.Sprintf("this needs command format %d, which these nodes do not read yet: %s; upgrade them first, nothing was written",
		needed, strings.Join(behind, ", "))}
}

func ofVersion(version string) string {
	if version == "" {
		return ""
	}
	return ", version " + version
}
