package fsm

import (
	"bytes"
	"crypto/sha256"
	"encoding/hex"
	"iter"
	"net/netip"
	"slices"
	"sort"
)

// PrefixSet is a set of prefixes of which none lies in another: what a list holds. It is immutable and
// safe for any number of goroutines; sets that come from each other by Patch share what is equal. The
// zero value is the empty set. An entry takes 5 bytes (IPv4) or 17 (IPv6) and a few percent more.
//
// Prefixes that adjoin are not merged: a kernel looks up every length by itself, so a list of
// addresses alone costs a packet one look-up however long it is, and merged it could cost twenty.
type PrefixSet struct {
	v4, v6 prefixBlocks
	n      int
}

// prefixBlocks are the entries of one family in order. Where one block ends and the next begins
// depends on the entries alone (see cutter), so that equal sets have equal blocks however they were
// made, and two sets are compared block by block.
type prefixBlocks []*prefixBlock

// prefixBlock holds 1 to maxBlockEntries packed entries.
type prefixBlock struct {
	packed []byte
	hash   [sha256.Size]byte
}

// stride is the number of bytes of each entry of the block.
func (b *prefixBlock) stride() int { return packedLen(b.packed[0]) }

func (b *prefixBlock) len() int { return len(b.packed) / b.stride() }

func (b *prefixBlock) entry(i int) []byte {
	n := b.stride()
	return b.packed[i*n : (i+1)*n]
}

// Len counts the prefixes.
func (s PrefixSet) Len() int { return s.n }

// Hash is the SHA-256 over the SHA-256 of every block, IPv4 first, in hex. It depends on the prefixes
// alone, not on how the set came to be.
func (s PrefixSet) Hash() string {
	h := s.hash()
	return hex.EncodeToString(h[:])
}

func (s PrefixSet) hash() [sha256.Size]byte {
	h := sha256.New()
	for b := range s.eachBlock() {
		h.Write(b.hash[:]) // never fails
	}
	return [sha256.Size]byte(h.Sum(nil))
}

func (s PrefixSet) eachBlock() iter.Seq[*prefixBlock] {
	return func(yield func(*prefixBlock) bool) {
		for _, blocks := range [...]prefixBlocks{s.v4, s.v6} {
			for _, b := range blocks {
				if !yield(b) {
					return
				}
			}
		}
	}
}

// All walks the prefixes in order: IPv4 before IPv6, by address.
func (s PrefixSet) All() iter.Seq[netip.Prefix] {
	return func(yield func(netip.Prefix) bool) {
		for b := range s.eachBlock() {
			for e := range slices.Chunk(b.packed, b.stride()) {
				if !yield(unpack(e)) {
					return
				}
			}
		}
	}
}

// Packed walks the set in packed form, in parts of at most maxBytes (at least one entry each). The
// parts must not be changed.
func (s PrefixSet) Packed(maxBytes int) iter.Seq[[]byte] {
	return func(yield func([]byte) bool) {
		var part []byte
		for b := range s.eachBlock() {
			for e := range slices.Chunk(b.packed, b.stride()) {
				if len(part) > 0 && len(part)+len(e) > maxBytes {
					if !yield(part) {
						return
					}
					part = nil
				}
				part = append(part, e...)
			}
		}
		if len(part) > 0 {
			yield(part)
		}
	}
}

func (s PrefixSet) of(p netip.Prefix) prefixBlocks {
	if p.Addr().Is4() {
		return s.v4
	}
	return s.v6
}

// Contains says whether p itself is in the set.
func (s PrefixSet) Contains(p netip.Prefix) bool {
	around, ok := s.Covering(p)
	return ok && around == p
}

// Covering returns the prefix of the set that is p or around it.
func (s PrefixSet) Covering(p netip.Prefix) (netip.Prefix, bool) {
	if !p.IsValid() {
		return netip.Prefix{}, false
	}
	blocks := s.of(p)
	// No prefix lies in another: the last that begins at or before p is the only one that can cover it.
	b, i := blocks.seek(packPrefix(p), true)
	if i--; i < 0 {
		if b--; b < 0 {
			return netip.Prefix{}, false
		}
		i = blocks[b].len() - 1
	}
	e := unpack(blocks[b].entry(i))
	return e, e.Bits() <= p.Bits() && e.Contains(p.Addr())
}

