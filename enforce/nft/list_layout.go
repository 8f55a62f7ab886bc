package nft

import (
	"cmp"
	"encoding/hex"
	"fmt"
	"net"
	"slices"
	"strings"

	"github.com/google/nftables/expr"
	"golang.org/x/sys/unix"

	"github.com/palisade/palisade/enforce"
	"github.com/palisade/palisade/fsm"
)

// listBase names what a set of lists holds: prefixes of one family and length, in one direction.
type listBase struct {
	direction fsm.Direction
	base      base
}

func (b listBase) String() string { return fmt.Sprintf("%s_%s", b.direction, b.base) }

// name is the set's name in the kernel. A set whose content was loaded anew lives on as the next generation.
func (b listBase) name(generation int) string {
	return fmt.Sprintf("%s_%s", b.direction, b.base.name(generation))
}

// parseListName is the inverse of listBase.name.
func parseListName(s string) (b listBase, generation int, ok bool) {
	direction, rest, _ := strings.Cut(s, "_")
	b.direction = fsm.Direction(direction)
	if b.direction != fsm.In && b.direction != fsm.Out && b.direction != fsm.Both {
		return b, 0, false
	}
	b.base, generation, ok = parseName(rest)
	return b, generation, ok && b.name(generation) == s && (b.base.kind == kind4 || b.base.kind == kind6)
}

func (b listBase) compare(o listBase) int {
	return cmp.Or(cmp.Compare(b.base.kind, o.base.kind), cmp.Compare(o.base.bits, b.base.bits),
		cmp.Compare(b.direction, o.direction))
}

// keyOfList returns where the kernel holds an element.
func keyOfList(e enforce.ListElement) (listBase, key) {
	var k key
	b := listBase{e.Direction, base{kind: kind6, bits: uint8(e.Prefix.Bits())}}
	if a := e.Prefix.Addr(); a.Is4() {
		b.base.kind = kind4
		four := a.As4()
		copy(k[:], four[:])
	} else {
		k = a.As16()
	}
	return b, k
}

// looks says whether a chain's match finds the set's prefixes: packets from them go out of the target, packets to
// them come in.
func (b listBase) looks(m match) bool {
	return m == source && b.direction != fsm.In || m == dest && b.direction != fsm.Out
}

// listChain is a base chain and which addresses of its packets are looked up.
type listChain struct {
	family   family
	name     string
	hook     uint32
	priority int32
	matches  []match
}

// listChains are those of the main tables that look at addresses, for the same reasons.
func listChains() []listChain {
	return []listChain{
		{bridge, "prerouting", unix.NF_INET_PRE_ROUTING, priorityFirst, []match{source, dest}},
		{bridge, "output", unix.NF_INET_LOCAL_OUT, priorityFirst, []match{dest}},
		{inet, "prerouting", unix.NF_INET_PRE_ROUTING, priorityFirst, []match{source, dest}},
		{inet, "output", unix.NF_INET_LOCAL_OUT, priorityFirst, []match{dest}},
		{inet, "postrouting", unix.NF_INET_POST_ROUTING, priorityAfterNAT, []match{source, dest}},
	}
}

// listSet is a set that rules look into.
type listSet struct {
	base listBase
	name string
}

func sortSets(sets []listSet) []listSet {
	slices.SortFunc(sets, func(a, b listSet) int { return cmp.Or(a.base.compare(b.base), strings.Compare(a.name, b.name)) })
	return sets
}

// rules returns the encoded rules of the chain for the sets.
func (c listChain) rules(sets []listSet) (rules [][]byte, err error) {
	for _, s := range sets {
		for _, m := range c.matches {
			if !s.base.looks(m) {
				continue
			}
			b, err := marshalRule(c.family, listExprs(c.family, m, s))
			if err != nil {
				return nil, err
			}
			rules = append(rules, b)
		}
	}
	return rules, nil
}

func listExprs(f family, m match, s listSet) []expr.Any {
	list := isProtocol(f, s.base.base.kind)
	n := uint32(s.base.base.keyLen())
	offset := uint32(12) // of the IPv4 source
	if s.base.base.kind == kind6 {
		offset = 8
	}
	if m == dest {
		offset += n
	}
	list = append(list, load(expr.PayloadBaseNetworkHeader, offset, n))
	if s.base.base.masked() {
		list = append(list, &expr.Bitwise{
			SourceRegister: unix.NFT_REG_1, DestRegister: unix.NFT_REG_1, Len: n,
			Mask: net.CIDRMask(int(s.base.base.bits), int(n)*8), Xor: make([]byte, n),
		})
	}
	return append(list,
		&expr.Lookup{SourceRegister: unix.NFT_REG_1, SetName: s.name},
		&expr.Verdict{Kind: expr.VerdictDrop})
}

// listMarker says what the tables stand for: a log index and, if they hold exactly what that is, its hash.
type listMarker struct {
	index uint64
	hash  [32]byte // zero: they hold more or less than that
}

// comment is the marker for people, and the only place of the hash.
func (m listMarker) comment() string {
	if m.hash == [32]byte{} {
		return fmt.Sprintf("log index %d, incomplete", m.index)
	}
	return fmt.Sprintf("log index %d, content %x", m.index, m.hash)
}

// parseListMarker reads the comment; an index that differs from that of the key makes it void.
func parseListMarker(k key, comment string) listMarker {
	m := listMarker{index: markerIndex(k)}
	_, text, ok := strings.Cut(comment, ", content ")
	if hash, err := hex.DecodeString(text); ok && err == nil && copy(m.hash[:], hash) == len(m.hash) && m.comment() == comment {
		return m
	}
	m.hash = [32]byte{}
	return m
}
