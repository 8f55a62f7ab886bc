package fsm

import (
	"encoding/hex"
	"iter"
	"time"

	"google.golang.org/protobuf/proto"

	"github.com/palisade/palisade/fsm/internal/fsmpb"
)

// snapshotBlockBytes is how much of a list's content one record holds.
const snapshotBlockBytes = 64 << 10

// heldListsKey is the front of the keys of all blocks on lists.
func heldListsKey() []byte { return []byte{'l'} }

// encodeListOp returns nil for an op that is none of lists.
func encodeListOp(op Op) *fsmpb.Op {
	switch op := op.(type) {
	case BeginList:
		return &fsmpb.Op{Op: &fsmpb.Op_BeginList{BeginList: &fsmpb.BeginList{Upload: op.Upload, Name: op.Name, Origin: op.Origin}}}
	case AddListChunk:
		return &fsmpb.Op{Op: &fsmpb.Op_AddListChunk{AddListChunk: &fsmpb.AddListChunk{
			Upload: op.Upload, Sequence: op.Sequence, Prefixes: op.Prefixes,
		}}}
	case CommitList:
		return &fsmpb.Op{Op: &fsmpb.Op_CommitList{CommitList: &fsmpb.CommitList{Upload: op.Upload, IfRevision: op.IfRevision, Force: op.Force}}}
	case AbortList:
		return &fsmpb.Op{Op: &fsmpb.Op_AbortList{AbortList: &fsmpb.AbortList{Upload: op.Upload}}}
	case PatchList:
		return &fsmpb.Op{Op: &fsmpb.Op_PatchList{PatchList: &fsmpb.PatchList{
			Name: op.Name, IfRevision: op.IfRevision, Add: op.Add, Remove: op.Remove, Force: op.Force,
		}}}
	case DescribeList:
		m := &fsmpb.DescribeList{Name: op.Name, IfRevision: op.IfRevision, Owner: op.Owner, Note: op.Note}
		if op.Source != nil {
			m.Source = encodeSource(*op.Source)
		}
		return &fsmpb.Op{Op: &fsmpb.Op_DescribeList{DescribeList: m}}
	case DeleteList:
		return &fsmpb.Op{Op: &fsmpb.Op_DeleteList{DeleteList: &fsmpb.DeleteList{Name: op.Name, IfRevision: op.IfRevision}}}
	}
	return nil
}

// listOp returns nil for a message that is none of lists.
func (d *decoder) listOp(m any) Op {
	switch m := m.(type) {
	case *fsmpb.Op_BeginList:
		d.known(m.BeginList)
		return BeginList{Upload: m.BeginList.Upload, Name: m.BeginList.Name, Origin: m.BeginList.Origin}
	case *fsmpb.Op_AddListChunk:
		d.known(m.AddListChunk)
		return AddListChunk{Upload: m.AddListChunk.Upload, Sequence: m.AddListChunk.Sequence, Prefixes: m.AddListChunk.Prefixes}
	case *fsmpb.Op_CommitList:
		d.known(m.CommitList)
		return CommitList{Upload: m.CommitList.Upload, IfRevision: m.CommitList.IfRevision, Force: m.CommitList.Force}
	case *fsmpb.Op_AbortList:
		d.known(m.AbortList)
		return AbortList{Upload: m.AbortList.Upload}
	case *fsmpb.Op_PatchList:
		op := m.PatchList
		d.known(op)
		return PatchList{Name: op.Name, IfRevision: op.IfRevision, Add: op.Add, Remove: op.Remove, Force: op.Force}
	case *fsmpb.Op_DescribeList:
		in := m.DescribeList
		d.known(in)
		op := DescribeList{Name: in.Name, IfRevision: in.IfRevision, Owner: in.Owner, Note: in.Note}
		if in.Source != nil {
			s := d.source(in.Source)
			op.Source = &s
		}
		return op
	case *fsmpb.Op_DeleteList:
		d.known(m.DeleteList)
		return DeleteList{Name: m.DeleteList.Name, IfRevision: m.DeleteList.IfRevision}
	}
	return nil
}

func encodeSource(s ListSource) *fsmpb.ListSource {
	return &fsmpb.ListSource{Url: s.URL, Sealed: []byte(s.Sealed), Interval: int64(s.Interval), MaxBytes: s.MaxBytes}
}

func (d *decoder) source(m *fsmpb.ListSource) ListSource {
	if m == nil {
		return ListSource{}
	}
	d.known(m)
	return ListSource{URL: m.Url, Sealed: string(m.Sealed), Interval: time.Duration(m.Interval), MaxBytes: m.MaxBytes}
}

func encodeListObject(l *List) *fsmpb.List {
	hash, _ := hex.DecodeString(l.Hash) // made by PrefixSet.Hash
	m := &fsmpb.List{
		Name: l.Name, Owner: l.Owner, Note: l.Note, Origin: l.Origin, Size: uint64(l.Size), Hash: hash,
		LoadedAt: toNanos(l.LoadedAt), Actor: l.Actor, Revision: l.Revision,
	}
	if l.Source != (ListSource{}) {
		m.Source = encodeSource(l.Source)
	}
	return m
}

