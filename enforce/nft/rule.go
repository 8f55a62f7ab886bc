package nft

import (
	"encoding/binary"
	"fmt"
	"net"
	"slices"

	"github.com/google/nftables/expr"
	"golang.org/x/sys/unix"

	"github.com/palisade/palisade/fsm"
)

// rule is one rule: what a packet must be, what is looked up of it, and what is done with it. Rules are
// comparable.
type rule struct {
	test  test  // 0: any packet
	match match // 0: nothing is looked up
	depth depth // of source and dest
	base  base
	set   string
	do    action
	chain string  // of jump, goTo and markAndHandUp
	mac   fsm.MAC // of address and toHTTPAt
	port  uint16  // of redirect
}

// test is a property of a packet that does not depend on a target.
type test uint8

const (
	isARP test = iota + 1
	isIPv4
	isIPv6
	isTCP
	isNeighbour   // IPv6 neighbour solicitation or advertisement
	isReset       // TCP reset
	isOwnReset    // TCP reset that this node sent to itself
	isProhibited4 // ICMP "communication administratively prohibited"
	isProhibited6
	toHTTP
	toHTTPNotFromBridge
	toHTTPIntoBridge
	toHTTPAt // in a frame to rule.mac
	fromHTTP
	isHandedUp
	notFromBridge
	isTagged        // behind the tags that the kernel takes off is another one
	isServiceTagged // likewise, of 802.1ad
	notReserved     // not to an address that bridges do not pass on
)

// depth says where a frame has its IP header.
type depth uint8

const (
	// outer is right behind the Ethernet header and one VLAN tag, which the kernel takes off.
	outer depth = iota
	// behindTag is behind one more tag, which is where the kernel looks for a network header.
	behindTag
	// pastTags is the network header, as of a frame that a packet socket sends: the kernel knows where that is, and takes
	// the first tag for the protocol.
	pastTags
)

type action uint8

const (
	drop          action = iota + 1
	accept               // ends what our chains do with the packet in this hook
	leave                // back to the chain that called
	jump                 // call a chain
	goTo                 // call a chain and do not come back
	toChain              // call the chain that the map says
	reset                // answer with a TCP reset
	prohibit             // answer with ICMP "administratively prohibited"
	redirect             // to a port of this node
	address              // a frame to a bridge of this node
	markAndHandUp        // mark, then goTo
)

const (
	portHTTP = 80
	// markReject is on frames that bridges hand up to be rejected: "pal" and a number. It is gone before
	// anything else sees the packet.
	markReject = 0x70616c01
)

// exprs is what `nft` compiles the same rule to, so that it lists as one would write it.
func (r rule) exprs(f family) []expr.Any {
	test := r.test.exprs(f)
	if r.test == toHTTPAt {
		test = append(test, load(expr.PayloadBaseLLHeader, 0, 6), compare(expr.CmpOpEq, r.mac[:]...))
	}
	if r.do == drop {
		return slices.Concat(test, r.lookup(f), dropIn(f))
	}
	return slices.Concat(test, r.lookup(f), r.act())
}

