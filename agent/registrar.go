package agent

import (
	"context"
	"fmt"
	"log/slog"
	"net/netip"
	"slices"
	"time"

	"github.com/vishvananda/netlink"

	"github.com/palisade/palisade/enforce"
	"github.com/palisade/palisade/fsm"
)

// registrar keeps the registry's record of this node true: its addresses, gateways and MACs, which
// guard it on every other node. It looks again every few seconds; an unchanged record costs nothing.
type registrar struct {
	log      *slog.Logger
	cfg      Config
	version  string
	store    *fsm.Store
	propose  proposeFunc
	enforcer *enforcer
	// generation is the number of starts of this agent, 0 before the cluster has counted this one.
	generation func() uint64
	taps       func() map[string]bool // of local guests: not this node's own interfaces
}

type proposeFunc func(context.Context, fsm.Command) (fsm.Result, error)

const registrarInterval = 5 * time.Second

// Run registers until ctx ends.
func (r *registrar) Run(ctx context.Context) error {
	var guards []netip.Prefix
	for {
		n, err := r.self()
		if err != nil {
			r.log.Error("can't read this node's own addresses", "err", err)
		} else {
			// The local kernel is guarded before the registry knows.
			if g := localGuards(n); !slices.Equal(g, guards) {
				guards = g
				r.enforcer.SetLocal(func(l *enforce.Local) { l.Guards = g })
			}
			if err := r.register(ctx, n); err != nil && ctx.Err() == nil {
				r.log.Warn("this node's addresses are not registered yet", "err", err)
			}
		}
		if !sleep(ctx, registrarInterval) {
			return nil
		}
	}
}

func (r *registrar) register(ctx context.Context, n fsm.Node) error {
	if known, ok := r.store.View().Node(n.ID); ok && sameNode(*known, n) {
		return nil
	}
	res, err := r.propose(ctx, fsm.Command{Actor: "node:" + n.ID, Op: fsm.PutNode{Node: n}})
	if err != nil {
		return err
	}
	if res.Err != nil {
		return res.Err
	}
	return nil
}

// self reads what this node is: every address of an interface of its own, the next hops of its
// routes, and where the others reach it, which is guarded too: it may be no address of an interface.
func (r *registrar) self() (fsm.Node, error) {
	n := fsm.Node{ID: r.cfg.Node.ID, Name: r.cfg.Node.Name, Version: r.version, Format: fsm.Format}
	n.Generation = r.generation()
	n.Guards = append(n.Guards, r.cfg.Node.Guards...)
	n.Address, n.Gossip = r.cfg.Cluster.advertised()
	n.API = r.cfg.advertisedAPI()
	for _, s := range []string{n.Address, n.API} {
		if ap, err := netip.ParseAddrPort(s); err == nil && !ap.Addr().IsLoopback() {
			a := ap.Addr().Unmap()
			n.Guards = append(n.Guards, netip.PrefixFrom(a, a.BitLen()))
		}
	}
	links, err := netlink.LinkList()
	if err != nil {
		return n, fmt.Errorf("list interfaces: %w", err)
	}
	taps := r.taps()
	for _, l := range links {
		if taps[l.Attrs().Name] {
			continue
		}
		addrs, err := netlink.AddrList(l, netlink.FAMILY_ALL)
		if err != nil {
			return n, fmt.Errorf("addresses of %s: %w", l.Attrs().Name, err)
		}
		for _, a := range addrs {
			if ip, ok := netip.AddrFromSlice(a.IP); ok && !ip.Unmap().IsLoopback() && !ip.IsLinkLocalUnicast() {
				n.Addresses = append(n.Addresses, ip.Unmap())
			}
		}
		if hw := l.Attrs().HardwareAddr; len(addrs) > 0 && len(hw) == 6 && fsm.MAC(hw) != (fsm.MAC{}) {
			n.MACs = append(n.MACs, fsm.MAC(hw))
		}
	}
	routes, err := netlink.RouteList(nil, netlink.FAMILY_ALL)
	if err != nil {
		return n, fmt.Errorf("list routes: %w", err)
	}
	for _, rt := range routes {
		if ip, ok := netip.AddrFromSlice(rt.Gw); ok && !ip.IsLinkLocalUnicast() {
			n.Gateways = append(n.Gateways, ip.Unmap())
		}
	}
	n.Addresses = sortedUnique(n.Addresses, netip.Addr.Compare)
	n.Gateways = sortedUnique(n.Gateways, netip.Addr.Compare)
	n.Guards = sortedUnique(n.Guards, comparePrefix)
	n.MACs = sortedUnique(n.MACs, func(a, b fsm.MAC) int { return slices.Compare(a[:], b[:]) })
	return n, nil
}

// localGuards are the prefixes of a node's record that its own kernel must never drop.
func localGuards(n fsm.Node) []netip.Prefix {
	out := slices.Clone(n.Guards)
	for _, a := range slices.Concat(n.Addresses, n.Gateways) {
		out = append(out, netip.PrefixFrom(a, a.BitLen()))
	}
	return sortedUnique(out, comparePrefix)
}

func sameNode(a, b fsm.Node) bool {
	return a.Generation == b.Generation && a.Address == b.Address && a.Gossip == b.Gossip && a.API == b.API && a.Name == b.Name && a.Version == b.Version && a.Format == b.Format && slices.Equal(a.Addresses, b.Addresses) &&
		slices.Equal(a.Gateways, b.Gateways) && slices.Equal(a.MACs, b.MACs) && slices.Equal(a.Guards, b.Guards)
}

func comparePrefix(a, b netip.Prefix) int {
	if c := a.Addr().Compare(b.Addr()); c != 0 {
		return c
	}
	return a.Bits() - b.Bits()
}

func sortedUnique[T comparable](s []T, cmp func(a, b T) int) []T {
	slices.SortFunc(s, cmp)
	return slices.Compact(s)
}
