package matrix_test

import (
	"fmt"
	"net/netip"
	"time"

	"golang.org/x/sys/unix"

	"github.com/palisade/palisade/internal/openvswitch"
)

const switchName = "Open vSwitch, userspace datapath"

// switchTurns is how often a switch has to have looked at all of its ports to have passed on what was sent to it at once: it
// takes 32 frames of a port each time, and there are at most 200, to be passed on by two switches.
const switchTurns = 16

// switches puts guests on taps of Open vSwitch, on each node a program that reads frames from packet sockets and sends them
// by such; its own port (ovs0) is the node's. The test reads and writes the guests' frames as QEMU does.
func (b *bed) switches() {
	b.t.Helper()
	b.fabric.ip(newBridge("sw3", 0xfff8)...)
	p := &topology{
		name: switchName, bound: true, device: true, program: true, others: map[role]*end{}, nodeAt: map[*end]*end{},
		switched: map[role]bool{near: true, far: true, node: true, outside: true},
	}
	p.held, p.free = b.tap("held", b.n1, 2), b.tap("free", b.n1, 5)
	p.others[near], p.others[far] = b.tap("near", b.n1, 6), b.tap("far", b.n2, 7)
	p.others[outside] = b.attach(b.outside, "eth3", b.fabric, "out-3", "10.6.0.9", "fd00:6::9", "sw3")
	for i, n := range []netNS{b.n1, b.n2} {
		port := fmt.Sprintf("n%d-ovs", i+1)
		b.fabric.ip(fmt.Sprintf("link add %s type veth peer name %s netns %s", port, switchUplink, n.path()), fmt.Sprintf("link set %s master sw3", port), fmt.Sprintf("link set %s up", port))
		n.ip("link set " + switchUplink + " up")
		s := openvswitch.Start(b.t, n.path())
		s.Run("add-br", switchPort, "--", "set", "bridge", switchPort, "datapath_type=netdev", "fail-mode=standalone", "other-config:forward-bpdu=true",
			fmt.Sprintf("other-config:hwaddr=%q", text(mac{0x52, 0x54, 0, 0, 2, b.macs + 1})), // that of its port, which face sets
			"--", "add-port", switchPort, switchUplink)
		for _, e := range []*end{p.held, p.free, p.others[near], p.others[far]} {
			if e.ns == n {
				s.Run("add-port", switchPort, e.tap)
			}
		}
	}
	host := b.face(b.n1, switchPort, "10.6.0.1", "fd00:6::1")
	b.n1.ip("addr add 10.6.0.1/24 dev ovs0", "addr add fd00:6::1/64 dev ovs0 nodad")
	for _, e := range []*end{p.held, p.free} {
		p.nodeAt[e] = host
		for _, a := range []netip.Addr{e.v4, e.v6, e.local} {
			b.n1.ip(fmt.Sprintf("neigh replace %s lladdr %s dev %s nud permanent", a, text(e.mac), switchPort))
		}
	}
	b.topologies = append(b.topologies, p)
}

const switchPort, switchUplink = "ovs0", "ovs-up"

// tap is a guest on a tap.
func (b *bed) tap(name string, ns netNS, n int) *end {
	b.t.Helper()
	b.macs++
	e := &end{
		name: name, ns: ns, tap: fmt.Sprintf("vnet2%d", n), mac: mac{0x52, 0x54, 0, 0, 1, b.macs}, packets: newReceiver(),
		v4: netip.AddrFrom4([4]byte{10, 6, 0, byte(n)}), v6: netip.MustParseAddr(fmt.Sprintf("fd00:6::%d", n)), local: netip.MustParseAddr(fmt.Sprintf("fe80::5054:ff:fe00:1%02x", b.macs)),
	}
	b.openTap(e, "/dev/net/tun")
	ns.ip(fmt.Sprintf("link set %s up", e.tap))
	return e
}

// openTap opens the descriptor that QEMU would have of a guest's interface.
func (b *bed) openTap(e *end, path string) {
	b.t.Helper()
	e.ns.do(func() (err error) {
		if e.send, err = unix.Open(path, unix.O_RDWR|unix.O_CLOEXEC|unix.O_NONBLOCK, 0); err != nil {
			return err
		}
		b.t.Cleanup(func() { _ = unix.Close(e.send) })
		req, err := unix.NewIfreq(e.tap)
		if err != nil {
			return err
		}
		req.SetUint16(unix.IFF_TAP | unix.IFF_NO_PI)
		return unix.IoctlIfreq(e.send, unix.TUNSETIFF, req)
	})
	e.packets.sockets = append(e.packets.sockets, e.send)
	b.receivers = append(b.receivers, e.packets)
}

// turn waits until switches in programs have passed on all that was sent. They do not do so in the order in which it was
// sent, but each of their turns takes from all ports: so many packets of the innocent, one after the other, say it.
func (b *bed) turn() {
	b.t.Helper()
	for _, p := range b.topologies {
		at := p.others[far].packets
		for i := 0; p.program && i < switchTurns; i++ {
			b.turns++
			marker := 3<<30 | b.turns
			for end := time.Now().Add(10 * time.Second); at.got[marker] == 0; {
				if time.Now().After(end) {
					b.t.Fatal("after 10 s the switches have not passed on an innocent's packet")
				}
				b.send(cell{topology: p, role: far, out: true, kind: b.last.kind}, p.free, marker)
				for again := time.Now().Add(100 * time.Millisecond); at.got[marker] == 0 && time.Now().Before(again); {
					if err := at.drain(b.buf); err != nil {
						b.t.Fatal(err)
					}
				}
			}
			delete(at.got, marker)
		}
	}
}
