package matrix_test

import (
	"encoding/binary"
	"net/netip"
	"slices"
	"strings"
)

// letter says who sends to whom, and the words that a receiver knows it by.
type letter struct {
	from, to *end
	token    []byte // of 8 bytes
}

// scope says how far a kind of packet goes.
type scope uint8

const (
	routed scope = iota // through routers, too
	link                // to every IP stack on the link
	frames              // from port to port, not to an IP stack
)

// kind is a row of the matrix.
type kind struct {
	name  string
	scope scope
	build func(l letter) []packet
	// source and dest say that the sender's, and the receiver's, registered address is where rules look.
	source, dest bool
	// pieces are parts of a packet, not all of them: who puts fragments together has nothing of them.
	pieces bool
	// twice says that there is more than one tag.
	twice bool
	// deep says that there are more tags than rules look through.
	deep bool
	// socket says that a node sends it with a packet socket, since no other can.
	socket bool
	// upward is only for the node: a bridge passes it to nobody else.
	upward bool
}

// kinds are the rows of the matrix.
func kinds() []kind {
	return slices.Concat(kinds4(), kinds6(), kindsARP(), kindsTagged(), kindsOther())
}

func one(p packet) []packet { return []packet{p} }

func udp4(l letter) packet {
	return ip4(header4{protocol: protoUDP}, l.from.v4, l.to.v4, udp(l.from.v4, l.to.v4, 4000, 7000, l.token))
}

func udp6(l letter) packet {
	return ip6(nil, protoUDP, l.from.v6, l.to.v6, udp(l.from.v6, l.to.v6, 4000, 7000, l.token))
}

// id tells the fragments of one packet from those of others: what has no rest is kept for half a minute by who puts fragments together.
func (l letter) id() uint32 { return binary.BigEndian.Uint32(l.token[len(l.token)-4:]) }

func kinds4() []kind {
	const more, afterTwo = 0x2000, 2
	first := func(l letter) packet {
		return ip4(header4{protocol: protoUDP, fragment: more, id: uint16(l.id())}, l.from.v4, l.to.v4, slices.Concat([]byte{0x0f, 0xa0, 0x1b, 0x58, 0, 24, 0, 0}, l.token))
	}
	later := func(l letter) packet {
		return ip4(header4{protocol: protoUDP, fragment: afterTwo, id: uint16(l.id())}, l.from.v4, l.to.v4, l.token)
	}
	everyone, allHosts := netip.AddrFrom4([4]byte{255, 255, 255, 255}), netip.AddrFrom4([4]byte{224, 0, 0, 1})
	dhcp := func(from netip.Addr, operation byte, source, dest uint16, l letter) packet {
		body := make([]byte, 240)
		body[0], body[1], body[2] = operation, 1, 6
		copy(body[28:], l.from.mac[:])
		copy(body[236:], []byte{99, 130, 83, 99})
		options := slices.Concat([]byte{53, 1, operation, 224, byte(len(l.token))}, l.token, []byte{255})
		return ip4(header4{protocol: protoUDP}, from, everyone, udp(from, everyone, source, dest, append(body, options...)))
	}
	list := []kind{
		{name: "UDP", build: func(l letter) []packet { return one(udp4(l)) }},
		{name: "UDP by packet socket", socket: true, build: func(l letter) []packet { return one(udp4(l)) }},
		{name: "TCP", build: func(l letter) []packet {
			return one(ip4(header4{protocol: protoTCP}, l.from.v4, l.to.v4, tcp(l.from.v4, l.to.v4, l.token)))
		}},
		{name: "ICMP", build: func(l letter) []packet {
			return one(ip4(header4{protocol: protoICMP}, l.from.v4, l.to.v4, icmp(8, l.token)))
		}},
		{name: "unknown protocol", build: func(l letter) []packet {
			return one(ip4(header4{protocol: protoTest}, l.from.v4, l.to.v4, l.token))
		}},
		{name: "options", build: func(l letter) []packet {
			return one(ip4(header4{protocol: protoTest, options: []byte{1, 1, 1, 0}}, l.from.v4, l.to.v4, l.token))
		}},
		{name: "all fragments", build: func(l letter) []packet { return []packet{first(l), later(l)} }},
		{name: "first fragment alone", pieces: true, build: func(l letter) []packet { return one(first(l)) }},
		{name: "later fragment alone", pieces: true, build: func(l letter) []packet { return one(later(l)) }},
	}
	for i := range list {
		list[i].source, list[i].dest = true, true
	}
	list = append(list,
		kind{name: "multicast", scope: link, source: true, build: func(l letter) []packet {
			return one(ip4(header4{protocol: protoUDP}, l.from.v4, allHosts, udp(l.from.v4, allHosts, 4000, 7000, l.token)))
		}},
		kind{name: "broadcast", scope: link, source: true, build: func(l letter) []packet {
			return one(ip4(header4{protocol: protoUDP}, l.from.v4, everyone, udp(l.from.v4, everyone, 4000, 7000, l.token)))
		}},
		kind{name: "DHCP question", scope: link, socket: true, build: func(l letter) []packet {
			return one(dhcp(netip.IPv4Unspecified(), 1, 68, 67, l))
		}},
		kind{name: "DHCP answer", scope: link, source: true, build: func(l letter) []packet { return one(dhcp(l.from.v4, 2, 67, 68, l)) }},
	)
	for i := range list {
		list[i].name = "IPv4 " + list[i].name
	}
	return list
}

