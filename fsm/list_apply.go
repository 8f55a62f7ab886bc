package fsm

import (
	"fmt"
	"strings"
)

func checkListName(field, name string) *Error {
	if refused := checkID(field, name); refused != nil {
		return refused
	}
	return checkText(field, name, MaxReasonBytes)
}

func (a *applier) beginList(op BeginList) *Error {
	if refused := first(
		checkID("upload", op.Upload),
		checkListName("name", op.Name),
		checkText("origin", op.Origin, MaxURLBytes),
		a.roomForList(op.Name),
	); refused != nil {
		return refused
	}
	if was, ok := a.uploads.get([]byte(op.Upload)); ok {
		if was.name == op.Name && was.origin == op.Origin && was.chunks == 0 {
			return nil
		}
		return &Error{CodeConflict, "upload", "there is an upload " + quote(op.Upload) + " already"}
	}
	if a.uploads.n >= MaxUploads {
		var silent *upload
		for u := range a.uploads.all() {
			if silent == nil || u.index < silent.index {
				silent = u
			}
		}
		a.setUpload(silent, nil)
	}
	a.setUpload(nil, &upload{id: op.Upload, name: op.Name, origin: op.Origin, index: a.index})
	return nil
}

func (a *applier) roomForList(name string) *Error {
	if _, ok := a.lists.get([]byte(name)); !ok && a.lists.n >= MaxLists {
		return &Error{CodeConflict, "name", fmt.Sprintf("there are %d lists, no more are allowed", MaxLists)}
	}
	return nil
}

func (a *applier) upload(id string) (*upload, *Error) {
	u, ok := a.uploads.get([]byte(id))
	if !ok {
		return nil, &Error{CodeNotFound, "upload", "there is no upload " + quote(id) + "; it was ended, or dropped for newer ones"}
	}
	return u, nil
}

func (a *applier) addListChunk(op AddListChunk) *Error {
	was, refused := a.upload(op.Upload)
	if refused != nil {
		return refused
	}
	switch {
	case op.Sequence < was.chunks:
		return nil // a retry
	case op.Sequence > was.chunks:
		return &Error{CodeConflict, "sequence", fmt.Sprintf("chunk %d is missing before chunk %d", was.chunks, op.Sequence)}
	case len(op.Prefixes) == 0:
		return &Error{CodeInvalid, "prefixes", "is empty"}
	}
	set, err := was.set.appendPacked(op.Prefixes)
	if err != nil {
		return &Error{CodeInvalid, "prefixes", err.Error()}
	}
	if refused := first(checkCount("prefixes", set.n, MaxListPrefixes), a.roomForPrefixes(set.n-was.set.n)); refused != nil {
		return refused
	}
	is := *was
	is.chunks, is.index, is.set = was.chunks+1, a.index, set
	a.setUpload(was, &is)
	return nil
}

// roomForPrefixes refuses more prefixes than all lists and uploads together may have.
func (a *applier) roomForPrefixes(more int) *Error {
	total := 0
	for set := range a.contents.all() {
		total += set.n
	}
	for u := range a.uploads.all() {
		total += u.set.n
	}
	if total+more > MaxAllListPrefixes {
		return &Error{CodeConflict, "prefixes",
			fmt.Sprintf("all lists and uploads together have %d prefixes, at most %d are allowed", total, MaxAllListPrefixes)}
	}
	return nil
}

func (a *applier) commitList(op CommitList) (*List, *Error) {
	u, refused := a.upload(op.Upload)
	if refused != nil {
		return nil, refused
	}
	was, known := a.lists.get([]byte(u.name))
	have := uint64(0)
	if known {
		have = was.Revision
	}
	if refused := first(checkRevision(op.IfRevision, have), a.roomForList(u.name)); refused != nil {
		return nil, refused
	}
	if !op.Force {
		if refused := a.checkWidened(u.name, u.set); refused != nil {
			return nil, refused
		}
	}
	a.setUpload(u, nil)
	is := List{Name: u.name}
	if known {
		is = *was
	}
	is.Origin = u.origin
	return a.putList(was, is, u.set), nil
}

func (a *applier) abortList(op AbortList) {
	if u, ok := a.uploads.get([]byte(op.Upload)); ok {
		a.setUpload(u, nil)
	}
}

func (a *applier) listAt(name string, ifRevision uint64) (*List, *Error) {
	l, ok := a.lists.get([]byte(name))
	if !ok {
		return nil, &Error{CodeNotFound, "name", "there is no list " + quote(name)}
	}
	return l, checkRevision(ifRevision, l.Revision)
}

