package matrix_test

import (
	"encoding/binary"
	"net/netip"
	"slices"

	"golang.org/x/sys/unix"
)

const (
	etherIPv4   = unix.ETH_P_IP
	etherIPv6   = unix.ETH_P_IPV6
	etherARP    = unix.ETH_P_ARP
	tag8021Q    = unix.ETH_P_8021Q
	tag8021AD   = unix.ETH_P_8021AD
	etherLLDP   = 0x88cc
	ether8021X  = unix.ETH_P_PAE
	etherTest   = 0x88b5 // for experiments
	protoTest   = 253    // likewise
	protoUDP    = unix.IPPROTO_UDP
	protoTCP    = unix.IPPROTO_TCP
	protoICMP   = unix.IPPROTO_ICMP
	protoICMPv6 = unix.IPPROTO_ICMPV6
)

type mac [6]byte

func broadcastMAC() mac { return mac{0xff, 0xff, 0xff, 0xff, 0xff, 0xff} }

// groupMAC is where frames to a multicast address go.
func groupMAC(a netip.Addr) mac {
	if a.Is4() {
		b := a.As4()
		return mac{0x01, 0x00, 0x5e, b[1] & 0x7f, b[2], b[3]}
	}
	b := a.As16()
	return mac{0x33, 0x33, b[12], b[13], b[14], b[15]}
}

// packet is what is sent: the content of a frame, without its addresses.
type packet struct {
	to       mac // zero: who is next on the way to the receiver
	as       mac // zero: the sender's
	tags     []tag
	protocol uint16 // below 1,536 it is a length
	body     []byte
}

type tag struct{ protocol, id uint16 }

// frame is the packet as it is on the wire.
func (p packet) frame(from, next mac) []byte {
	to := p.to
	if to == (mac{}) {
		to = next
	}
	if p.as != (mac{}) {
		from = p.as
	}
	b := slices.Concat(to[:], from[:])
	for _, t := range p.tags {
		b = binary.BigEndian.AppendUint16(b, t.protocol)
		b = binary.BigEndian.AppendUint16(b, t.id)
	}
	return append(binary.BigEndian.AppendUint16(b, p.protocol), p.body...)
}

// header4 is what an IPv4 header has beside its addresses.
type header4 struct {
	protocol byte
	options  []byte
	fragment uint16 // flags and offset
	id       uint16 // of the packet that a fragment is of
}

func ip4(h header4, from, to netip.Addr, payload []byte) packet {
	size := 20 + len(h.options)
	b := []byte{0x40 | byte(size/4), 0}
	b = binary.BigEndian.AppendUint16(b, uint16(size+len(payload)))
	b = binary.BigEndian.AppendUint16(b, h.id)
	b = binary.BigEndian.AppendUint16(b, h.fragment)
	b = append(b, 64, h.protocol, 0, 0)
	b = slices.Concat(b, from.AsSlice(), to.AsSlice(), h.options)
	binary.BigEndian.PutUint16(b[10:], checksum(b))
	p := packet{protocol: etherIPv4, body: append(b, payload...)}
	switch {
	case to.IsMulticast():
		p.to = groupMAC(to)
	case to == netip.AddrFrom4([4]byte{255, 255, 255, 255}):
		p.to = broadcastMAC()
	}
	return p
}

// ip6 puts headers, each with its own number, before a payload.
func ip6(headers []extension, last byte, from, to netip.Addr, payload []byte) packet {
	next := last
	for _, h := range slices.Backward(headers) {
		payload = slices.Concat([]byte{next}, h.rest, payload)
		next = h.number
	}
	b := []byte{0x60, 0, 0, 0}
	b = binary.BigEndian.AppendUint16(b, uint16(len(payload)))
	b = append(b, next, 255)
	p := packet{protocol: etherIPv6, body: slices.Concat(b, from.AsSlice(), to.AsSlice(), payload)}
	if to.IsMulticast() {
		p.to = groupMAC(to)
	}
	return p
}

// extension is an IPv6 extension header without its first byte.
type extension struct {
	number byte
	rest   []byte
}

func hopByHop() extension    { return extension{0, []byte{0, 1, 4, 0, 0, 0, 0}} }
func destination() extension { return extension{60, []byte{0, 1, 4, 0, 0, 0, 0}} }
func routing() extension     { return extension{43, []byte{0, protoTest, 0, 0, 0, 0, 0}} }

func fragment6(offset uint16, more bool, id uint32) extension {
	v := offset
	if more {
		v |= 1
	}
	return extension{44, binary.BigEndian.AppendUint32(binary.BigEndian.AppendUint16([]byte{0}, v), id)}
}

func udp(from, to netip.Addr, source, dest uint16, payload []byte) []byte {
	b := binary.BigEndian.AppendUint16(nil, source)
	b = binary.BigEndian.AppendUint16(b, dest)
	b = binary.BigEndian.AppendUint16(b, uint16(8+len(payload)))
	b = append(append(b, 0, 0), payload...)
	binary.BigEndian.PutUint16(b[6:], checksum(pseudo(from, to, protoUDP, b), b))
	return b
}

// tcp is a first segment, with data.
func tcp(from, to netip.Addr, payload []byte) []byte {
	b := []byte{0x0f, 0xa0, 0x1b, 0x58, 0, 0, 0, 1, 0, 0, 0, 0, 0x50, 2, 0x20, 0, 0, 0, 0, 0}
	b = append(b, payload...)
	binary.BigEndian.PutUint16(b[16:], checksum(pseudo(from, to, protoTCP, b), b))
	return b
}

func icmp(kind byte, payload []byte) []byte {
	b := append([]byte{kind, 0, 0, 0, 0, 7, 0, 1}, payload...)
	binary.BigEndian.PutUint16(b[2:], checksum(b))
	return b
}

// icmp6 is a message with four bytes and a rest.
func icmp6(from, to netip.Addr, kind byte, four [4]byte, rest []byte) []byte {
	b := slices.Concat([]byte{kind, 0, 0, 0}, four[:], rest)
	binary.BigEndian.PutUint16(b[2:], checksum(pseudo(from, to, protoICMPv6, b), b))
	return b
}

func pseudo(from, to netip.Addr, protocol byte, payload []byte) []byte {
	b := slices.Concat(from.AsSlice(), to.AsSlice())
	b = binary.BigEndian.AppendUint32(b, uint32(len(payload)))
	return append(b, 0, 0, 0, protocol)
}

// checksum of parts of even length, but for the last.
func checksum(parts ...[]byte) uint16 {
	var sum uint32
	for _, b := range parts {
		for ; len(b) > 1; b = b[2:] {
			sum += uint32(b[0])<<8 | uint32(b[1])
		}
		if len(b) == 1 {
			sum += uint32(b[0]) << 8
		}
	}
	for sum > 0xffff {
		sum = sum>>16 + sum&0xffff
	}
	return ^uint16(sum)
}

// arp is a request or a reply, with a trailer as frames of a minimal size have one.
func arp(operation byte, sender mac, senderIP netip.Addr, target mac, targetIP netip.Addr, trailer []byte) packet {
	return packet{protocol: etherARP, body: slices.Concat([]byte{0, 1, 8, 0, 6, 4, 0, operation},
		sender[:], senderIP.AsSlice(), target[:], targetIP.AsSlice(), trailer)}
}
