package nft

import (
	"encoding/binary"
	"fmt"
	"net"
	"net/netip"
	"slices"

	"github.com/google/nftables"
	"github.com/google/nftables/expr"
	"golang.org/x/sys/unix"

	"github.com/palisade/palisade/enforce"
)

// Sets of the tables of sources, besides those that base names.
const (
	// droppedSet has every tap of the others, with what was dropped there.
	droppedSet = "dropped"
	// prioritySource is before all else, blocks included: what a guest must not say is said about nobody.
	prioritySource = priorityFirst - 10
)

// sourceChain is a chain of the tables of sources, without its rules. Only one with a hook is a base chain.
type sourceChain struct {
	name   string
	hooked bool
	rules  [][]expr.Any
}

// sourceHook is where packets of guests are met, in each family.
func sourceHook(f family) string {
	if f == arp {
		return "input"
	}
	return "prerouting"
}

// sourceHookNumber is that of all families: NF_ARP_IN, NF_BR_PRE_ROUTING and NF_INET_PRE_ROUTING.
const sourceHookNumber = 0

// sourceIn says whether the table of that family has a set for the base.
func sourceIn(f family, b base) bool { return f != arp || b.kind != kind6 }

// sourceBases are the sets that are always there.
func sourceBases() []base { return []base{{kind: kindTap}, {kind: kindMAC}} }

// sourceKey is an element as its set holds it: the interface, padded, then what it may use.
func sourceKey(e enforce.SourceElement) (base, []byte) {
	k := interfaceName(e.Tap)
	switch {
	case e.Prefix.IsValid():
		b := base{kind: kind6, bits: uint8(e.Prefix.Bits())}
		if e.Prefix.Addr().Is4() {
			b.kind = kind4
		}
		return b, append(k, e.Prefix.Addr().AsSlice()...)
	case e.MAC != [6]byte{}:
		return base{kind: kindMAC}, append(append(k, e.MAC[:]...), 0, 0)
	default:
		return base{kind: kindTap}, k
	}
}

// sourceElement is the inverse of sourceKey; ok is false for what we would not have written.
func sourceElement(b base, key []byte) (e enforce.SourceElement, ok bool) {
	if len(key) != sourceKeyLen(b) {
		return e, false
	}
	e.Tap = attrText(key[:unix.IFNAMSIZ])
	rest := key[unix.IFNAMSIZ:]
	switch {
	case b.kind == kindMAC:
		copy(e.MAC[:], rest)
	case b.kind != kindTap:
		a, _ := netip.AddrFromSlice(rest)
		e.Prefix, _ = a.Prefix(int(b.bits))
	}
	back, again := sourceKey(e)
	return e, e.Tap != "" && back == b && slices.Equal(again, key)
}

func sourceKeyLen(b base) int {
	n := unix.IFNAMSIZ
	if b.kind != kindTap {
		n += aligned(b.keyLen())
	}
	return n
}

// sourceKeyType makes the set readable for an operator.
func sourceKeyType(b base) uint32 {
	t := nftables.TypeIFName
	second := map[kind]nftables.SetDatatype{kindMAC: nftables.TypeEtherAddr, kind4: nftables.TypeIPAddr, kind6: nftables.TypeIP6Addr}
	if s, ok := second[b.kind]; ok {
		t, _ = nftables.ConcatSetType(t, s) // the only error is that of too many
	}
	return t.GetNFTMagic()
}

// parseSourceName is the inverse of base.String.
func parseSourceName(name string) (b base, ok bool) {
	switch name {
	case "taps":
		return base{kind: kindTap}, true
	case "macs":
		return base{kind: kindMAC}, true
	}
	for k, format := range map[kind]string{kind4: "a4_%d", kind6: "a6_%d"} {
		if n, _ := fmt.Sscanf(name, format, &b.bits); n == 1 {
			b.kind = k
			return b, b.String() == name && int(b.bits) <= (base{kind: k}).keyLen()*8
		}
	}
	return base{}, false
}

