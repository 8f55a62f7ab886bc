package nft

import (
	"encoding/binary"
	"errors"
	"fmt"
	"net/netip"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/palisade/palisade/enforce"
	"github.com/palisade/palisade/fsm"
)

// testSources are sources in the kernel of a namespace.
func testSources(t testing.TB, n netNS) *Sources {
	t.Helper()
	k, err := OpenSources(Options{NetNS: n.fd})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = k.Close() })
	if _, err := k.Adopt(t.Context()); err != nil {
		t.Fatal(err)
	}
	return k
}

// bindings are those of a guest, as the compiler makes them of what is registered.
func bindings(t testing.TB, tap, mac string, addresses ...string) []enforce.SourceElement {
	t.Helper()
	m, err := fsm.ParseMAC(mac)
	if err != nil {
		t.Fatal(err)
	}
	s := fsm.NewStore()
	op := fsm.DeclareVM{ID: "v", SourceGuard: fsm.SourceOn}
	for _, a := range addresses {
		op.Addresses = append(op.Addresses, prefix(a).Prefix)
	}
	commitOps(t, s, op)
	return enforce.NewSources().Update(s.View(), nil, enforce.Local{NICs: enforce.MapOf(map[string][]fsm.NIC{"v": {{MAC: m, Tap: tap}}})}, true).Add
}

func commitOps(t testing.TB, s *fsm.Store, ops ...fsm.Op) {
	t.Helper()
	for _, op := range ops {
		data, err := fsm.MarshalCommand(fsm.Command{Time: time.Unix(1, 0), Actor: "test", Op: op})
		if err != nil {
			t.Fatal(err)
		}
		res, err := s.ApplyBatch([]fsm.Entry{{Index: s.View().Index() + 1, Data: data}})
		if err != nil {
			t.Fatal(err)
		}
		if res[0].Err != nil {
			t.Fatal(res[0].Err)
		}
	}
}

func bind(t testing.TB, k *Sources, index uint64, add, remove []enforce.SourceElement) {
	t.Helper()
	if err := k.Apply(t.Context(), enforce.SourceDelta{Index: index, Add: add, Remove: remove}); err != nil {
		t.Fatal(err)
	}
}

// frameOf is an Ethernet frame.
func frameOf(dst, src string, typ uint16, payload ...byte) []byte {
	d, _ := fsm.ParseMAC(dst)
	s, _ := fsm.ParseMAC(src)
	return append(binary.BigEndian.AppendUint16(append(append([]byte{}, d[:]...), s[:]...), typ), payload...)
}

func arpOf(op byte, sha, spa, tpa string) []byte {
	m, _ := fsm.ParseMAC(sha)
	from, to := netip.MustParseAddr(spa).As4(), netip.MustParseAddr(tpa).As4()
	b := append([]byte{0, 1, 8, 0, 6, 4, 0, op}, m[:]...)
	b = append(append(b, from[:]...), 0, 0, 0, 0, 0, 0)
	return append(b, to[:]...)
}

func inIP4(src, dst string, protocol byte, payload ...byte) []byte {
	s, d := netip.MustParseAddr(src).As4(), netip.MustParseAddr(dst).As4()
	n := 20 + len(payload)
	b := append([]byte{0x45, 0, byte(n >> 8), byte(n), 0, 0, 0, 0, 64, protocol, 0, 0}, s[:]...)
	b = append(b, d[:]...)
	sum := uint32(0)
	for i := 0; i < 20; i += 2 {
		sum += uint32(b[i])<<8 | uint32(b[i+1])
	}
	for sum > 0xffff {
		sum = sum&0xffff + sum>>16
	}
	binary.BigEndian.PutUint16(b[10:], ^uint16(sum))
	return append(b, payload...)
}

func inIP6(src, dst string, next byte, payload ...byte) []byte {
	s, d := netip.MustParseAddr(src).As16(), netip.MustParseAddr(dst).As16()
	b := append([]byte{0x60, 0, 0, 0, byte(len(payload) >> 8), byte(len(payload)), next, 255}, s[:]...)
	return append(append(b, d[:]...), payload...)
}

func udpOf(from, to uint16) []byte {
	b := binary.BigEndian.AppendUint16(nil, from)
	b = binary.BigEndian.AppendUint16(b, to)
	return append(b, 0, 16, 0, 0, 'p', 'a', 'l', 'i', 's', 'a', 'd', 'e')
}

