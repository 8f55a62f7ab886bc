package fsm

import (
	"bufio"
	"bytes"
	"crypto/sha256"
	"encoding/binary"
	"errors"
	"fmt"
	"hash"
	"io"

	"google.golang.org/protobuf/proto"

	"github.com/palisade/palisade/fsm/internal/fsmpb"
)

// ErrSnapshot is wrapped by the error of a Restore from what is no intact snapshot.
var ErrSnapshot = errors.New("damaged snapshot")

// Restore replaces the state by a snapshot. The old state stays if it returns an error: one of r, one
// that wraps ErrSnapshot, or an *UnsupportedError for the snapshot of a newer build. It reads r to its
// end. A store that was halted applies again.
func (s *Store) Restore(r io.Reader) error {
	b := rebuild{
		in:      recordReader{r: bufio.NewReaderSize(r, snapshotIOBytes), hash: sha256.New()},
		applier: applier{state: newState(), limits: s.limits},
	}
	if err := b.run(); err != nil {
		return fmt.Errorf("restore: %w", err)
	}
	s.halted.Store(nil)
	s.publish(b.applier.state, s.View().restored+1)
	return nil
}

// Clone returns a store of its own with the state of the view, by way of a snapshot: it costs what writing and reading one does.
func (v *View) Clone() (*Store, error) {
	var b bytes.Buffer
	if err := v.WriteSnapshot(&b); err != nil {
		return nil, err
	}
	s := NewStore()
	return s, s.Restore(&b)
}

// rebuild makes a state from a stream of records.
type rebuild struct {
	in      recordReader
	header  *fsmpb.Header
	applier applier
}

func (b *rebuild) run() error {
	if err := b.readHeader(); err != nil {
		return err
	}
	header := b.header
	for _, part := range []struct {
		n    uint64
		read func() error
	}{
		{header.Nodes, b.node}, {header.Vms, b.vm}, {header.Blocks, b.block}, {header.Guards, b.guard},
		{header.Accounts, b.account}, {header.Lists, b.list}, {header.Uploads, b.upload},
		{header.Fleets, b.fleet}, {header.JoinTokens, b.joinToken},
		{header.Tokens, b.token}, {header.Users, b.user}, {header.Sessions, b.session},
		{header.Results, b.result}, {header.Events, b.event}, {header.Audits, b.audit},
	} {
		for range part.n {
			if err := part.read(); err != nil {
				return err
			}
		}
	}
	if len(b.applier.order) > b.applier.limits.results || len(b.applier.events) > b.applier.limits.events ||
		b.applier.over.n > b.applier.limits.over {
		return damaged("it holds more than is ever retained")
	}
	if err := b.checkAudit(); err != nil {
		return err
	}
	return b.trailer()
}

func (b *rebuild) readHeader() error {
	magic := make([]byte, len(snapshotMagic))
	if err := b.in.full(magic); err != nil {
		return err
	}
	if string(magic) != snapshotMagic {
		return damaged("it does not begin with %q", snapshotMagic)
	}
	r, err := b.in.next()
	if err != nil {
		return err
	}
	h := r.GetHeader()
	if h == nil {
		return damaged("it has no header")
	}
	d := decoder{version: h.Version, reads: snapshotVersion}
	if h.Version > snapshotVersion {
		d.unsupported("it is a newer snapshot")
	}
	if h.Format > Format {
		d.version, d.reads = h.Format, Format
		d.unsupported("it holds what newer commands made")
	}
	d.known(h)
	b.in.version = h.Version
	s := &b.applier.state
	s.index, s.time = h.Index, h.Time
	s.lastBlock, s.lastResult, s.lastEvent = h.LastBlock, h.LastResult, h.LastEvent
	s.eventsAfter, s.format = h.EventsAfter, h.Format
	if h.Version == 0 || h.Time < 0 || h.Results > h.LastResult || h.Events > h.LastEvent ||
		h.Blocks > h.LastBlock || h.Audits > h.LastAudit || h.EventsAfter > h.Index {
		d.fail("its header contradicts itself")
	}
	if h.Settings != nil {
		s.settings = d.settings(h.Settings)
	}
	b.header = h
	return damage(d.err)
}

