package matrix_test

import (
	"fmt"
	"net/netip"
	"testing"

	"golang.org/x/sys/unix"
)

const (
	bridgeName = "Linux bridge"
	innerName  = "bridge behind the node"
	routedName = "routed tap"
	venetName  = "venet"
)

// bed is two nodes with guests of every topology, and a host outside:
//
//	          fabric: sw0 (routed), sw1 (bridged)
//	        /            |            \
//	n1: up0, br0      outside      n2: up0, br0
//	br0: guests on a bridge that goes on outside
//	br1: guests on a bridge of the node, which routes for it
//	r..: guests that are routed, each by a tap of its own
//	venet0: one interface with all containers behind it, apart from each other
//
// Neighbours are permanent, so that what is sent never waits for an answer.
type bed struct {
	t          testing.TB
	n1, n2     netNS
	fabric     netNS
	outside    netNS
	topologies []*topology
	macs       byte
	receivers  []*receiver
	buf        []byte
	shots      uint32
	turns      uint32
	last       cell // the longest way
}

func newBed(t testing.TB) *bed {
	t.Helper()
	b := &bed{t: t, n1: newNetNS(t), n2: newNetNS(t), fabric: newNetNS(t), outside: newNetNS(t), buf: make([]byte, 1<<16)}
	quiet := []string{"net.ipv6.conf.all.accept_dad=0", "net.ipv6.conf.default.accept_dad=0", "net.ipv6.conf.default.router_solicitations=0",
		"net.ipv6.conf.default.accept_ra=0", "net.ipv4.conf.default.rp_filter=0", "net.ipv4.conf.all.rp_filter=0", "net.ipv4.icmp_ratelimit=0",
		"net.ipv4.ipfrag_time=1"} // a packet's number is of 16 bits: fragments without their rest must be gone when it is used again
	for _, n := range []netNS{b.n1, b.n2} {
		n.sysctl(append(quiet, "net.ipv4.ip_forward=1", "net.ipv6.conf.all.forwarding=1", "net.ipv4.conf.default.send_redirects=0", "net.ipv4.conf.all.send_redirects=0")...)
		n.run(`table arp matrix {
	set heard { type ipv4_addr; size 65535; flags dynamic; }
	chain input { type filter hook input priority 300; arp saddr ip 10.99.0.0/16 add @heard { arp saddr ip }; }
}`, "nft", "-f", "-")
	}
	b.fabric.sysctl("net.bridge.bridge-nf-call-iptables=0", "net.bridge.bridge-nf-call-ip6tables=0", "net.ipv6.conf.default.disable_ipv6=1")
	b.outside.sysctl(quiet...)
	for _, n := range []netNS{b.n1, b.n2, b.fabric, b.outside} {
		n.ip("link set lo up")
	}
	b.fabric.ip(newBridge("sw0", 0xfff8)...)
	b.fabric.ip(newBridge("sw1", 0xfff8)...)

	// Routed networks meet on sw0.
	up1 := b.attach(b.n1, "up0", b.fabric, "n1-up", "10.0.0.1", "fd00::1", "sw0")
	up2 := b.attach(b.n2, "up0", b.fabric, "n2-up", "10.0.0.11", "fd00::11", "sw0")
	far := b.attach(b.outside, "eth0", b.fabric, "out-0", "10.0.0.9", "fd00::9", "sw0")
	far.next = up1
	b.neighbours(up1, up2, far)
	b.bridged()
	b.inner(far)
	b.routed(far)
	b.venet(far)
	b.macvtaps()
	b.switches()
	for _, n := range []struct {
		ns  netNS
		via *end
	}{{b.n1, up2}, {b.n2, up1}, {b.outside, up1}} {
		for net := 2; net <= 4; net++ {
			third := 1
			if n.via == up1 {
				third = 0
			}
			n.ns.ip(fmt.Sprintf("route add 10.%d.%d.0/24 via %s", net, third, n.via.v4), fmt.Sprintf("route add fd00:%d:%d::/64 via %s", net, third, n.via.v6))
		}
	}
	b.open()
	onOneCPU(t, b.settle)
	return b
}

// newBridge is a switch that also passes on the groups whose bits are set: 01:80:c2:00:00:00 and those after it.
func newBridge(name string, groups int) []string {
	return []string{fmt.Sprintf("link add %s type bridge mcast_snooping 0 group_fwd_mask %d", name, groups), fmt.Sprintf("link set %s up", name)}
}

