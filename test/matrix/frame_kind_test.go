package matrix_test

import "slices"

func kindsARP() []kind {
	return []kind{
		{name: "ARP request", scope: link, socket: true, build: func(l letter) []packet {
			p := arp(1, l.from.mac, l.from.claimed(l.token), mac{}, l.to.v4, l.token)
			p.to = broadcastMAC()
			return one(p)
		}},
		{name: "ARP reply", scope: link, socket: true, build: func(l letter) []packet {
			return one(arp(2, l.from.mac, l.from.claimed(l.token), l.to.mac, l.to.v4, l.token))
		}},
		{name: "ARP announcement", scope: link, socket: true, build: func(l letter) []packet {
			own := l.from.claimed(l.token)
			p := arp(1, l.from.mac, own, mac{}, own, l.token)
			p.to = broadcastMAC()
			return one(p)
		}},
	}
}

// kindsTagged are frames with VLAN tags. A receiver takes tags with the number 0, which only have a
// priority, for none, however many there are.
func kindsTagged() []kind {
	const vlan, otherVLAN, priority = 5, 6, 5 << 13
	single := []tag{{tag8021Q, vlan}}
	service := []tag{{tag8021AD, vlan}}
	double := []tag{{tag8021AD, vlan}, {tag8021Q, otherVLAN}}
	twice := []tag{{tag8021Q, vlan}, {tag8021Q, otherVLAN}}
	two := []tag{{tag8021Q, priority}, {tag8021Q, priority}}
	tagged := func(build func(l letter) packet, tags []tag) func(l letter) []packet {
		return func(l letter) []packet {
			p := build(l)
			p.tags = tags
			return one(p)
		}
	}
	kinds := []kind{
		{name: "802.1p, IPv4", scope: routed, build: tagged(udp4, []tag{{tag8021Q, priority}})},
		{name: "802.1p, IPv6", scope: routed, build: tagged(udp6, []tag{{tag8021Q, priority}})},
		{name: "802.1p twice, IPv4", scope: routed, twice: true, build: tagged(udp4, two)},
		{name: "802.1p twice, IPv6", scope: routed, twice: true, build: tagged(udp6, two)},
		{name: "802.1Q, IPv4", scope: frames, build: tagged(udp4, single)},
		{name: "802.1Q, IPv6", scope: frames, build: tagged(udp6, single)},
		{name: "802.1ad, IPv4", scope: frames, build: tagged(udp4, service)},
		{name: "802.1ad, IPv6", scope: frames, build: tagged(udp6, service)},
		{name: "802.1ad and 802.1Q, IPv4", scope: frames, twice: true, build: tagged(udp4, double)},
		{name: "802.1ad and 802.1Q, IPv6", scope: frames, twice: true, build: tagged(udp6, double)},
		{name: "802.1Q twice, IPv4", scope: frames, twice: true, build: tagged(udp4, twice)},
		{name: "802.1Q twice, IPv6", scope: frames, twice: true, build: tagged(udp6, twice)},
	}
	for i := range kinds {
		kinds[i].source, kinds[i].dest, kinds[i].socket = true, true, true
	}
	return append(kinds,
		kind{name: "three tags, IPv4", scope: frames, source: true, dest: true, deep: true, socket: true, build: tagged(udp4, append(slices.Clone(double), tag{tag8021Q, 7}))},
		kind{name: "802.1Q, ARP", scope: frames, socket: true, build: tagged(func(l letter) packet {
			return arp(2, l.from.mac, l.from.v4, l.to.mac, l.to.v4, l.token)
		}, single)},
	)
}

func kindsOther() []kind {
	to := func(dest mac, protocol uint16, header ...byte) func(l letter) []packet {
		return func(l letter) []packet {
			return one(packet{to: dest, protocol: protocol, body: slices.Concat(header, l.token)})
		}
	}
	kinds := []kind{
		{name: "unknown protocol", build: to(mac{}, etherTest)},
		{name: "unknown protocol, broadcast", build: to(broadcastMAC(), etherTest)},
		{name: "unknown protocol, multicast", build: to(mac{1, 0x1b, 0x19, 0, 0, 0}, etherTest)},
		{name: "LLC", build: to(mac{}, 3+8, 0xf0, 0xf0, 0x03)},
		{name: "spanning tree", build: to(mac{1, 0x80, 0xc2, 0, 0, 0}, 3+8, 0x42, 0x42, 0x03)},
		{name: "802.1X", upward: true, build: to(mac{1, 0x80, 0xc2, 0, 0, 3}, ether8021X)},
		{name: "802.1X as another", upward: true, build: func(l letter) []packet {
			return one(packet{to: mac{1, 0x80, 0xc2, 0, 0, 3}, as: mac{0x52, 0x54, 0, 0, 9, 9}, protocol: ether8021X, body: l.token})
		}},
		{name: "LLDP", upward: true, build: to(mac{1, 0x80, 0xc2, 0, 0, 0x0e}, etherLLDP)},
		{name: "PPPoE with IPv4", build: func(l letter) []packet {
			inner := udp4(l).body
			return one(packet{protocol: 0x8864, body: slices.Concat([]byte{0x11, 0, 0, 1, 0, byte(2 + len(inner)), 0, 0x21}, inner)})
		}},
	}
	for i := range kinds {
		kinds[i].name, kinds[i].scope, kinds[i].socket = "Ethernet "+kinds[i].name, frames, true
	}
	return kinds
}
