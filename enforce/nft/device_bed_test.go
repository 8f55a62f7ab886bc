package nft

import (
	"encoding/binary"
	"fmt"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/palisade/palisade/enforce"
	"github.com/palisade/palisade/fsm"
)

// station is one end of frames: the descriptor that QEMU would have of a guest's interface, a packet socket in another
// namespace, or the host's own stack.
type station struct {
	name  string
	mac   fsm.MAC
	v4    netip.Addr
	v6    netip.Addr
	tap   string // of a guest
	write func(frame []byte)
	own   func(to *station, payload []byte) // of the host: by its stack, IPv4 only

	mu  sync.Mutex
	got map[uint64]int // frames by number
}

func newStation(name string, n byte) *station {
	return &station{
		name: name, mac: fsm.MAC{0x52, 0x54, 0, 0, 0x20, n}, got: make(map[uint64]int),
		v4: netip.AddrFrom4([4]byte{10, 20, 0, n}), v6: netip.AddrFrom16([16]byte{0: 0xfd, 1: 0x20, 15: n}),
	}
}

func (s *station) received(id uint64) int {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.got[id]
}

const marker = "palisade"

// take counts what was received: the marker and a number end every payload.
func (s *station) take(b []byte) {
	i := strings.LastIndex(string(b), marker)
	if i < 0 || len(b) < i+len(marker)+8 {
		return
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.got[binary.BigEndian.Uint64(b[i+len(marker):])]++
}

// read takes frames from a descriptor until the test ends, and writes by it.
func (s *station) read(t *testing.T, fd int) {
	t.Helper()
	if err := unix.SetNonblock(fd, true); err != nil {
		t.Fatal(err)
	}
	f := os.NewFile(uintptr(fd), s.name)
	s.write = func(frame []byte) { _, _ = f.Write(frame) } // what XDP drops is an error of some kernels
	done := make(chan struct{})
	t.Cleanup(func() { _ = f.Close(); <-done })
	go func() {
		defer close(done)
		b := make([]byte, 2048)
		for {
			n, err := f.Read(b)
			if err != nil {
				return
			}
			s.take(b[:n])
		}
	}()
}

// openTap opens a tap of the namespace, as QEMU does; it is created if there is none.
func openTap(t *testing.T, ns netNS, path, name string) int {
	t.Helper()
	fd := -1
	ns.do(func() (err error) {
		if fd, err = unix.Open(path, unix.O_RDWR|unix.O_CLOEXEC, 0); err != nil {
			return fmt.Errorf("open %s: %w", path, err)
		}
		req, err := unix.NewIfreq(name)
		if err != nil {
			return err
		}
		req.SetUint16(unix.IFF_TAP | unix.IFF_NO_PI)
		return unix.IoctlIfreq(fd, unix.TUNSETIFF, req)
	})
	return fd
}

// openMacvtap creates a macvtap and opens its character device, for which there need be no node in /dev.
func openMacvtap(t *testing.T, ns netNS, lower string, s *station) int {
	t.Helper()
	ns.run("ip", "link", "add", "link", lower, "name", s.tap, "address", s.mac.String(), "type", "macvtap", "mode", "bridge")
	ns.run("ip", "link", "set", s.tap, "up")
	numbers := strings.TrimSpace(ns.run("unshare", "-m", "sh", "-c", "mount -t sysfs none /sys && cat /sys/class/net/"+s.tap+"/macvtap/*/dev"))
	major, minor, _ := strings.Cut(numbers, ":")
	number := func(s string) uint32 { n, _ := strconv.ParseUint(s, 10, 32); return uint32(n) }
	path := filepath.Join(t.TempDir(), s.tap)
	if err := unix.Mknod(path, unix.S_IFCHR|0o600, int(unix.Mkdev(number(major), number(minor)))); err != nil {
		t.Fatal(err)
	}
	return openTap(t, ns, path, s.tap)
}

// socket returns a packet socket that sends, and reads every frame.
func (s *station) socket(t *testing.T, ns netNS, device string) {
	t.Helper()
	var fd int
	ns.do(func() (err error) { fd, err = packetSocket(device); return err })
	s.read(t, fd)
}

// deviceBed are guests on devices of one node, and what is outside.
type deviceBed struct {
	host    netNS
	devices []Device
	all     []*station
	deliver bool // every frame leaves by a device that is looked at
	numbers uint64
}

func (b *deviceBed) index(t *testing.T, name string) int {
	t.Helper()
	n, err := strconv.Atoi(strings.TrimSpace(strings.SplitN(b.host.run("ip", "-o", "link", "show", "dev", name), ":", 2)[0]))
	if err != nil {
		t.Fatal(err)
	}
	return n
}

// shot is one kind of frame.
type shot struct {
	name  string
	frame func(from, to *station, payload []byte) []byte
	flood bool // to everybody
	spoof bool // with the addresses of somebody else
	arp   bool // not known by addresses
}

func shots() []shot {
	stranger := newStation("stranger", 0x99)
	ip4 := func(from, to *station, payload []byte) []byte { return ipv4(from.v4, to.v4, payload) }
	ip6 := func(from, to *station, payload []byte) []byte { return ipv6(from.v6, to.v6, payload) }
	everybody := fsm.MAC{0xff, 0xff, 0xff, 0xff, 0xff, 0xff}
	return []shot{
		{name: "IPv4", frame: func(from, to *station, p []byte) []byte { return ethernet(to.mac, from.mac, ip4(from, to, p), 0x0800) }},
		{name: "IPv6", frame: func(from, to *station, p []byte) []byte { return ethernet(to.mac, from.mac, ip6(from, to, p), 0x86dd) }},
		{name: "tagged IPv4", frame: func(from, to *station, p []byte) []byte {
			return ethernet(to.mac, from.mac, ip4(from, to, p), 0x8100, 5, 0x0800)
		}},
		{name: "twice tagged IPv6", frame: func(from, to *station, p []byte) []byte {
			return ethernet(to.mac, from.mac, ip6(from, to, p), 0x88a8, 5, 0x8100, 6, 0x86dd)
		}},
		{name: "ARP", arp: true, frame: func(from, to *station, p []byte) []byte {
			return ethernet(to.mac, from.mac, append(make([]byte, 28), p...), 0x0806)
		}},
		{name: "broadcast", flood: true, frame: func(from, to *station, p []byte) []byte {
			return ethernet(everybody, from.mac, ip4(from, to, p), 0x0800)
		}},
		{name: "spoofed", spoof: true, frame: func(from, to *station, p []byte) []byte {
			return ethernet(to.mac, stranger.mac, ip4(stranger, to, p), 0x0800)
		}},
	}
}

// ethernet builds a frame; the words before the last are tags.
func ethernet(dst, src fsm.MAC, payload []byte, words ...uint16) []byte {
	b := append(append([]byte{}, dst[:]...), src[:]...)
	for _, w := range words {
		b = binary.BigEndian.AppendUint16(b, w)
	}
	return append(b, payload...)
}

func ipv4(from, to netip.Addr, payload []byte) []byte {
	n := 28 + len(payload)
	b := []byte{0x45, 0, byte(n >> 8), byte(n), 0, 0, 0, 0, 64, 17, 0, 0}
	b = append(append(b, from.AsSlice()...), to.AsSlice()...)
	sum := uint32(0)
	for i := 0; i < 20; i += 2 {
		sum += uint32(b[i])<<8 | uint32(b[i+1])
	}
	sum = sum>>16 + sum&0xffff
	binary.BigEndian.PutUint16(b[10:], ^uint16(sum+sum>>16))
	b = append(b, port>>8, port&0xff, port>>8, port&0xff, byte((n-20)>>8), byte(n-20), 0, 0)
	return append(b, payload...)
}

func ipv6(from, to netip.Addr, payload []byte) []byte {
	n := 8 + len(payload)
	b := append([]byte{0x60, 0, 0, 0, byte(n >> 8), byte(n), 17, 64}, from.AsSlice()...)
	b = append(b, to.AsSlice()...)
	b = append(b, port>>8, port&0xff, port>>8, port&0xff, byte(n>>8), byte(n), 0xab, 0xcd) // nobody checks it here
	return append(b, payload...)
}

// sent is what was sent from one to another.
type sent struct {
	id       uint64
	what     string
	from, to *station
	cut      bool
}

// shoot sends every kind of frame between each two, and wants those that are not cut to arrive, and nothing else.
func (b *deviceBed) shoot(t *testing.T, what string, cut func(s shot, from, to *station) bool) {
	t.Helper()
	const each = 5
	var list []sent
	for _, from := range b.all {
		for _, to := range b.all {
			for _, s := range shots() {
				stack := from.own != nil || to.own != nil
				if from == to || stack && (s.name != "IPv4") {
					continue
				}
				b.numbers++
				list = append(list, sent{b.numbers, s.name, from, to, cut(s, from, to)})
				payload := binary.BigEndian.AppendUint64([]byte(marker), b.numbers)
				for range each {
					if from.own != nil {
						from.own(to, payload)
					} else {
						from.write(s.frame(from, to, payload))
					}
				}
			}
		}
	}
	var lost []string
	end := time.Now().Add(10 * time.Second)
	for _, f := range list {
		for !f.cut && f.to.received(f.id) < each && time.Now().Before(end) {
			time.Sleep(time.Millisecond)
		}
		if n := f.to.received(f.id); !f.cut && n < each {
			lost = append(lost, fmt.Sprintf("%s from %s to %s: %d of %d", f.what, f.from.name, f.to.name, each-n, each))
		}
	}
	if len(lost) > 0 {
		t.Errorf("%s: innocents lost frames: %s", what, strings.Join(lost, ", "))
	}
	for _, f := range list {
		if n := f.to.received(f.id); f.cut && n > 0 {
			t.Errorf("%s: %s from %s to %s: %d of %d frames leaked", what, f.what, f.from.name, f.to.name, n, each)
		}
	}
}

// open waits until frames pass between each two.
func (b *deviceBed) open(t *testing.T) {
	t.Helper()
	for _, from := range b.all {
		for _, to := range b.all {
			if from == to {
				continue
			}
			b.numbers++
			payload := binary.BigEndian.AppendUint64([]byte(marker), b.numbers)
			waitFor(t, "frames pass from "+from.name+" to "+to.name, func() bool {
				if from.own != nil {
					from.own(to, payload)
				} else {
					from.write(shots()[0].frame(from, to, payload))
				}
				return to.received(b.numbers) > 0
			})
		}
	}
}

// hostStation is the host's own stack behind one of its interfaces.
func hostStation(t *testing.T, ns netNS, device string, n byte, guests ...*station) *station {
	t.Helper()
	s := newStation("host", n)
	ns.run("ip", "link", "set", device, "address", s.mac.String(), "up")
	ns.run("ip", "addr", "add", s.v4.String()+"/24", "dev", device)
	for _, g := range guests {
		ns.run("ip", "neigh", "replace", g.v4.String(), "lladdr", g.mac.String(), "dev", device, "nud", "permanent")
	}
	var conn *net.UDPConn
	ns.do(func() (err error) {
		conn, err = net.ListenUDP("udp4", &net.UDPAddr{Port: port})
		return err
	})
	s.own = func(to *station, payload []byte) {
		_, _ = conn.WriteToUDPAddrPort(payload, netip.AddrPortFrom(to.v4, port))
	}
	done := make(chan struct{})
	t.Cleanup(func() { _ = conn.Close(); <-done })
	go func() {
		defer close(done)
		b := make([]byte, 2048)
		for {
			n, err := conn.Read(b)
			if err != nil {
				return
			}
			s.take(b[:n])
		}
	}()
	return s
}

// everyHold blocks one guest by each kind of element, beside innocent ones, and lifts it.
func (b *deviceBed) everyHold(t *testing.T, k *Kernel, victim *station) {
	t.Helper()
	party := func(from, to *station) bool { return from == victim || to == victim }
	index := k.index
	hold := func(what string, cut func(shot, *station, *station) bool, list ...enforce.Element) {
		t.Helper()
		index++
		apply(t, k, index, list, nil)
		b.shoot(t, what, cut)
		verify(t, k)
		if loose := k.Unenforced(); len(loose) > 0 {
			t.Errorf("%s: not in force: %v", what, loose)
		}
		index++
		apply(t, k, index, nil, list)
	}
	addresses := func(s shot, from, to *station) bool {
		return !s.arp && (to == victim || from == victim && !s.spoof)
	}
	hold("by tap", func(_ shot, from, to *station) bool { return party(from, to) }, tap(victim.tap))
	hold("by hardware address", func(s shot, from, to *station) bool {
		return to == victim && !s.flood || from == victim && !s.spoof
	}, enforce.Element{MAC: victim.mac})
	hold("by address", addresses, prefix(victim.v4.String()), prefix(victim.v6.String()))
	hold("by prefix", addresses,
		enforce.Element{Prefix: netip.PrefixFrom(victim.v4, 31).Masked()}, enforce.Element{Prefix: netip.PrefixFrom(victim.v6, 127).Masked()})
	one := func(treatment enforce.Treatment) enforce.Element {
		return enforce.Element{Tap: victim.tap, Treatment: treatment}
	}
	hold("what it gets", func(_ shot, _, to *station) bool { return to == victim }, one("in"))
	hold("what it sends", func(_ shot, from, _ *station) bool { return from == victim }, one("out"))
	hold("reject and redirect", func(_ shot, from, to *station) bool { return party(from, to) }, one("reject_in"), one("redirect_out"))
	b.shoot(t, "after all", nobody)
}

// uplink gives the host a device to the outside, and the outside a station.
func (b *deviceBed) uplink(t *testing.T, device string, n byte) *station {
	t.Helper()
	outside, s := newNetNS(t), newStation("outside", n)
	b.host.run("ip", "link", "add", device, "type", "veth", "peer", "name", "eth0", "address", s.mac.String(), "netns", outside.path())
	for _, ns := range []netNS{b.host, outside} {
		ns.run("sysctl", "-qw", "net.ipv6.conf.all.disable_ipv6=1")
	}
	b.host.run("ip", "link", "set", device, "up")
	outside.run("ip", "link", "set", "eth0", "promisc", "on", "up")
	s.socket(t, outside, "eth0")
	return s
}

func (b *deviceBed) device(t *testing.T, name string, p Path) {
	t.Helper()
	b.devices = append(b.devices, Device{Name: name, Index: b.index(t, name), Path: p})
	slices.SortFunc(b.devices, func(a, b Device) int { return a.Index - b.Index })
}

func (b *deviceBed) set(t *testing.T, k *Kernel) {
	t.Helper()
	if err := k.SetDevices(t.Context(), b.devices); err != nil {
		t.Fatal(err)
	}
}
