package nft

import (
	"encoding/binary"
	"fmt"
	"net"
	"net/netip"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

const port = 7000

// endpoint sends and counts numbered datagrams in one namespace.
type endpoint struct {
	name   string
	ns     netNS
	v4, v6 netip.Addr
	udp    *net.UDPConn

	mu  sync.Mutex
	got map[uint64]int // by flow
}

// testbed is a virtualization node and what it can meet:
//
//	blocked --vnet1--+
//	                br0 (host) --rt0-- routed (a guest without a bridge)
//	innocent -vnet2--+    |
//	                     up0 -- outside
//
// The host routes between 10.7 (bridge), 10.8 (routed) and 10.9 (outside), and fd07, fd08, fd09.
type testbed struct {
	host, blocked, innocent, routed, outside *endpoint
	flows                                    atomic.Uint64
}

func newTestbed(t *testing.T) *testbed {
	t.Helper()
	b := &testbed{
		host:     &endpoint{name: "host", v4: netip.MustParseAddr("10.7.0.1"), v6: netip.MustParseAddr("fd07::1")},
		blocked:  &endpoint{name: "blocked", v4: netip.MustParseAddr("10.7.0.2"), v6: netip.MustParseAddr("fd07::2")},
		innocent: &endpoint{name: "innocent", v4: netip.MustParseAddr("10.7.0.5"), v6: netip.MustParseAddr("fd07::5")},
		routed:   &endpoint{name: "routed", v4: netip.MustParseAddr("10.8.0.2"), v6: netip.MustParseAddr("fd08::2")},
		outside:  &endpoint{name: "outside", v4: netip.MustParseAddr("10.9.0.130"), v6: netip.MustParseAddr("fd09::8002")},
	}
	for _, e := range b.all() {
		e.ns, e.got = newNetNS(t), make(map[uint64]int)
	}
	host := b.host.ns
	host.run("sysctl", "-qw", "net.ipv4.ip_forward=1", "net.ipv6.conf.all.forwarding=1", "net.ipv6.conf.all.accept_dad=0", "net.ipv6.conf.default.accept_dad=0")
	host.runInput(`link add br0 address 52:54:00:00:07:01 type bridge mcast_snooping 0
link set br0 up
addr add 10.7.0.1/24 dev br0
addr add fd07::1/64 dev br0 nodad
`, "ip", "-batch", "-")
	b.plug(b.blocked, "vnet1", 2, "br0", "10.7.0.1/24", "fd07::1/64")
	b.plug(b.innocent, "vnet2", 3, "br0", "10.7.0.1/24", "fd07::1/64")
	b.plug(b.routed, "rt0", 4, "", "10.8.0.1/24", "fd08::1/64")
	b.plug(b.outside, "up0", 5, "", "10.9.0.1/24", "fd09::1/64")
	for _, e := range b.all() {
		e.listen(t)
	}
	// Carriers come up, and bridge ports forward, a while after the commands have returned.
	for _, f := range b.everyPath() {
		waitFor(t, "all paths are open", func() bool { f.send(1); return f.to.received(f.id) > 0 })
	}
	return b
}

func (b *testbed) all() []*endpoint {
	return []*endpoint{b.host, b.blocked, b.innocent, b.routed, b.outside}
}

// plug connects a guest by a pair of interfaces. Neighbours are permanent, so that what is sent is
// never held back for an answer.
func (b *testbed) plug(e *endpoint, tap string, n int, master, gateway4, gateway6 string) {
	gw4, gw6 := netip.MustParsePrefix(gateway4), netip.MustParsePrefix(gateway6)
	mac, hostMAC := fmt.Sprintf("52:54:00:00:00:%02x", n), "52:54:00:00:07:01"
	host := fmt.Sprintf("link add %s type veth peer name eth0 address %s netns %s\n", tap, mac, e.ns.path())
	if master != "" {
		host += fmt.Sprintf("link set %s master %s\n", tap, master)
	} else {
		hostMAC = fmt.Sprintf("52:54:00:00:08:%02x", n)
		host += fmt.Sprintf("link set %[1]s address %[2]s\naddr add %[3]s dev %[1]s\naddr add %[4]s dev %[1]s nodad\n", tap, hostMAC, gateway4, gateway6)
	}
	host += fmt.Sprintf("link set %s up\n", tap)
	dev := tap
	if master != "" {
		dev = master
	}
	host += fmt.Sprintf("neigh replace %[1]s lladdr %[2]s dev %[3]s nud permanent\nneigh replace %[4]s lladdr %[2]s dev %[3]s nud permanent\n", e.v4, mac, dev, e.v6)
	b.host.ns.runInput(host, "ip", "-batch", "-")
	var guest strings.Builder
	fmt.Fprintf(&guest, "addr add %s dev eth0\naddr add %s dev eth0 nodad\nlink set eth0 up\n",
		netip.PrefixFrom(e.v4, gw4.Bits()), netip.PrefixFrom(e.v6, gw6.Bits()))
	fmt.Fprintf(&guest, "route add default via %s\nroute add default via %s\n", gw4.Addr(), gw6.Addr())
	fmt.Fprintf(&guest, "neigh replace %[1]s lladdr %[2]s dev eth0 nud permanent\nneigh replace %[3]s lladdr %[2]s dev eth0 nud permanent\n", gw4.Addr(), hostMAC, gw6.Addr())
	if master != "" { // the two guests of the bridge
		for i, other := range []*endpoint{b.blocked, b.innocent} {
			if other != e {
				fmt.Fprintf(&guest, "neigh replace %[1]s lladdr 52:54:00:00:00:%02[2]x dev eth0 nud permanent\nneigh replace %[3]s lladdr 52:54:00:00:00:%02[2]x dev eth0 nud permanent\n", other.v4, i+2, other.v6)
			}
		}
	}
	e.ns.runInput(guest.String(), "ip", "-batch", "-")
}

func (e *endpoint) listen(t *testing.T) {
	t.Helper()
	e.ns.do(func() (err error) {
		e.udp, err = net.ListenUDP("udp", &net.UDPAddr{Port: port})
		return err
	})
	raw, err := e.udp.SyscallConn()
	if err != nil {
		t.Fatal(err)
	}
	_ = raw.Control(func(fd uintptr) {
		_ = unix.SetsockoptInt(int(fd), unix.SOL_SOCKET, unix.SO_RCVBUFFORCE, 32<<20)
	})
	done := make(chan struct{})
	t.Cleanup(func() { _ = e.udp.Close(); <-done })
	go func() {
		defer close(done)
		b := make([]byte, 64)
		for {
			n, _, err := e.udp.ReadFromUDPAddrPort(b)
			if err != nil {
				return
			}
			if n == 16 {
				e.mu.Lock()
				e.got[binary.BigEndian.Uint64(b)]++
				e.mu.Unlock()
			}
		}
	}()
}

func (e *endpoint) received(flow uint64) int {
	e.mu.Lock()
	defer e.mu.Unlock()
	return e.got[flow]
}

// flow is a numbered stream of datagrams between two endpoints.
type flow struct {
	id       uint64
	from, to *endpoint
	v6       bool
	sent     int
}

func (f *flow) String() string {
	family := "IPv4"
	if f.v6 {
		family = "IPv6"
	}
	return fmt.Sprintf("%s to %s over %s", f.from.name, f.to.name, family)
}

func (f *flow) send(n int) {
	to := f.to.v4
	if f.v6 {
		to = f.to.v6
	}
	var b [16]byte
	binary.BigEndian.PutUint64(b[:], f.id)
	for range n {
		binary.BigEndian.PutUint64(b[8:], uint64(f.sent))
		// A drop in the output hook comes back as EPERM: it counts as sent.
		_, _ = f.from.udp.WriteToUDPAddrPort(b[:], netip.AddrPortFrom(to, port))
		f.sent++
	}
}

func (f *flow) lost() int { return f.sent - f.to.received(f.id) }

func (b *testbed) flow(from, to *endpoint, v6 bool) *flow {
	return &flow{id: b.flows.Add(1), from: from, to: to, v6: v6}
}

// everyPath is a flow between each two endpoints, both ways, both families.
func (b *testbed) everyPath() []*flow {
	var flows []*flow
	for _, from := range b.all() {
		for _, to := range b.all() {
			if from != to {
				flows = append(flows, b.flow(from, to, false), b.flow(from, to, true))
			}
		}
	}
	return flows
}

// check sends on every path and wants all of it to arrive, but nothing from or to those that are cut.
func (b *testbed) check(t *testing.T, what string, cut ...*endpoint) {
	t.Helper()
	const packets = 20
	flows := b.everyPath()
	for _, f := range flows {
		f.send(packets)
	}
	isCut := func(f *flow) bool { return slices.Contains(cut, f.from) || slices.Contains(cut, f.to) }
	var lost []string
	late := time.Now().Add(10 * time.Second)
	for _, f := range flows {
		for !isCut(f) && f.lost() > 0 && time.Now().Before(late) {
			time.Sleep(time.Millisecond)
		}
		if !isCut(f) && f.lost() > 0 {
			lost = append(lost, fmt.Sprintf("%v: %d", f, f.lost()))
		}
	}
	if len(lost) > 0 {
		t.Errorf("%s: innocents lost packets: %s", what, strings.Join(lost, ", "))
	}
	for _, f := range flows {
		if n := f.to.received(f.id); isCut(f) && n > 0 {
			t.Errorf("%s: %v: %d packets leaked", what, f, n)
		}
	}
}

// flood sends on all flows, about 3,000 packets per second each, until stop is called.
func flood(flows ...*flow) (stop func()) {
	end := make(chan struct{})
	var wg sync.WaitGroup
	for _, f := range flows {
		wg.Go(func() {
			tick := time.NewTicker(time.Millisecond)
			defer tick.Stop()
			for {
				select {
				case <-end:
					return
				case <-tick.C:
					f.send(3)
				}
			}
		})
	}
	return func() {
		close(end)
		wg.Wait()
	}
}

// patience is how long to wait for frames: long for those that must come, which ends with the last of
// them, and short for those that must not.
func patience(expected bool) time.Time {
	if expected {
		return time.Now().Add(10 * time.Second)
	}
	return time.Now().Add(50 * time.Millisecond)
}
