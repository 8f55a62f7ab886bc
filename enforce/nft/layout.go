package nft

import (
	"cmp"
	"fmt"
	"iter"
	"maps"
	"math"
	"net"
	"slices"

	"github.com/google/nftables"
	"github.com/google/nftables/expr"
	"golang.org/x/sys/unix"
)

// markerSet holds the log index that the kernel stands for, as one element of the inet table.
const markerSet = "enforced"

// Hook priorities. Ours come before defragmentation (-400) and conntrack (-200), so that a fragment
// and a packet of an established flow are dropped like any other. Only after routing we also come
// after source NAT (100): there the addresses are those that leave.
const (
	priorityFirst    = -500
	priorityAfterNAT = 250

	policyAccept = 1 // NF_ACCEPT
)

// chain is one of our base chains and what its rules match.
type chain struct {
	family   family
	name     string
	hook     uint32
	priority int32
	matches  []match
}

// match is one field of a packet that a rule looks up in the sets of its kind.
type match uint8

const (
	inTap match = iota + 1
	outTap
	sourceMAC
	destMAC
	source
	dest
)

// chains returns the chains of both tables. Which packets meet which is in DESIGN.md. Bridge hooks
// have the numbers of the inet hooks.
func chains() []chain {
	return []chain{
		{bridge, "prerouting", unix.NF_INET_PRE_ROUTING, priorityFirst, []match{inTap, sourceMAC, destMAC, source, dest}},
		{bridge, "output", unix.NF_INET_LOCAL_OUT, priorityFirst, []match{destMAC, dest}},
		{bridge, "postrouting", unix.NF_INET_POST_ROUTING, priorityFirst, []match{outTap}},
		{inet, "prerouting", unix.NF_INET_PRE_ROUTING, priorityFirst, []match{inTap, source, dest}},
		{inet, "output", unix.NF_INET_LOCAL_OUT, priorityFirst, []match{dest}},
		{inet, "postrouting", unix.NF_INET_POST_ROUTING, priorityAfterNAT, []match{outTap, source, dest}},
	}
}

// rule drops the packets whose field is in the set.
type rule struct {
	match match
	base  base
	set   string
}

// rules returns the rules of the chain, given the sets of its table that exist.
func (c chain) rules(sets map[setID]*liveSet) []rule {
	var rules []rule
	for _, id := range sorted(maps.Keys(sets)) {
		for _, m := range c.matches {
			if id.family == c.family && m.looksFor(id.base.kind) {
				rules = append(rules, rule{m, id.base, sets[id].name})
			}
		}
	}
	return rules
}

// sorted gives sets in the order of their rules: by kind, exact before masked.
func sorted(ids iter.Seq[setID]) []setID {
	return slices.SortedFunc(ids, func(a, b setID) int {
		return cmp.Or(cmp.Compare(b.family, a.family), // bridge first
			cmp.Compare(a.base.kind, b.base.kind), cmp.Compare(b.base.bits, a.base.bits))
	})
}

func (m match) looksFor(k kind) bool {
	switch m {
	case inTap, outTap:
		return k == kindTap
	case sourceMAC, destMAC:
		return k == kindMAC
	default:
		return k == kind4 || k == kind6
	}
}

// exprs is what `nft` compiles the same rule to, so that it lists as one would write it.
func (r rule) exprs(f family) []expr.Any {
	var list []expr.Any
	switch r.match {
	case inTap:
		list = append(list, &expr.Meta{Key: expr.MetaKeyIIFNAME, Register: unix.NFT_REG_1})
	case outTap:
		list = append(list, &expr.Meta{Key: expr.MetaKeyOIFNAME, Register: unix.NFT_REG_1})
	case sourceMAC:
		list = append(list, load(expr.PayloadBaseLLHeader, 6, 6))
	case destMAC:
		list = append(list, load(expr.PayloadBaseLLHeader, 0, 6))
	case source, dest:
		list = append(list, isProtocol(f, r.base.kind)...)
		n := uint32(r.base.keyLen())
		offset := uint32(12) // of the IPv4 source
		if r.base.kind == kind6 {
			offset = 8
		}
		if r.match == dest {
			offset += n
		}
		list = append(list, load(expr.PayloadBaseNetworkHeader, offset, n))
		if r.base.masked() {
			list = append(list, &expr.Bitwise{
				SourceRegister: unix.NFT_REG_1, DestRegister: unix.NFT_REG_1, Len: n,
				Mask: net.CIDRMask(int(r.base.bits), int(n)*8), Xor: make([]byte, n),
			})
		}
	}
	return append(list,
		&expr.Lookup{SourceRegister: unix.NFT_REG_1, SetName: r.set},
		&expr.Verdict{Kind: expr.VerdictDrop})
}