// icmp6Of is a message with a target, as neighbour discovery has it.
func icmp6Of(typ byte, target string) []byte {
	a := netip.MustParseAddr(target).As16()
	return append([]byte{typ, 0, 0, 0, 0, 0, 0, 0}, a[:]...)
}

const (
	macOwn, macOther, macHost = "52:54:00:00:00:02", "52:54:00:00:00:99", "52:54:00:00:07:01"
	everybody                 = "ff:ff:ff:ff:ff:ff"
	etherARP                  = 0x0806
	ether4                    = 0x0800
	ether6                    = 0x86dd
	ownLinkLocal              = "fe80::5054:ff:fe00:2"
)

// spoofs are frames of a guest that is 52:54:00:00:00:02, 10.7.0.2 and fd07::2, and has 10.7.8.0/24 and fd07:8::/64. Those
// that pass are what it has a right to.
func spoofs() []struct {
	what  string
	pass  bool
	frame []byte
} {
	const other4, other6 = "10.7.0.5", "fd07::5"
	test := []byte("palisade")
	tagged := func(tags []byte, inner []byte) []byte {
		return append(append(append([]byte{}, inner[:12]...), tags...), inner[12:]...)
	}
	own := frameOf(everybody, macOwn, ether4, inIP4("10.7.0.2", other4, 253, test...)...)
	return []struct {
		what  string
		pass  bool
		frame []byte
	}{
		{"its own IPv4", true, own},
		{"its own IPv6", true, frameOf(everybody, macOwn, ether6, inIP6("fd07::2", other6, 253, test...)...)},
		{"an address of its IPv4 prefix", true, frameOf(everybody, macOwn, ether4, inIP4("10.7.8.9", other4, 253, test...)...)},
		{"an address of its IPv6 prefix", true, frameOf(everybody, macOwn, ether6, inIP6("fd07:8::9", other6, 253, test...)...)},
		{"a link-local address of its MAC", true, frameOf(everybody, macOwn, ether6, inIP6(ownLinkLocal, other6, 253, test...)...)},
		{"IPv6 behind an extension header", true, frameOf(everybody, macOwn, ether6, inIP6("fd07::2", other6, 60, append([]byte{253, 0, 1, 4, 0, 0, 0, 0}, test...)...)...)},
		{"a later fragment of its own", true, func() []byte {
			f := append([]byte{}, own...)
			f[14+6], f[14+7] = 0, 9
			sum := uint32(f[14+10])<<8 + uint32(f[14+11]) - 9 // RFC 1624
			f[14+10], f[14+11] = byte(sum>>8), byte(sum)
			return f
		}()},
		{"another MAC", false, frameOf(everybody, macOther, ether4, inIP4("10.7.0.2", other4, 253, test...)...)},
		{"another IPv4", false, frameOf(everybody, macOwn, ether4, inIP4("10.7.0.7", other4, 253, test...)...)},
		{"an IPv4 beside its prefix", false, frameOf(everybody, macOwn, ether4, inIP4("10.7.9.9", other4, 253, test...)...)},
		{"another IPv6", false, frameOf(everybody, macOwn, ether6, inIP6("fd07::7", other6, 253, test...)...)},
		{"another link-local address", false, frameOf(everybody, macOwn, ether6, inIP6("fe80::1", other6, 253, test...)...)},
		{"IPv6 with cut headers", false, frameOf(everybody, macOwn, ether6, inIP6("fd07::2", other6, 60, 58, 9)...)},
		{"a router advertised where nobody can read it", false, frameOf(everybody, macOwn, ether6, inIP6(ownLinkLocal, "ff02::1", 44, 60, 0, 0, 1, 0, 0, 0, 1, 58, 9, 1, 4, 0, 0, 0, 0)...)},
		{"DHCP asked for", true, frameOf(everybody, macOwn, ether4, inIP4("0.0.0.0", "255.255.255.255", 17, udpOf(68, 67)...)...)},
		{"DHCP renewed", true, frameOf(everybody, macOwn, ether4, inIP4("10.7.0.2", "10.7.0.1", 17, udpOf(68, 67)...)...)},
		{"DHCP answered", false, frameOf(everybody, macOwn, ether4, inIP4("10.7.0.2", "255.255.255.255", 17, udpOf(67, 68)...)...)},
		{"something else of nobody", false, frameOf(everybody, macOwn, ether4, inIP4("0.0.0.0", "255.255.255.255", 17, udpOf(68, 69)...)...)},
		{"DHCPv6 asked for", true, frameOf(everybody, macOwn, ether6, inIP6(ownLinkLocal, "ff02::1:2", 17, udpOf(546, 547)...)...)},
		{"DHCPv6 answered", false, frameOf(everybody, macOwn, ether6, inIP6(ownLinkLocal, other6, 17, udpOf(547, 546)...)...)},
		{"ARP for itself", true, frameOf(everybody, macOwn, etherARP, arpOf(1, macOwn, "10.7.0.2", other4)...)},
		{"ARP for an address of its prefix", true, frameOf(everybody, macOwn, etherARP, arpOf(2, macOwn, "10.7.8.1", other4)...)},
		{"an ARP probe", true, frameOf(everybody, macOwn, etherARP, arpOf(1, macOwn, "0.0.0.0", "10.7.0.2")...)},
		{"ARP for another", false, frameOf(everybody, macOwn, etherARP, arpOf(2, macOwn, "10.7.0.1", other4)...)},
		{"ARP that names another MAC", false, frameOf(everybody, macOwn, etherARP, arpOf(2, macOther, "10.7.0.2", other4)...)},
		{"ARP of another kind", false, frameOf(everybody, macOwn, etherARP, append([]byte{0, 6}, arpOf(2, macOwn, "10.7.0.2", other4)[2:]...)...)},
		{"ARP cut short", false, frameOf(everybody, macOwn, etherARP, 0, 1, 8, 0)},
		{"RARP of its own", true, frameOf(everybody, macOwn, 0x8035, arpOf(3, macOwn, "0.0.0.0", "0.0.0.0")...)},
		{"RARP for another", false, frameOf(everybody, macOwn, 0x8035, arpOf(3, macOther, "0.0.0.0", "0.0.0.0")...)},
		{"is my address taken?", true, frameOf(everybody, macOwn, ether6, inIP6("::", "ff02::1:ff00:2", 58, icmp6Of(135, "fd07::2")...)...)},
		{"is another's address taken?", false, frameOf(everybody, macOwn, ether6, inIP6("::", "ff02::1:ff00:7", 58, icmp6Of(135, "fd07::7")...)...)},
		{"a multicast report of nobody", true, frameOf(everybody, macOwn, ether6, inIP6("::", "ff02::16", 0, append([]byte{58, 0, 5, 2, 0, 0, 1, 0}, icmp6Of(143, "::")...)...)...)},
		{"something else of nobody over IPv6", false, frameOf(everybody, macOwn, ether6, inIP6("::", other6, 253, test...)...)},
		{"who has another's address?", true, frameOf(everybody, macOwn, ether6, inIP6("fd07::2", "ff02::1:ff00:5", 58, icmp6Of(135, other6)...)...)},
		{"its own address told", true, frameOf(everybody, macOwn, ether6, inIP6("fd07::2", "ff02::1", 58, icmp6Of(136, "fd07::2")...)...)},
		{"another's address told", false, frameOf(everybody, macOwn, ether6, inIP6("fd07::2", "ff02::1", 58, icmp6Of(136, "fd07::1")...)...)},
		{"a router asked for", true, frameOf(everybody, macOwn, ether6, inIP6(ownLinkLocal, "ff02::2", 58, icmp6Of(133, "::")...)...)},
		{"a router advertised", false, frameOf(everybody, macOwn, ether6, inIP6(ownLinkLocal, "ff02::1", 58, icmp6Of(134, "::")...)...)},
		{"a router advertised behind an extension header", false, frameOf(everybody, macOwn, ether6, inIP6(ownLinkLocal, "ff02::1", 60, append([]byte{58, 0, 1, 4, 0, 0, 0, 0}, icmp6Of(134, "::")...)...)...)},
		{"a redirect", false, frameOf(everybody, macOwn, ether6, inIP6(ownLinkLocal, "ff02::1", 58, icmp6Of(137, "fd07::1")...)...)},
		{"a VLAN tag", false, tagged([]byte{0x81, 0, 0, 5}, own)},
		{"the tag of no VLAN", false, tagged([]byte{0x81, 0, 0, 0}, own)},
		{"an 802.1ad tag", false, tagged([]byte{0x88, 0xa8, 0, 5}, own)},
		{"two tags", false, tagged([]byte{0x88, 0xa8, 0, 5, 0x81, 0, 0, 6}, own)},
		{"two 802.1Q tags", false, tagged([]byte{0x81, 0, 0, 5, 0x81, 0, 0, 6}, own)},
		{"a tag of older switches", false, tagged([]byte{0x91, 0, 0, 5}, own)},
		{"a protocol that nobody knows", false, frameOf(everybody, macOwn, 0x88b5, test...)},
		{"a frame of a spanning tree", false, frameOf("01:80:c2:00:00:00", macOwn, 38, append([]byte{0x42, 0x42, 3}, make([]byte, 35)...)...)},
	}
}

