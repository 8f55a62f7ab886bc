package fsm

import (
	"bufio"
	"crypto/sha256"
	"encoding/binary"
	"fmt"
	"hash"
	"io"

	"google.golang.org/protobuf/encoding/protowire"

	"github.com/palisade/palisade/fsm/internal/fsmpb"
)

const (
	snapshotMagic   = "PALISADE"
	snapshotVersion = 1
	// maxRecordBytes is far above the largest object (a VM or node with all addresses it may have, some
	// 80 kB) and bounds what a reader holds.
	maxRecordBytes  = 1 << 20
	snapshotIOBytes = 64 << 10
)

// WriteSnapshot streams the state. It never blocks the writer and is deterministic: equal states give
// equal bytes. It holds one record in memory at a time. Errors are those of w.
func (v *View) WriteSnapshot(w io.Writer) error {
	out := newRecordWriter(w)
	out.write([]byte(snapshotMagic))
	header := headerRecord(&v.state)
	header.GetHeader().Version = snapshotVersion
	out.record(header)
	for n := range v.nodes.all() {
		out.record(nodeRecord(n))
	}
	for vm := range v.vms.all() {
		out.record(vmRecord(vm))
	}
	for b := range v.blocks.all() {
		out.record(blockRecord(b))
	}
	for g := range v.guards.all() {
		out.record(guardRecord(g))
	}
	for a := range v.accounts.all() {
		out.record(accountRecord(a))
	}
	out.writeLists(&v.state)
	if v.fleet != nil {
		out.record(fleetRecord(v.fleet))
	}
	for t := range v.joinTokens.all() {
		out.record(joinTokenRecord(t))
	}
	for t := range v.access.tokens.all() {
		out.record(tokenRecord(t))
	}
	for u := range v.access.users.all() {
		out.record(userRecord(u))
	}
	for s := range v.access.sessions.all() {
		out.record(sessionRecord(s))
	}
	for _, m := range v.order {
		for r := range resultRecords(m, forSnapshot) {
			out.record(r)
		}
	}
	for i := range v.events {
		out.record(eventRecord(v.firstEvent()+uint64(i), &v.events[i]))
	}
	for i, line := range v.audit.replicated() {
		seq := v.audit.head.Seq - uint64(v.audit.kept-i-1)
		out.record(&fsmpb.Record{Record: &fsmpb.Record_Audit{Audit: &fsmpb.Audit{Seq: seq, Line: line}}})
	}
	state := v.hash()
	out.record(&fsmpb.Record{Record: &fsmpb.Record_Trailer{Trailer: &fsmpb.Trailer{
		StateHash: state[:], StreamHash: out.hash.Sum(nil),
	}}})
	if err := out.flush(); err != nil {
		return fmt.Errorf("write snapshot: %w", err)
	}
	return nil
}

// firstEvent is the seq of the oldest event retained.
func (s *state) firstEvent() uint64 { return s.lastEvent - uint64(len(s.events)) + 1 }

// recordWriter writes records until the first error, which it keeps.
type recordWriter struct {
	w    *bufio.Writer
	hash hash.Hash // of everything written
	buf  []byte
	err  error
}

func newRecordWriter(w io.Writer) *recordWriter {
	return &recordWriter{w: bufio.NewWriterSize(w, snapshotIOBytes), hash: sha256.New()}
}

func (w *recordWriter) record(r *fsmpb.Record) {
	if w.err != nil {
		return
	}
	// The length goes in front, in the room that is left for it.
	const room = binary.MaxVarintLen32
	w.buf = appendCanonical(append(w.buf[:0], make([]byte, room)...), r)
	size := uint64(len(w.buf) - room)
	start := room - protowire.SizeVarint(size)
	binary.PutUvarint(w.buf[start:], size)
	w.write(w.buf[start:])
}

func (w *recordWriter) write(b []byte) {
	if w.err != nil {
		return
	}
	w.hash.Write(b) // never fails
	_, w.err = w.w.Write(b)
}

// flush ends the writing and returns the first error.
func (w *recordWriter) flush() error {
	if w.err != nil {
		return w.err
	}
	return w.w.Flush()
}
