package nft

import (
	"encoding/binary"
	"iter"

	"golang.org/x/sys/unix"
)

// Netlink attributes are written and read by hand: a set of 100,000 elements has half a million of
// them, and each function below costs no allocation.

// Attribute types that golang.org/x/sys/unix does not name.
const (
	attrSetExpr       = 17 // NFTA_SET_EXPR
	attrCounterBytes  = 1  // NFTA_COUNTER_BYTES
	attrCounterPacket = 2  // NFTA_COUNTER_PACKETS
	attrForwardDevice = 1  // NFTA_FWD_SREG_DEV
	attrElemComment   = 0  // NFTNL_UDATA_SET_ELEM_COMMENT
	attrSetByteOrder  = 0  // NFTNL_UDATA_SET_KEYBYTEORDER
)

const (
	attrHeader = 4
	attrTypes  = 0x3fff // without NLA_F_NESTED and NLA_F_NET_BYTEORDER
)

func aligned(n int) int { return (n + 3) &^ 3 }

func appendAttr(b []byte, typ uint16, data []byte) []byte {
	b = binary.NativeEndian.AppendUint16(b, uint16(attrHeader+len(data)))
	b = binary.NativeEndian.AppendUint16(b, typ)
	b = append(b, data...)
	for len(b)%4 != 0 {
		b = append(b, 0)
	}
	return b
}

func appendString(b []byte, typ uint16, s string) []byte {
	b = binary.NativeEndian.AppendUint16(b, uint16(attrHeader+len(s)+1))
	b = binary.NativeEndian.AppendUint16(b, typ)
	b = append(b, s...)
	b = append(b, 0)
	for len(b)%4 != 0 {
		b = append(b, 0)
	}
	return b
}

func appendUint32(b []byte, typ uint16, v uint32) []byte {
	return appendAttr(b, typ, binary.BigEndian.AppendUint32(nil, v))
}

func appendUint64(b []byte, typ uint16, v uint64) []byte {
	return appendAttr(b, typ, binary.BigEndian.AppendUint64(nil, v))
}

// openNest starts a nested attribute; closeNest, given the offset that it returned, ends it.
func openNest(b []byte, typ uint16) ([]byte, int) {
	start := len(b)
	b = binary.NativeEndian.AppendUint16(b, 0)
	return binary.NativeEndian.AppendUint16(b, typ|unix.NLA_F_NESTED), start
}

func closeNest(b []byte, start int) []byte {
	binary.NativeEndian.PutUint16(b[start:], uint16(len(b)-start))
	return b
}

// attrs walks the attributes in b. It stops at the first that does not fit.
func attrs(b []byte) iter.Seq2[uint16, []byte] {
	return func(yield func(uint16, []byte) bool) {
		for rest := b; ; {
			typ, v, after, ok := cutAttr(rest)
			if !ok || !yield(typ, v) {
				return
			}
			rest = after
		}
	}
}

// cutAttr splits the first attribute off; ok is false if there is none that fits. Loops over it
// allocate nothing, where walks of attrs inside one another do.
func cutAttr(b []byte) (typ uint16, v, rest []byte, ok bool) {
	if len(b) < attrHeader {
		return 0, nil, nil, false
	}
	n := int(binary.NativeEndian.Uint16(b))
	if n < attrHeader || n > len(b) {
		return 0, nil, nil, false
	}
	return binary.NativeEndian.Uint16(b[2:]) & attrTypes, b[attrHeader:n], b[min(aligned(n), len(b)):], true
}

// findAttr returns the first attribute of a type.
func findAttr(b []byte, want uint16) (v []byte, ok bool) {
	for {
		typ, v, rest, ok := cutAttr(b)
		if !ok || typ == want {
			return v, ok
		}
		b = rest
	}
}

func attrUint32(b []byte) uint32 {
	if len(b) < 4 {
		return 0
	}
	return binary.BigEndian.Uint32(b)
}

func attrUint64(b []byte) uint64 {
	if len(b) < 8 {
		return 0
	}
	return binary.BigEndian.Uint64(b)
}

func attrText(b []byte) string {
	for i, c := range b {
		if c == 0 {
			return string(b[:i])
		}
	}
	return string(b)
}