// wireTap sends from one guest and counts what arrives at another.
type wireTap struct {
	t       *testing.T
	out, in int
	serial  uint32
}

func newWireTap(t *testing.T, from, to *endpoint) *wireTap {
	t.Helper()
	w := &wireTap{t: t}
	from.ns.do(func() (err error) { w.out, err = packetSocket("eth0"); return err })
	device := "eth0"
	if to.name == "host" {
		device = "br0"
	}
	to.ns.do(func() (err error) { w.in, err = packetSocket(device); return err })
	t.Cleanup(func() { _ = unix.Close(w.out); _ = unix.Close(w.in) })
	return w
}

// send sends a frame for everybody, with a number in the group address that it is sent to, and gives the number.
func (w *wireTap) send(frame []byte) uint32 {
	w.t.Helper()
	w.serial++
	if frame[0] == 0xff {
		frame = append([]byte{3, 'p', 'a', 'l', byte(w.serial >> 8), byte(w.serial)}, frame[6:]...)
	}
	w.raw(frame)
	return w.serial
}

func (w *wireTap) raw(frame []byte) {
	w.t.Helper()
	if _, err := unix.Write(w.out, frame); err != nil {
		w.t.Fatal(err)
	}
}

// drain forgets what has come.
func (w *wireTap) drain() {
	for buf := make([]byte, 2048); ; {
		if _, err := unix.Read(w.in, buf); err != nil {
			return
		}
	}
}

