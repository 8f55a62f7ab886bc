package fsm

import (
	"crypto/sha256"
	"encoding/binary"
	"errors"
	"fmt"
	"net/netip"
	"slices"
)

// The packed form of a prefix: one byte that says the length and, by its range, the family, and the
// address.
const (
	packed4 = 1 + 4
	packed6 = 1 + 16
	// packedIPv6 is added to the length of an IPv6 prefix.
	packedIPv6 = 127
	// maxBlockEntries bounds a block; on average it has a quarter.
	maxBlockEntries = 1024
)

// packedLen is the size of the entry that begins with this byte.
func packedLen(first byte) int {
	if first > packedIPv6 {
		return packed6
	}
	return packed4
}

func packPrefix(p netip.Prefix) []byte { return AppendPacked(make([]byte, 0, packed6), p) }

// AppendPacked appends a valid prefix in packed form: what the ops on lists carry.
func AppendPacked(b []byte, p netip.Prefix) []byte {
	if p.Addr().Is4() {
		a := p.Addr().As4()
		return append(append(b, byte(p.Bits())), a[:]...)
	}
	a := p.Addr().As16()
	return append(append(b, byte(packedIPv6+p.Bits())), a[:]...)
}

// unpack is the inverse for one entry.
func unpack(e []byte) netip.Prefix {
	if len(e) == packed4 {
		return netip.PrefixFrom(netip.AddrFrom4([4]byte(e[1:])), int(e[0]))
	}
	return netip.PrefixFrom(netip.AddrFrom16([16]byte(e[1:])), int(e[0])-packedIPv6)
}

// cutter makes blocks of entries that come in order. An entry begins a block if its hash says so, which
// one of 256 does, or if the block before is full: so the cuts are a function of the entries, and a
// change moves them only up to the next entry that begins one by itself.
type cutter struct {
	blocks prefixBlocks
	tail   []byte // packed entries of the block that is not closed
	n      int
}

func startsBlock(e []byte) bool {
	const phi = 0x9E3779B97F4A7C15 // 2^64 divided by the golden ratio: spreads neighbours
	var h uint64
	if len(e) == packed4 {
		h = uint64(binary.BigEndian.Uint32(e[1:]))<<8 | uint64(e[0])
	} else {
		h = (binary.BigEndian.Uint64(e[1:])*phi ^ binary.BigEndian.Uint64(e[9:])) + uint64(e[0])
		h ^= h >> 32
	}
	return h*phi>>56 == 0
}

// add takes the next entry, which the caller has checked to come after all others.
func (c *cutter) add(e []byte) {
	switch {
	case startsBlock(e) || len(c.tail) >= maxBlockEntries*len(e):
		c.cut()
	case len(c.tail) == 0 && len(c.blocks) > 0:
		c.reopen()
		if len(c.tail) >= maxBlockEntries*len(e) {
			c.cut()
		}
	}
	c.tail = append(c.tail, e...)
	c.n++
}

// reopen makes the last block the tail again: an entry that does not begin a block belongs to it.
func (c *cutter) reopen() {
	last := len(c.blocks) - 1
	c.tail = append(c.tail, c.blocks[last].packed...)
	c.blocks = c.blocks[:last:last] // sets share the array: what follows must not be written over
}

// share takes a whole block of another set. was is the block before it there, nil for none. It says
// whether the block begins here too; else its entries have to be added one by one.
func (c *cutter) share(b, was *prefixBlock) bool {
	switch n := len(c.blocks); {
	case startsBlock(b.entry(0)):
		c.cut()
	case len(c.tail) > 0 || (n == 0) != (was == nil) || n > 0 && !equalBlock(c.blocks[n-1], was):
		return false
	}
	c.blocks = append(c.blocks, b)
	c.n += b.len()
	return true
}

func (c *cutter) cut() {
	if len(c.tail) == 0 {
		return
	}
	b := &prefixBlock{packed: slices.Clone(c.tail)}
	b.hash = sha256.Sum256(b.packed)
	c.blocks = append(c.blocks, b)
	c.tail = c.tail[:0]
}

// setCutter makes a set of entries that come in order.
type setCutter struct{ v4, v6 cutter }

func (c *setCutter) add(e []byte) {
	if len(e) == packed4 {
		c.v4.add(e)
	} else {
		c.v6.add(e)
	}
}

// finish closes the blocks and returns the set. The cutter can go on: the set keeps its own slices.
func (c *setCutter) finish() PrefixSet {
	c.v4.cut()
	c.v6.cut()
	return PrefixSet{v4: slices.Clip(c.v4.blocks), v6: slices.Clip(c.v6.blocks), n: c.v4.n + c.v6.n}
}

var errPacked = errors.New("is no packed prefix")

// appendPacked adds packed entries after those of the set, checking that they are prefixes that a list
// can hold, in order, none in another. The set itself stays as it is.
func (s PrefixSet) appendPacked(packed []byte) (PrefixSet, error) {
	c := setCutter{
		v4: cutter{blocks: slices.Clip(s.v4), n: sum(s.v4)},
		v6: cutter{blocks: slices.Clip(s.v6), n: sum(s.v6)},
	}
	last, known := s.last()
	for i := 0; len(packed) > 0; i++ {
		size := packedLen(packed[0])
		if len(packed) < size {
			return PrefixSet{}, fmt.Errorf("entry %d: %w", i, errPacked)
		}
		p := unpack(packed[:size])
		if checkPrefix("", p) != nil {
			return PrefixSet{}, fmt.Errorf("entry %d: %w that a list can hold", i, errPacked)
		}
		if known && (last.Addr().Compare(p.Addr()) >= 0 || last.Contains(p.Addr())) {
			return PrefixSet{}, fmt.Errorf("entry %d: %s does not come after %s", i, p, last)
		}
		c.add(packed[:size])
		last, known, packed = p, true, packed[size:]
	}
	return c.finish(), nil
}

func sum(blocks prefixBlocks) (n int) {
	for _, b := range blocks {
		n += b.len()
	}
	return n
}

func (s PrefixSet) last() (netip.Prefix, bool) {
	for _, blocks := range [...]prefixBlocks{s.v6, s.v4} {
		if len(blocks) > 0 {
			b := blocks[len(blocks)-1]
			return unpack(b.entry(b.len() - 1)), true
		}
	}
	return netip.Prefix{}, false
}

// UnpackPrefixes returns the set that PrefixSet.Packed walked, given the parts one after the other. It checks that they
// are in order and that a list can hold them.
func UnpackPrefixes(packed []byte) (PrefixSet, error) { return PrefixSet{}.appendPacked(packed) }
