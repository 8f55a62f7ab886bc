package nft

import (
	"golang.org/x/sys/unix"
)

// element is one element of a set as the kernel holds it.
type element struct {
	key     key
	counter [2]uint64 // packets, bytes
	comment string
}

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
	for typ, list := range attrs(message) {
		if typ != unix.NFTA_SET_ELEM_LIST_ELEMENTS {
			continue
		}
		for _, one := range attrs(list) {
			var e element
			for typ, v := range attrs(one) {
				switch typ {
				case unix.NFTA_SET_ELEM_KEY:
					for typ, data := range attrs(v) {
						if typ == unix.NFTA_DATA_VALUE {
							copy(e.key[:], data)
						}
					}
				case unix.NFTA_SET_ELEM_EXPR:
					e.counter = counterOf(v)
				}
			}
			each(e)
		}
	}
}

func counterOf(expr []byte) (c [2]uint64) {
	for typ, data := range attrs(expr) {
		if typ != unix.NFTA_EXPR_DATA {
			continue
		}
		for typ, v := range attrs(data) {
			switch typ {
			case attrCounterPacket:
				c[0] = attrUint64(v)
			case attrCounterBytes:
				c[1] = attrUint64(v)
			}
		}
	}
	return c
}