// attach connects an end in one namespace to a port of a bridge in another. Without a bridge the other side
// is left alone.
func (b *bed) attach(ns netNS, dev string, other netNS, port, v4, v6, bridge string) *end {
	b.t.Helper()
	b.macs++
	e := &end{name: dev, ns: ns, dev: dev, tap: port, v4: netip.MustParseAddr(v4), v6: netip.MustParseAddr(v6), mac: mac{0x52, 0x54, 0, 0, 1, b.macs}}
	e.local = netip.MustParseAddr(fmt.Sprintf("fe80::5054:ff:fe00:1%02x", b.macs))
	lines := []string{fmt.Sprintf("link add %s type veth peer name %s address %s netns %s", port, dev, text(e.mac), ns.path())}
	if bridge != "" {
		lines = append(lines, fmt.Sprintf("link set %s master %s", port, bridge))
	}
	other.ip(append(lines, fmt.Sprintf("link set %s up", port))...)
	ns.ip(fmt.Sprintf("link set %s up", dev), fmt.Sprintf("addr add %s/24 dev %s", v4, dev), fmt.Sprintf("addr add %s/64 dev %s nodad", v6, dev))
	return e
}

func text(m mac) string {
	return fmt.Sprintf("%02x:%02x:%02x:%02x:%02x:%02x", m[0], m[1], m[2], m[3], m[4], m[5])
}

// guest is a namespace with one interface.
func (b *bed) guest(name string, host netNS, tap, v4, v6, bridge string) *end {
	b.t.Helper()
	ns := newNetNS(b.t)
	// A node tells containers that they could reach each other without it, but on a venet they can't.
	ns.sysctl("net.ipv6.conf.default.accept_redirects=0", "net.ipv6.conf.default.accept_dad=0", "net.ipv6.conf.default.accept_ra=0", "net.ipv6.conf.default.router_solicitations=0", "net.ipv4.conf.default.rp_filter=0")
	e := b.attach(ns, "eth0", host, tap, v4, v6, bridge)
	e.name = name
	return e
}

// face gives a node an address on one of its interfaces.
func (b *bed) face(ns netNS, dev, v4, v6 string) *end {
	b.t.Helper()
	b.macs++
	e := &end{name: dev, ns: ns, dev: dev, v4: netip.MustParseAddr(v4), v6: netip.MustParseAddr(v6), mac: mac{0x52, 0x54, 0, 0, 2, b.macs}}
	e.local = netip.MustParseAddr(fmt.Sprintf("fe80::5054:ff:fe00:2%02x", b.macs))
	ns.ip(fmt.Sprintf("link set %s address %s", dev, text(e.mac)), fmt.Sprintf("link set %s up", dev), fmt.Sprintf("addr replace %s/64 dev %s nodad", e.local, dev),
		// Others that the machine's table of neighbours has no room for.
		fmt.Sprintf("neigh replace 224.0.0.1 lladdr 01:00:5e:00:00:01 dev %s nud permanent", dev),
		fmt.Sprintf("neigh replace 255.255.255.255 lladdr ff:ff:ff:ff:ff:ff dev %s nud permanent", dev))
	return e
}

// neighbours make all ends of a link known to each other.
func (*bed) neighbours(ends ...*end) {
	for _, e := range ends {
		var lines []string
		for _, o := range ends {
			if o != e {
				for _, a := range []netip.Addr{o.v4, o.v6, o.local} {
					lines = append(lines, fmt.Sprintf("neigh replace %s lladdr %s dev %s nud permanent", a, text(o.mac), e.dev))
				}
			}
		}
		e.ns.ip(lines...)
	}
}

func (b *bed) bridged() {
	b.t.Helper()
	for i, n := range []netNS{b.n1, b.n2} {
		n.ip(newBridge("br0", 0)...)
		b.fabric.ip(fmt.Sprintf("link add n%d-br type veth peer name upl netns %s", i+1, n.path()), fmt.Sprintf("link set n%d-br master sw1", i+1), fmt.Sprintf("link set n%d-br up", i+1))
		n.ip("link set upl master br0", "link set upl up")
	}
	host := b.face(b.n1, "br0", "10.1.0.1", "fd00:1::1")
	b.n1.ip("addr add 10.1.0.1/24 dev br0", "addr add fd00:1::1/64 dev br0 nodad")
	p := &topology{
		name: bridgeName, bound: true, switched: map[role]bool{near: true, far: true, node: true, outside: true},
		held: b.guest("held", b.n1, "vnet2", "10.1.0.2", "fd00:1::2", "br0"),
		free: b.guest("free", b.n1, "vnet5", "10.1.0.5", "fd00:1::5", "br0"),
		others: map[role]*end{
			near:    b.guest("near", b.n1, "vnet6", "10.1.0.6", "fd00:1::6", "br0"),
			far:     b.guest("far", b.n2, "vnet7", "10.1.0.7", "fd00:1::7", "br0"),
			outside: b.attach(b.outside, "eth1", b.fabric, "out-1", "10.1.0.9", "fd00:1::9", "sw1"),
		},
	}
	p.nodeAt = map[*end]*end{p.held: host, p.free: host}
	b.neighbours(p.held, p.free, p.others[near], p.others[far], p.others[outside], host)
	b.topologies = append(b.topologies, p)
}