func (t test) exprs(f family) []expr.Any {
	switch t {
	case isARP:
		return metaIs(expr.MetaKeyPROTOCOL, 0x08, 0x06)
	case isIPv4:
		return isProtocol(f, kind4)
	case isIPv6:
		return isProtocol(f, kind6)
	case isTCP:
		return l4(unix.IPPROTO_TCP)
	case isNeighbour:
		const solicitation, advertisement = 135, 136
		return slices.Concat(isProtocol(f, kind6), l4(unix.IPPROTO_ICMPV6), []expr.Any{
			load(expr.PayloadBaseTransportHeader, 0, 1),
			compare(expr.CmpOpGte, solicitation), compare(expr.CmpOpLte, advertisement),
		})
	case isReset:
		return slices.Concat(l4(unix.IPPROTO_TCP), []expr.Any{load(expr.PayloadBaseTransportHeader, 13, 1)}, hasBits(4))
	case isOwnReset:
		return append(metaIs(expr.MetaKeyIIFNAME, interfaceName("lo")...), isReset.exprs(f)...)
	case isProhibited4:
		return slices.Concat(isProtocol(f, kind4), l4(unix.IPPROTO_ICMP), portIs(0, 3<<8|13))
	case isProhibited6:
		return slices.Concat(isProtocol(f, kind6), l4(unix.IPPROTO_ICMPV6), portIs(0, 1<<8|1))
	case toHTTPNotFromBridge:
		return append(notFromBridge.exprs(f), toHTTP.exprs(f)...)
	case toHTTPIntoBridge:
		return append(kindIs(metaOIFKind, expr.CmpOpEq), toHTTP.exprs(f)...)
	case toHTTP, toHTTPAt:
		return append(l4(unix.IPPROTO_TCP), portIs(2, portHTTP)...)
	case fromHTTP:
		return append(l4(unix.IPPROTO_TCP), portIs(0, portHTTP)...)
	case isHandedUp:
		return metaIs(expr.MetaKeyMARK, binary.NativeEndian.AppendUint32(nil, markReject)...)
	case notFromBridge:
		return kindIs(metaIIFKind, expr.CmpOpNeq)
	case isTagged:
		return metaIs(expr.MetaKeyPROTOCOL, 0x81, 0x00)
	case isServiceTagged:
		return metaIs(expr.MetaKeyPROTOCOL, 0x88, 0xa8)
	case notReserved: // 01:80:c2:00:00:00 to 0f
		return []expr.Any{
			load(expr.PayloadBaseLLHeader, 0, 6),
			&expr.Bitwise{SourceRegister: unix.NFT_REG_1, DestRegister: unix.NFT_REG_1, Len: 6, Mask: []byte{0xff, 0xff, 0xff, 0xff, 0xff, 0xf0}, Xor: make([]byte, 6)},
			compare(expr.CmpOpNeq, 0x01, 0x80, 0xc2, 0, 0, 0),
		}
	default:
		return nil
	}
}

// interfaceName is a name, or a kind, as the kernel compares it.
func interfaceName(s string) []byte {
	b := make([]byte, unix.IFNAMSIZ)
	copy(b, s)
	return b
}

const (
	metaIIFKind expr.MetaKey = 26 // NFT_META_IIFKIND
	metaOIFKind expr.MetaKey = 27 // NFT_META_OIFKIND
)

// kindIs compares the kind of an interface with that of a bridge.
func kindIs(key expr.MetaKey, op expr.CmpOp) []expr.Any {
	return []expr.Any{&expr.Meta{Key: key, Register: unix.NFT_REG_1}, compare(op, interfaceName("bridge")...)}
}

func (r rule) lookup(f family) []expr.Any {
	var list []expr.Any
	switch r.match {
	case 0:
		return nil
	case inTap, gotTap:
		list = append(list, &expr.Meta{Key: expr.MetaKeyIIFNAME, Register: unix.NFT_REG_1})
	case outTap, sentTap:
		list = append(list, &expr.Meta{Key: expr.MetaKeyOIFNAME, Register: unix.NFT_REG_1})
	case sourceMAC:
		list = append(list, load(expr.PayloadBaseLLHeader, 6, 6))
	case destMAC:
		list = append(list, load(expr.PayloadBaseLLHeader, 0, 6))
	case source, dest:
		n := uint32(r.base.keyLen())
		list = append(r.depth.isProtocol(f, r.base.kind), r.depth.address(r.match, r.base.kind))
		if r.base.masked() {
			list = append(list, &expr.Bitwise{
				SourceRegister: unix.NFT_REG_1, DestRegister: unix.NFT_REG_1, Len: n,
				Mask: net.CIDRMask(int(r.base.bits), int(n)*8), Xor: make([]byte, n),
			})
		}
	}
	in := &expr.Lookup{SourceRegister: unix.NFT_REG_1, SetName: r.set}
	if r.do == toChain {
		in.IsDestRegSet, in.DestRegister = true, unix.NFT_REG_VERDICT
	}
	return append(list, in)
}

