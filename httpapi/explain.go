package httpapi

import (
	"context"
	"net/netip"
	"strconv"

	"github.com/palisade/palisade/fsm"
	"github.com/palisade/palisade/httpapi/wire"
)

type explainInput struct {
	ReadInput
	VM       string `query:"vm" maxLength:"255" doc:"Instead of a packet: a VM, by id or unique name"`
	Src      string `query:"src" maxLength:"64" doc:"Source address"`
	Dst      string `query:"dst" maxLength:"64" doc:"Destination address"`
	Protocol string `query:"proto" maxLength:"16" doc:"tcp, udp, icmp, icmpv6, sctp, or a protocol number; tcp if a port is given" example:"tcp"`
	Port     int    `query:"port" minimum:"0" maximum:"65535" doc:"Destination port"`
	SrcPort  int    `query:"sport" minimum:"0" maximum:"65535" doc:"Source port"`
	Node     string `query:"node" maxLength:"255" doc:"Ask only this node"`
}

type explainOutput struct {
	ReadHeaders
	Body wire.Explanation
}

func (s *Server) explain(ctx context.Context, in *explainInput) (*explainOutput, error) {
	v, h, err := s.view(ctx, in.ReadInput)
	if err != nil {
		return nil, err
	}
	out := &explainOutput{ReadHeaders: h}
	if in.VM != "" {
		if in.Src != "" || in.Dst != "" || in.Protocol != "" || in.Port != 0 || in.SrcPort != 0 || in.Node != "" {
			return nil, fieldProblem("query.vm", in.VM, "goes alone: either a VM or a packet is explained")
		}
		out.Body, err = s.explainVM(ctx, v, in.VM)
		return out, err
	}
	p, err := in.packet()
	if err != nil {
		return nil, err
	}
	if in.Node != "" && !s.isMember(in.Node) {
		return nil, problem(wire.CodeNotFound, "there is no node %s", echo(in.Node))
	}
	for _, r := range s.ask(ctx, fsm.Query{Explain: &p}, in.Node) {
		switch {
		case r.ok && r.report.Explained != nil:
			out.Body.Nodes = append(out.Body.Nodes, wireNodeExplanation(v, &r.report, r.member.ID))
		case r.ok:
			out.Body.Silent = append(out.Body.Silent, wire.SilentNode{Node: r.member.ID, Why: "it is of a version that can't explain"})
		default:
			out.Body.Silent = append(out.Body.Silent, wire.SilentNode{Node: r.member.ID, Why: "it " + noAnswer(r.err)})
		}
	}
	return out, nil
}

func (s *Server) isMember(id string) bool {
	for _, m := range s.opts.Backend.Members() {
		if m.ID == id {
			return true
		}
	}
	return false
}

func (in *explainInput) packet() (fsm.Packet, error) {
	p := fsm.Packet{SrcPort: uint16(in.SrcPort), DstPort: uint16(in.Port)}
	if in.Src == "" && in.Dst == "" {
		return p, fieldProblem("query", nil, "want src, dst or both; or vm")
	}
	for _, f := range []struct {
		name, text string
		addr       *netip.Addr
	}{{"src", in.Src, &p.Src}, {"dst", in.Dst, &p.Dst}} {
		if f.text == "" {
			continue
		}
		a, err := netip.ParseAddr(f.text)
		if err != nil || a.Zone() != "" {
			return p, fieldProblem("query."+f.name, f.text, "not an IPv4 or IPv6 address")
		}
		*f.addr = a.Unmap()
	}
	if p.Src.IsValid() && p.Dst.IsValid() && p.Src.Is4() != p.Dst.Is4() {
		return p, fieldProblem("query.dst", in.Dst, "no packet goes from an address of one family to one of the other")
	}
	protocol := in.Protocol
	if protocol == "" && (in.Port != 0 || in.SrcPort != 0) {
		protocol = "tcp"
	}
	if protocol == "" {
		return p, nil
	}
	number, known := protocolNames()[protocol]
	if !known {
		n, err := strconv.ParseUint(protocol, 10, 8)
		if err != nil {
			return p, fieldProblem("query.proto", protocol, "want tcp, udp, icmp, icmpv6, sctp, or a protocol number")
		}
		number = uint8(n)
	}
	p.Protocol = number
	return p, nil
}

func wireNodeExplanation(v *fsm.View, r *fsm.Report, node string) wire.NodeExplanation {
	e := r.Explained
	out := wire.NodeExplanation{
		Node: node, Verdict: string(e.Verdict), Why: e.Why, Guards: e.Guards, Applied: r.Applied, Enforced: r.Enforced,
		Holds: []wire.ExplainedHold{},
	}
	for i, h := range e.Holds {
		w := wire.ExplainedHold{
			Block: h.Block, Kind: string(h.Kind), Direction: string(h.Direction), By: h.By, Treats: h.Treats, Decides: i == 0 && h.Treats,
			Started: h.Started, Since: h.Since, Counters: wire.Counters{Packets: h.Packets, Bytes: h.Bytes},
		}
		if b, ok := v.Block(h.Block); ok { // this node may be behind
			block := wireBlock(v, b)
			w.Target, w.Reason = block.Target, block.Reason
		}
		out.Holds = append(out.Holds, w)
	}
	return out
}

// explainVM lists what holds a VM.
func (s *Server) explainVM(ctx context.Context, v *fsm.View, ref string) (wire.Explanation, error) {
	vm, refused := v.ResolveVM("vm", ref)
	if refused != nil {
		return wire.Explanation{}, refusalProblem(refused, sent{"vm": at("query.vm", ref)})
	}
	out := wire.Explanation{VM: vm.ID, GuardedSource: s.guardedSource(ctx, v, vm)}
	note, guarded := v.GuardedVMs()[vm.ID]
	if guarded {
		out.Guards = append(out.Guards, "VM "+vm.ID+": "+note)
	}
	for _, g := range v.GuardedPrefixes() {
		for _, p := range vm.AllAddresses() {
			if !guarded && g.Prefix.Overlaps(p) {
				out.Guards = append(out.Guards, prefixText(g.Prefix)+": "+g.Why)
				break
			}
		}
	}
	blocks := v.Holding(vm)
	ids := make([]string, 0, min(len(blocks), fsm.MaxQueryBlocks))
	for _, b := range blocks[:min(len(blocks), fsm.MaxQueryBlocks)] {
		ids = append(ids, b.ID)
	}
	counters := map[string]wire.Counters{}
	if len(ids) > 0 {
		for _, r := range s.askBlocks(ctx, ids) {
			for id, b := range r.report.Blocks {
				c := counters[id]
				counters[id] = wire.Counters{Packets: c.Packets + b.Packets, Bytes: c.Bytes + b.Bytes}
			}
			if !r.ok {
				out.Silent = append(out.Silent, wire.SilentNode{Node: r.member.ID, Why: "its counters are missing: it did not answer"})
			}
		}
	}
	for _, b := range blocks {
		w := wireBlock(v, b)
		out.Holds = append(out.Holds, wire.ExplainedHold{
			Block: b.ID, Target: w.Target, Reason: w.Reason, Kind: w.Kind, Direction: w.Direction, By: holdsBy(b), Treats: !guarded,
			Since: b.Since(), Counters: counters[b.ID],
		})
	}
	return out, nil
}

// holdsBy says by what of a VM a block holds it.
func holdsBy(b *fsm.Block) string {
	switch t := b.Target; {
	case t.VM != "":
		return "the VM itself"
	case t.Account != "":
		return "its account"
	case t.List != "":
		return "an address in list " + t.List
	default:
		return "an address in " + prefixText(t.Prefix)
	}
}
