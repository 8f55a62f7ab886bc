package canary

import (
	"bytes"
	"encoding/binary"
	"net/netip"

	"golang.org/x/sys/unix"

	"github.com/palisade/palisade/fsm"
)

// frame is what is sent into the bridge: an IP packet to an address that is nobody's, in a frame to a hardware address that no
// interface has.
type frame struct {
	mac    fsm.MAC // that it comes from
	from   netip.Addr
	run    uint64
	number byte // in this run
	free   bool // nothing of it is blocked
}

const (
	ethernetBytes = 14
	ipv4Bytes     = 20
	ipv6Bytes     = 40
	protocol      = 253 // for experiments (RFC 3692)
	mark          = "palisade canary\x00"
)

func (f frame) bytes() []byte {
	payload := append([]byte(mark), binary.BigEndian.AppendUint64(nil, f.run)...)
	payload = append(payload, f.number)
	to := nobody()
	b := append(append([]byte{}, to[:]...), f.mac[:]...)
	if f.from.Is4() {
		b = append(b, unix.ETH_P_IP>>8, unix.ETH_P_IP&0xff)
		ip := make([]byte, ipv4Bytes)
		ip[0], ip[8], ip[9] = 0x45, 1, protocol // a hop more is one too many
		binary.BigEndian.PutUint16(ip[2:], uint16(ipv4Bytes+len(payload)))
		copy(ip[12:], f.from.AsSlice())
		copy(ip[16:], free4().AsSlice())
		binary.BigEndian.PutUint16(ip[10:], checksum(ip))
		b = append(b, ip...)
	} else {
		b = append(b, unix.ETH_P_IPV6>>8, unix.ETH_P_IPV6&0xff)
		ip := make([]byte, ipv6Bytes)
		ip[0], ip[6], ip[7] = 0x60, protocol, 1
		binary.BigEndian.PutUint16(ip[4:], uint16(len(payload)))
		copy(ip[8:], f.from.AsSlice())
		copy(ip[24:], free6().AsSlice())
		b = append(b, ip...)
	}
	return append(b, payload...)
}

// checksum is that of RFC 1071, of an even number of bytes.
func checksum(b []byte) uint16 {
	var sum uint32
	for i := 0; i < len(b); i += 2 {
		sum += uint32(binary.BigEndian.Uint16(b[i:]))
	}
	for sum > 0xffff {
		sum = sum>>16 + sum&0xffff
	}
	return ^uint16(sum)
}

// parse says which frame of which run was received, false if it is none of ours.
func parse(b []byte) (number byte, run uint64, ok bool) {
	i := bytes.Index(b, []byte(mark))
	if i < ethernetBytes || len(b) < i+len(mark)+9 {
		return 0, 0, false
	}
	b = b[i+len(mark):]
	return b[8], binary.BigEndian.Uint64(b), true
}
