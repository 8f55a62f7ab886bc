package agent

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"net"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/palisade/palisade/fsm"
)

// hearMAC is the guest's that is listened for.
var hearMAC = fsm.MAC{0x52, 0x54, 0, 1, 2, 3}

// ethernet makes a frame of the least length there is.
func ethernet(from fsm.MAC, protocol uint16, payload ...byte) []byte {
	f := append([]byte{0xff, 0xff, 0xff, 0xff, 0xff, 0xff}, from[:]...)
	f = append(binary.BigEndian.AppendUint16(f, protocol), payload...)
	return append(f, make([]byte, max(0, 60-len(f)))...)
}

// resolution makes an ARP or RARP message.
func resolution(op byte, sender, target [4]byte) []byte {
	b := append([]byte{0, 1, 8, 0, 6, 4, 0, op}, hearMAC[:]...)
	b = append(b, sender[:]...)
	b = append(b, 0, 0, 0, 0, 0, 0)
	return append(b, target[:]...)
}

// icmp6 makes an IPv6 packet with one ICMPv6 message.
func icmp6(next, kind, flags byte) []byte {
	b := make([]byte, 40+24)
	b[0], b[5], b[6], b[7] = 6<<4, 24, next, 255
	b[40], b[44] = kind, flags
	return b
}

// packetsOf opens a packet socket on an interface, of the namespace in which it is called.
func packetsOf(name string) (fd int, err error) {
	port, err := net.InterfaceByName(name)
	if err != nil {
		return -1, err
	}
	if fd, err = unix.Socket(unix.AF_PACKET, unix.SOCK_RAW|unix.SOCK_CLOEXEC, 0); err != nil {
		return -1, err
	}
	all := binary.NativeEndian.Uint16([]byte{0, unix.ETH_P_ALL})
	patience := unix.NsecToTimeval((10 * time.Second).Nanoseconds())
	return fd, errors.Join(unix.Bind(fd, &unix.SockaddrLinklayer{Protocol: all, Ifindex: port.Index}), unix.SetsockoptTimeval(fd, unix.SOL_SOCKET, unix.SO_RCVTIMEO, &patience))
}

// newTapOfAGuest makes a namespace with tap0 and its other end, guest0.
func newTapOfAGuest(t *testing.T) (ns string, in func(string)) {
	ns, in = newLinkBed(t)
	in("link add tap0 type veth peer name guest0")
	in("link set tap0 up")
	in("link set guest0 up")
	return ns, in
}