func (r rule) act() []expr.Any {
	switch r.do {
	case accept:
		return verdict(expr.VerdictAccept, "")
	case leave:
		return verdict(expr.VerdictReturn, "")
	case jump:
		return verdict(expr.VerdictJump, r.chain)
	case goTo:
		return verdict(expr.VerdictGoto, r.chain)
	case reset:
		return []expr.Any{&expr.Reject{Type: unix.NFT_REJECT_TCP_RST}}
	case prohibit:
		return []expr.Any{&expr.Reject{Type: unix.NFT_REJECT_ICMPX_UNREACH, Code: unix.NFT_REJECT_ICMPX_ADMIN_PROHIBITED}}
	case redirect:
		return []expr.Any{
			&expr.Immediate{Register: unix.NFT_REG_1, Data: binary.BigEndian.AppendUint16(nil, r.port)},
			&expr.Redir{RegisterProtoMin: unix.NFT_REG_1, RegisterProtoMax: unix.NFT_REG_1, Flags: natSpecified},
		}
	case address:
		return append([]expr.Any{
			&expr.Immediate{Register: unix.NFT_REG_1, Data: r.mac[:]},
			&expr.Payload{OperationType: expr.PayloadWrite, SourceRegister: unix.NFT_REG_1, Base: expr.PayloadBaseLLHeader, Offset: 0, Len: 6},
			&expr.Immediate{Register: unix.NFT_REG_1, Data: []byte{unix.PACKET_HOST}},
			&expr.Meta{Key: expr.MetaKeyPKTTYPE, SourceRegister: true, Register: unix.NFT_REG_1},
		}, verdict(expr.VerdictAccept, "")...)
	case markAndHandUp:
		return append([]expr.Any{
			&expr.Immediate{Register: unix.NFT_REG_1, Data: binary.NativeEndian.AppendUint32(nil, markReject)},
			&expr.Meta{Key: expr.MetaKeyMARK, SourceRegister: true, Register: unix.NFT_REG_1},
		}, verdict(expr.VerdictGoto, r.chain)...)
	default: // toChain: the lookup is the verdict
		return nil
	}
}

// natSpecified is NF_NAT_RANGE_PROTO_SPECIFIED.
const natSpecified = 2

// dropIn drops a packet. To a packet socket a drop on the way out is an error, and Open vSwitch then gives up all that it
// has not sent yet of a burst, whoever sent it. So on devices a packet is forwarded to an interface that there can't be:
// the kernel frees it, and tells the sender that all is well.
func dropIn(f family) []expr.Any {
	if f != netdev {
		return verdict(expr.VerdictDrop, "")
	}
	return []expr.Any{&expr.Immediate{Register: unix.NFT_REG_1, Data: []byte{0, 0, 0, 0}}, forward{}}
}

// forward sends a packet out of the interface that register 1 says: `fwd to`, which the expr package lacks. Nothing but
// marshalRule and parseRule may be called with it.
type forward struct{ expr.Any }

func (forward) encode() []byte {
	b := appendString(nil, unix.NFTA_EXPR_NAME, "fwd")
	b, nest := openNest(b, unix.NFTA_EXPR_DATA)
	return closeNest(appendUint32(b, attrForwardDevice, unix.NFT_REG_1), nest)
}

// isForward says whether the kernel describes what forward is.
func isForward(data []byte) bool {
	register, _ := findAttr(data, attrForwardDevice)
	return len(register) == 4 && attrUint32(register) == unix.NFT_REG_1
}

func verdict(k expr.VerdictKind, chain string) []expr.Any {
	return []expr.Any{&expr.Verdict{Kind: k, Chain: chain}}
}

func load(from expr.PayloadBase, offset, n uint32) expr.Any {
	return &expr.Payload{DestRegister: unix.NFT_REG_1, Base: from, Offset: offset, Len: n}
}

func compare(op expr.CmpOp, data ...byte) expr.Any {
	return &expr.Cmp{Op: op, Register: unix.NFT_REG_1, Data: data}
}

func metaIs(key expr.MetaKey, data ...byte) []expr.Any {
	return []expr.Any{&expr.Meta{Key: key, Register: unix.NFT_REG_1}, compare(expr.CmpOpEq, data...)}
}

// l4 matches the protocol behind the network header and its extensions.
func l4(protocol byte) []expr.Any { return metaIs(expr.MetaKeyL4PROTO, protocol) }