// numbered is a payload with a number, for a packet that is routed.
func (w *wireTap) numbered() (uint32, []byte) {
	w.serial++
	return w.serial, []byte{'r', 'o', 'u', 't', byte(w.serial >> 8), byte(w.serial)}
}

// arrived reads what has come until the frame with the number has, and gives all numbers; tags may be gone.
func (w *wireTap) arrived(last uint32) map[uint32]bool {
	w.t.Helper()
	got, buf := make(map[uint32]bool), make([]byte, 2048)
	for late := time.Now().Add(10 * time.Second); !got[last]; {
		size, err := unix.Read(w.in, buf)
		switch {
		case errors.Is(err, unix.EAGAIN):
			if time.Now().After(late) {
				w.t.Fatalf("after 10 s: frame %d is not there, but %v", last, got)
			}
			time.Sleep(time.Millisecond)
		case err != nil:
			w.t.Fatal(err)
		case size > 14 && string(buf[:4]) == "\x03pal":
			got[uint32(binary.BigEndian.Uint16(buf[4:]))] = true
		case size > 14 && string(buf[size-6:size-2]) == "rout":
			got[uint32(binary.BigEndian.Uint16(buf[size-2:]))] = true
		}
	}
	return got
}

// TestSources sends everything that a guest could pretend, and what it has a right to, from a guest that is bound and from one
// that is not.
func TestSources(t *testing.T) {
	b := newTestbed(t)
	// Else bridges themselves drop what they can't read.
	b.host.ns.run("sysctl", "-qw", "net.bridge.bridge-nf-call-iptables=0", "net.bridge.bridge-nf-call-ip6tables=0", "net.bridge.bridge-nf-call-arptables=0")
	k := testSources(t, b.host.ns)
	end := frameOf(everybody, macOwn, ether4, inIP4("10.7.0.2", "10.7.0.5", 253, []byte("palisade")...)...)
	check := func(what string, bound bool) {
		t.Helper()
		w := newWireTap(t, b.blocked, b.innocent)
		sent := map[uint32]string{}
		want := map[string]bool{}
		for _, s := range spoofs() {
			sent[w.send(s.frame)] = s.what
			want[s.what] = s.pass || !bound && !strings.Contains(s.what, "spanning tree") // bridges keep that
		}
		got := w.arrived(w.send(end))
		for n, s := range sent {
			if got[n] != want[s] {
				t.Errorf("%s: %s: arrived %t, want %t", what, s, got[n], want[s])
			}
		}
	}
	own := bindings(t, "vnet1", macOwn, "10.7.0.2", "fd07::2", "10.7.8.0/24", "fd07:8::/64")
	check("nobody bound", false)
	bind(t, k, 1, own, nil)
	check("bound", true)
	b.check(t, "bound")
	dropped, err := k.Dropped(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	want := uint64(0)
	for _, s := range spoofs() {
		if !s.pass {
			want++
		}
	}
	if c := dropped["vnet1"]; c.Packets < want || c.Packets > want+20 || c.Bytes == 0 {
		t.Errorf("%+v were dropped of the guest, want some more than %d", dropped, want)
	}
	bind(t, k, 2, nil, own[1:])
	bind(t, k, 3, own[1:], nil)
	check("bound again", true)
	bind(t, k, 4, bindings(t, "vnet2", "52:54:00:00:00:03", "10.7.0.5"), own)
	check("another bound", false)
	bind(t, k, 5, nil, bindings(t, "vnet2", "52:54:00:00:00:03", "10.7.0.5"))
	if text := b.host.ns.run("nft", "list", "ruleset"); strings.Contains(text, "palisade") {
		t.Errorf("nobody is bound, and the kernel holds\n%s", text)
	}
}

// TestSourcesUnknown: of a guest without addresses only the hardware addresses are bound.
func TestSourcesUnknown(t *testing.T) {
	b := newTestbed(t)
	b.host.ns.run("sysctl", "-qw", "net.bridge.bridge-nf-call-iptables=0", "net.bridge.bridge-nf-call-ip6tables=0", "net.bridge.bridge-nf-call-arptables=0")
	k := testSources(t, b.host.ns)
	bind(t, k, 1, bindings(t, "vnet1", macOwn), nil)
	w := newWireTap(t, b.blocked, b.innocent)
	sent := map[uint32]string{}
	for _, s := range spoofs() {
		sent[w.send(s.frame)] = s.what
	}
	got := w.arrived(w.send(frameOf(everybody, macOwn, ether4, inIP4("10.7.0.2", "10.7.0.5", 253, []byte("palisade")...)...)))
	for n, s := range sent {
		want := map[string]bool{
			"another IPv4": true, "an IPv4 beside its prefix": true, "another IPv6": true, "another link-local address": true, "ARP for another": true,
			"is another's address taken?": true, "another's address told": true,
			"something else of nobody": true, "something else of nobody over IPv6": false,
		}
		pass, said := want[s]
		for _, x := range spoofs() {
			if x.what == s && !said {
				pass = x.pass
			}
		}
		if got[n] != pass {
			t.Errorf("%s: arrived %t, want %t", s, got[n], pass)
		}
	}
	b.check(t, "its hardware address bound")
}

// TestSourcesRouted: of a guest without a bridge too, and the host does not believe what it says by ARP.
func TestSourcesRouted(t *testing.T) {
	b := newTestbed(t)
	k := testSources(t, b.host.ns)
	const macRouted = "52:54:00:00:00:04"
	toHost := "52:54:00:00:08:04"
	own := bindings(t, "rt0", macRouted, "10.8.0.2", "fd08::2")
	w := newWireTap(t, b.routed, b.outside)
	check := func(what string, bound bool) {
		t.Helper()
		var sent []uint32
		var want []bool
		send := func(pass bool, src, mac string) {
			n, payload := w.numbered()
			sent, want = append(sent, n), append(want, pass || !bound)
			if strings.Contains(src, ":") {
				w.raw(frameOf(toHost, mac, ether6, inIP6(src, "fd09::8002", 253, payload...)...))
			} else {
				w.raw(frameOf(toHost, mac, ether4, inIP4(src, "10.9.0.130", 253, payload...)...))
			}
		}
		send(false, "10.8.0.7", macRouted)
		send(false, "fd08::7", macRouted)
		send(false, "10.8.0.2", macOther)
		send(true, "fd08::2", macRouted)
		send(true, "10.8.0.2", macRouted)
		got := w.arrived(sent[len(sent)-1])
		for i, n := range sent {
			if got[n] != want[i] {
				t.Errorf("%s: packet %d: arrived %t, want %t", what, i, got[n], want[i])
			}
		}
	}
	lie := func() string {
		w.drain()
		b.host.ns.run("ip", "neigh", "replace", "10.8.0.7", "lladdr", "52:54:00:00:00:77", "dev", "rt0", "nud", "stale")
		w.raw(frameOf(toHost, macRouted, etherARP, arpOf(1, macRouted, "10.8.0.7", "10.8.0.1")...))
		n, payload := w.numbered()
		w.raw(frameOf(toHost, macRouted, ether4, inIP4("10.8.0.2", "10.9.0.130", 253, payload...)...))
		w.arrived(n)
		return b.host.ns.run("ip", "neigh", "show", "10.8.0.7", "dev", "rt0")
	}
	check("nobody bound", false)
	if text := lie(); !strings.Contains(text, macRouted) {
		t.Errorf("nobody bound, and the host does not believe: %s", text)
	}
	bind(t, k, 1, own, nil)
	check("bound", true)
	b.check(t, "a routed guest bound")
	if text := lie(); strings.Contains(text, macRouted) {
		t.Errorf("bound, and the host believes: %s", text)
	}
	b.host.ns.run("sysctl", "-qw", "net.bridge.bridge-nf-call-iptables=1", "net.bridge.bridge-nf-call-ip6tables=1")
	check("br_netfilter", true)
	b.check(t, "br_netfilter")
}

// TestSourcesKept: a restart writes nothing; what others take out is found and comes back; nothing is open in between.
func TestSourcesKept(t *testing.T) {
	n := newNetNS(t)
	k := testSources(t, n)
	own := bindings(t, "vnet1", macOwn, "10.7.0.2", "fd07::2", "10.7.8.0/24")
	bind(t, k, 7, own, nil)
	again, err := OpenSources(Options{NetNS: n.fd})
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = again.Close() }()
	before, err := again.wire.generation(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	held, err := again.Adopt(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	if !held.Intact || held.Index != 7 || len(held.Elements) != len(own) {
		t.Errorf("adopted %+v", held)
	}
	bind(t, again, 8, own, nil)
	if now, _ := again.wire.generation(t.Context()); now != before {
		t.Error("a restart wrote to the kernel")
	}
	if err := again.Check(t.Context()); err != nil {
		t.Error(err)
	}
	for _, harm := range []string{
		"delete element bridge palisade_source macs { vnet1 . 52:54:00:00:00:02 }",
		"add element inet palisade_source a4_32 { vnet1 . 10.7.0.9 }",
		"flush chain bridge palisade_source arp4",
		"insert rule bridge palisade_source guest accept",
		"delete table arp palisade_source",
		"add table inet palisade_source { flags dormant; }",
		"flush ruleset",
	} {
		n.run("nft", harm)
		again.rest = time.Time{}
		if err := again.Check(t.Context()); err == nil {
			t.Errorf("%s: not found", harm)
		}
		bind(t, again, 9, nil, nil)
		if in, _, err := again.inspect(t.Context()); err != nil || in.problem != "" || len(in.held) != len(own) {
			t.Errorf("%s: then %q, %d elements, %v", harm, in.problem, len(in.held), err)
		}
	}
}

// TestSourcesScale: with a thousand guests bound, a change of one costs what it costs with one.
func TestSourcesScale(t *testing.T) {
	k := testSources(t, newNetNS(t))
	of := func(i int) []enforce.SourceElement {
		return bindings(t, fmt.Sprintf("vnet%d", i), fmt.Sprintf("52:54:00:01:%02x:%02x", i>>8, i&255), fmt.Sprintf("10.%d.%d.7", i>>8, i&255), fmt.Sprintf("fd00:%x::/64", i))
	}
	change := func(i int) time.Duration {
		var best time.Duration
		for range 5 {
			begin := time.Now()
			bind(t, k, 1, of(i), nil)
			bind(t, k, 1, nil, of(i))
			if took := time.Since(begin); best == 0 || took < best {
				best = took
			}
		}
		return best
	}
	bind(t, k, 1, of(0), nil)
	alone := change(2000)
	var all []enforce.SourceElement
	for i := range 1000 {
		all = append(all, of(i)...)
	}
	begin := time.Now()
	bind(t, k, 2, all, nil)
	took := time.Since(begin)
	among := change(2000)
	t.Logf("%d elements in %v; a change of one guest took %v alone, %v among a thousand", len(all), took, alone, among)
	if among > 5*alone+2*time.Millisecond {
		t.Errorf("a change took %v alone and %v among a thousand", alone, among)
	}
	begin = time.Now()
	if err := k.Check(t.Context()); err != nil {
		t.Error(err)
	}
	t.Logf("a look at all of it took %v", time.Since(begin))
}