func kinds6() []kind {
	all, routers, servers := netip.MustParseAddr("ff02::1"), netip.MustParseAddr("ff02::2"), netip.MustParseAddr("ff02::1:2")
	first := func(l letter) packet {
		return ip6([]extension{fragment6(0, true, l.id())}, protoUDP, l.from.v6, l.to.v6, slices.Concat([]byte{0x0f, 0xa0, 0x1b, 0x58, 0, 24, 0, 0}, l.token))
	}
	later := func(l letter) packet {
		return ip6([]extension{fragment6(16, false, l.id())}, protoUDP, l.from.v6, l.to.v6, l.token)
	}
	behind := func(headers ...extension) func(l letter) []packet {
		return func(l letter) []packet {
			return one(ip6(headers, protoUDP, l.from.v6, l.to.v6, udp(l.from.v6, l.to.v6, 4000, 7000, l.token)))
		}
	}
	list := []kind{
		{name: "UDP", build: behind()},
		{name: "TCP", build: func(l letter) []packet {
			return one(ip6(nil, protoTCP, l.from.v6, l.to.v6, tcp(l.from.v6, l.to.v6, l.token)))
		}},
		{name: "ICMPv6", build: func(l letter) []packet {
			return one(ip6(nil, protoICMPv6, l.from.v6, l.to.v6, icmp6(l.from.v6, l.to.v6, 128, [4]byte{0, 7, 0, 1}, l.token)))
		}},
		{name: "unknown header", build: func(l letter) []packet { return one(ip6(nil, protoTest, l.from.v6, l.to.v6, l.token)) }},
		{name: "hop-by-hop options", build: behind(hopByHop())},
		{name: "routing header", build: behind(routing())},
		{name: "destination options", build: behind(destination())},
		{name: "fragment header, whole", build: behind(fragment6(0, false, 78))},
		{name: "all extension headers", build: behind(hopByHop(), destination(), routing(), fragment6(0, false, 79), destination())},
		{name: "all fragments", build: func(l letter) []packet { return []packet{first(l), later(l)} }},
		{name: "first fragment alone", pieces: true, build: func(l letter) []packet { return one(first(l)) }},
		{name: "later fragment alone", pieces: true, build: func(l letter) []packet { return one(later(l)) }},
	}
	for i := range list {
		list[i].source, list[i].dest = true, true
	}
	// option is one that nobody knows, with the token.
	option := func(l letter) []byte { return slices.Concat([]byte{253, 2, 0, 0, 0, 0}, l.token, []byte{0, 0}) }
	ownMAC := func(l letter, number byte) []byte { return slices.Concat([]byte{number, 1}, l.from.mac[:]) }
	message := func(from, to netip.Addr, kind byte, four [4]byte, parts ...[]byte) []packet {
		return one(ip6(nil, protoICMPv6, from, to, icmp6(from, to, kind, four, slices.Concat(parts...))))
	}
	list = append(list,
		kind{name: "multicast", scope: link, source: true, build: func(l letter) []packet {
			return one(ip6(nil, protoUDP, l.from.v6, all, udp(l.from.v6, all, 4000, 7000, l.token)))
		}},
		kind{name: "link-local UDP", scope: link, build: func(l letter) []packet {
			return one(ip6(nil, protoUDP, l.from.local, l.to.local, udp(l.from.local, l.to.local, 4000, 7000, l.token)))
		}},
		kind{name: "neighbour solicitation", scope: link, source: true, build: func(l letter) []packet {
			target := l.to.v6.As16()
			group := netip.AddrFrom16([16]byte{0xff, 2, 11: 1, 12: 0xff, 13: target[13], 14: target[14], 15: target[15]})
			return message(l.from.v6, group, 135, [4]byte{}, target[:], ownMAC(l, 1), option(l))
		}},
		kind{name: "neighbour advertisement", scope: link, source: true, dest: true, build: func(l letter) []packet {
			target := l.from.v6.As16()
			return message(l.from.v6, l.to.v6, 136, [4]byte{0x60}, target[:], ownMAC(l, 2), option(l))
		}},
		kind{name: "neighbour advertisement to all", scope: link, source: true, build: func(l letter) []packet {
			target := l.from.v6.As16()
			return message(l.from.v6, all, 136, [4]byte{0x20}, target[:], ownMAC(l, 2), option(l))
		}},
		kind{name: "duplicate address detection", scope: link, socket: true, build: func(l letter) []packet {
			target := l.from.v6.As16()
			return message(netip.IPv6Unspecified(), all, 135, [4]byte{}, target[:], option(l))
		}},
		kind{name: "router solicitation", scope: link, build: func(l letter) []packet {
			return message(l.from.local, routers, 133, [4]byte{}, ownMAC(l, 1), option(l))
		}},
		kind{name: "router advertisement", scope: link, build: func(l letter) []packet {
			return message(l.from.local, all, 134, [4]byte{64, 0, 7, 8}, make([]byte, 8), ownMAC(l, 1), option(l))
		}},
		kind{name: "DHCPv6 question", scope: link, build: func(l letter) []packet {
			body := slices.Concat([]byte{1, 1, 2, 3, 0, 1, 0, byte(len(l.token))}, l.token)
			return one(ip6(nil, protoUDP, l.from.local, servers, udp(l.from.local, servers, 546, 547, body)))
		}},
		kind{name: "DHCPv6 answer", scope: link, build: func(l letter) []packet {
			body := slices.Concat([]byte{7, 1, 2, 3, 0, 1, 0, byte(len(l.token))}, l.token)
			return one(ip6(nil, protoUDP, l.from.local, l.to.local, udp(l.from.local, l.to.local, 547, 546, body)))
		}},
	)
	for i := range list {
		list[i].name = "IPv6 " + list[i].name
	}
	return list
}

func (k kind) isARP() bool { return strings.HasPrefix(k.name, "ARP") }

// finds says that it is how neighbours find each other.
func (k kind) finds() bool {
	return strings.Contains(k.name, "ARP") || strings.Contains(k.name, "neighbour") || strings.Contains(k.name, "duplicate")
}

// unicast says that its frames go to one interface.
func (k kind) unicast() bool {
	e := &end{v4: netip.IPv4Unspecified(), v6: netip.IPv6Unspecified(), local: netip.IPv6Unspecified()}
	return k.build(letter{e, e, make([]byte, 8)})[0].to == mac{}
}
