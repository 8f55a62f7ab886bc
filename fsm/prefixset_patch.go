package fsm

import (
	"iter"
	"net/netip"
	"slices"
)

// Patch returns the set without the addresses of remove and with the prefixes of add. A prefix of which
// a part is removed is replaced by the prefixes of the rest; one that lies in another vanishes. Blocks
// that neither touches are shared.
func (s PrefixSet) Patch(add, remove PrefixSet) PrefixSet {
	var c setCutter
	patchBlocks(&c.v4, s.v4, add.v4, remove.v4)
	patchBlocks(&c.v6, s.v6, add.v6, remove.v6)
	return c.finish()
}

// patcher writes the prefixes of one family in order, leaving out what lies in one written before.
type patcher struct {
	to   *cutter
	add  []netip.Prefix // what is still to be added
	last netip.Prefix   // the last one written
	buf  []byte
}

func patchBlocks(to *cutter, blocks, add, remove prefixBlocks) {
	p := patcher{to: to, add: add.prefixes()}
	gone := remove.prefixes()
	touched := make([]bool, len(blocks))
	blocks.touch(touched, p.add)
	blocks.touch(touched, gone)
	var before *prefixBlock
	for i, b := range blocks {
		first := unpack(b.entry(0))
		if !touched[i] {
			p.addUpTo(first)
			if to.share(b, before) {
				p.last = unpack(b.entry(b.len() - 1))
				before = b
				continue
			}
		}
		before = b
		for e := range slices.Chunk(b.packed, b.stride()) {
			e := unpack(e)
			for len(gone) > 0 && endsBefore(gone[0], e) {
				gone = gone[1:]
			}
			holes := gone
			for n, g := range gone {
				if !g.Overlaps(e) {
					holes = gone[:n]
					break
				}
			}
			carve(e, holes, p.put)
		}
	}
	p.addUpTo(netip.Prefix{})
}

// touch marks the blocks that hold, or would hold, what overlaps one of the prefixes.
func (blocks prefixBlocks) touch(touched []bool, prefixes []netip.Prefix) {
	if len(blocks) == 0 {
		return
	}
	for _, p := range prefixes {
		// From the last entry that begins before it, which may be around it, to the last inside.
		b, i := blocks.seek(packPrefix(p), false)
		if i == 0 && b > 0 {
			b--
		}
		for ; b < len(blocks); b++ {
			if first := unpack(blocks[b].entry(0)); touchedPast(first, p) {
				break
			}
			touched[b] = true
		}
		if b == 0 {
			touched[0] = true // it comes before all of them
		}
	}
}

// touchedPast says that an entry lies behind all of p.
func touchedPast(e, p netip.Prefix) bool {
	return e.Addr().Compare(p.Addr()) > 0 && !p.Contains(e.Addr())
}

func endsBefore(a, b netip.Prefix) bool { return a.Addr().Compare(b.Addr()) < 0 && !a.Overlaps(b) }

func (blocks prefixBlocks) prefixes() []netip.Prefix {
	list := make([]netip.Prefix, 0, sum(blocks))
	for _, b := range blocks {
		for e := range slices.Chunk(b.packed, b.stride()) {
			list = append(list, unpack(e))
		}
	}
	return list
}

// addUpTo writes what is to be added and comes before next; all of it if next is not valid.
func (p *patcher) addUpTo(next netip.Prefix) {
	for len(p.add) > 0 && (!next.IsValid() || comparePrefix(p.add[0], next) <= 0) {
		e := p.add[0]
		p.add = p.add[1:]
		p.write(e)
	}
}

func (p *patcher) put(e netip.Prefix) bool {
	p.addUpTo(e)
	p.write(e)
	return true
}

func (p *patcher) write(e netip.Prefix) {
	if p.last.IsValid() && p.last.Overlaps(e) {
		return // the earlier one is the wider
	}
	p.last = e
	p.buf = AppendPacked(p.buf[:0], e)
	p.to.add(p.buf)
}

// Carve calls yield, in order, for the prefixes of what is left of p without the holes, which are sorted
// and of p's family. Holes that do not overlap p are allowed. It stops when yield returns false.
func Carve(p netip.Prefix, holes []netip.Prefix) iter.Seq[netip.Prefix] {
	return func(yield func(netip.Prefix) bool) { carve(p, holes, yield) }
}

func carve(p netip.Prefix, holes []netip.Prefix, yield func(netip.Prefix) bool) bool {
	covered, cut := false, false
	for _, h := range holes {
		if h.Overlaps(p) {
			cut = true
			covered = covered || h.Bits() <= p.Bits()
		}
	}
	switch {
	case covered:
		return true
	case !cut:
		return yield(p)
	}
	low, high := halves(p)
	inLow := holes
	for i, h := range holes {
		if h.Addr().Compare(high.Addr()) >= 0 {
			inLow, holes = holes[:i], holes[i:]
			break
		}
		if i == len(holes)-1 {
			holes = nil
		}
	}
	return carve(low, inLow, yield) && carve(high, holes, yield)
}

// halves splits a prefix that is no single address.
func halves(p netip.Prefix) (low, high netip.Prefix) {
	bits := p.Bits() + 1
	b := p.Addr().AsSlice()
	b[p.Bits()/8] |= 0x80 >> (p.Bits() % 8)
	upper, _ := netip.AddrFromSlice(b) // 4 or 16 bytes, as it was
	return netip.PrefixFrom(p.Addr(), bits), netip.PrefixFrom(upper, bits)
}

// PrefixSetBuilder collects prefixes in any order. The zero value is ready; it is used by one goroutine.
type PrefixSetBuilder struct {
	v4 []uint64 // address and length: sorts as comparePrefix does
	v6 []netip.Prefix
}

// Add takes a valid, masked prefix that is not IPv4 in IPv6.
func (b *PrefixSetBuilder) Add(p netip.Prefix) {
	if !p.Addr().Is4() {
		b.v6 = append(b.v6, p)
		return
	}
	a := p.Addr().As4()
	var k uint64
	for _, c := range a {
		k = k<<8 | uint64(c)
	}
	b.v4 = append(b.v4, k<<8|uint64(p.Bits()))
}

// Set returns the set, and how many prefixes were repeated or lie in another. The builder is empty then.
func (b *PrefixSetBuilder) Set() (s PrefixSet, merged int) {
	total := len(b.v4) + len(b.v6)
	slices.Sort(b.v4)
	slices.SortFunc(b.v6, comparePrefix)
	var c setCutter
	write := patcher{to: &c.v4}
	for _, k := range b.v4 {
		write.write(netip.PrefixFrom(netip.AddrFrom4([4]byte{byte(k >> 32), byte(k >> 24), byte(k >> 16), byte(k >> 8)}), int(k&0xff)))
	}
	write = patcher{to: &c.v6}
	for _, p := range b.v6 {
		write.write(p)
	}
	b.v4, b.v6 = nil, nil
	s = c.finish()
	return s, total - s.n
}
