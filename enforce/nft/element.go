package nft

import (
	"golang.org/x/sys/unix"
)

// element is one element of a set as the kernel holds it.
type element struct {
	key     key
	counter [2]uint64 // packets, bytes
	comment string
	chain   string // of a map: what its verdict jumps to
}

// verdictJump is NFT_JUMP.
const verdictJump = 0xfffffffd

// appendElementList starts the attributes of a message about elements of a set.
func appendElementList(b []byte, table, set string) []byte {
	b = appendString(b, unix.NFTA_SET_ELEM_LIST_TABLE, table)
	return appendString(b, unix.NFTA_SET_ELEM_LIST_SET, set)
}

// appendElement adds one element to an open list. Only what is not zero in e is sent.
func appendElement(b []byte, key []byte, e element) []byte {
	b, one := openNest(b, unix.NFTA_LIST_ELEM)
	b, nest := openNest(b, unix.NFTA_SET_ELEM_KEY)
	b = closeNest(appendAttr(b, unix.NFTA_DATA_VALUE, key), nest)
	if e.chain != "" {
		var data int
		b, nest = openNest(b, unix.NFTA_SET_ELEM_DATA)
		b, data = openNest(b, unix.NFTA_DATA_VERDICT)
		b = appendUint32(b, unix.NFTA_VERDICT_CODE, verdictJump)
		b = appendString(b, unix.NFTA_VERDICT_CHAIN, e.chain)
		b = closeNest(closeNest(b, data), nest)
	}
	if e.counter != [2]uint64{} {
		b, nest = openNest(b, unix.NFTA_SET_ELEM_EXPR)
		b = appendString(b, unix.NFTA_EXPR_NAME, "counter")
		var data int
		b, data = openNest(b, unix.NFTA_EXPR_DATA)
		b = appendUint64(b, attrCounterBytes, e.counter[1])
		b = appendUint64(b, attrCounterPacket, e.counter[0])
		b = closeNest(closeNest(b, data), nest)
	}
	if e.comment != "" {
		data := append([]byte{attrElemComment, byte(len(e.comment) + 1)}, e.comment...)
		b = appendAttr(b, unix.NFTA_SET_ELEM_USERDATA, append(data, 0))
	}
	return closeNest(b, one)
}

// eachElement walks the elements in the attributes of a message.
func eachElement(message []byte, each func(element)) {
	list, _ := findAttr(message, unix.NFTA_SET_ELEM_LIST_ELEMENTS)
	for {
		_, one, rest, ok := cutAttr(list)
		if !ok {
			return
		}
		each(parseElement(one))
		list = rest
	}
}

func parseElement(b []byte) (e element) {
	for {
		typ, v, rest, ok := cutAttr(b)
		if !ok {
			return e
		}
		switch typ {
		case unix.NFTA_SET_ELEM_KEY:
			data, _ := findAttr(v, unix.NFTA_DATA_VALUE)
			copy(e.key[:], data)
		case unix.NFTA_SET_ELEM_DATA:
			data, _ := findAttr(v, unix.NFTA_DATA_VERDICT)
			code, _ := findAttr(data, unix.NFTA_VERDICT_CODE)
			if chain, _ := findAttr(data, unix.NFTA_VERDICT_CHAIN); attrUint32(code) == verdictJump {
				e.chain = attrText(chain)
			}
		case unix.NFTA_SET_ELEM_EXPR:
			data, _ := findAttr(v, unix.NFTA_EXPR_DATA)
			packets, _ := findAttr(data, attrCounterPacket)
			bytes, _ := findAttr(data, attrCounterBytes)
			e.counter = [2]uint64{attrUint64(packets), attrUint64(bytes)}
		}
		b = rest
	}
}
