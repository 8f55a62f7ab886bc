package agent

import (
	"context"
	"log/slog"
	"maps"
	"time"

	"github.com/vishvananda/netlink"

	"github.com/palisade/palisade/enforce"
	"github.com/palisade/palisade/fsm"
)

// bridges tells the enforcer which ports this node's bridges have, as the kernel reports it, so that the
// node can answer in the name of a guest. Without it such a guest is cut off, but nobody is answered.
type bridges struct {
	log *slog.Logger
	set func(map[string]fsm.MAC)
}

const (
	// gatherLinks is how long news of interfaces is gathered: a guest that starts makes several.
	gatherLinks = 20 * time.Millisecond
	// relistLinks is when interfaces are listed without news, in case that news was lost.
	relistLinks = 30 * time.Second
)

// Run watches until ctx ends.
func (b *bridges) Run(ctx context.Context) error {
	var known map[string]fsm.MAC
	for {
		if err := b.watch(ctx, &known); err != nil && ctx.Err() == nil {
			b.log.Warn("can't watch this node's bridges; trying again", "err", err)
		}
		if !sleep(ctx, time.Second) {
			return nil
		}
	}
}

// watch lists the ports, and again with every news, until the subscription or ctx ends.
func (b *bridges) watch(ctx context.Context, known *map[string]fsm.MAC) error {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	news := make(chan netlink.LinkUpdate, 64)
	failed := make(chan error, 1)
	err := netlink.LinkSubscribeWithOptions(news, ctx.Done(), netlink.LinkSubscribeOptions{ErrorCallback: func(err error) {
		select {
		case failed <- err:
		default:
		}
	}})
	if err != nil {
		return err
	}
	defer drain(news) // the subscription closes it, and must not wait for a reader
	defer cancel()
	relist := time.NewTimer(0)
	defer relist.Stop()
	for {
		select {
		case <-ctx.Done():
			return ctx.Err()
		case err := <-failed:
			return err
		case _, ok := <-news:
			if !ok {
				return nil
			}
			relist.Reset(gatherLinks)
		case <-relist.C:
			ports, err := bridgePorts()
			if err != nil {
				return err
			}
			if *known == nil || !maps.Equal(ports, *known) {
				*known = ports
				b.set(ports)
			}
			relist.Reset(relistLinks)
		}
	}
}

func drain(news <-chan netlink.LinkUpdate) {
	for range news {
	}
}

// bridgePorts returns the ports of all bridges, with the hardware address of their bridge.
func bridgePorts() (map[string]fsm.MAC, error) {
	links, err := netlink.LinkList()
	if err != nil {
		return nil, err
	}
	macs := make(map[int]fsm.MAC)
	for _, l := range links {
		if hw := l.Attrs().HardwareAddr; l.Type() == "bridge" && len(hw) == len(fsm.MAC{}) {
			macs[l.Attrs().Index] = fsm.MAC(hw)
		}
	}
	ports := make(map[string]fsm.MAC)
	for _, l := range links {
		if mac, ok := macs[l.Attrs().MasterIndex]; ok {
			ports[l.Attrs().Name] = mac
		}
	}
	return ports, nil
}

func (e *enforcer) setBridges(ports map[string]fsm.MAC) {
	e.SetLocal(func(l *enforce.Local) { l.Bridges = ports })
}
