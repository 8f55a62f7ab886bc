package nft

import (
	"bytes"
	"errors"
	"io"
	"net"
	"net/netip"
	"os"
	"sync/atomic"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/palisade/palisade/enforce"
)

// TestEveryPath blocks by each kind of element, and sends on every path.
func TestEveryPath(t *testing.T) {
	b := newTestbed(t)
	k := adopted(t, b.host.ns)
	b.check(t, "empty tables")
	index := uint64(0)
	block := func(what string, cut *endpoint, list ...enforce.Element) {
		t.Helper()
		index++
		apply(t, k, index, list, nil)
		b.check(t, what, cut)
		counters, err := k.Counters(t.Context(), list)
		if err != nil {
			t.Fatal(err)
		}
		for _, e := range list {
			if counters[e].Packets == 0 || counters[e].Bytes == 0 {
				t.Errorf("%s: %v counted %+v", what, e, counters[e])
			}
		}
		index++
		apply(t, k, index, nil, list)
		b.check(t, "after lifting "+what)
	}
	all := func() {
		t.Helper()
		block("the tap of a bridged guest", b.blocked, tap("vnet1"))
		block("the tap of a routed guest", b.routed, tap("rt0"))
		block("the hardware address of a bridged guest", b.blocked, mac("52:54:00:00:00:02"))
		block("the addresses of a bridged guest", b.blocked, prefix("10.7.0.2"), prefix("fd07::2"))
		block("the addresses of a routed guest", b.routed, prefix("10.8.0.2"), prefix("fd08::2"))
		block("the addresses of a remote host", b.outside, prefix("10.9.0.130"), prefix("fd09::8002"))
		block("narrow prefixes", b.blocked, prefix("10.7.0.2/31"), prefix("fd07::2/127"))
		block("wide prefixes", b.outside, prefix("10.9.0.128/25"), prefix("fd09::8000/113"))
	}
	all()
	verify(t, k)

	b.host.ns.run("sysctl", "-qw", "net.bridge.bridge-nf-call-iptables=1", "net.bridge.bridge-nf-call-ip6tables=1")
	t.Run("br_netfilter", func(*testing.T) { all() })
}

// TestConntrack has the firewall that lets every established flow pass, and cuts one.
func TestConntrack(t *testing.T) {
	b := newTestbed(t)
	b.host.ns.runInput(`table inet firewall {
	chain first { type filter hook prerouting priority -300; policy accept; ct state established,related accept; }
	chain forward { type filter hook forward priority 0; policy drop; ct state established,related accept; tcp dport 7001 accept; }
	chain input { type filter hook input priority 0; policy accept; ct state established,related accept; }
}`, "nft", "-f", "-")
	k := adopted(t, b.host.ns)
	victim := newStream(t, b.outside, b.blocked)
	innocent := newStream(t, b.outside, b.innocent)
	waitFor(t, "both flows run", func() bool { return victim.back.Load() > 1000 && innocent.back.Load() > 1000 })

	apply(t, k, 1, elements(prefix("10.7.0.2")), nil)
	time.Sleep(200 * time.Millisecond) // for what had passed the hook and is not read yet
	cut, other := victim.back.Load(), innocent.back.Load()
	waitFor(t, "the innocent flow goes on", func() bool { return innocent.back.Load() > other+10_000 })
	if n := victim.back.Load() - cut; n != 0 {
		t.Errorf("the blocked flow had %d bytes more", n)
	}
	apply(t, k, 2, nil, elements(prefix("10.7.0.2")))
	waitFor(t, "the flow lives again", func() bool { return victim.back.Load() > cut+1000 })
}

// stream is a TCP connection whose server echoes; back counts what came back to the client.
type stream struct {
	back  atomic.Int64
	there counted // what came to the server
	end   func()
}

// counted is a writer that counts bytes.
type counted struct{ atomic.Int64 }

func (c *counted) Write(b []byte) (int, error) {
	c.Add(int64(len(b)))
	return len(b), nil
}

func newStream(t *testing.T, client, server *endpoint) *stream {
	t.Helper()
	return newStreamAt(t, client, server, 7001)
}