func (d *decoder) list(m *fsmpb.List) *List {
	if m == nil {
		d.fail("has no list")
		return &List{}
	}
	d.known(m)
	if m.Size > MaxListPrefixes {
		d.fail("has list %s of %d prefixes", quote(m.Name), m.Size)
	}
	return &List{
		Name: m.Name, Owner: intern(m.Owner), Note: m.Note, Origin: m.Origin, Source: d.source(m.Source),
		Size: int(min(m.Size, MaxListPrefixes)), Hash: hex.EncodeToString(m.Hash),
		LoadedAt: fromNanos(max(m.LoadedAt, 0)), Actor: intern(m.Actor), Revision: m.Revision,
	}
}

// listRecord stands for the content too, by its hash. In a snapshot the content follows.
func listRecord(l *List) *fsmpb.Record {
	return &fsmpb.Record{Record: &fsmpb.Record_List{List: encodeListObject(l)}}
}

func uploadRecord(u *upload) *fsmpb.Record {
	hash := u.set.hash()
	return &fsmpb.Record{Record: &fsmpb.Record_Upload{Upload: &fsmpb.Upload{
		Id: u.id, Name: u.name, Origin: u.origin, Chunks: u.chunks, Index: u.index,
		Size: uint64(u.set.n), Hash: hash[:],
	}}}
}

// contentRecords are the content of a list or upload in a snapshot.
func contentRecords(set PrefixSet) iter.Seq[*fsmpb.Record] {
	return func(yield func(*fsmpb.Record) bool) {
		for part := range set.Packed(snapshotBlockBytes) {
			if !yield(&fsmpb.Record{Record: &fsmpb.Record_ListBlock{ListBlock: &fsmpb.ListBlock{Prefixes: part}}}) {
				return
			}
		}
	}
}

// writeLists writes all lists and uploads of a snapshot.
func (w *recordWriter) writeLists(s *state) {
	content := func(set PrefixSet) {
		for r := range contentRecords(set) {
			w.record(r)
		}
	}
	for l := range s.lists.all() {
		w.record(listRecord(l))
		set, _ := s.contents.get([]byte(l.Name))
		content(set)
	}
	for u := range s.uploads.all() {
		w.record(uploadRecord(u))
		content(u.set)
	}
}

func (b *rebuild) list() error {
	r, d, err := b.in.decode()
	if err != nil {
		return err
	}
	l := d.list(r.GetList())
	a := &b.applier
	if _, again := a.lists.get([]byte(l.Name)); again || checkListName("name", l.Name) != nil || a.lists.n >= MaxLists {
		d.fail("it has list %s twice, without a name, or too many lists", quote(l.Name))
	}
	if d.err != nil {
		return damage(d.err)
	}
	set, err := b.content(l.Size)
	if err != nil {
		return err
	}
	if set.Hash() != l.Hash {
		return damaged("the content of list %s has changed: its hash is %s, was %s", quote(l.Name), set.Hash(), l.Hash)
	}
	a.setList(nil, l, set)
	return nil
}

func (b *rebuild) upload() error {
	r, d, err := b.in.decode()
	if err != nil {
		return err
	}
	m := r.GetUpload()
	if m == nil {
		return damaged("an upload is missing")
	}
	d.known(m)
	a := &b.applier
	if _, again := a.uploads.get([]byte(m.Id)); again || m.Id == "" || m.Size > MaxListPrefixes || a.uploads.n >= MaxUploads {
		d.fail("it has upload %s twice, without an id, too large, or too many uploads", quote(m.Id))
	}
	if d.err != nil {
		return damage(d.err)
	}
	u := &upload{id: m.Id, name: m.Name, origin: m.Origin, chunks: m.Chunks, index: m.Index}
	if u.set, err = b.content(int(m.Size)); err != nil {
		return err
	}
	if !proto.Equal(uploadRecord(u).GetUpload(), m) {
		return damaged("the content of upload %s has changed", quote(m.Id))
	}
	a.setUpload(nil, u)
	return nil
}

// content reads the records of n prefixes.
func (b *rebuild) content(n int) (PrefixSet, error) {
	var set PrefixSet
	for set.n < n {
		r, d, err := b.in.decode()
		if err != nil {
			return set, err
		}
		m := r.GetListBlock()
		if m == nil || len(m.Prefixes) == 0 {
			return set, damaged("%d prefixes of a list are missing", n-set.n)
		}
		d.known(m)
		if d.err != nil {
			return set, damage(d.err)
		}
		if set, err = set.appendPacked(m.Prefixes); err != nil {
			return set, damaged("the content of a list is not in order: %v", err)
		}
	}
	if set.n != n {
		return set, damaged("a list has %d prefixes more than it says", set.n-n)
	}
	return set, nil
}