func (a *applier) patchList(op PatchList) (*List, *Error) {
	was, refused := a.listAt(op.Name, op.IfRevision)
	if refused != nil {
		return nil, refused
	}
	add, err := PrefixSet{}.appendPacked(op.Add)
	if err != nil {
		return nil, &Error{CodeInvalid, "add", err.Error()}
	}
	remove, err := PrefixSet{}.appendPacked(op.Remove)
	if err != nil {
		return nil, &Error{CodeInvalid, "remove", err.Error()}
	}
	if refused := first(checkCount("add", add.n, MaxListPatch), checkCount("remove", remove.n, MaxListPatch)); refused != nil {
		return nil, refused
	}
	content, _ := a.contents.get([]byte(op.Name))
	set := content.Patch(add, remove)
	if refused := first(checkCount("add", set.n, MaxListPrefixes), a.roomForPrefixes(set.n-content.n)); refused != nil {
		return nil, refused
	}
	if !op.Force {
		if refused := a.checkWidened(op.Name, set); refused != nil {
			return nil, refused
		}
	}
	return a.putList(was, *was, set), nil
}

func (a *applier) describeList(op DescribeList) (*List, *Error) {
	is := List{Name: op.Name}
	was, known := a.lists.get([]byte(op.Name))
	if known {
		is = *was
	}
	if op.Owner != nil {
		is.Owner = *op.Owner
	}
	if op.Note != nil {
		is.Note = *op.Note
	}
	if op.Source != nil {
		is.Source = *op.Source
	}
	if refused := first(
		checkListName("name", op.Name),
		checkRevision(op.IfRevision, is.Revision),
		checkText("owner", is.Owner, MaxNameBytes),
		checkNote(is.Note),
		is.Source.Check(),
		a.roomForList(op.Name),
	); refused != nil {
		return nil, refused
	}
	content, _ := a.contents.get([]byte(op.Name))
	return a.putList(was, is, content), nil
}

// Check says why no list can be loaded from s, nil if one can be.
func (s ListSource) Check() *Error {
	if s == (ListSource{}) {
		return nil
	}
	scheme, rest, ok := strings.Cut(s.URL, "://")
	switch {
	case !ok || rest == "" || scheme != "http" && scheme != "https" && scheme != "file":
		return &Error{CodeInvalid, "source.url", "is no URL that begins with http://, https:// or file://"}
	case strings.ContainsAny(s.URL, " \""):
		return &Error{CodeInvalid, "source.url", "has characters that no URL has"}
	case s.Interval < MinListInterval || s.Interval > MaxListInterval:
		return &Error{CodeInvalid, "source.interval", fmt.Sprintf("is %s; from %s to %s is allowed", s.Interval, MinListInterval, MaxListInterval)}
	case s.MaxBytes == 0 || s.MaxBytes > MaxListBytes:
		return &Error{CodeInvalid, "source.max_bytes", fmt.Sprintf("is %d; from 1 to %d is allowed", s.MaxBytes, MaxListBytes)}
	case len(s.Sealed) > MaxSealedURLBytes:
		return &Error{CodeInvalid, "source.sealed", fmt.Sprintf("has %d bytes, at most %d are allowed", len(s.Sealed), MaxSealedURLBytes)}
	}
	return checkText("source.url", s.URL, MaxURLBytes)
}

// deleteList returns the list as it was.
func (a *applier) deleteList(op DeleteList) (*List, *Error) {
	was, refused := a.listAt(op.Name, op.IfRevision)
	if refused != nil {
		return nil, refused
	}
	key := targetKey(Target{List: op.Name})
	for _, held := range []*table[*Block]{&a.active, &a.pending} {
		for b := range held.under(key) {
			return nil, &Error{CodeConflict, "name", fmt.Sprintf("block %s (%s) holds the list; lift it first", b.ID, b.State)}
		}
	}
	a.setList(was, nil, PrefixSet{})
	a.emit(Event{Type: EventListRemoved, List: was})
	return was, nil
}

// putList replaces a list, or creates it if was is nil, and tells of it if anything has changed.
func (a *applier) putList(was *List, is List, set PrefixSet) *List {
	if is.Hash = set.Hash(); was == nil || is.Hash != was.Hash {
		is.LoadedAt = fromNanos(a.time)
	}
	is.Size = set.n
	if was != nil && is == *was {
		return was
	}
	is.Actor, is.Revision = a.actor, a.index
	a.setList(was, &is, set)
	a.emit(Event{Type: EventListChanged, List: &is})
	return &is
}

// setList replaces a list and its content in the state and in its hash; nil stands for none. The content
// is in the hash by List.Hash.
func (a *applier) setList(was, is *List, set PrefixSet) {
	a.was.list, a.listed = was, nil
	if was != nil {
		a.sum.subtract(a.digest(listRecord(was)))
	}
	if is == nil {
		a.lists.remove([]byte(was.Name))
		a.contents.remove([]byte(was.Name))
		return
	}
	a.lists.put([]byte(is.Name), is)
	a.contents.put([]byte(is.Name), set)
	a.sum.add(a.digest(listRecord(is)))
}

func (a *applier) setUpload(was, is *upload) {
	if was != nil {
		a.sum.subtract(a.digest(uploadRecord(was)))
	}
	if is == nil {
		a.uploads.remove([]byte(was.id))
		return
	}
	a.uploads.put([]byte(is.id), is)
	a.sum.add(a.digest(uploadRecord(is)))
}