func newStreamAt(t *testing.T, client, server *endpoint, port uint16) *stream {
	t.Helper()
	s := &stream{}
	var listener net.Listener
	server.ns.do(func() (err error) {
		listener, err = net.Listen("tcp4", netip.AddrPortFrom(server.v4, port).String())
		return err
	})
	go func() {
		c, err := listener.Accept()
		if err != nil {
			return
		}
		_, _ = io.Copy(c, io.TeeReader(c, &s.there))
		_ = c.Close()
	}()
	var conn net.Conn
	client.ns.do(func() (err error) {
		conn, err = net.DialTimeout("tcp4", listener.Addr().String(), 5*time.Second)
		return err
	})
	go func() {
		b := make([]byte, 100)
		for {
			if _, err := conn.Write(b); err != nil {
				return
			}
			if _, err := io.ReadFull(conn, b); err != nil {
				return
			}
			s.back.Add(int64(len(b)))
			time.Sleep(100 * time.Microsecond)
		}
	}()
	s.end = func() { _ = conn.Close(); _ = listener.Close() }
	t.Cleanup(s.end)
	return s
}

// TestNAT: what hides behind an address, and what is reached through one, is blocked by either.
func TestNAT(t *testing.T) {
	b := newTestbed(t)
	b.host.ns.runInput(`table ip nat {
	chain pre { type nat hook prerouting priority -100; ip daddr 10.9.0.77 dnat to 10.8.0.2; }
	chain out { type nat hook output priority -100; ip daddr 10.9.0.77 dnat to 10.8.0.2; }
	chain post { type nat hook postrouting priority 100; ip saddr 10.8.0.2 oifname up0 snat to 10.9.0.77; }
}`, "nft", "-f", "-")
	b.outside.ns.run("ip", "neigh", "replace", "10.9.0.77", "lladdr", "52:54:00:00:08:05", "dev", "eth0", "nud", "permanent")
	k := adopted(t, b.host.ns)

	public := &endpoint{name: "routed by its public address", v4: netip.MustParseAddr("10.9.0.77")}
	check := func(what string, pass bool) {
		t.Helper()
		flows := []*flow{b.flow(b.outside, public, false), b.flow(b.host, public, false), b.flow(b.routed, b.outside, false)}
		other := b.flow(b.innocent, b.outside, false)
		for _, f := range append(flows, other) {
			f.send(10)
		}
		waitFor(t, "the innocent's packets are there", func() bool { return other.lost() == 0 })
		for _, f := range flows {
			to := f.to
			if to == public {
				to = b.routed
			}
			if pass {
				waitFor(t, what, func() bool { return to.received(f.id) == f.sent })
			} else if n := to.received(f.id); n > 0 {
				t.Errorf("%s: %v: %d packets leaked", what, f, n)
			}
		}
	}
	check("nothing blocked", true)
	apply(t, k, 1, elements(prefix("10.8.0.2")), nil)
	check("the inner address blocked", false)
	apply(t, k, 2, elements(prefix("10.9.0.77")), elements(prefix("10.8.0.2")))
	check("the public address blocked", false)
	apply(t, k, 3, elements(prefix("10.9.0.64/27")), elements(prefix("10.9.0.77")))
	check("a prefix around the public address blocked", false)
	apply(t, k, 4, nil, elements(prefix("10.9.0.64/27")))
	check("lifted", true)
}

// TestTagged sends frames with a VLAN tag from guest to guest.
func TestTagged(t *testing.T) {
	b := newTestbed(t)
	k := adopted(t, b.host.ns)
	dst, src := mac("52:54:00:00:00:03").MAC, mac("52:54:00:00:00:02").MAC
	frame := append(append(append([]byte{}, dst[:]...), src[:]...), 0x81, 0x00, 0x00, 0x05, 0x08, 0x00)
	frame = append(frame, 0x45, 0, 0, 36, 0, 0, 0, 0, 64, 253, 0, 0, 10, 7, 0, 2, 10, 7, 0, 5) // protocol 253 is for tests
	frame = append(frame, "palisade-tagged!"...)

	var out, in int
	b.blocked.ns.do(func() (err error) { out, err = packetSocket("eth0"); return err })
	b.innocent.ns.do(func() (err error) { in, err = packetSocket("eth0"); return err })
	t.Cleanup(func() { _ = unix.Close(out); _ = unix.Close(in) })
	arrived := func(expected bool) int {
		for range 10 {
			if _, err := unix.Write(out, frame); err != nil {
				t.Fatal(err)
			}
		}
		n, buf := 0, make([]byte, 2048)
		for end := patience(expected); time.Now().Before(end) && n < 10; {
			size, err := unix.Read(in, buf)
			switch {
			case errors.Is(err, unix.EAGAIN):
				time.Sleep(time.Millisecond)
			case err != nil:
				t.Fatal(os.NewSyscallError("read", err))
			case size >= 50 && string(buf[size-16:size]) == "palisade-tagged!":
				n++
			}
		}
		return n
	}
	if n := arrived(true); n != 10 {
		t.Fatalf("nothing blocked: %d of 10 tagged frames arrived", n)
	}
	for i, e := range elements(tap("vnet1"), tap("vnet2"), mac("52:54:00:00:00:02"), mac("52:54:00:00:00:03"), prefix("10.7.0.2"), prefix("10.7.0.4/31")) {
		apply(t, k, uint64(2*i+1), elements(e), nil)
		if n := arrived(false); n != 0 {
			t.Errorf("%v blocked: %d tagged frames leaked", e, n)
		}
		apply(t, k, uint64(2*i+2), nil, elements(e))
	}
	if n := arrived(true); n != 10 {
		t.Errorf("all lifted: %d of 10 tagged frames arrived", n)
	}
}

