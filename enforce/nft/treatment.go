package nft

import (
	"math"
	"slices"

	"github.com/google/nftables/expr"
	"golang.org/x/sys/unix"

	"github.com/palisade/palisade/enforce"
	"github.com/palisade/palisade/fsm"
)

const (
	// mostBytes and mostPackets a second keep the kernel's arithmetic in 64 bits: it multiplies and
	// divides a second, in ns, by them.
	mostBytes, mostPackets = 18_000_000_000, 1_000_000_000
	// slackBytes are on top of the second's worth that the kernel lets pass at once: a packet that an
	// interface has put together from many has up to 64 KiB, and must not be too large for ever.
	slackBytes = 128 << 10
)

// treatmentRules are the rules of the chain of a treatment.
func treatmentRules(f family, t enforce.Terms) [][]expr.Any {
	discard := append([]expr.Any{&expr.Counter{}}, dropIn(f)...)
	if t.Kind == fsm.Limit {
		return [][]expr.Any{append([]expr.Any{limit(t.Rate)}, discard...)}
	}
	var rules, byPort, unread [][]expr.Any
	for _, r := range t.Ports {
		rule := slices.Concat(l4(r.Protocol), inRange(r), discard)
		if r.First == 0 && r.Last == 0 {
			rules = append(rules, rule)
			continue
		}
		byPort = append(byPort, rule)
		unread = append(unread, append(l4(r.Protocol), discard...))
	}
	back := verdict(expr.VerdictReturn, "")
	if len(byPort) > 0 {
		// A later fragment has no ports, and is nothing without the first.
		rules = append(rules, append(laterFragment4(f), back...), append(laterFragment6(f), back...))
		rules = append(rules, byPort...)
		anyPort := []expr.Any{load(expr.PayloadBaseTransportHeader, 2, 2), compare(expr.CmpOpGte, 0, 0)}
		rules = append(rules, append(anyPort, back...))
		rules = append(rules, unread...)
	}
	// What is left is of other protocols, or nobody can read it: behind two VLAN tags, or headers that
	// are cut short.
	rules = append(rules, slices.Concat([]expr.Any{
		&expr.Meta{Key: expr.MetaKeyL4PROTO, Register: unix.NFT_REG_1}, compare(expr.CmpOpGte, 0),
	}, back))
	if f == inet {
		return append(rules, discard)
	}
	for _, protocol := range [][]byte{{0x08, 0x00}, {0x86, 0xdd}, {0x81, 0x00}, {0x88, 0xa8}} {
		rules = append(rules, append(metaIs(expr.MetaKeyPROTOCOL, protocol...), discard...))
	}
	return rules
}

func laterFragment4(f family) []expr.Any {
	return slices.Concat(isProtocol(f, kind4), []expr.Any{load(expr.PayloadBaseNetworkHeader, 6, 2)}, hasBits(0x1f, 0xff))
}

func laterFragment6(f family) []expr.Any {
	offset := &expr.Exthdr{DestRegister: unix.NFT_REG_1, Type: unix.IPPROTO_FRAGMENT, Offset: 2, Len: 2, Op: expr.ExthdrOpIpv6}
	return slices.Concat(isProtocol(f, kind6), []expr.Any{offset}, hasBits(0xff, 0xf8))
}

// hasBits matches if any of the bits is set in what was loaded.
func hasBits(bits ...byte) []expr.Any {
	none := make([]byte, len(bits))
	return []expr.Any{
		&expr.Bitwise{SourceRegister: unix.NFT_REG_1, DestRegister: unix.NFT_REG_1, Len: uint32(len(bits)), Mask: bits, Xor: none},
		compare(expr.CmpOpNeq, none...),
	}
}

func inRange(r fsm.PortRange) []expr.Any {
	switch {
	case r.First == 0 && r.Last == 0:
		return nil
	case r.First == r.Last:
		return portIs(2, r.First)
	default:
		return []expr.Any{
			load(expr.PayloadBaseTransportHeader, 2, 2),
			compare(expr.CmpOpGte, byte(r.First>>8), byte(r.First)),
			compare(expr.CmpOpLte, byte(r.Last>>8), byte(r.Last)),
		}
	}
}

// limit matches what is over the rate. The kernel lets a second's worth pass at once: of bytes always,
// so that of packets is the same.
func limit(r fsm.Rate) *expr.Limit {
	if r.Packets > 0 {
		rate := min(r.Packets, mostPackets)
		return &expr.Limit{Type: expr.LimitTypePkts, Rate: rate, Over: true, Unit: expr.LimitTimeSecond, Burst: uint32(min(rate, math.MaxUint32))}
	}
	return &expr.Limit{Type: expr.LimitTypePktBytes, Rate: max(1, min(r.Bits/8, mostBytes)), Over: true, Unit: expr.LimitTimeSecond, Burst: slackBytes}
}