const (
	dhcpServer          = 67
	dhcpClient          = 68
	dhcp6Client         = 546
	mldReport           = 131
	routerSolicitation  = 133
	routerAdvertisement = 134
	solicitation        = 135
	advertisement       = 136
	icmpRedirect        = 137
	mld2Report          = 143
)

// sourceChains are the chains of a table, each after those that it calls. They drop what does not go on:
// whoever adds a rule has to let something pass.
func sourceChains(f family, bases []base) []sourceChain {
	to := func(chain string) []expr.Any { return verdict(expr.VerdictGoto, chain) }
	back := verdict(expr.VerdictReturn, "")
	spoofed := to("spoofed")
	udpTo := func(port uint16) []expr.Any { return append(l4(unix.IPPROTO_UDP), portIs(2, port)...) }
	icmp := func(typ byte) []expr.Any {
		return append(l4(unix.IPPROTO_ICMPV6), load(expr.PayloadBaseTransportHeader, 0, 1), compare(expr.CmpOpEq, typ))
	}
	network := func(offset, n uint32) expr.Any {
		return loadBehind(expr.PayloadBaseNetworkHeader, offset, n)
	}
	zero := func(offset, n uint32) []expr.Any {
		return []expr.Any{load(expr.PayloadBaseNetworkHeader, offset, n), compare(expr.CmpOpEq, make([]byte, n)...)}
	}
	call := func(chain string) []expr.Any { return verdict(expr.VerdictJump, chain) }
	// readable drops packets that match, and those of which the bytes that tell can't be read.
	readable := func(name string, n uint32, matches ...[]expr.Any) sourceChain {
		c := sourceChain{name: name}
		for _, m := range matches {
			c.rules = append(c.rules, join(m, spoofed))
		}
		told := []expr.Any{load(expr.PayloadBaseTransportHeader, n, 2), compare(expr.CmpOpGte, 0, 0)}
		c.rules = append(c.rules, join(told, back), spoofed)
		return c
	}
	own := func(name string, k kind, address expr.Any) sourceChain {
		c := sourceChain{name: name}
		for _, b := range bases {
			if b.kind == k {
				c.rules = append(c.rules, join(ofTap(b.String(), false, append([]expr.Any{address}, shorten(b)...)...), back))
			}
		}
		c.rules = append(c.rules, spoofed)
		return c
	}

	all := []sourceChain{{name: "spoofed", rules: [][]expr.Any{
		join(ofTap(droppedSet, false), verdict(expr.VerdictDrop, "")),
		verdict(expr.VerdictDrop, ""),
	}}}
	if f != inet {
		all = append(all, own("own4_arp", kind4, network(14, 4)), sourceChain{name: "arp4", rules: [][]expr.Any{
			// Ethernet, IPv4, and addresses of their lengths.
			join([]expr.Any{load(expr.PayloadBaseNetworkHeader, 0, 6), compare(expr.CmpOpNeq, 0, 1, 8, 0, 6, 4)}, spoofed),
			join(ofTap("macs", true, network(8, 6)), spoofed),
			join(zero(14, 4), back), // a probe: does anybody have this address?
			to("own4_arp"),
		}})
	}
	if f != arp {
		all = append(all,
			own("own4", kind4, network(12, 4)), own("own6", kind6, network(8, 16)),
			own("own6_target", kind6, loadBehind(expr.PayloadBaseTransportHeader, 8, 16)),
			readable("udp4", 2, udpTo(dhcpClient)),
			sourceChain{name: "from4", rules: [][]expr.Any{
				join(laterFragment4(f), to("own4")),
				join(l4(unix.IPPROTO_UDP), call("udp4")),
				join(zero(12, 4), l4(unix.IPPROTO_UDP), portIs(0, dhcpClient), portIs(2, dhcpServer), back),
				to("own4"),
			}},
			sourceChain{name: "nobody6", rules: [][]expr.Any{
				join(icmp(solicitation), to("own6_target")), // is it taken already?
				join(icmp(routerSolicitation), back),
				join(icmp(mldReport), back),
				join(icmp(mld2Report), back),
				spoofed,
			}},
			readable("udp6", 2, udpTo(dhcp6Client)),
			readable("told6", 2, icmp(routerAdvertisement), icmp(icmpRedirect)),
			sourceChain{name: "read6", rules: [][]expr.Any{
				join(laterFragment6(f), to("own6")), // it is nothing without the first
				join(l4(unix.IPPROTO_UDP), call("udp6")),
				join(l4(unix.IPPROTO_ICMPV6), call("told6")),
				join(icmp(advertisement), call("own6_target")),
				join(zero(8, 16), to("nobody6")),
				to("own6"),
			}},
			sourceChain{name: "from6", rules: [][]expr.Any{
				join([]expr.Any{&expr.Meta{Key: expr.MetaKeyL4PROTO, Register: unix.NFT_REG_1}, compare(expr.CmpOpGte, 0)}, to("read6")),
				spoofed, // headers that nobody can read could hide anything
			}})
	}
	all = append(all, guestChain(f, to, spoofed, back))
	name := sourceHook(f)
	entry := [][]expr.Any{join(ofTap("taps", false), verdict(expr.VerdictJump, "guest"))}
	return append(all, sourceChain{name: name, hooked: true, rules: entry})
}