func load(from expr.PayloadBase, offset, n uint32) expr.Any {
	return &expr.Payload{DestRegister: unix.NFT_REG_1, Base: from, Offset: offset, Len: n}
}

// isProtocol matches IPv4 or IPv6. On a bridge the protocol is that inside of one VLAN tag.
func isProtocol(f family, k kind) []expr.Any {
	meta, data := expr.MetaKeyNFPROTO, []byte{unix.NFPROTO_IPV4}
	switch {
	case f == bridge && k == kind4:
		meta, data = expr.MetaKeyPROTOCOL, []byte{0x08, 0x00}
	case f == bridge:
		meta, data = expr.MetaKeyPROTOCOL, []byte{0x86, 0xdd}
	case k == kind6:
		data = []byte{unix.NFPROTO_IPV6}
	}
	return []expr.Any{
		&expr.Meta{Key: meta, Register: unix.NFT_REG_1},
		&expr.Cmp{Op: expr.CmpOpEq, Register: unix.NFT_REG_1, Data: data},
	}
}

// marshalRule encodes the expressions of a rule as the content of NFTA_RULE_EXPRESSIONS.
func marshalRule(f family, list []expr.Any) ([]byte, error) {
	var b []byte
	for _, e := range list {
		one, err := expr.Marshal(byte(f), e)
		if err != nil {
			return nil, fmt.Errorf("encode %T: %w", e, err)
		}
		b = appendAttr(b, unix.NFTA_LIST_ELEM|unix.NLA_F_NESTED, one)
	}
	return b, nil
}

// parseRule decodes and encodes again what the kernel says of a rule, to compare it with ours: the
// kernel adds attributes that were not sent. It returns nil for a rule that can't be ours.
func parseRule(f family, b []byte) []byte {
	var list []expr.Any
	for _, one := range attrs(b) {
		var name string
		var data []byte
		for typ, v := range attrs(one) {
			switch typ {
			case unix.NFTA_EXPR_NAME:
				name = attrText(v)
			case unix.NFTA_EXPR_DATA:
				data = v
			}
		}
		e := exprNamed(name)
		if e == nil || expr.Unmarshal(byte(f), data, e) != nil {
			return nil
		}
		if _, ok := e.(*expr.Verdict); ok && !isVerdict(f, data) {
			return nil
		}
		list = append(list, e)
	}
	again, err := marshalRule(f, list)
	if err != nil {
		return nil
	}
	return again
}

// isVerdict tells an immediate verdict from immediate data, which expr.Verdict reads as a drop.
func isVerdict(f family, data []byte) bool {
	var e expr.Immediate
	return expr.Unmarshal(byte(f), data, &e) == nil && e.Register == unix.NFT_REG_VERDICT && len(e.Data) == 0
}

func exprNamed(name string) expr.Any {
	switch name {
	case "meta":
		return &expr.Meta{}
	case "payload":
		return &expr.Payload{}
	case "cmp":
		return &expr.Cmp{}
	case "bitwise":
		return &expr.Bitwise{}
	case "lookup":
		return &expr.Lookup{}
	case "immediate":
		return &expr.Verdict{}
	}
	return nil
}

// setID names one of our sets across generations.
type setID struct {
	family family
	base   base
}

// liveSet is the generation of a set that the rules look into.
type liveSet struct {
	name       string
	generation int
	size       uint32 // most elements that fit
	count      int
}

// fit returns the smallest doubling of size that holds n elements.
func fit(size uint32, n int) uint32 {
	for uint64(size) < uint64(n) && size <= math.MaxUint32/2 {
		size *= 2
	}
	return size
}

// markerType is the nft type of the marker: the index as two numbers, high and low.
func markerType() uint32 {
	t := nftables.MustConcatSetType(nftables.TypeMark, nftables.TypeMark)
	return t.GetNFTMagic()
}
