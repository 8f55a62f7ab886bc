package httpapi

import (
	"context"
	"maps"
	"slices"

	"github.com/palisade/palisade/fsm"
	"github.com/palisade/palisade/httpapi/wire"
)

type overviewInput struct{ ReadInput }

type overviewOutput struct {
	ReadHeaders
	Body wire.Overview
}

// overview counts the VMs of each node: the UI draws nodes, not a hundred thousand VMs.
func (s *Server) overview(ctx context.Context, in *overviewInput) (*overviewOutput, error) {
	v, h, err := s.view(ctx, in.ReadInput)
	if err != nil {
		return nil, err
	}
	held := v.HoldCounts()
	nodes := map[string]*wire.NodeOverview{}
	at := func(id string) *wire.NodeOverview {
		n := nodes[id]
		if n == nil {
			n = &wire.NodeOverview{ID: id}
			nodes[id] = n
		}
		return n
	}
	for n := range v.Members() {
		at(n.ID)
	}
	for vm := range v.VMs("") {
		n := at(vm.Node)
		n.VMs++
		if held[vm.ID] > 0 {
			n.Held++
		}
		switch vm.State {
		case fsm.VMRunning:
			n.Running++
		case fsm.VMMigrating:
			n.Migrating++
			at(vm.Destination).Arriving++
		case fsm.VMStopped:
			n.Stopped++
		case fsm.VMLost:
			n.Lost++
		case fsm.VMDeclared:
		}
	}
	out := &overviewOutput{ReadHeaders: h, Body: wire.Overview{Index: v.Index(), Nodes: []wire.NodeOverview{}}}
	for _, id := range slices.Sorted(maps.Keys(nodes)) {
		out.Body.Nodes = append(out.Body.Nodes, *nodes[id])
	}
	return out, nil
}