func TestWhatAGuestAnnouncesIsHeard(t *testing.T) {
	here, there := [4]byte{192, 0, 2, 7}, [4]byte{192, 0, 2, 1}
	const rarp, arp, ipv4, ipv6, icmp, udp = 0x8035, 0x0806, 0x0800, 0x86dd, 58, 17
	other := fsm.MAC{0x52, 0x54, 0, 1, 2, 4}
	otherStart := fsm.MAC{0x52, 0x55, 0, 1, 2, 3}
	cases := []struct {
		name  string
		frame []byte
		heard bool
	}{
		{"RARP, as QEMU sends it", ethernet(hearMAC, rarp, resolution(3, [4]byte{}, [4]byte{})...), true},
		{"a gratuitous ARP request", ethernet(hearMAC, arp, resolution(1, here, here)...), true},
		{"a gratuitous ARP reply", ethernet(hearMAC, arp, resolution(2, here, here)...), true},
		{"an ARP request for another", ethernet(hearMAC, arp, resolution(1, here, there)...), false},
		{"an ARP reply to another", ethernet(hearMAC, arp, resolution(2, here, there)...), false},
		{"an unsolicited neighbour advertisement", ethernet(hearMAC, ipv6, icmp6(icmp, 136, 0x20)...), true},
		{"a solicited neighbour advertisement", ethernet(hearMAC, ipv6, icmp6(icmp, 136, 0x60)...), false},
		{"a neighbour solicitation", ethernet(hearMAC, ipv6, icmp6(icmp, 135, 0)...), false},
		{"a router solicitation", ethernet(hearMAC, ipv6, icmp6(icmp, 133, 0)...), false},
		{"UDP over IPv6", ethernet(hearMAC, ipv6, icmp6(udp, 136, 0)...), false},
		{"IPv4", ethernet(hearMAC, ipv4, 0x45), false},
		{"RARP of another guest", ethernet(other, rarp, resolution(3, [4]byte{}, [4]byte{})...), false},
		{"ARP of a guest whose address begins otherwise", ethernet(otherStart, arp, resolution(1, here, here)...), false},
		{"a frame of the least length", ethernet(hearMAC, arp), true}, // of nobody for nobody: all zero
		{"a frame that ends early", ethernet(hearMAC, arp, resolution(1, here, here)...)[:20], false},
	}
	ns, _ := newTapOfAGuest(t)
	err := within(ns, func() error {
		ear, err := packetsOf("tap0")
		if err != nil {
			return err
		}
		defer func() { _ = unix.Close(ear) }()
		guest, err := packetsOf("guest0")
		if err != nil {
			return err
		}
		defer func() { _ = unix.Close(guest) }()
		host, err := packetsOf("tap0") // a socket does not hear what it sends
		if err != nil {
			return err
		}
		defer func() { _ = unix.Close(host) }()
		if err := filterAnnouncements(ear, hearMAC); err != nil {
			return err
		}
		// after is heard for sure: what was sent before it and is not heard until then was left out.
		after := ethernet(hearMAC, rarp, resolution(4, here, here)...)
		b := make([]byte, 256)
		next := func() ([]byte, error) {
			n, _, err := unix.Recvfrom(ear, b, 0)
			return b[:max(n, 0)], err
		}
		for _, tt := range cases {
			for _, from := range []struct {
				name string
				fd   int
			}{{"from the guest", guest}, {"to the guest", host}} {
				if _, err := unix.Write(from.fd, tt.frame); err != nil {
					return fmt.Errorf("%s: %w", tt.name, err)
				}
				if _, err := unix.Write(guest, after); err != nil {
					return err
				}
				got, err := next()
				if err != nil {
					return fmt.Errorf("%s: %w", tt.name, err)
				}
				heard := bytes.Equal(got, tt.frame[:min(len(tt.frame), 64)]) // what the filter lets through
				if want := tt.heard && from.fd == guest; heard != want || !heard && !bytes.Equal(got, after) {
					t.Errorf("%s, %s: heard %v, want %v (% x)", tt.name, from.name, heard, want, got)
				}
				if heard {
					if _, err := next(); err != nil {
						return err
					}
				}
			}
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
}

func TestListeningForAGuestEnds(t *testing.T) {
	ns, in := newTapOfAGuest(t)
	listen := func(ctx context.Context) chan error {
		done := make(chan error, 1)
		go func() { done <- within(ns, func() error { return listenFor(ctx, "tap0", hearMAC) }) }()
		return done
	}
	ended := func(done chan error) error {
		t.Helper()
		select {
		case err := <-done:
			return err
		case <-time.After(10 * time.Second):
			t.Fatal("it listens still")
			return nil
		}
	}
	done := listen(t.Context())
	rarp := ethernet(hearMAC, 0x8035, resolution(3, [4]byte{}, [4]byte{})...)
	deadline := time.After(10 * time.Second)
	for heard := false; !heard; {
		if err := within(ns, func() error {
			guest, err := packetsOf("guest0")
			if err != nil {
				return err
			}
			_, err = unix.Write(guest, rarp)
			return errors.Join(err, unix.Close(guest))
		}); err != nil {
			t.Fatal(err)
		}
		select {
		case err := <-done:
			if err != nil {
				t.Errorf("it was not heard: %v", err)
			}
			heard = true
		case <-deadline:
			t.Fatal("it is not heard")
		case <-time.After(5 * time.Millisecond): // it may not have listened yet
		}
	}

	ctx, cancel := context.WithCancel(t.Context())
	done = listen(ctx)
	cancel()
	if err := ended(done); !errors.Is(err, context.Canceled) {
		t.Errorf("called off: %v", err)
	}
	done = listen(t.Context())
	in("link del tap0")
	if err := ended(done); err == nil {
		t.Error("the tap went, and something was heard")
	}
}
