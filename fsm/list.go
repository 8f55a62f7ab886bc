package fsm

import (
	"iter"
	"net/netip"
	"slices"
	"time"
)

// Limits of lists. They bound memory: a prefix takes 5 or 17 bytes in the state of every node.
const (
	MaxLists = 256
	// MaxListPrefixes bounds one list, MaxAllListPrefixes all lists and uploads together.
	MaxListPrefixes    = 1_000_000
	MaxAllListPrefixes = 4_000_000
	// MaxListPatch bounds the prefixes that one PatchList adds and removes.
	MaxListPatch = 50_000
	// MaxUploads bounds the uploads that are under way. One more, and the one that was silent for the
	// longest time is dropped.
	MaxUploads = 8
	// MaxURLBytes bounds ListSource.URL, MaxSealedURLBytes its Sealed.
	MaxURLBytes       = 2048
	MaxSealedURLBytes = MaxURLBytes + 64
	// MinListInterval and MaxListInterval bound ListSource.Interval, MaxListBytes its MaxBytes.
	MinListInterval = time.Minute
	MaxListInterval = 31 * 24 * time.Hour
	MaxListBytes    = 128 << 20
)

// The content of a list is replaced through an upload: BeginList, AddListChunk in order, CommitList.
// Nobody sees it before the commit. Each op can be repeated, except the commit, which wants a key.

// BeginList begins an upload. Upload is chosen by the caller, who makes it unique.
type BeginList struct {
	Upload string
	Name   string // of the list, which need not exist
	Origin string // see List.Origin
}

// AddListChunk adds the next prefixes to an upload. They are packed (see AppendPacked), sorted as
// PrefixSet.All gives them, and none lies in another, in this chunk or those before. A chunk that the
// upload already has changes nothing.
type AddListChunk struct {
	Upload   string
	Sequence uint32 // from 0
	Prefixes []byte
}

// CommitList makes an upload the content of its list, which it creates if there is none. It is refused with
// CodeTooMany if an active or pending block holds the list and would now, and did not before, touch more than the
// settings allow; Force allows that.
type CommitList struct {
	Upload     string
	IfRevision uint64 // if not zero, must equal the list's revision
	Force      bool
}

// AbortList drops an upload. One that does not exist is dropped already.
type AbortList struct{ Upload string }

// PatchList changes the content of a list: see PrefixSet.Patch. Add and Remove are packed and in order,
// like a chunk. It is refused like CommitList.
type PatchList struct {
	Name        string
	IfRevision  uint64
	Add, Remove []byte
	Force       bool
}

// DescribeList sets what is known of a list and creates it, empty, if there is none. What is nil stays.
type DescribeList struct {
	Name        string
	IfRevision  uint64
	Owner, Note *string
	Source      *ListSource // the zero ListSource removes it
}

// DeleteList removes a list. It is refused with CodeConflict while a block holds the list.
type DeleteList struct {
	Name       string
	IfRevision uint64
}

func (BeginList) isOp()    {}
func (AddListChunk) isOp() {}
func (CommitList) isOp()   {}
func (AbortList) isOp()    {}
func (PatchList) isOp()    {}
func (DescribeList) isOp() {}
func (DeleteList) isOp()   {}

// upload is a content that is not yet committed. It is immutable.
type upload struct {
	id, name, origin string
	chunks           uint32
	index            uint64 // of its last op
	set              PrefixSet
}

// List returns a list by name, with its content.
func (v *View) List(name string) (*List, PrefixSet, bool) {
	l, ok := v.lists.get([]byte(name))
	if !ok {
		return nil, PrefixSet{}, false
	}
	set, _ := v.contents.get([]byte(name))
	return l, set, true
}

// Lists walks all lists by name, starting after the name given ("" for all).
func (v *View) Lists(after string) iter.Seq[*List] {
	return func(yield func(*List) bool) {
		for l := range v.lists.from([]byte(after)) {
			if l.Name != after && !yield(l) {
				return
			}
		}
	}
}

// CountLists counts the lists.
func (v *View) CountLists() int { return v.lists.n }

// HeldLists walks the active and the pending blocks on lists.
func (v *View) HeldLists() iter.Seq[*Block] {
	return func(yield func(*Block) bool) {
		for _, in := range []*table[*Block]{&v.active, &v.pending} {
			for b := range in.under(heldListsKey()) {
				if !yield(b) {
					return
				}
			}
		}
	}
}

// Overlaps says whether a prefix of the set is p, around it or inside it.
func (s PrefixSet) Overlaps(p netip.Prefix) bool {
	if !p.IsValid() {
		return false
	}
	// No prefix lies in another: it is the last that begins at or before p, or the one behind that.
	blocks := s.of(p)
	b, i := blocks.seek(packPrefix(p), true)
	if b < len(blocks) && p.Contains(unpack(blocks[b].entry(i)).Addr()) {
		return true
	}
	if i--; i < 0 {
		if b--; b < 0 {
			return false
		}
		i = blocks[b].len() - 1
	}
	return unpack(blocks[b].entry(i)).Overlaps(p)
}

// Addresses counts the addresses of the set, of IPv6 the /64 networks, up to the first count above most.
func (s PrefixSet) Addresses(most uint64) (n uint64) {
	for _, family := range []prefixBlocks{s.v4, s.v6} {
		for _, b := range family {
			width, stride := 32, b.stride()
			if stride == packed6 {
				width = packedIPv6 + 64
			}
			for i := 0; i < len(b.packed); i += stride {
				if n += 1 << max(width-int(b.packed[i]), 0); n > most {
					return n
				}
			}
		}
	}
	return n
}

// VMsListed walks the VMs that have an address that overlaps the set, each once, in no order.
func (v *View) VMsListed(set PrefixSet) iter.Seq[*VM] { return v.vmsListed(set) }

func (s *state) vmsListed(set PrefixSet) iter.Seq[*VM] {
	return func(yield func(*VM) bool) {
		if set.n == 0 {
			return
		}
		seen := map[string]bool{}
		if set.n < s.addresses.n { // the smaller is walked, the larger is asked
			for p := range set.All() {
				for vm := range s.vmsWithin(p) {
					if !seen[vm.ID] {
						seen[vm.ID] = true
						if !yield(vm) {
							return
						}
					}
				}
			}
			return
		}
		for at := range s.addresses.all() {
			if !seen[at.vm.ID] && set.Overlaps(at.prefix) {
				seen[at.vm.ID] = true
				if !yield(at.vm) {
					return
				}
			}
		}
	}
}

// listsHolding returns the active blocks on lists that name one of the addresses.
func (s *state) listsHolding(addresses []netip.Prefix) (blocks []*Block) {
	for b := range s.active.under(heldListsKey()) {
		set, _ := s.contents.get([]byte(b.Target.List))
		if slices.ContainsFunc(addresses, set.Overlaps) {
			blocks = append(blocks, b)
		}
	}
	return blocks
}
