package nft

import (
	"encoding/binary"
	"errors"

	"github.com/mdlayher/netlink"
	"golang.org/x/sys/unix"
)

// Messages written and read by hand, for what is exchanged once for every element.

var errMessage = errors.New("a netlink message that does not fit")

// messageHeader is nlmsghdr and nfgenmsg: what stands before the attributes.
const messageHeader = unix.NLMSG_HDRLEN + attrHeader

// appendQuery appends the request for one element.
func appendQuery(b []byte, sequence uint32, table string, q query) []byte {
	start := len(b)
	b = binary.NativeEndian.AppendUint32(b, 0) // length
	b = binary.NativeEndian.AppendUint16(b, unix.NFNL_SUBSYS_NFTABLES<<8|unix.NFT_MSG_GETSETELEM)
	b = binary.NativeEndian.AppendUint16(b, uint16(netlink.Request))
	b = binary.NativeEndian.AppendUint32(b, sequence)
	b = binary.NativeEndian.AppendUint32(b, 0) // port: the socket's
	b = append(b, byte(q.family), unix.NFNETLINK_V0, 0, 0)
	b = appendElementList(b, table, q.set)
	b, list := openNest(b, unix.NFTA_SET_ELEM_LIST_ELEMENTS)
	b = closeNest(appendElement(b, q.key, element{}), list)
	binary.NativeEndian.PutUint32(b[start:], uint32(len(b)-start))
	return b
}

// cutMessage splits the first message off. Data is what follows the header: of an error its number,
// of anything else the attributes.
func cutMessage(b []byte) (h netlink.Header, data, rest []byte, err error) {
	if len(b) < messageHeader {
		return h, nil, nil, errMessage
	}
	n := int(binary.NativeEndian.Uint32(b))
	if n < messageHeader || n > len(b) {
		return h, nil, nil, errMessage
	}
	h.Type = netlink.HeaderType(binary.NativeEndian.Uint16(b[4:]))
	h.Sequence = binary.NativeEndian.Uint32(b[8:])
	data = b[messageHeader:n]
	if h.Type == netlink.Error {
		data = b[unix.NLMSG_HDRLEN:n]
	}
	return h, data, b[min(aligned(n), len(b)):], nil
}

// errorIn returns the error in the data of an error message; 0 is none.
func errorIn(data []byte) error {
	return unix.Errno(-int32(binary.NativeEndian.Uint32(data)))
}

// send writes messages in one datagram.
func (w *wire) send(b []byte) error {
	return again(w.raw.Write, func(fd int) error {
		_, err := unix.Write(fd, b) // without an address it goes to the kernel
		return err
	})
}

// receive reads one datagram.
func (w *wire) receive(b []byte) (n int, err error) {
	err = again(w.raw.Read, func(fd int) (err error) {
		n, err = unix.Read(fd, b)
		return err
	})
	return n, err
}

// again calls until it is done or the socket's deadline has passed.
func again(wait func(func(uintptr) bool) error, call func(fd int) error) error {
	var err error
	waiting := wait(func(fd uintptr) bool {
		for {
			if err = call(int(fd)); !errors.Is(err, unix.EINTR) {
				return !errors.Is(err, unix.EAGAIN)
			}
		}
	})
	if waiting != nil {
		return waiting
	}
	return err
}
