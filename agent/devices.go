package agent

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"maps"
	"net/netip"
	"os"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/palisade/palisade/enforce/nft"
)

// devices tells the kernel, and the lists in it, which of this node's interfaces pass packets to neither a bridge nor this node's own stack,
// as soon as they are there.
type devices struct {
	log     *slog.Logger
	links   *linkMonitor
	kernels []deviceKernel
	news    chan struct{}
	routed  func() (map[int]bool, error) // interfaces, by index, that a route leads to
	read    func() (map[int]bool, error) // and those that a packet socket reads all of
	changed func()                       // told that kinds of network are others; must be set before Run

	mu     sync.Mutex // guards below
	failed string     // why the kernel does not know them
}

// deviceKernel is what devices need of enforce/nft and of who keeps lists there.
type deviceKernel interface {
	SetDevices(ctx context.Context, list []nft.Device) error
	Unenforced() map[string]error
}

var (
	_ deviceKernel = (*nft.Kernel)(nil)
	_ deviceKernel = (*listEnforcer)(nil)
)

const (
	// lookAtSockets is how often packet sockets are looked at: of a new one the kernel tells nobody.
	lookAtSockets = time.Second
	// retryLoose is how often what can't be enforced is tried again.
	retryLoose = 10 * time.Second
)

func newDevices(log *slog.Logger, links *linkMonitor, kernels ...deviceKernel) *devices {
	d := &devices{log: log, links: links, kernels: kernels, news: make(chan struct{}, 1), changed: func() {}, routed: routedLinks, read: readLinks}
	links.Subscribe(func([]linkChange) {
		signal(d.news)
	})
	return d
}

// Run follows the interfaces until ctx ends.
func (d *devices) Run(ctx context.Context) error {
	select {
	case <-ctx.Done():
		return nil
	case <-d.links.Listed():
	}
	tick := time.NewTicker(lookAtSockets)
	defer tick.Stop()
	var known []nft.Device
	told := false
	var tried time.Time
	var networks map[string]string
	for {
		list, err := d.list()
		again := time.Since(tried) >= retryLoose && len(d.unenforced()) > 0
		if err == nil && (!told || again || !slices.Equal(list, known)) {
			tried = time.Now()
			if err = d.tell(ctx, list); err == nil {
				known, told = list, true
			}
		}
		if ctx.Err() != nil {
			return nil
		}
		d.note(err)
		select {
		case <-ctx.Done():
			return nil
		case <-d.news:
		case <-tick.C:
			if now := d.networks(); !maps.Equal(now, networks) {
				networks = now
				d.changed()
			}
		}
	}
}

// tell tells each kernel, also if one of them fails.
func (d *devices) tell(ctx context.Context, list []nft.Device) (err error) {
	for _, k := range d.kernels {
		err = errors.Join(err, k.SetDevices(ctx, list))
	}
	return err
}

// unenforced are the interfaces on which something that is held is not in force, and why.
func (d *devices) unenforced() map[string]error {
	loose := make(map[string]error)
	for _, k := range slices.Backward(d.kernels) { // what the first says is of more
		maps.Copy(loose, k.Unenforced())
	}
	return loose
}

func (d *devices) note(err error) {
	failed := ""
	if err != nil {
		failed = err.Error()
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	if failed != d.failed && err != nil {
		d.log.Error("guests on macvtap or Open vSwitch are not enforced; trying again", "err", err)
	}
	d.failed = failed
}

// problem says which interfaces can't be enforced, or "".
func (d *devices) problem() string {
	d.mu.Lock()
	failed := d.failed
	d.mu.Unlock()
	if failed != "" {
		return failed
	}
	loose := d.unenforced()
	for _, name := range slices.Sorted(maps.Keys(loose)) {
		return fmt.Sprintf("interface %s: %v", name, loose[name])
	}
	return ""
}

// list returns the devices, in the order of their indexes.
func (d *devices) list() ([]nft.Device, error) {
	all := d.links.All()
	read, err := d.read()
	if err != nil {
		return nil, err
	}
	var routed map[int]bool
	if len(read) > 0 {
		if routed, err = d.routed(); err != nil {
			return nil, err
		}
	}
	return deviceList(all, read, routed), nil
}

// deviceList says which interfaces are such devices. A tap without a master that a packet socket reads, and no route
// leads to, is a port of a switch in a program; then so is any other interface of which that is true, and what else is a
// tap may be the host's own port of that switch.
func deviceList(all []link, read, routed map[int]bool) []nft.Device {
	inProgram := func(l link) bool {
		return l.Master == 0 && read[l.Index] && !routed[l.Index] && l.Flags&unix.IFF_LOOPBACK == 0 && l.Kind != "macvtap" && l.Kind != "bridge"
	}
	isTap := func(l link) bool { return l.Kind == "tun" }
	switches := slices.ContainsFunc(all, func(l link) bool { return isTap(l) && inProgram(l) })
	list := []nft.Device{}
	for _, l := range all {
		var path nft.Path
		switch {
		case l.Kind == "macvtap":
			path = nft.Macvtap
		case l.MasterKind == "openvswitch":
			path = nft.Switched
		case switches && inProgram(l):
			path = nft.Read
		case switches && isTap(l) && l.Master == 0:
			path = nft.Switched
		default:
			continue
		}
		list = append(list, nft.Device{Name: l.Name, Index: l.Index, Path: path})
	}
	slices.SortFunc(list, func(a, b nft.Device) int { return a.Index - b.Index })
	return list
}

// readLinks returns the interfaces that packet sockets read all of.
func readLinks() (map[int]bool, error) {
	f, err := os.Open("/proc/self/net/packet") // of this process: the unit's /proc has nothing else
	if err != nil {
		return nil, fmt.Errorf("packet sockets: %w", err)
	}
	defer func() { _ = f.Close() }()
	return parsePacketSockets(f)
}

// parsePacketSockets reads /proc/net/packet: of each socket its protocol (0003 is all of them) and interface.
func parsePacketSockets(r io.Reader) (map[int]bool, error) {
	read := make(map[int]bool)
	lines := bufio.NewScanner(r)
	for lines.Scan() {
		var sk string
		var refs, kind, index int
		var protocol string
		if n, _ := fmt.Sscan(strings.TrimSpace(lines.Text()), &sk, &refs, &kind, &protocol, &index); n == 5 && protocol == "0003" && index > 0 {
			read[index] = true
		}
	}
	return read, lines.Err()
}

// routedLinks returns the interfaces that routes of any table lead to; link-local and multicast ones, which every
// interface has, do not count.
func routedLinks() (map[int]bool, error) {
	routes, err := netlink.RouteListFiltered(netlink.FAMILY_ALL, &netlink.Route{Table: unix.RT_TABLE_UNSPEC}, netlink.RT_FILTER_TABLE)
	if err != nil {
		return nil, fmt.Errorf("list routes: %w", err)
	}
	routed := make(map[int]bool)
	for _, r := range routes {
		if r.Dst != nil {
			if a, ok := netip.AddrFromSlice(r.Dst.IP); ok && (a.Unmap().IsLinkLocalUnicast() || a.Unmap().IsMulticast()) {
				continue
			}
		}
		routed[r.LinkIndex] = true
		for _, hop := range r.MultiPath {
			routed[hop.LinkIndex] = true
		}
	}
	return routed, nil
}
