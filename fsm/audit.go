package fsm

import (
	"bytes"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"sort"
	"strconv"
)

// RetainedAudit and RetainedAuditBytes bound the audit lines in the state (oldest forgotten first). A
// node that was away for longer gets what it missed from the files of the others.
const (
	RetainedAudit      = 16_384
	RetainedAuditBytes = 32 << 20
)

// MaxAuditLine is far above the longest line, of a VM with all addresses it may have before and after.
const MaxAuditLine = 1 << 20

// AuditChain follows the lines of the audit. Each line is one JSON object that begins with its number
// and the SHA-256 of the line before (without its newline); the first has the number 1 and 64 zeros. The
// zero value waits for the first line.
type AuditChain struct {
	Seq  uint64   // of the last line
	Head [32]byte // SHA-256 of the last line
}

// ErrAuditChain is wrapped by every error of a line that does not continue a chain.
var ErrAuditChain = errors.New("the audit chain is broken")

// AuditFrom returns a chain that the line given continues, whatever came before it.
func AuditFrom(line []byte) (AuditChain, error) {
	seq, prev, ok := auditLink(line)
	if !ok {
		return AuditChain{}, fmt.Errorf("%w: the first line is no audit record", ErrAuditChain)
	}
	return AuditChain{Seq: seq - 1, Head: prev}, nil
}

// Next takes the next line, without its newline. It refuses one that does not continue the chain, with
// an error that wraps ErrAuditChain and names the records, and then stays as it is.
func (c *AuditChain) Next(line []byte) error {
	seq, prev, ok := auditLink(line)
	switch {
	case !ok:
		return fmt.Errorf("%w: what follows record %d is no audit record", ErrAuditChain, c.Seq)
	case seq > c.Seq+1:
		return fmt.Errorf("%w: record %d follows record %d: %d are missing", ErrAuditChain, seq, c.Seq, seq-c.Seq-1)
	case seq <= c.Seq:
		return fmt.Errorf("%w: record %d follows record %d: it is repeated or out of order", ErrAuditChain, seq, c.Seq)
	case prev != c.Head && seq == 1:
		return fmt.Errorf("%w: record 1 names a record before it", ErrAuditChain)
	case prev != c.Head:
		return fmt.Errorf("%w: record %d was changed: its SHA-256 is %x, record %d says that it was %x",
			ErrAuditChain, c.Seq, c.Head, seq, prev)
	}
	c.Seq, c.Head = seq, sha256.Sum256(line)
	return nil
}

// auditLink reads how a line begins.
func auditLink(line []byte) (seq uint64, prev [32]byte, ok bool) {
	rest, ok := bytes.CutPrefix(line, []byte(`{"seq":`))
	if !ok || len(line) > MaxAuditLine || line[len(line)-1] != '}' || bytes.IndexByte(line, '\n') >= 0 {
		return 0, prev, false
	}
	number, rest, ok := bytes.Cut(rest, []byte(`,"prev":"`))
	if !ok || len(rest) < hex.EncodedLen(len(prev)) || len(number) > 20 || bytes.HasPrefix(number, []byte("0")) {
		return 0, prev, false
	}
	seq, err := strconv.ParseUint(string(number), 10, 64)
	if err != nil {
		return 0, prev, false
	}
	_, err = hex.Decode(prev[:], rest[:hex.EncodedLen(len(prev))])
	return seq, prev, err == nil
}

// AuditHead returns the number and the SHA-256 of the newest audit line, zeros if there is none.
func (v *View) AuditHead() AuditChain { return v.audit.head }

// AuditSince returns the audit lines after the number given, oldest first and without newlines, and
// whether those are all: older ones may be forgotten here. They must not be changed.
func (v *View) AuditSince(seq uint64) (lines [][]byte, complete bool) {
	l := &v.audit
	if seq >= l.head.Seq {
		return nil, true
	}
	first := l.first()
	i := sort.Search(len(l.lines), func(i int) bool { return first+uint64(i) > seq })
	// Without spare capacity: appending to it can't reach the writer's part of the array.
	return l.lines[i:len(l.lines):len(l.lines)], seq+1 >= first
}

// auditLines are the newest lines of the audit and where its chain stands.
type auditLines struct {
	head  AuditChain
	lines [][]byte // append-only and shared, as state says
	bytes int      // of lines
	// kept of the lines, with keptBytes, are part of the replicated state. What is before them is held
	// for this node's disk, see Store.HoldAudit.
	kept, keptBytes int
}

// maxHeldAuditBytes bounds what is held for a disk that does not take it.
const maxHeldAuditBytes = 256 << 20

// add appends a line, which the caller no longer changes. Of the older lines, most are kept, and those
// after the number held.
func (l *auditLines) add(line []byte, head AuditChain, most int, held uint64) {
	l.head = head
	l.lines = append(l.lines, line)
	l.bytes += len(line)
	l.kept++
	l.keptBytes += len(line)
	for l.kept > 1 && (l.kept > most || l.keptBytes > RetainedAuditBytes) {
		l.keptBytes -= len(l.lines[len(l.lines)-l.kept])
		l.kept--
	}
	for len(l.lines) > l.kept && (l.first() <= held || l.bytes > maxHeldAuditBytes) {
		l.bytes -= len(l.lines[0])
		l.lines = l.lines[1:]
	}
}

// first is the number of the oldest line.
func (l *auditLines) first() uint64 { return l.head.Seq - uint64(len(l.lines)) + 1 }

// replicated are the lines that every node has.
func (l *auditLines) replicated() [][]byte { return l.lines[len(l.lines)-l.kept:] }

// holdsNothing is the number after which HoldAudit holds lines, before it is called.
const holdsNothing = 1<<64 - 1

// HoldAudit keeps the audit lines after the number given in the views, however many they are, until it is
// called again: they are not on this node's disk yet. They are no part of the replicated state. It may be
// called at any time; without it, nothing is held.
func (s *Store) HoldAudit(after uint64) { s.held.Store(after) }

// audit reads one line of a snapshot.
func (b *rebuild) audit() error {
	r, d, err := b.in.decode()
	if err != nil {
		return err
	}
	m := r.GetAudit()
	if m == nil {
		return damaged("an audit record is missing")
	}
	d.known(m)
	if d.err != nil {
		return damage(d.err)
	}
	l := &b.applier.audit
	if len(l.lines) == 0 {
		// What the first line follows is forgotten; that it is the right line is said by those after it.
		if l.head, err = AuditFrom(m.Line); err != nil {
			return damaged("%v", err)
		}
	}
	if err := l.head.Next(m.Line); err != nil || l.head.Seq != m.Seq {
		return damaged("audit record %d is out of order: %v", m.Seq, err)
	}
	l.lines = append(l.lines, m.Line)
	l.bytes += len(m.Line)
	l.kept, l.keptBytes = len(l.lines), l.bytes
	return nil
}

// checkAudit compares the chain that was read with where the header says that it stands.
func (b *rebuild) checkAudit() error {
	l := &b.applier.audit
	var head [32]byte
	if copy(head[:], b.header.AuditHead) != len(b.header.AuditHead) || l.head != (AuditChain{b.header.LastAudit, head}) {
		return damaged("its audit ends at record %d, it has %d", b.header.LastAudit, l.head.Seq)
	}
	if len(l.lines) > max(1, b.applier.limits.audits) || l.bytes > max(RetainedAuditBytes, MaxAuditLine) {
		return damaged("it holds more of the audit than is ever retained")
	}
	return nil
}
