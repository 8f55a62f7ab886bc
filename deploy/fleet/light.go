package fleet

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"time"

	"golang.org/x/sys/unix"
)

// addLight makes a light guest on its node and announces it.
func (f *Fleet) addLight(ctx context.Context, g Guest) error {
	n, err := f.Node(g.Node)
	if err != nil {
		return err
	}
	if err := f.addNamespace(ctx, g.Netns); err != nil {
		return err
	}
	if err := ip(ctx, n.Netns, fmt.Sprintf("link add %s type veth peer name eth0 address %s netns %s", g.Tap, g.MAC, g.Netns),
		fmt.Sprintf("link set %s addrgenmode none", g.Tap)); err != nil {
		return err
	}
	addrs := g.addrs()
	if g.Routed {
		err = f.route(ctx, n, g, addrs)
	} else {
		err = ip(ctx, n.Netns, fmt.Sprintf("link set %s master br0 up", g.Tap))
		lines := append([]string{"link set eth0 up"}, assign("eth0", addrs)...)
		err = errors.Join(err, ip(ctx, g.Netns, append(lines, defaultRoutes()...)...))
	}
	if err != nil {
		return err
	}
	if err := f.serve(g.Netns, g.VM); err != nil {
		return err
	}
	if err := f.update(func(s *state) { s.VMs = append(s.VMs, g) }); err != nil {
		return err
	}
	return announce(n, g, "running")
}

// route connects a guest without the bridge: the node routes its addresses to the tap, everyone else
// to the node.
func (f *Fleet) route(ctx context.Context, n Node, g Guest, addrs []netip.Addr) error {
	node := [2]string{n.Addresses[0], n.Addresses[1]}
	if err := ip(ctx, g.Netns,
		"link set eth0 up",
		fmt.Sprintf("addr add %s/32 dev eth0", addrs[0]),
		fmt.Sprintf("addr add %s/128 dev eth0 nodad", addrs[1]),
		fmt.Sprintf("route add %s dev eth0", node[0]),
		"route add default via "+node[0],
		"route add default via fe80::1 dev eth0",
	); err != nil {
		return err
	}
	if err := ip(ctx, n.Netns,
		fmt.Sprintf("link set %s up", g.Tap),
		fmt.Sprintf("addr add fe80::1/64 dev %s nodad", g.Tap),
		fmt.Sprintf("route add %s/32 dev %s", addrs[0], g.Tap),
		fmt.Sprintf("route add %s/128 dev %s", addrs[1], g.Tap),
	); err != nil {
		return err
	}
	lines := []string{
		fmt.Sprintf("route replace %s/32 via %s", addrs[0], node[0]),
		fmt.Sprintf("route replace %s/128 via %s", addrs[1], node[1]),
	}
	s := f.snapshot()
	others := []string{s.Prefix + "-n0"}
	for _, o := range s.Nodes {
		if o.Name != n.Name {
			others = append(others, o.Netns)
		}
	}
	for _, ns := range others {
		if err := ip(ctx, ns, lines...); err != nil {
			return err
		}
	}
	return nil
}

// unmanaged makes a host on node 1's bridge that no inventory knows.
func (f *Fleet) unmanaged(ctx context.Context) error {
	s := f.snapshot()
	ns := s.Prefix + "-u1"
	if err := f.addNamespace(ctx, ns); err != nil {
		return err
	}
	if err := ip(ctx, s.Nodes[0].Netns,
		"link add unmanaged0 type veth peer name eth0 address 52:54:00:5b:00:01 netns "+ns,
		"link set unmanaged0 addrgenmode none",
		"link set unmanaged0 master br0 up"); err != nil {
		return err
	}
	lines := append([]string{"link set eth0 up"}, assign("eth0", unmanagedAddrs())...)
	if err := ip(ctx, ns, append(lines, defaultRoutes()...)...); err != nil {
		return err
	}
	return f.serve(ns, Unmanaged)
}

// UnmanagedAddresses are those of the unmanaged host.
func (f *Fleet) UnmanagedAddresses() []netip.Addr { return unmanagedAddrs() }

// OutsideAddresses are those of the world outside.
func (f *Fleet) OutsideAddresses() []netip.Addr { return outsideAddrs() }

// serve starts what a guest answers with. It ends with its namespace.
func (f *Fleet) serve(ns, name string) error {
	dir := filepath.Join(f.dir, guestsDir)
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return err
	}
	_, err := f.launch([]string{"ip", "netns", "exec", ns, f.snapshot().Binary, "demo", "guest", "--name", name}, nil, filepath.Join(dir, name+".log"))
	return err
}

func (g Guest) addrs() []netip.Addr {
	var out []netip.Addr
	for _, a := range g.Addresses {
		out = append(out, netip.MustParseAddr(a))
	}
	return out
}

