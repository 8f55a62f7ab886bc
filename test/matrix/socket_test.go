package matrix_test

import (
	"bytes"
	"encoding/binary"
	"errors"
	"net"
	"net/netip"
	"os"
	"testing"

	"golang.org/x/sys/unix"
)

// Every packet sent carries words and the number of its shot.
const words = "PALI"

func token(shot uint32) []byte { return binary.BigEndian.AppendUint32([]byte(words), shot) }

// receiver counts the tokens that reach a place. Nothing runs beside it: drain reads what is there.
type receiver struct {
	sockets []int
	got     map[uint32]int
}

func (r *receiver) drain(buf []byte) error { return r.each(buf, r.count) }

// each calls f with every packet that is there.
func (r *receiver) each(buf []byte, f func(packet []byte)) error {
	for _, s := range r.sockets {
		for {
			n, err := unix.Read(s, buf)
			if errors.Is(err, unix.EAGAIN) {
				break
			}
			if err != nil {
				return os.NewSyscallError("read", err)
			}
			f(buf[:n])
		}
	}
	return nil
}

// count finds every token in a packet: a packet that was put together has more than one.
func (r *receiver) count(b []byte) {
	for {
		i := bytes.Index(b, []byte(words))
		if i < 0 || len(b) < i+8 {
			return
		}
		r.got[binary.BigEndian.Uint32(b[i+4:])]++
		b = b[i+8:]
	}
}

func newReceiver() *receiver { return &receiver{got: make(map[uint32]int)} }

func (r *receiver) add(t testing.TB, fd int) {
	t.Helper()
	const room = 32 << 20
	if err := unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_RCVBUFFORCE, room); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = unix.Close(fd) })
	r.sockets = append(r.sockets, fd)
}

// packetSocket sends and receives frames of an interface, but not those that others send there. Without a
// device it receives those of all.
func packetSocket(device string, protocol uint16) (int, error) {
	network := protocol>>8 | protocol<<8
	fd, err := unix.Socket(unix.AF_PACKET, unix.SOCK_RAW|unix.SOCK_NONBLOCK|unix.SOCK_CLOEXEC, int(network))
	if err != nil {
		return 0, os.NewSyscallError("socket", err)
	}
	if device == "" {
		return fd, nil
	}
	i, err := net.InterfaceByName(device)
	if err != nil {
		return 0, err
	}
	if err := unix.SetsockoptInt(fd, unix.SOL_PACKET, unix.PACKET_IGNORE_OUTGOING, 1); err != nil {
		return 0, os.NewSyscallError("setsockopt", err)
	}
	return fd, os.NewSyscallError("bind", unix.Bind(fd, &unix.SockaddrLinklayer{Protocol: network, Ifindex: i.Index}))
}

// stack is the IP stack of a node, as its programs meet it.
type stack struct {
	*receiver
	sends map[string][2]int // by interface: raw sockets of IPv4 and IPv6, which send whole packets
}

func newStack(t testing.TB, ns netNS, devices ...string) *stack {
	t.Helper()
	s := &stack{newReceiver(), make(map[string][2]int)}
	ns.do(func() error {
		for _, in := range []struct {
			family    int
			protocols []int
		}{{unix.AF_INET, []int{protoUDP, protoTCP, protoICMP, protoTest}}, {unix.AF_INET6, []int{protoUDP, protoTCP, protoICMPv6, protoTest}}} {
			for _, protocol := range in.protocols {
				fd, err := unix.Socket(in.family, unix.SOCK_RAW|unix.SOCK_NONBLOCK|unix.SOCK_CLOEXEC, protocol)
				if err != nil {
					return os.NewSyscallError("socket", err)
				}
				s.add(t, fd)
			}
		}
		for _, device := range devices {
			four, err := s.sender(t, unix.AF_INET, device)
			if err != nil {
				return err
			}
			six, err := s.sender(t, unix.AF_INET6, device)
			if err != nil {
				return err
			}
			s.sends[device] = [2]int{four, six}
		}
		return nil
	})
	return s
}

func (*stack) sender(t testing.TB, family int, device string) (int, error) {
	fd, err := unix.Socket(family, unix.SOCK_RAW|unix.SOCK_CLOEXEC, unix.IPPROTO_RAW)
	if err != nil {
		return 0, os.NewSyscallError("socket", err)
	}
	t.Cleanup(func() { _ = unix.Close(fd) })
	if err := unix.BindToDevice(fd, device); err != nil {
		return 0, os.NewSyscallError("bind to device", err)
	}
	if family == unix.AF_INET {
		return fd, os.NewSyscallError("setsockopt", unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_BROADCAST, 1))
	}
	i, err := net.InterfaceByName(device)
	if err != nil {
		return 0, err
	}
	// Where DHCPv6 servers are: a stack takes what its programs have asked for.
	group := &unix.IPv6Mreq{Multiaddr: netip.MustParseAddr("ff02::1:2").As16(), Interface: uint32(i.Index)}
	return fd, os.NewSyscallError("setsockopt", unix.SetsockoptIPv6Mreq(fd, unix.IPPROTO_IPV6, unix.IPV6_JOIN_GROUP, group))
}

// send sends a packet from an interface's raw socket. What a rule drops there comes back as EPERM.
func (s *stack) send(device string, p packet) error {
	var err error
	if p.protocol == etherIPv4 {
		err = unix.Sendto(s.sends[device][0], p.body, 0, &unix.SockaddrInet4{Addr: [4]byte(p.body[16:20])})
	} else {
		err = unix.Sendto(s.sends[device][1], p.body, 0, &unix.SockaddrInet6{Addr: [16]byte(p.body[24:40])})
	}
	if errors.Is(err, unix.EPERM) {
		return nil
	}
	return os.NewSyscallError("sendto", err)
}
