package nft

import (
	"encoding/binary"
	"errors"
	"testing"

	"github.com/mdlayher/netlink"
	"golang.org/x/sys/unix"
)

func TestCutMessage(t *testing.T) {
	first := appendQuery(nil, 7, "palisade", query{inet, "a4_32", []byte{192, 0, 2, 1}})
	both := appendQuery(first, 8, "palisade", query{bridge, "macs", []byte{1, 2, 3, 4, 5, 6}})

	h, data, rest, err := cutMessage(both)
	if err != nil || h.Sequence != 7 || len(rest) != len(both)-len(first) {
		t.Fatalf("got sequence %d, %d bytes left, error %v", h.Sequence, len(rest), err)
	}
	var got []element
	eachElement(data, func(e element) { got = append(got, e) })
	if want := (element{key: key{192, 0, 2, 1}}); len(got) != 1 || got[0] != want {
		t.Errorf("got elements %v, want %v", got, want)
	}
	if h, _, rest, err = cutMessage(rest); err != nil || h.Sequence != 8 || len(rest) != 0 {
		t.Errorf("second: got sequence %d, %d bytes left, error %v", h.Sequence, len(rest), err)
	}

	for n := range first {
		if _, _, _, err := cutMessage(first[:n]); err == nil {
			t.Errorf("the first %d of %d bytes were taken for a message", n, len(first))
		}
	}
	for _, length := range []uint32{0, messageHeader - 1, uint32(len(first)) + 1, 1<<32 - 1} {
		b := append([]byte(nil), first...)
		binary.NativeEndian.PutUint32(b, length)
		if _, _, _, err := cutMessage(b); err == nil {
			t.Errorf("length %d of %d was taken", length, len(first))
		}
	}

	missing := binary.NativeEndian.AppendUint32(nil, unix.NLMSG_HDRLEN+4)
	missing = binary.NativeEndian.AppendUint16(missing, uint16(netlink.Error))
	missing = append(missing, make([]byte, 10)...)
	missing = binary.NativeEndian.AppendUint32(missing, ^uint32(unix.ENOENT)+1)
	if h, data, _, err = cutMessage(missing); err != nil || h.Type != netlink.Error || !errors.Is(errorIn(data), unix.ENOENT) {
		t.Errorf("got type %d, data %x, error %v", h.Type, data, err)
	}
}