// Within walks the prefixes that are p or inside it, in order.
func (s PrefixSet) Within(p netip.Prefix) iter.Seq[netip.Prefix] {
	return func(yield func(netip.Prefix) bool) {
		if !p.IsValid() {
			return
		}
		blocks := s.of(p)
		b, i := blocks.seek(packPrefix(p), false)
		for ; b < len(blocks); b, i = b+1, 0 {
			for ; i < blocks[b].len(); i++ {
				if e := unpack(blocks[b].entry(i)); !p.Contains(e.Addr()) || !yield(e) {
					return
				}
			}
		}
	}
}

// seek returns the position of the first entry that is at or after the key, or, past, of the first after
// it. It is that of a block and an entry in it; the block is len(blocks) if there is none.
func (blocks prefixBlocks) seek(key []byte, past bool) (block, entry int) {
	before := func(e []byte) bool {
		c := comparePacked(e, key)
		return c < 0 || past && c == 0
	}
	// The last block that begins before it may hold it; the next begins with it otherwise.
	block = sort.Search(len(blocks), func(i int) bool { return !before(blocks[i].entry(0)) })
	if block == 0 {
		return 0, 0
	}
	b := blocks[block-1]
	entry = sort.Search(b.len(), func(i int) bool { return !before(b.entry(i)) })
	if entry < b.len() {
		return block - 1, entry
	}
	return block, 0
}

// Diff walks what leads from old to new, in order: prefixes, and whether they are added. It skips what
// the sets have in common block by block, so that its cost is that of what differs.
func Diff(old, new PrefixSet) iter.Seq2[netip.Prefix, bool] { //nolint:predeclared // old and new say it best
	return func(yield func(netip.Prefix, bool) bool) {
		_ = diffBlocks(old.v4, new.v4, yield) && diffBlocks(old.v6, new.v6, yield)
	}
}

// cursor is a place in the entries of one family.
type cursor struct {
	blocks prefixBlocks
	block  int
	offset int // of bytes in the block
}

func (c *cursor) end() bool { return c.block == len(c.blocks) }

func (c *cursor) entry() []byte {
	b := c.blocks[c.block]
	return b.packed[c.offset : c.offset+b.stride()]
}

func (c *cursor) next() {
	b := c.blocks[c.block]
	if c.offset += b.stride(); c.offset == len(b.packed) {
		c.block, c.offset = c.block+1, 0
	}
}

func diffBlocks(was, is prefixBlocks, yield func(netip.Prefix, bool) bool) bool {
	a, b := cursor{blocks: was}, cursor{blocks: is}
	for !a.end() || !b.end() {
		if !a.end() && !b.end() && a.offset == 0 && b.offset == 0 && equalBlock(was[a.block], is[b.block]) {
			a.block++
			b.block++
			continue
		}
		order := -1
		switch {
		case a.end():
			order = 1
		case !b.end():
			order = comparePacked(a.entry(), b.entry())
		}
		if order < 0 && !yield(unpack(a.entry()), false) || order > 0 && !yield(unpack(b.entry()), true) {
			return false
		}
		if order <= 0 {
			a.next()
		}
		if order >= 0 {
			b.next()
		}
	}
	return true
}

func equalBlock(a, b *prefixBlock) bool { return a == b || a.hash == b.hash }

// comparePacked orders packed entries of one family by address, then by length.
func comparePacked(a, b []byte) int {
	if c := bytes.Compare(a[1:], b[1:]); c != 0 {
		return c
	}
	return int(a[0]) - int(b[0])
}

// At returns the prefix at a place in the order of All, from 0 to Len-1. It walks the blocks.
func (s PrefixSet) At(i int) netip.Prefix {
	for b := range s.eachBlock() {
		if i < b.len() {
			return unpack(b.entry(i))
		}
		i -= b.len()
	}
	return netip.Prefix{}
}
