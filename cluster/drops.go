package cluster

import (
	"time"

	"github.com/palisade/palisade/cluster/internal/peerpb"
	"github.com/palisade/palisade/fsm"
)

func encodeDropsQuery(q *fsm.DropsQuery) *peerpb.DropsQuery {
	if q == nil {
		return nil
	}
	return &peerpb.DropsQuery{Blocks: q.Blocks, Coarse: q.Coarse}
}

func decodeDropsQuery(p *peerpb.DropsQuery) *fsm.DropsQuery {
	if p == nil {
		return nil
	}
	return &fsm.DropsQuery{Blocks: p.GetBlocks(), Coarse: p.GetCoarse()}
}

func encodeDrops(d *fsm.Drops) *peerpb.Drops {
	if d == nil {
		return nil
	}
	out := &peerpb.Drops{StepNano: int64(d.Step), EndUnixNano: encodeTime(d.End), Steps: uint32(d.Steps)}
	for _, s := range d.Series {
		out.Series = append(out.Series, &peerpb.DropSeries{Reason: s.Reason, Block: s.Block, Packets: s.Packets, Bytes: s.Bytes})
	}
	return out
}

func decodeDrops(p *peerpb.Drops) *fsm.Drops {
	if p == nil {
		return nil
	}
	out := &fsm.Drops{Step: time.Duration(p.GetStepNano()), End: decodeTime(p.GetEndUnixNano()), Steps: int(p.GetSteps())}
	for _, s := range p.GetSeries() {
		out.Series = append(out.Series, fsm.DropSeries{Reason: s.GetReason(), Block: s.GetBlock(), Packets: s.GetPackets(), Bytes: s.GetBytes()})
	}
	return out
}
