package agent

import (
	"context"

	"github.com/palisade/palisade/enforce"
	"github.com/palisade/palisade/fsm"
)

// maxExplainedCounters bounds the holds of one explanation whose counters are read.
const maxExplainedCounters = 100

// explain says what this node does with a packet. Without counters the answer still stands.
func (a *Agent) explain(ctx context.Context, r *rooms, view *fsm.View, p fsm.Packet) *fsm.Explanation {
	e := enforce.Explain(view, r.enforcer.Local(), p)
	for i := range e.Holds[:min(len(e.Holds), maxExplainedCounters)] {
		h := &e.Holds[i]
		b, ok := view.Block(h.Block)
		if !ok {
			continue
		}
		if b.Target.List != "" {
			receipt := r.lists.Receipt(view, b)
			h.Packets, h.Bytes = receipt.Packets, receipt.Bytes
			continue
		}
		receipt, err := r.enforcer.Receipt(context.WithoutCancel(ctx), b)
		if err != nil {
			a.log.Warn("can't read the counters of a block", "block", h.Block, "err", err)
		}
		h.Packets, h.Bytes = receipt.Packets, receipt.Bytes
	}
	return &e
}
