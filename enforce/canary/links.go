package canary

import (
	"encoding/binary"
	"errors"
	"fmt"
	"time"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// The links: two ports of a bridge, with an end each to send from. They have no address and lead nowhere else.
const (
	bridgeName  = "palcanary"
	portFree    = "palcan0"
	portBlocked = "palcan1"
	endSuffix   = "i"
	alias       = "palisade canary: proves that blocked packets are dropped"
)

// Ours says whether an interface is one of the canary's.
func Ours(name string) bool {
	switch name {
	case bridgeName, portFree, portBlocked, portFree + endSuffix, portBlocked + endSuffix:
		return true
	}
	return false
}

// links are the links and the sockets on them.
type links struct {
	ends    map[string]int // interface to send from, by port
	out, in int            // packet sockets
	buffer  []byte
}

func openLinks() (l *links, err error) {
	l = &links{ends: map[string]int{}, out: -1, in: -1, buffer: make([]byte, 2048)}
	defer func() {
		if err != nil {
			err = errors.Join(err, l.close())
		}
	}()
	if err := removeLinks(); err != nil {
		return l, err
	}
	bridge, err := l.make()
	if err != nil {
		return l, err
	}
	if l.out, err = unix.Socket(unix.AF_PACKET, unix.SOCK_RAW|unix.SOCK_CLOEXEC, 0); err != nil {
		return l, fmt.Errorf("packet socket to send: %w", err)
	}
	// All that comes into the bridge is seen by whoever listens to all of it, and by nothing above: the rest of the
	// node drops frames to a hardware address that is not the interface's.
	if l.in, err = unix.Socket(unix.AF_PACKET, unix.SOCK_RAW|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, 0); err != nil {
		return l, fmt.Errorf("packet socket to listen: %w", err)
	}
	all := binary.NativeEndian.Uint16([]byte{unix.ETH_P_ALL >> 8, unix.ETH_P_ALL & 0xff})
	if err := unix.Bind(l.in, &unix.SockaddrLinklayer{Protocol: all, Ifindex: bridge}); err != nil {
		return l, fmt.Errorf("listen to %s: %w", bridgeName, err)
	}
	promiscuous := &unix.PacketMreq{Ifindex: int32(bridge), Type: unix.PACKET_MR_PROMISC}
	if err := unix.SetsockoptPacketMreq(l.in, unix.SOL_PACKET, unix.PACKET_ADD_MEMBERSHIP, promiscuous); err != nil {
		return l, fmt.Errorf("listen to all of %s: %w", bridgeName, err)
	}
	return l, nil
}

// make makes the links, and returns the index of the bridge.
func (l *links) make() (bridge int, err error) {
	attrs := func(name string) netlink.LinkAttrs {
		a := netlink.NewLinkAttrs()
		a.Name, a.MTU = name, 1500
		return a
	}
	no := false
	br := &netlink.Bridge{LinkAttrs: attrs(bridgeName), MulticastSnooping: &no}
	if err := create(br); err != nil {
		return 0, err
	}
	for _, port := range []string{portFree, portBlocked} {
		pair := &netlink.Veth{LinkAttrs: attrs(port), PeerName: port + endSuffix}
		if err := create(pair); err != nil {
			return 0, err
		}
		end, err := netlink.LinkByName(port + endSuffix)
		if err != nil {
			return 0, fmt.Errorf("find %s: %w", port+endSuffix, err)
		}
		l.ends[port] = end.Attrs().Index
		if err := errors.Join(prepare(end), netlink.LinkSetMaster(pair, br), up(end), up(pair)); err != nil {
			return 0, fmt.Errorf("connect %s: %w", port, err)
		}
	}
	if err := up(br); err != nil {
		return 0, fmt.Errorf("set %s up: %w", bridgeName, err)
	}
	made, err := netlink.LinkByName(bridgeName)
	if err != nil {
		return 0, fmt.Errorf("find %s: %w", bridgeName, err)
	}
	return made.Attrs().Index, nil
}

func create(l netlink.Link) error {
	if err := netlink.LinkAdd(l); err != nil {
		return fmt.Errorf("make %s: %w", l.Attrs().Name, err)
	}
	return prepare(l)
}

// prepare names an interface as ours, and keeps the node from speaking on it.
func prepare(l netlink.Link) error {
	const none = 1 // IN6_ADDR_GEN_MODE_NONE
	if err := netlink.LinkSetAlias(l, alias); err != nil {
		return fmt.Errorf("name %s: %w", l.Attrs().Name, err)
	}
	// Where IPv6 is off there is nothing to keep from.
	if err := netlink.LinkSetIP6AddrGenMode(l, none); err != nil && !errors.Is(err, unix.EAFNOSUPPORT) {
		return fmt.Errorf("keep %s without addresses: %w", l.Attrs().Name, err)
	}
	return nil
}

func up(l netlink.Link) error { return netlink.LinkSetUp(l) }

// removeLinks removes the links of an earlier life. One of that name that is not ours is an error.
func removeLinks() error {
	for _, name := range []string{portFree, portBlocked, bridgeName} {
		l, err := netlink.LinkByName(name)
		if _, none := errors.AsType[netlink.LinkNotFoundError](err); none {
			continue
		}
		if err != nil {
			return fmt.Errorf("look for %s: %w", name, err)
		}
		if l.Attrs().Alias != alias {
			return fmt.Errorf("there is an interface %s that is not the canary's", name)
		}
		if err := netlink.LinkDel(l); err != nil {
			return fmt.Errorf("remove %s: %w", name, err)
		}
	}
	return nil
}

func (l *links) close() error {
	var errs []error
	for _, fd := range []int{l.out, l.in} {
		if fd >= 0 {
			errs = append(errs, unix.Close(fd))
		}
	}
	if len(l.ends) > 0 {
		errs = append(errs, removeLinks())
	}
	return errors.Join(errs...)
}

// send sends a frame into a port, as the guest behind it would.
func (l *links) send(port string, frame []byte) error {
	to := &unix.SockaddrLinklayer{Protocol: binary.NativeEndian.Uint16(frame[12:]), Ifindex: l.ends[port], Halen: 6}
	if err := unix.Sendto(l.out, frame, 0, to); err != nil {
		return fmt.Errorf("send into %s: %w", port, err)
	}
	return nil
}

// receive waits for the next frame that came into the bridge, until the deadline. ok is false if none did, or none of ours.
func (l *links) receive(deadline time.Time) (number byte, run uint64, ok bool, err error) {
	wait := int(max(1, time.Until(deadline).Milliseconds()))
	n, err := unix.Poll([]unix.PollFd{{Fd: int32(l.in), Events: unix.POLLIN}}, wait)
	if err != nil && !errors.Is(err, unix.EINTR) {
		return 0, 0, false, fmt.Errorf("wait for frames: %w", err)
	}
	if n <= 0 {
		return 0, 0, false, nil
	}
	size, from, err := unix.Recvfrom(l.in, l.buffer, 0)
	switch {
	case errors.Is(err, unix.EAGAIN), errors.Is(err, unix.EINTR):
		return 0, 0, false, nil
	case err != nil:
		return 0, 0, false, fmt.Errorf("receive frames: %w", err)
	}
	if ll, is := from.(*unix.SockaddrLinklayer); is && ll.Pkttype == unix.PACKET_OUTGOING {
		return 0, 0, false, nil
	}
	number, run, ok = parse(l.buffer[:size])
	return number, run, ok, nil
}