func (b *rebuild) node() error {
	r, d, err := b.in.decode()
	if err != nil {
		return err
	}
	n := d.node(r.GetNode())
	a := &b.applier
	if _, again := a.nodes.get([]byte(n.ID)); again || n.ID == "" {
		d.fail("it has node %s twice or without an id", quote(n.ID))
	}
	if d.err == nil {
		a.setNode(nil, n)
	}
	return damage(d.err)
}

func (b *rebuild) vm() error {
	r, d, err := b.in.decode()
	if err != nil {
		return err
	}
	vm := d.vm(r.GetVm())
	a := &b.applier
	if _, again := a.vms.get([]byte(vm.ID)); again || checkID("id", vm.ID) != nil {
		d.fail("it has VM %s twice or without an id", quote(vm.ID))
	}
	if d.err == nil {
		a.setVM(nil, vm)
	}
	return damage(d.err)
}

func (b *rebuild) block() error {
	r, d, err := b.in.decode()
	if err != nil {
		return err
	}
	block := d.block(r.GetBlock())
	a := &b.applier
	number := r.GetBlock().GetNumber()
	if _, again := a.blocks.get(numberKey(number)); again || number > a.lastBlock {
		d.fail("it has block %d twice or too early", number)
	}
	if d.err == nil {
		a.setBlock(number, nil, block)
	}
	return damage(d.err)
}

func (b *rebuild) guard() error {
	r, d, err := b.in.decode()
	if err != nil {
		return err
	}
	g := d.guard(r.GetGuard())
	a := &b.applier
	if d.err == nil {
		if _, again := a.guards.get(guardKey(g)); again {
			d.fail("it has a guard twice")
		} else {
			a.setGuard(nil, g)
		}
	}
	return damage(d.err)
}

func (b *rebuild) account() error {
	r, d, err := b.in.decode()
	if err != nil {
		return err
	}
	acct := d.account(r.GetAccount())
	a := &b.applier
	if _, again := a.accounts.get([]byte(acct.ID)); again || acct.ID == "" {
		d.fail("it has account %s twice or without an id", quote(acct.ID))
	}
	if d.err == nil {
		a.setAccount(nil, acct)
	}
	return damage(d.err)
}

func (b *rebuild) result() error {
	r, d, err := b.in.decode()
	if err != nil {
		return err
	}
	m := r.GetResult()
	if m == nil {
		return damaged("a result is missing")
	}
	d.known(m)
	a := &b.applier
	kept := &remembered{seq: m.Seq, actor: intern(m.Actor), key: m.Key, result: b.share(d.outcome(m.Outcome))}
	if copy(kept.fingerprint[:], m.Fingerprint) != len(kept.fingerprint) {
		d.fail("result %d is no result", m.Seq)
	}
	if d.err != nil {
		return damage(d.err)
	}
	const depth = 2 // a batch, and in it what a LiftReason lifted
	if kept.result.Items, err = b.items(m.Seq, m.Items, depth); err != nil {
		return err
	}
	key := pairKey(kept.actor, kept.key)
	seq := a.lastResult - b.header.Results + 1 + uint64(len(a.order))
	if _, again := a.results.get(key); again || m.Seq != seq {
		return damaged("result %d is out of order", m.Seq)
	}
	a.order = append(a.order, kept)
	a.results.put(key, kept)
	a.hashResult(kept, a.sum.add)
	return nil
}

// items reads n items of a result, each with its own. Depth is how many levels there can be.
func (b *rebuild) items(seq uint64, n uint32, depth int) (items []Result, err error) {
	if n > MaxBatchOps || n > 0 && depth == 0 {
		return nil, damaged("result %d has more items than is possible", seq)
	}
	for position := range n {
		r, d, err := b.in.decode()
		if err != nil {
			return nil, err
		}
		m := r.GetResultItem()
		if m == nil || m.Seq != seq || m.Position != position {
			return nil, damaged("item %d of result %d is missing", position, seq)
		}
		d.known(m)
		item := b.share(d.outcome(m.Outcome))
		if d.err != nil {
			return nil, damage(d.err)
		}
		if item.Items, err = b.items(seq, m.Items, depth-1); err != nil {
			return nil, err
		}
		items = append(items, item)
	}
	return items, nil
}

