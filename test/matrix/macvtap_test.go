package matrix_test

import (
	"fmt"
	"net/netip"
	"path/filepath"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/palisade/palisade/enforce/nft"
)

const macvtapName = "macvtap"

// macvtaps puts guests on macvtaps of an uplink; the test reads and writes their frames as QEMU does.
func (b *bed) macvtaps() {
	b.t.Helper()
	b.fabric.ip(newBridge("sw2", 0xfff8)...)
	p := &topology{name: macvtapName, bound: true, device: true, switched: map[role]bool{near: true, far: true, outside: true}, others: map[role]*end{}, nodeAt: map[*end]*end{}}
	for i, n := range []netNS{b.n1, b.n2} {
		port := fmt.Sprintf("n%d-mv", i+1)
		b.fabric.ip(fmt.Sprintf("link add %s type veth peer name mv0 netns %s", port, n.path()), fmt.Sprintf("link set %s master sw2", port), fmt.Sprintf("link set %s up", port))
		n.ip("link set mv0 up")
	}
	p.held, p.free = b.macvtap("held", b.n1, 2), b.macvtap("free", b.n1, 5)
	p.others[near], p.others[far] = b.macvtap("near", b.n1, 6), b.macvtap("far", b.n2, 7)
	p.others[outside] = b.attach(b.outside, "eth2", b.fabric, "out-2", "10.5.0.9", "fd00:5::9", "sw2")
	b.topologies = append(b.topologies, p)
}

func (b *bed) macvtap(name string, ns netNS, n int) *end {
	b.t.Helper()
	b.macs++
	e := &end{
		name: name, ns: ns, tap: fmt.Sprintf("macvtap%d", n), mac: mac{0x52, 0x54, 0, 0, 1, b.macs}, packets: newReceiver(),
		v4: netip.AddrFrom4([4]byte{10, 5, 0, byte(n)}), v6: netip.MustParseAddr(fmt.Sprintf("fd00:5::%d", n)), local: netip.MustParseAddr(fmt.Sprintf("fe80::5054:ff:fe00:1%02x", b.macs)),
	}
	ns.ip(fmt.Sprintf("link add link mv0 name %s address %s type macvtap mode bridge", e.tap, text(e.mac)), fmt.Sprintf("link set %s allmulticast on up", e.tap))
	number := strings.TrimSpace(ns.run("", "unshare", "-m", "sh", "-c", "mount -t sysfs none /sys && cat /sys/class/net/"+e.tap+"/macvtap/*/dev"))
	major, minor, _ := strings.Cut(number, ":")
	at := func(s string) uint32 { n, _ := strconv.ParseUint(s, 10, 32); return uint32(n) }
	path := filepath.Join(b.t.TempDir(), e.tap)
	if err := unix.Mknod(path, unix.S_IFCHR|0o600, int(unix.Mkdev(at(major), at(minor)))); err != nil {
		b.t.Fatal(err)
	}
	b.openTap(e, path)
	return e
}

// devices are those of a node that its kernel must be told of.
func (b *bed) devices(ns netNS) []nft.Device {
	var list []nft.Device
	add := func(name string, path nft.Path) {
		index, _, _ := strings.Cut(ns.run("", "ip", "-o", "link", "show", "dev", name), ":")
		n, err := strconv.Atoi(index)
		if err != nil {
			b.t.Fatal(err)
		}
		list = append(list, nft.Device{Name: name, Index: n, Path: path})
	}
	for _, p := range b.topologies {
		path := nft.Macvtap
		if p.program {
			path = nft.Read
			add(switchUplink, path)
			add(switchPort, nft.Switched)
		}
		for _, e := range []*end{p.held, p.free, p.others[near], p.others[far]} {
			if p.device && e.ns == ns {
				add(e.tap, path)
			}
		}
	}
	return list
}