// inner is the network that libvirt calls default, without its address translation.
func (b *bed) inner(out *end) {
	b.t.Helper()
	var hosts []*end
	for i, n := range []netNS{b.n1, b.n2} {
		n.ip(newBridge("br1", 0)...)
		host := b.face(n, "br1", fmt.Sprintf("10.2.%d.1", i), fmt.Sprintf("fd00:2:%d::1", i))
		n.ip(fmt.Sprintf("addr add %s/24 dev br1", host.v4), fmt.Sprintf("addr add %s/64 dev br1 nodad", host.v6))
		hosts = append(hosts, host)
	}
	p := &topology{
		name: innerName, bound: true, switched: map[role]bool{near: true, node: true},
		held: b.guest("held", b.n1, "vnet12", "10.2.0.2", "fd00:2::2", "br1"),
		free: b.guest("free", b.n1, "vnet15", "10.2.0.5", "fd00:2::5", "br1"),
		others: map[role]*end{
			near:    b.guest("near", b.n1, "vnet16", "10.2.0.6", "fd00:2::6", "br1"),
			far:     b.guest("far", b.n2, "vnet17", "10.2.1.7", "fd00:2:1::7", "br1"),
			outside: out,
		},
	}
	p.nodeAt = map[*end]*end{p.held: hosts[0], p.free: hosts[0]}
	b.neighbours(p.held, p.free, p.others[near], hosts[0])
	b.neighbours(p.others[far], hosts[1])
	b.gateway(hosts[0], p.held, p.free, p.others[near])
	b.gateway(hosts[1], p.others[far])
	b.topologies = append(b.topologies, p)
}

func (*bed) gateway(next *end, guests ...*end) {
	for _, g := range guests {
		g.next = next
		g.ns.ip(fmt.Sprintf("route add default via %s", next.v4), fmt.Sprintf("route add default via %s", next.v6))
	}
}

func (b *bed) routed(out *end) {
	b.t.Helper()
	plug := func(name string, ns netNS, network, n int) (guest, host *end) {
		tap := fmt.Sprintf("r%d", n)
		guest = b.guest(name, ns, tap, fmt.Sprintf("10.3.%d.%d", network, n), fmt.Sprintf("fd00:3:%d::%d", network, n), "")
		host = b.face(ns, tap, fmt.Sprintf("10.3.%d.1", network), fmt.Sprintf("fd00:3:%d::1", network))
		ns.ip(fmt.Sprintf("addr add %s/32 dev %s", host.v4, tap), fmt.Sprintf("addr add %s/128 dev %s nodad", host.v6, tap),
			fmt.Sprintf("route add %s/32 dev %s", guest.v4, tap), fmt.Sprintf("route add %s/128 dev %s", guest.v6, tap))
		b.neighbours(guest, host)
		b.gateway(host, guest)
		// Those of one network meet at the node.
		guest.ns.ip("addr flush dev eth0 scope global", fmt.Sprintf("addr add %s/32 dev eth0", guest.v4), fmt.Sprintf("addr add %s/128 dev eth0 nodad", guest.v6),
			fmt.Sprintf("route replace %s dev eth0", host.v4), fmt.Sprintf("route replace default via %s", host.v4),
			fmt.Sprintf("route replace %s dev eth0", host.v6), fmt.Sprintf("route replace default via %s", host.v6))
		b.neighbours(guest, host)
		return guest, host
	}
	p := &topology{name: routedName, bound: true, switched: map[role]bool{}, others: map[role]*end{outside: out}, nodeAt: map[*end]*end{}}
	var host *end
	p.held, host = plug("held", b.n1, 0, 2)
	p.nodeAt[p.held] = host
	p.free, host = plug("free", b.n1, 0, 5)
	p.nodeAt[p.free] = host
	p.others[near], _ = plug("near", b.n1, 0, 6)
	p.others[far], _ = plug("far", b.n2, 1, 7)
	b.topologies = append(b.topologies, p)
}

