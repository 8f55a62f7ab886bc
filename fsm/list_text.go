package fsm

import (
	"bufio"
	"bytes"
	"fmt"
	"io"
	"iter"
	"net/netip"
)

// MaxListProblems is how many bad entries of a list are told one by one.
const MaxListProblems = 100

// maxListEntries bounds the entries of one text, repeated and nested ones included.
const maxListEntries = 4 * MaxListPrefixes

// ListProblem is an entry that a list can't hold.
type ListProblem struct {
	Line   int // from 1; in JSON the place in the array
	Text   string
	Detail string
}

// ListParser collects the entries of a list and what is wrong with them. The zero value is ready; it is used
// by one goroutine.
type ListParser struct {
	Problems []ListProblem // the first MaxListProblems
	Bad      int           // all of them
	builder  PrefixSetBuilder
	n        int
}

// ReadText reads a list as text: an address or a CIDR on each line, comments from # or ; to the end of the
// line, empty lines. Bad lines become Problems. The error is one of r, or says that the text is too long; it
// names the line.
func (p *ListParser) ReadText(r io.Reader) error {
	const longestLine = 64 << 10
	lines := bufio.NewScanner(r)
	lines.Buffer(make([]byte, 0, longestLine), longestLine)
	n := 0
	for lines.Scan() {
		n++
		line := lines.Bytes()
		if i := bytes.IndexAny(line, "#;"); i >= 0 {
			line = line[:i]
		}
		if line = bytes.TrimSpace(line); len(line) == 0 {
			continue
		}
		if err := p.Add(n, string(line)); err != nil {
			return err
		}
	}
	if err := lines.Err(); err != nil {
		return fmt.Errorf("line %d: %w", n+1, err)
	}
	return nil
}

// Add takes one entry. The error says that there are too many.
func (p *ListParser) Add(line int, text string) error {
	if p.n++; p.n > maxListEntries {
		return fmt.Errorf("line %d: a list with more than %d entries can't be read", line, maxListEntries)
	}
	prefix, problem := ParsePrefix("", text)
	if problem == nil {
		problem = checkPrefix("", prefix)
	}
	if problem == nil {
		p.builder.Add(prefix)
		return nil
	}
	p.Bad++
	if len(p.Problems) < MaxListProblems {
		p.Problems = append(p.Problems, ListProblem{Line: line, Text: oneLine(text), Detail: problem.Detail})
	}
	return nil
}

// Set returns the good entries, and how many of them were repeated or lie in another.
func (p *ListParser) Set() (set PrefixSet, merged int) { return p.builder.Set() }

// chunkBytes is how much of an upload one op carries: small enough that heartbeats and urgent writes, which wait for
// it on their way to the disks, do not notice.
const chunkBytes = 64 << 10

// UploadOps walks the ops that make set the content of a list, but for the last, CommitList. They have to be
// proposed one after the other; all but the commit may be proposed again.
func UploadOps(upload, name, origin string, set PrefixSet) iter.Seq[Op] {
	return func(yield func(Op) bool) {
		if !yield(BeginList{Upload: upload, Name: name, Origin: origin}) {
			return
		}
		sequence := uint32(0)
		for part := range set.Packed(chunkBytes) {
			if !yield(AddListChunk{Upload: upload, Sequence: sequence, Prefixes: part}) {
				return
			}
			sequence++
		}
	}
}

// PatchFrom returns the op that leads from the content of a list to set, if one op can carry it.
func PatchFrom(l *List, was, set PrefixSet) (PatchList, bool) {
	var add, remove []netip.Prefix
	for p, added := range Diff(was, set) {
		if added {
			add = append(add, p)
		} else {
			remove = append(remove, p)
		}
		if max(len(add), len(remove)) > MaxListPatch {
			return PatchList{}, false
		}
	}
	op := PatchList{Name: l.Name, IfRevision: l.Revision}
	for _, p := range add {
		op.Add = AppendPacked(op.Add, p)
	}
	for _, p := range remove {
		op.Remove = AppendPacked(op.Remove, p)
	}
	return op, true
}

// Pack returns the set in packed form in one piece.
func (s PrefixSet) Pack() []byte {
	b := make([]byte, 0, sum(s.v4)*packed4+sum(s.v6)*packed6)
	for block := range s.eachBlock() {
		b = append(b, block.packed...)
	}
	return b
}
