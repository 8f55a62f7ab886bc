package agent

import (
	"context"
	"maps"
	"time"

	"github.com/palisade/palisade/enforce"
	"github.com/palisade/palisade/enforce/canary"
	"github.com/palisade/palisade/fsm"
)

// bridges tells the enforcer which ports this node's bridges have, so that the node can answer in the
// name of a guest. Without it such a guest is cut off, but nobody is answered.
type bridges struct {
	links *linkMonitor
	set   func(map[string]fsm.MAC)
	news  chan struct{}
}

// gatherLinks is how long news of interfaces is gathered: a guest that starts makes several.
const gatherLinks = 20 * time.Millisecond

func newBridges(links *linkMonitor, set func(map[string]fsm.MAC)) *bridges {
	b := &bridges{links: links, set: set, news: make(chan struct{}, 1)}
	links.Subscribe(func(changes []linkChange) {
		for _, c := range changes {
			if c.Before.MasterKind == "bridge" || c.Now.MasterKind == "bridge" || c.Now.Kind == "bridge" {
				signal(b.news)
				return
			}
		}
	})
	return b
}

// Run follows the interfaces until ctx ends.
func (b *bridges) Run(ctx context.Context) error {
	select {
	case <-ctx.Done():
		return nil
	case <-b.links.Listed():
	}
	var known map[string]fsm.MAC
	for {
		if ports := bridgePorts(b.links.All()); known == nil || !maps.Equal(ports, known) {
			known = ports
			b.set(ports)
		}
		select {
		case <-ctx.Done():
			return nil
		case <-b.news:
		}
		if !sleep(ctx, gatherLinks) {
			return nil
		}
	}
}

// bridgePorts returns the ports of all bridges, with the hardware address of their bridge.
func bridgePorts(links []link) map[string]fsm.MAC {
	macs := make(map[int]fsm.MAC)
	for _, l := range links {
		if l.Kind == "bridge" && l.MAC != (fsm.MAC{}) {
			macs[l.Index] = l.MAC
		}
	}
	ports := make(map[string]fsm.MAC)
	for _, l := range links {
		if mac, ok := macs[l.Master]; ok && !canary.Ours(l.Name) {
			ports[l.Name] = mac
		}
	}
	return ports
}

func (e *enforcer) setBridges(ports map[string]fsm.MAC) {
	e.SetLocal(func(l *enforce.Local) {
		l.Bridges = l.Bridges.Replace(ports, func(a, b fsm.MAC) bool { return a == b })
	})
}
