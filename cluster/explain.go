package cluster

import (
	"net/netip"

	"github.com/palisade/palisade/cluster/internal/peerpb"
	"github.com/palisade/palisade/fsm"
)

func encodePacket(p *fsm.Packet) *peerpb.Packet {
	if p == nil {
		return nil
	}
	return &peerpb.Packet{
		Src: p.Src.AsSlice(), Dst: p.Dst.AsSlice(), Protocol: uint32(p.Protocol),
		SrcPort: uint32(p.SrcPort), DstPort: uint32(p.DstPort),
	}
}

func decodePacket(m *peerpb.Packet) *fsm.Packet {
	if m == nil {
		return nil
	}
	src, _ := netip.AddrFromSlice(m.GetSrc()) // what is no address is not known
	dst, _ := netip.AddrFromSlice(m.GetDst())
	return &fsm.Packet{
		Src: src, Dst: dst, Protocol: uint8(m.GetProtocol()), SrcPort: uint16(m.GetSrcPort()), DstPort: uint16(m.GetDstPort()),
	}
}

func encodeExplanation(e *fsm.Explanation) *peerpb.Explanation {
	if e == nil {
		return nil
	}
	out := &peerpb.Explanation{Verdict: string(e.Verdict), Why: e.Why, Guards: e.Guards}
	for _, h := range e.Holds {
		out.Holds = append(out.Holds, &peerpb.ExplainedHold{
			Block: h.Block, Kind: string(h.Kind), Direction: string(h.Direction), By: h.By, Treats: h.Treats, Started: h.Started,
			SinceUnixNano: encodeTime(h.Since), Packets: h.Packets, Bytes: h.Bytes,
		})
	}
	return out
}

func decodeExplanation(m *peerpb.Explanation) *fsm.Explanation {
	if m == nil {
		return nil
	}
	out := &fsm.Explanation{Verdict: fsm.Verdict(m.GetVerdict()), Why: m.GetWhy(), Guards: m.GetGuards()}
	for _, h := range m.GetHolds() {
		out.Holds = append(out.Holds, fsm.ExplainedHold{
			Block: h.GetBlock(), Kind: fsm.Kind(h.GetKind()), Direction: fsm.Direction(h.GetDirection()), By: h.GetBy(),
			Treats: h.GetTreats(), Started: h.GetStarted(), Since: decodeTime(h.GetSinceUnixNano()), Packets: h.GetPackets(), Bytes: h.GetBytes(),
		})
	}
	return out
}