// portIs matches two bytes of the transport header.
func portIs(offset uint32, v uint16) []expr.Any {
	return []expr.Any{load(expr.PayloadBaseTransportHeader, offset, 2), compare(expr.CmpOpEq, byte(v>>8), byte(v))}
}

// isProtocol matches IPv4 or IPv6. On a bridge, and on a device's ingress, the protocol is that inside of one VLAN tag.
func isProtocol(f family, k kind) []expr.Any {
	switch {
	case f != inet && k == kind4:
		return metaIs(expr.MetaKeyPROTOCOL, 0x08, 0x00)
	case f != inet:
		return metaIs(expr.MetaKeyPROTOCOL, 0x86, 0xdd)
	case k == kind6:
		return metaIs(expr.MetaKeyNFPROTO, unix.NFPROTO_IPV6)
	default:
		return metaIs(expr.MetaKeyNFPROTO, unix.NFPROTO_IPV4)
	}
}

// isProtocol matches IPv4 or IPv6 at a depth.
func (d depth) isProtocol(f family, k kind) []expr.Any {
	protocol, version := []byte{0x08, 0x00}, byte(0x40)
	if k == kind6 {
		protocol, version = []byte{0x86, 0xdd}, 0x60
	}
	switch d {
	case behindTag:
		return []expr.Any{load(expr.PayloadBaseNetworkHeader, 2, 2), compare(expr.CmpOpEq, protocol...)}
	case pastTags:
		return []expr.Any{
			load(expr.PayloadBaseNetworkHeader, 0, 1),
			&expr.Bitwise{SourceRegister: unix.NFT_REG_1, DestRegister: unix.NFT_REG_1, Len: 1, Mask: []byte{0xf0}, Xor: []byte{0}},
			compare(expr.CmpOpEq, version),
		}
	default:
		return isProtocol(f, k)
	}
}

// address loads a packet's source or destination.
func (d depth) address(m match, k kind) expr.Any {
	n := uint32(base{kind: k}.keyLen())
	offset := uint32(12) // of the IPv4 source
	if k == kind6 {
		offset = 8
	}
	if m == dest {
		offset += n
	}
	if d == behindTag {
		offset += 4
	}
	return load(expr.PayloadBaseNetworkHeader, offset, n)
}

// marshalRule encodes the expressions of a rule as the content of NFTA_RULE_EXPRESSIONS.
func marshalRule(f family, list []expr.Any) ([]byte, error) {
	var b []byte
	for _, e := range list {
		if f, ok := e.(forward); ok {
			b = appendAttr(b, unix.NFTA_LIST_ELEM|unix.NLA_F_NESTED, f.encode())
			continue
		}
		one, err := expr.Marshal(byte(f), e)
		if err != nil {
			return nil, fmt.Errorf("encode %T: %w", e, err)
		}
		b = appendAttr(b, unix.NFTA_LIST_ELEM|unix.NLA_F_NESTED, one)
	}
	return b, nil
}

// parseRule decodes and encodes again what the kernel says of a rule, to compare it with ours: the
// kernel adds attributes that were not sent. It returns nil for a rule that can't be ours. The counter
// is the sum of those in the rule, which is encoded without.
func parseRule(f family, b []byte) (again []byte, counter [2]uint64) {
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
		if name == "fwd" {
			if !isForward(data) {
				return nil, counter
			}
			list = append(list, forward{})
			continue
		}
		e := exprNamed(name)
		if _, ok := e.(*expr.Verdict); ok && !isVerdict(f, data) {
			e = &expr.Immediate{}
		}
		if e == nil || expr.Unmarshal(byte(f), data, e) != nil {
			return nil, counter
		}
		if c, ok := e.(*expr.Counter); ok {
			counter[0] += c.Packets
			counter[1] += c.Bytes
			*c = expr.Counter{}
		}
		list = append(list, e)
	}
	again, err := marshalRule(f, list)
	if err != nil {
		return nil, counter
	}
	return again, counter
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
	case "exthdr":
		return &expr.Exthdr{}
	case "counter":
		return &expr.Counter{}
	case "limit":
		return &expr.Limit{}
	case "reject":
		return &expr.Reject{}
	case "redir":
		return &expr.Redir{}
	case "dynset":
		return &expr.Dynset{}
	}
	return nil
}