func (b *rebuild) event() error {
	r, d, err := b.in.decode()
	if err != nil {
		return err
	}
	m := r.GetEvent()
	if m == nil {
		return damaged("an event is missing")
	}
	e := d.event(m)
	e.Block = b.shareBlock(e.Block)
	e.VM = b.shareVM(e.VM)
	a := &b.applier
	// The oldest entry may have kept only the last of its events, so its index is still allowed.
	after := a.eventsAfter
	if len(a.events) > 0 {
		after = a.events[len(a.events)-1].Index
	}
	seq := a.lastEvent - b.header.Events + 1 + uint64(len(a.events))
	if m.Seq != seq || e.Index < after || e.Index > a.index {
		d.fail("event %d is out of order", m.Seq)
	}
	if d.err != nil {
		return damage(d.err)
	}
	a.events = append(a.events, e)
	a.sum.add(a.digest(eventRecord(m.Seq, &e)))
	return nil
}

// share lets a result point to the object in the state where it is still the same, as it does on
// the nodes that made it: it saves half of the memory.
func (b *rebuild) share(r Result) Result {
	r.Block = b.shareBlock(r.Block)
	r.VM = b.shareVM(r.VM)
	return r
}

func (b *rebuild) shareBlock(block *Block) *Block {
	if block != nil {
		if now, ok := b.applier.block(block.ID); ok && equalBlocks(now, block) {
			return now
		}
	}
	return block
}

func (b *rebuild) shareVM(vm *VM) *VM {
	if vm != nil {
		if now, ok := b.applier.vms.get([]byte(vm.ID)); ok && equalVMs(now, vm) {
			return now
		}
	}
	return vm
}

// trailer compares what was rebuilt with what was written.
func (b *rebuild) trailer() error {
	stream := b.in.hash.Sum(nil)
	r, d, err := b.in.decode()
	if err != nil {
		return err
	}
	t := r.GetTrailer()
	if t == nil {
		return damaged("it has no trailer")
	}
	d.known(t)
	if d.err != nil {
		return damage(d.err)
	}
	if !bytes.Equal(stream, t.StreamHash) {
		return damaged("its bytes have changed: SHA-256 is %x, was %x", stream, t.StreamHash)
	}
	state := b.applier.hash()
	if !bytes.Equal(state[:], t.StateHash) {
		return damaged("state hash at index %d is %x, was %x", b.header.Index, state, t.StateHash)
	}
	if _, err := b.in.r.ReadByte(); err == nil {
		return damaged("bytes follow its end")
	} else if !errors.Is(err, io.EOF) {
		return err
	}
	return nil
}

// recordReader reads records of bounded size.
type recordReader struct {
	r       *bufio.Reader
	hash    hash.Hash // of everything read
	buf     []byte
	version uint32
}

func (r *recordReader) full(b []byte) error {
	if _, err := io.ReadFull(r.r, b); err != nil {
		return truncated(err)
	}
	r.hash.Write(b) // never fails
	return nil
}

func (r *recordReader) next() (*fsmpb.Record, error) {
	size, err := binary.ReadUvarint(r.r)
	if err != nil {
		return nil, truncated(err)
	}
	if size > maxRecordBytes {
		return nil, damaged("a record has %d bytes, at most %d are possible", size, maxRecordBytes)
	}
	r.hash.Write(binary.AppendUvarint(nil, size))
	if uint64(cap(r.buf)) < size {
		r.buf = make([]byte, size)
	}
	r.buf = r.buf[:size]
	if err := r.full(r.buf); err != nil {
		return nil, err
	}
	m := new(fsmpb.Record)
	if err := proto.Unmarshal(r.buf, m); err != nil {
		return nil, damaged("a record is no protobuf message")
	}
	return m, nil
}

// decode returns the next record and what decodes its content.
func (r *recordReader) decode() (*fsmpb.Record, *decoder, error) {
	m, err := r.next()
	if err != nil {
		return nil, nil, err
	}
	d := &decoder{version: r.version, reads: snapshotVersion, stored: true}
	d.known(m)
	return m, d, nil
}

// truncated tells an end that comes too early from an error of the reader.
func truncated(err error) error {
	if errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF) {
		return damaged("it ends too early")
	}
	return err
}

func damaged(format string, args ...any) error {
	return fmt.Errorf("%w: %s", ErrSnapshot, fmt.Sprintf(format, args...))
}

// damage makes a decoder's error one of a snapshot.
func damage(err error) error {
	if err == nil {
		return nil
	}
	if _, ok := errors.AsType[*UnsupportedError](err); ok {
		return err
	}
	return damaged("%v", err)
}