// Migration says when the steps of a migration happened.
type Migration struct {
	VM   string `json:"vm"`
	From string `json:"from"`
	To   string `json:"to"`
	// Incoming: the destination's hypervisor knows of the guest. Of a QEMU guest: when it began.
	Incoming time.Time `json:"incoming"`
	// Between Detached and Attached packets of the guest may be lost by the move itself. Of a QEMU guest
	// they are the begin and the end of virsh: libvirt does not say it more exactly.
	Detached time.Time `json:"detached"`
	Attached time.Time `json:"attached"`
	// Gone: the source's hypervisor no longer knows the guest.
	Gone time.Time `json:"gone"`
}

// Migrate moves a guest to another node while it runs. A light guest moves in libvirt's order: known
// as incoming at the destination, moved, announced to the bridges, running there, forgotten at the
// source. A QEMU guest is migrated by libvirt itself. It returns when the source has forgotten it.
func (f *Fleet) Migrate(ctx context.Context, vm, node string) (Migration, error) {
	g, err := f.Guest(vm)
	if err != nil {
		return Migration{}, err
	}
	to, err := f.Node(node)
	if err != nil {
		return Migration{}, err
	}
	from, err := f.Node(g.Node)
	switch {
	case err != nil:
		return Migration{}, err
	case g.Node == node:
		return Migration{}, fmt.Errorf("%s is on %s already", vm, node)
	case g.Routed:
		return Migration{}, fmt.Errorf("%s is routed to %s: it cannot migrate", vm, g.Node)
	}
	m := Migration{VM: g.VM, From: from.Name, To: to.Name}
	if g.Netns == "" {
		err = f.migrateQEMU(ctx, g, from, to, &m)
	} else {
		err = f.migrateLight(ctx, g, from, to, &m)
	}
	return m, err
}

func (f *Fleet) migrateLight(ctx context.Context, g Guest, from, to Node, m *Migration) error {
	if err := announce(to, g, "incoming"); err != nil {
		return err
	}
	m.Incoming = time.Now()
	var err error
	if m.Detached, m.Attached, err = f.moveWire(ctx, g, from, to); err != nil {
		if m.Attached.IsZero() { // it still runs at the source
			err = errors.Join(err, withdraw(to, g))
		}
		return err
	}
	if err := announce(to, g, "running"); err != nil {
		return err
	}
	if err := withdraw(from, g); err != nil {
		return err
	}
	m.Gone = time.Now()
	return nil
}

// moveWire moves the tap of a light guest to another node's bridge. Without the second time the guest is where it was;
// with it, it has moved, also if there is an error.
func (f *Fleet) moveWire(ctx context.Context, g Guest, from, to Node) (detached, attached time.Time, err error) {
	detached = time.Now()
	if err := ip(ctx, from.Netns, fmt.Sprintf("link set %s netns %s", g.Tap, to.Netns)); err != nil {
		return detached, time.Time{}, err
	}
	// From here on there is no way back, also if the caller has lost patience.
	ctx = context.WithoutCancel(ctx)
	err = errors.Join(
		f.update(func(s *state) { s.guest(g.VM).Node = to.Name }),
		ip(ctx, to.Netns,
			fmt.Sprintf("link set %s addrgenmode none", g.Tap),
			fmt.Sprintf("link set %s master br0 up", g.Tap)))
	if err == nil {
		err = forwards(ctx, to.Netns, g.Tap)
	}
	if err == nil {
		err = rarp(g)
	}
	return detached, time.Now(), err
}

// rarp sends, as the guest, the broadcast by which QEMU tells bridges where a migrated guest is now.
func rarp(g Guest) error {
	mac, err := net.ParseMAC(g.MAC)
	if err != nil {
		return err
	}
	return inside(g.Netns, func() error {
		dev, err := net.InterfaceByName("eth0")
		if err != nil {
			return err
		}
		fd, err := unix.Socket(unix.AF_PACKET, unix.SOCK_RAW|unix.SOCK_CLOEXEC, 0)
		if err != nil {
			return fmt.Errorf("packet socket: %w", err)
		}
		defer func() { _ = unix.Close(fd) }()
		etherType := []byte{0x80, 0x35}
		frame := slices.Concat(
			[]byte{0xff, 0xff, 0xff, 0xff, 0xff, 0xff}, mac, etherType,
			[]byte{0, 1, 8, 0, 6, 4, 0, 3}, // Ethernet, IPv4, reverse request
			mac, make([]byte, 4), mac, make([]byte, 4),
			make([]byte, 18), // to the least size of a frame
		)
		to := &unix.SockaddrLinklayer{Protocol: binary.NativeEndian.Uint16(etherType), Ifindex: dev.Index, Halen: 6}
		if err := unix.Sendto(fd, frame, 0, to); err != nil {
			return fmt.Errorf("announce %s: %w", g.VM, err)
		}
		return nil
	})
}

// forwards waits until a bridge port forwards: what is sent before is lost.
func forwards(ctx context.Context, ns, port string) error {
	return until(ctx, 5*time.Second, time.Millisecond, func() error {
		out, err := tool(ctx, "", "ip", "-n", ns, "-d", "link", "show", port)
		if err != nil {
			return err
		}
		if !bytes.Contains(out, []byte("bridge_slave state forwarding")) {
			return fmt.Errorf("%s in %s does not forward", port, ns)
		}
		return nil
	})
}