// venet puts containers behind one interface of the node. They can't reach each other but through the node,
// which knows them by their addresses alone.
func (b *bed) venet(out *end) {
	b.t.Helper()
	p := &topology{name: venetName, switched: map[role]bool{}, others: map[role]*end{outside: out}, nodeAt: map[*end]*end{}}
	for i, n := range []netNS{b.n1, b.n2} {
		bridge := fmt.Sprintf("vz%d", i)
		b.fabric.ip(newBridge(bridge, 0)...)
		b.fabric.ip(fmt.Sprintf("link add %[1]s-up type veth peer name venet0 netns %[2]s", bridge, n.path()), fmt.Sprintf("link set %[1]s-up master %[1]s", bridge), fmt.Sprintf("link set %s-up up", bridge))
		host := b.face(n, "venet0", fmt.Sprintf("10.4.%d.1", i), fmt.Sprintf("fd00:4:%d::1", i))
		n.ip(fmt.Sprintf("addr add %s/24 dev venet0", host.v4), fmt.Sprintf("addr add %s/64 dev venet0 nodad", host.v6))
		contain := func(name string, number int) *end {
			port := fmt.Sprintf("%s-c%d", bridge, number)
			e := b.guest(name, b.fabric, port, fmt.Sprintf("10.4.%d.%d", i, number), fmt.Sprintf("fd00:4:%d::%d", i, number), bridge)
			b.fabric.ip(fmt.Sprintf("link set dev %s type bridge_slave isolated on", port))
			e.ns.ip("addr flush dev eth0 scope global", fmt.Sprintf("addr add %s/32 dev eth0", e.v4), fmt.Sprintf("addr add %s/128 dev eth0 nodad", e.v6),
				fmt.Sprintf("route add %s dev eth0", host.v4), fmt.Sprintf("route add %s dev eth0", host.v6))
			b.gateway(host, e)
			return e
		}
		if i == 1 {
			p.others[far] = contain("far", 7)
			b.neighbours(host, p.others[far])
			continue
		}
		p.held, p.free, p.others[near] = contain("held", 2), contain("free", 5), contain("near", 6)
		b.neighbours(host, p.held, p.free, p.others[near])
		p.nodeAt[p.held], p.nodeAt[p.free] = host, host
	}
	b.topologies = append(b.topologies, p)
	b.last = cell{topology: p, role: far, out: true, kind: kinds()[0]}
}

// open makes the sockets.
func (b *bed) open() {
	b.t.Helper()
	var devices []string
	var nodes []*end
	for _, p := range b.topologies {
		for _, subject := range []*end{p.held, p.free} {
			for _, e := range []*end{subject, p.others[near], p.others[far], p.others[outside], p.nodeAt[subject]} {
				if e == nil || e.packets != nil {
					continue
				}
				e.packets = newReceiver()
				e.ns.do(func() (err error) {
					if e.send, err = packetSocket(e.dev, unix.ETH_P_ALL); err == nil {
						e.packets.add(b.t, e.send)
					}
					return err
				})
				b.receivers = append(b.receivers, e.packets)
				if e == p.nodeAt[subject] {
					devices, nodes = append(devices, e.dev), append(nodes, e)
				}
			}
		}
	}
	// What no packet socket of a bridge sees: it is for the node alone.
	passed := newReceiver()
	b.n1.do(func() error {
		for _, protocol := range []uint16{etherLLDP, ether8021X} {
			fd, err := packetSocket("", protocol)
			if err != nil {
				return err
			}
			passed.add(b.t, fd)
		}
		return nil
	})
	s := newStack(b.t, b.n1, devices...)
	for _, e := range nodes {
		e.stack, e.passed = s, passed
	}
	b.receivers = append(b.receivers, s.receiver, passed)
}

// environment is what else a node's kernel does with packets.
type environment struct {
	// bridged hands what bridges pass on to the hooks of IP and ARP: br_netfilter.
	bridged bool
	// tracked has a firewall that lets pass what connection tracking knows.
	tracked bool
}

func (e environment) String() string {
	return fmt.Sprintf("br_netfilter %t, conntrack %t", e.bridged, e.tracked)
}

// gathers says that a stack on the way of a cell puts fragments together.
func (e environment) gathers(c cell) bool {
	return e.tracked && (e.bridged || !c.topology.switched[c.role] || c.role == node)
}

func (b *bed) set(e environment) {
	b.t.Helper()
	v := 0
	if e.bridged {
		v = 1
	}
	for _, n := range []netNS{b.n1, b.n2} {
		if rules := "table inet firewall\ndelete table inet firewall\n"; e.tracked {
			n.run(rules+`table inet firewall {
	chain first { type filter hook prerouting priority -300; ct state established,related accept; }
	chain forward { type filter hook forward priority 0; ct state established,related accept; }
	chain input { type filter hook input priority 0; ct state established,related accept; }
}`, "nft", "-f", "-")
		} else {
			n.run(rules, "nft", "-f", "-")
		}
		n.sysctl(fmt.Sprintf("net.bridge.bridge-nf-call-iptables=%d", v), fmt.Sprintf("net.bridge.bridge-nf-call-ip6tables=%d", v), fmt.Sprintf("net.bridge.bridge-nf-call-arptables=%d", v))
	}
}