// guestChain sorts what a guest sends by what it is.
func guestChain(f family, to func(string) []expr.Any, spoofed, back []expr.Any) sourceChain {
	c := sourceChain{name: "guest"}
	foreign := join(ofTap("macs", true, loadBehind(expr.PayloadBaseLLHeader, 6, 6)), spoofed)
	switch f {
	case arp:
		c.rules = [][]expr.Any{to("arp4")}
	case inet:
		const ether = 1 // ARPHRD_ETHER: other links have no hardware addresses
		c.rules = [][]expr.Any{
			join(metaIs(expr.MetaKeyIIFTYPE, binary.NativeEndian.AppendUint16(nil, ether)...), foreign),
			join(isProtocol(f, kind4), to("from4")),
			join(isProtocol(f, kind6), to("from6")),
		}
	default:
		// The type in the frame itself: that of a frame with a tag is the tag's.
		is := func(a, b byte) []expr.Any {
			return []expr.Any{load(expr.PayloadBaseLLHeader, 12, 2), compare(expr.CmpOpEq, a, b)}
		}
		// RARP, by which QEMU tells that a guest has arrived, has hardware addresses alone.
		announced := join(is(0x80, 0x35), ofTap("macs", false, loadBehind(expr.PayloadBaseNetworkHeader, 8, 6)), back)
		c.rules = [][]expr.Any{
			foreign,
			join(is(0x08, 0x00), to("from4")),
			join(is(0x86, 0xdd), to("from6")),
			join(is(0x08, 0x06), to("arp4")),
			announced,
			spoofed,
		}
	}
	return c
}

func join(parts ...[]expr.Any) []expr.Any { return slices.Concat(parts...) }

// ofTap looks up the interface that a packet came in by, with what is loaded behind it, and matches what is in the
// set or, with absent, what is not.
func ofTap(set string, absent bool, with ...expr.Any) []expr.Any {
	list := append([]expr.Any{&expr.Meta{Key: expr.MetaKeyIIFNAME, Register: unix.NFT_REG_1}}, with...)
	return append(list, &expr.Lookup{SourceRegister: unix.NFT_REG_1, SetName: set, Invert: absent})
}

// shorten masks the address behind the interface to the length of the set.
func shorten(b base) []expr.Any {
	n := b.keyLen()
	if int(b.bits) == n*8 {
		return nil
	}
	return []expr.Any{&expr.Bitwise{
		SourceRegister: unix.NFT_REG_2, DestRegister: unix.NFT_REG_2, Len: uint32(n),
		Mask: net.CIDRMask(int(b.bits), n*8), Xor: make([]byte, n),
	}}
}

// loadBehind loads a part of the packet behind the interface's name.
func loadBehind(from expr.PayloadBase, offset, n uint32) expr.Any {
	return &expr.Payload{DestRegister: unix.NFT_REG_2, Base: from, Offset: offset, Len: n}
}