// TestRawFrame sends a frame for a blocked address from a packet socket of the host, past its IP
// stack, as a DHCP server does.
func TestRawFrame(t *testing.T) {
	b := newTestbed(t)
	k := adopted(t, b.host.ns)
	dst := mac("52:54:00:00:00:02").MAC
	frame := append(append([]byte{}, dst[:]...), 0x52, 0x54, 0, 0, 0x07, 0x01, 0x08, 0x00)
	frame = append(frame, 0x45, 0, 0, 36, 0, 0, 0, 0, 64, 253, 0, 0, 10, 7, 0, 1, 10, 7, 0, 2)
	frame = append(frame, "palisade-raw----"...)
	var out, in int
	b.host.ns.do(func() (err error) { out, err = packetSocket("br0"); return err })
	b.blocked.ns.do(func() (err error) { in, err = packetSocket("eth0"); return err })
	t.Cleanup(func() { _ = unix.Close(out); _ = unix.Close(in) })
	arrives := func(expected bool) bool {
		_, _ = unix.Write(out, frame)
		return countFrames(in, frame, 1, patience(expected)) > 0
	}
	if !arrives(true) {
		t.Fatal("nothing blocked: the frame is lost")
	}
	for i, e := range elements(prefix("10.7.0.2"), prefix("10.7.0.2/31")) {
		apply(t, k, uint64(2*i+1), elements(e), nil)
		if arrives(false) {
			t.Errorf("%v blocked: the frame leaked", e)
		}
		apply(t, k, uint64(2*i+2), nil, elements(e))
	}
}

// countFrames reads until as many frames as given have come, or it is late.
func countFrames(socket int, frame []byte, most int, late time.Time) (n int) {
	buf := make([]byte, 2048)
	for n < most && time.Now().Before(late) {
		size, err := unix.Read(socket, buf)
		switch {
		case err != nil:
			time.Sleep(time.Millisecond)
		case bytes.Equal(buf[:size], frame):
			n++
		}
	}
	return n
}

func packetSocket(device string) (int, error) {
	const all = 0x0300 // ETH_P_ALL in network order
	fd, err := unix.Socket(unix.AF_PACKET, unix.SOCK_RAW|unix.SOCK_NONBLOCK|unix.SOCK_CLOEXEC, all)
	if err != nil {
		return 0, os.NewSyscallError("socket", err)
	}
	i, err := net.InterfaceByName(device)
	if err != nil {
		return 0, err
	}
	return fd, unix.Bind(fd, &unix.SockaddrLinklayer{Protocol: all, Ifindex: i.Index})
}

// TestBroadcast: floods of others do not reach a blocked guest, nor its own the others.
func TestBroadcast(t *testing.T) {
	b := newTestbed(t)
	k := adopted(t, b.host.ns)
	apply(t, k, 1, elements(tap("vnet1")), nil)
	received := func(by, from *endpoint, expected bool) int {
		device := "eth0"
		if from == b.host {
			device = "br0"
		}
		var out, in int
		from.ns.do(func() (err error) { out, err = packetSocket(device); return err })
		by.ns.do(func() (err error) { in, err = packetSocket("eth0"); return err })
		defer func() { _ = unix.Close(out); _ = unix.Close(in) }()
		frame := append([]byte{0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0x52, 0x54, 0, 0, 0, 0x66, 0x88, 0xb5}, "palisade-broadcast"...)
		for range 3 {
			_, _ = unix.Write(out, frame)
		}
		return countFrames(in, frame, 3, patience(expected))
	}
	if n := received(b.blocked, b.innocent, false); n != 0 {
		t.Errorf("the blocked guest received %d broadcasts of the innocent", n)
	}
	if n := received(b.blocked, b.host, false); n != 0 {
		t.Errorf("the blocked guest received %d broadcasts of the host", n)
	}
	if n := received(b.innocent, b.blocked, false); n != 0 {
		t.Errorf("the innocent received %d broadcasts of the blocked guest", n)
	}
	if n := received(b.innocent, b.host, true); n == 0 {
		t.Error("the innocent received no broadcast of the host")
	}
}
